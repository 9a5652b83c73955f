//! Tests of the conversations of PLM. The expected questions and answers are written by hand, by
//! the rules of PLM's `core/data/conversation.py`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Plm, PlmOptions, PlmPart};
use crate::prepare::item::{MediaSource, Visual};
use crate::prepare::sets::testing::{Given, all, clip, outline, touch};
use crate::storage::Storage;

/// A registry with the data sets `a` and `b`, whose annotations have these lines.
fn registry(folder: &Path, a: &[String], b: &[String]) -> PlmOptions {
    let media = folder.join("media");
    for name in ["1.jpg", "2.png", "deep/3.jpg", "v.mp4"] {
        touch(&media.join(name));
    }
    let mut registry = String::new();
    for (name, lines) in [("b", b), ("a", a)] {
        let path = folder.join(format!("{name}.jsonl"));
        fs::write(&path, lines.concat()).unwrap();
        let (path, media) = (path.display(), media.display());
        registry += &format!("{name}:\n    annotation: {path}\n    root_dir: {media}\n");
    }
    let path = folder.join("datasets.yaml");
    fs::write(&path, registry).unwrap();
    PlmOptions { registry: path.display().to_string(), datasets: Vec::new() }
}

fn line(record: &Value) -> String {
    format!("{record}\n")
}

fn human(text: &str) -> Value {
    json!({"from": "human", "value": text})
}

fn assistant(text: &str) -> Value {
    json!({"from": "assistant", "value": text})
}

fn open(options: &PlmOptions) -> Plm {
    Plm::open(&Storage::default(), options).unwrap()
}

fn read(options: &PlmOptions, items: usize) -> Vec<Given> {
    let set = open(options);
    let parts = set.parts(items).unwrap();
    let written = serde_json::to_string(&parts).unwrap();
    assert_eq!(serde_json::from_str::<Vec<PlmPart>>(&written).unwrap(), parts);
    all(&parts, |part, give| set.read(part, give))
}

/// What one record gives in the data set `a`.
fn one(record: &Value) -> (tempfile::TempDir, Vec<Given>) {
    let folder = tempfile::tempdir().unwrap();
    let given = read(&registry(folder.path(), &[line(record)], &["{}\n".to_owned()]), 10);
    (
        folder,
        given.into_iter().filter(|item| !matches!(item, Err(e) if e.item == "b line 1")).collect(),
    )
}

#[test]
fn each_answer_becomes_a_sample_with_its_question_and_the_fields_of_its_line() {
    let (folder, given) = one(&json!({
        "image": "1.jpg", "id": 7, "source": "x",
        "conversations": [human("<image>\nWhat is it?"), assistant(" A cup.\n"),
            human("How many?"), {"from": "assistant", "value": 3}],
    }));
    let items: Vec<_> = given.into_iter().map(Result::unwrap).collect();
    let picture = MediaSource::File(folder.path().join("media/1.jpg"));
    for (item, (key, question, answer)) in items
        .iter()
        .zip([("a-00000001-001", "What is it?", "A cup."), ("a-00000001-002", "How many?", "3")])
    {
        assert_eq!(item.key, key);
        assert_eq!(item.visual, Visual::Picture(picture.clone()));
        assert_eq!(item.caption, None);
        let json = json!({"image": "1.jpg", "id": 7, "source": "x",
            "questions": [{"question": question, "answer": answer}]});
        assert_eq!(Value::Object(item.json.clone()), json);
    }
    assert_eq!(items.len(), 2);
}

#[test]
fn tags_of_media_are_removed_with_one_line_break() {
    for (value, question) in [
        ("<image>\nWhat?", "What?"),
        ("What?\n<image>", "What?"),
        ("Is <image> it?", "Is  it?"),
        ("<video>\n<video>\nWhat?", "What?"),
        ("a\n<image>\nb", "a\nb"),
        ("What?", "What?"),
        ("<image>", ""),
    ] {
        let (_folder, given) =
            one(&json!({"image": "1.jpg", "conversations": [human(value), assistant("x")]}));
        let item = given[0].as_ref().unwrap();
        assert_eq!(item.json["questions"][0]["question"], question, "{value:?}");
    }
}

