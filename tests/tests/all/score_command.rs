//! The command `vljepa-launch score`, on files of captions.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::programs::{command, text};

const HYPOTHESES: &str = "a man rides a horse\na dog runs\n\n";
const FIRST: &str = "A man is riding a horse.\nThe dog runs.\nA cat sleeps.\n";
const SECOND: &str = "someone rides a brown horse\n\na cat\n";

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn score(metric: &str, files: &[&Path]) -> Output {
    command("vljepa-launch").args(["score", metric, "--json"]).args(files).output().unwrap()
}

fn json(metric: &str, files: &[&Path]) -> Value {
    let output = score(metric, files);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn lines_and_json_of_the_same_captions_have_the_same_scores() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| write(folder.path(), name, content);
    let lines = [write("h.txt", HYPOTHESES), write("a.txt", FIRST), write("b.txt", SECOND)];
    let lines: Vec<&Path> = lines.iter().map(PathBuf::as_path).collect();
    let found = json("all", &lines);
    assert_eq!(found["n"], 3);
    assert!(found["cider"].as_f64().unwrap() > 1.0, "{found}");
    assert!(found["bleu4"].as_f64().unwrap() < found["rouge_l"].as_f64().unwrap(), "{found}");
    let one = json("cider", &lines);
    assert_eq!((&one["cider"], one.get("bleu4")), (&found["cider"], None));

    // Windows' line ends, a byte order mark and no last line end change nothing.
    let other = write("crlf.txt", &format!("\u{feff}{}", FIRST.trim_end().replace('\n', "\r\n")));
    assert_eq!(json("all", &[lines[0], &other, lines[2]]), found);

    let results = r#"[{"image_id": 7, "caption": "a man rides a horse"},
        {"image_id": "x", "caption": "a dog runs"}, {"image_id": 9, "caption": ""}]"#;
    let annotations = r#"{"images": [{"id": 7}], "annotations": [
        {"image_id": 7, "id": 1, "caption": "A man is riding a horse."},
        {"image_id": "x", "id": 2, "caption": "The dog runs."},
        {"image_id": 9, "id": 3, "caption": "A cat sleeps."},
        {"image_id": 7, "id": 4, "caption": "someone rides a brown horse"},
        {"image_id": 9, "id": 5, "caption": "a cat"}]}"#;
    let (results, references) = (write("r.json", results), write("a.json", annotations));
    assert_eq!(json("all", &[&results, &references]), found);
    let wrong = json("all", &[lines[1], lines[0], lines[2]]);
    assert_ne!(wrong["cider"], found["cider"]);
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| write(folder.path(), name, content);
    let lines = write("h.txt", HYPOTHESES.as_bytes());
    let results = write("r.json", br#"[{"image_id": 1, "caption": "a"}]"#);
    for (hypotheses, name, content, said) in [
        (&lines, "short.txt", &b"a\nb\n"[..], "short.txt has 2 lines, but"),
        (&lines, "blank.txt", b"a\n\nb\n", "line 2 is empty in all files"),
        (&lines, "empty.txt", b"", "is empty (0 bytes)"),
        (&lines, "packed.gz", b"\x1f\x8b\x08\0", "is gzip-compressed; decompress it"),
        (&lines, "latin.txt", b"a\ncaf\xe9\nb\n", "line 2 of"),
        (&lines, "other.json", b"[]", "other.json is JSON, but"),
        (&lines, "broken.json", b"[", "broken.json does not parse"),
        (&results, "ids.json", br#"[{"image_id": 2, "caption": "a"}]"#, "image_id 1 in"),
        (&results, "no.json", br#"{"images": []}"#, "has no list `annotations`"),
        (&results, "form.json", br#"[{"id": 1, "caption": "a"}]"#, "missing field `image_id`"),
    ] {
        let file = write(name, content);
        let output = score("cider", &[hypotheses, &file]);
        let said_of = text(&output).replace("\n  │ ", " ");
        assert_eq!(output.status.code(), Some(2), "{said_of}");
        assert!(said_of.contains(said), "{name}: {said_of}");
    }
    let twice = write(
        "twice.json",
        br#"[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]"#,
    );
    let output = score("cider", &[&twice, &results]);
    assert!(text(&output).contains("image_id 1 more than once"), "{}", text(&output));
    let missing = folder.path().join("missing.txt");
    let output = score("cider", &[&lines, &missing]);
    assert!(text(&output).contains("missing.txt: No such file"), "{}", text(&output));
}