#[test]
fn pictures_and_parts_of_videos_are_named_by_their_files() {
    let file = |folder: &Path, name: &str| MediaSource::File(folder.join("media").join(name));
    let visual = |media: Value| {
        let mut record = json!({"conversations": [human("q"), assistant("a")]});
        record.as_object_mut().unwrap().extend(media.as_object().unwrap().clone());
        let (folder, given) = one(&record);
        (folder.path().to_owned(), given[0].as_ref().unwrap().visual.clone())
    };
    let (folder, many) = visual(json!({"image": ["1.jpg", "./deep/3.jpg"]}));
    let pictures = vec![file(&folder, "1.jpg"), file(&folder, "./deep/3.jpg")];
    assert_eq!(many, Visual::Pictures(pictures));
    let (folder, one_of_list) = visual(json!({"image": ["2.png"], "video": "v.mp4"}));
    assert_eq!(one_of_list, Visual::Picture(file(&folder, "2.png")));
    let path = |folder: PathBuf| folder.join("media/v.mp4");
    let (folder, whole) = visual(json!({"video": "v.mp4", "image": null, "start_time": null}));
    assert_eq!(whole, clip(&path(folder), None));
    let (folder, part) = visual(json!({"video": "v.mp4", "start_time": 2, "end_time": 4.5}));
    assert_eq!(part, clip(&path(folder), Some(2.0..4.5)));
    let (folder, from) = visual(json!({"video": "v.mp4", "start_time": 2.5}));
    assert_eq!(from, clip(&path(folder), Some(2.5..f64::INFINITY)));
    let (folder, until) = visual(json!({"video": "v.mp4", "end_time": 2.5}));
    assert_eq!(until, clip(&path(folder), Some(0.0..2.5)));
}

#[test]
fn a_text_without_a_conversation_is_a_caption() {
    let (_folder, given) = one(&json!({"image": "1.jpg", "text": " A cup. "}));
    let item = given[0].as_ref().unwrap();
    assert_eq!((item.caption.as_deref(), item.json.get("questions")), (Some("A cup."), None));
}

#[test]
fn messages_are_paired_as_plm_pairs_them() {
    for (conversation, outlined) in [
        // Messages of the assistant before the first question are skipped.
        (json!([assistant("Hello."), human("q"), assistant("a")]), &["a-00000001-001"][..]),
        (
            json!([human("q"), human("r"), assistant("a")]),
            &["a line 1, answer 1: no text", "a-00000001-002"],
        ),
        (
            json!([human("q"), assistant("a"), assistant("b")]),
            &["a-00000001-001", "a line 1, answer 2: broken record"],
        ),
        (
            json!([human("q"), assistant("a"), human("r")]),
            &["a-00000001-001", "a line 1, answer 2: no text"],
        ),
        (json!([human("q"), assistant(" ")]), &["a line 1, answer 1: no text"]),
        (json!([human("q"), {"from": "assistant"}]), &["a line 1, answer 1: no text"]),
        (json!([assistant("a")]), &["a line 1: no text"]),
        (json!([]), &["a line 1: no text"]),
        (json!([human("q"), {"from": "gpt", "value": "a"}]), &["a line 1: broken record"]),
        (json!([human("q"), {"value": "a"}]), &["a line 1: broken record"]),
        (json!([{"from": "human", "value": 3}, assistant("a")]), &["a line 1: broken record"]),
        (json!(["q", "a"]), &["a line 1: broken record"]),
        (json!("q"), &["a line 1: broken record"]),
        (json!(null), &["a line 1: broken record"]),
    ] {
        let (_folder, given) = one(&json!({"image": "1.jpg", "conversations": conversation}));
        assert_eq!(outline(&given), outlined, "{conversation}");
    }
}

#[test]
fn records_that_cannot_be_used_are_left_out_once_with_their_class() {
    for (media, class, said) in [
        (json!({}), "text only", "neither `image` nor `video`"),
        (json!({"image": null}), "text only", ""),
        (json!({"image": "1.jpg", "bbox": [1, 2, 3, 4]}), "region", "`bbox`"),
        (json!({"video": "v.mp4", "bbox_map": {}}), "region", "`bbox_map`"),
        (json!({"image": "4.jpg"}), "no picture", "media/4.jpg"),
        (json!({"image": ["1.jpg", "4.jpg"]}), "no picture", "media/4.jpg"),
        (json!({"image": "deep"}), "no picture", "media/deep"),
        (json!({"video": "w.mp4"}), "no video", "media/w.mp4"),
        (json!({"image": "../media/1.jpg"}), "bad path", "`../media/1.jpg` is not a path below"),
        (json!({"image": "deep/../../x.jpg"}), "bad path", ""),
        (json!({"video": "/etc/passwd"}), "bad path", "`/etc/passwd`"),
        (json!({"image": ""}), "bad path", ""),
        (json!({"image": "a\u{0}b"}), "bad path", ""),
        (json!({"image": []}), "broken record", "empty list"),
        (json!({"image": [3]}), "broken record", "neither a path"),
        (json!({"image": {"bytes": ""}}), "broken record", "neither a path"),
        (json!({"video": ["v.mp4"]}), "broken record", "not a path"),
        (json!({"video": "v.mp4", "start_time": 4, "end_time": 2}), "bad times", "from 4 s to 2 s"),
        (json!({"video": "v.mp4", "start_time": 4, "end_time": 4}), "bad times", ""),
        (json!({"video": "v.mp4", "start_time": -1, "end_time": 4}), "bad times", "from -1 s"),
        (
            json!({"video": "v.mp4", "start_time": "1"}),
            "broken record",
            "`start_time` is not a number",
        ),
    ] {
        let turns = json!([human("q"), assistant("a"), human("r"), assistant("b")]);
        let mut record = json!({"conversations": turns});
        record.as_object_mut().unwrap().extend(media.as_object().unwrap().clone());
        let (_folder, given) = one(&record);
        let left_out = given[0].as_ref().unwrap_err();
        assert_eq!((given.len(), left_out.class), (1, class), "{media}: {left_out:?}");
        assert!(left_out.reason.contains(said), "{media}: {left_out:?}");
        assert_eq!(left_out.item, "a line 1");
    }
}

#[test]
fn parts_of_any_size_give_the_same_items() {
    let folder = tempfile::tempdir().unwrap();
    let record = |number: usize| {
        let turns = (0..number % 4 + 1).flat_map(|turn| [human("q"), assistant(&turn.to_string())]);
        line(
            &json!({"image": "1.jpg", "number": number, "conversations": turns.collect::<Vec<_>>()}),
        )
    };
    let mut a: Vec<String> = (0..20).map(record).collect();
    a.insert(5, "\n".to_owned());
    a.insert(9, "{\"image\": \n".to_owned());
    let options = registry(folder.path(), &a, &[record(3)]);
    let whole = read(&options, usize::MAX);
    assert_eq!(whole.len(), 50 + 1 + 4);
    assert_eq!(outline(&whole)[..3], ["a-00000001-001", "a-00000002-001", "a-00000002-002"]);
    assert!(outline(&whole).contains(&"a line 10: broken record".to_owned()));
    assert_eq!(outline(&whole)[54], "b-00000001-004");
    for items in [0, 1, 7, 50] {
        assert_eq!(read(&options, items), whole, "{items}");
    }
    let sizes = |items| {
        let set = open(&options);
        let parts = set.parts(items).unwrap();
        parts
            .iter()
            .map(|part| all(std::slice::from_ref(part), |part, give| set.read(part, give)).len())
            .collect::<Vec<_>>()
    };
    assert_eq!(sizes(1000), [51, 4]);
    assert!(sizes(10).iter().all(|size| *size <= 13), "{:?}", sizes(10));
    let only_b = PlmOptions { datasets: vec!["b".to_owned()], ..options };
    assert_eq!(read(&only_b, 5), whole[51..]);
}

#[test]
fn an_annotation_file_that_changes_after_it_was_opened_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let options = registry(folder.path(), &[line(&json!({}))], &[line(&json!({}))]);
    let set = open(&options);
    let parts = set.parts(10).unwrap();
    fs::write(folder.path().join("a.jsonl"), line(&json!({"longer": 1}))).unwrap();
    for error in [set.parts(10).unwrap_err(), set.read(&parts[0], &mut |_| Ok(())).unwrap_err()] {
        let error = error.to_string();
        assert!(error.contains("a.jsonl") && error.contains("changed"), "{error}");
    }
}

#[test]
fn a_registry_that_cannot_be_used_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let good = registry(folder.path(), &[line(&json!({}))], &[line(&json!({}))]);
    let text = fs::read_to_string(&good.registry).unwrap();
    let lfs = folder.path().join("lfs.jsonl");
    fs::write(&lfs, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let annotation = folder.path().join("a.jsonl").display().to_string();
    for (registry, datasets, said) in [
        (text.clone(), vec!["c"], "it has no data set `c`"),
        (text.clone(), vec!["a", "a"], "named twice"),
        (text.replace("root_dir", "root"), vec![], "unknown field"),
        ("a: {annotation: x.jsonl}".to_owned(), vec![], "root_dir"),
        ("a: [".to_owned(), vec![], "a data set is `name:"),
        ("3".to_owned(), vec![], "a data set is `name:"),
        (String::new(), vec![], "datasets.yaml"),
        ("{}".to_owned(), vec![], "names no data set"),
        (text.replace("a:\n", "a.b:\n"), vec![], "`a.b` cannot be part of a key"),
        (text.replace("/media", "/none"), vec![], "is not a folder"),
        (text.replace("a.jsonl", "none.jsonl"), vec![], "none.jsonl: No such file"),
        (text.replace("a.jsonl", "lfs.jsonl"), vec![], "git lfs pull"),
        (format!("a: &a [*a, {annotation}]"), vec![], "datasets.yaml"),
    ] {
        fs::write(&good.registry, &registry).unwrap();
        let datasets = datasets.into_iter().map(str::to_owned).collect();
        let options = PlmOptions { datasets, ..good.clone() };
        let error = Plm::open(&Storage::default(), &options).unwrap_err().to_string();
        assert!(error.contains(said), "{registry}: {error}");
    }
    let missing = PlmOptions { registry: "/none/x.yaml".to_owned(), datasets: vec![] };
    let error = Plm::open(&Storage::default(), &missing).unwrap_err().to_string();
    assert!(error.contains("/none/x.yaml"), "{error}");
}
