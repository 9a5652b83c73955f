//! Sets of changes and actions.

use serde_json::json;
use vljepa_recipes::schema::Count;

use super::{OpenSet, fields, outline, read, refused, same_from_windows, write};

const SAMPLES: &str = r#"[
  {"id": "q1", "initial": "s/1.jpg", "final": "s/2.jpg", "candidates": ["c/a.mp4", {"video": "c/b.mp4", "start": 1.5, "end": 4}], "answer": 1},
  {"id": 2, "initial": "s/3.jpg", "final": "s/4.jpg", "candidates": ["c/a.mp4", "c/c.mp4", "c/d.mp4"], "answer": 0}
]"#;

#[test]
fn a_question_is_its_two_pictures_and_its_actions() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, &[("samples.json", SAMPLES)]);
    let format = json!({"world_prediction": {"samples": "samples.json"}});
    let set = read(at, &format);
    let expected = [
        "q1/change s/1.jpg",
        "q1/0 c/a.mp4",
        "q1/1 c/b.mp4 1.5-4",
        "2/change s/3.jpg",
        "2/0 c/a.mp4",
        "2/1 c/c.mp4",
        "2/2 c/d.mp4",
    ];
    assert_eq!(outline(at, &set), expected);
    assert_eq!(fields(&set, "item"), ["q1", "q1", "q1", "2", "2", "2", "2"]);
    let second = |set: &OpenSet, index: usize| set.samples[index].visual.clone().unwrap().second;
    assert_eq!((second(&set, 0), second(&set, 1)), (Some(at.join("s/2.jpg")), None));
    let right: Vec<&str> = set
        .samples
        .iter()
        .flat_map(|sample| sample.texts.questions().unwrap())
        .map(|question| question.answer.as_str())
        .collect();
    assert_eq!(right, ["1", "0"]);
    assert_eq!((set.count(Count::Questions), set.files()), (2, 8));
    // Each missing file is named once: four pictures and four clips.
    write(at, &[("s/1.jpg", "a"), ("c/a.mp4", "a")]);
    let (missing, samples) = set.missing();
    assert_eq!((missing.len(), samples), (6, 5), "{missing:?}");
    same_from_windows(at, &format, "samples.json");
    // The identity holds both pictures.
    let before = set.identity();
    write(at, &[("s/2.jpg", "other")]);
    assert_ne!(set.identity(), before);
}

#[test]
fn questions_without_a_right_action_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let format = json!({"world_prediction": {"samples": "samples.json"}});
    for (from, to, reason) in [
        (r#""answer": 0"#, r#""answer": 3"#, "`2`: there is no candidate 3, counted from 0"),
        (r#"["c/a.mp4", "c/c.mp4", "c/d.mp4"]"#, r#"["c/a.mp4"]"#, "fewer than two candidates"),
        (r#""start": 1.5"#, r#""start": 5"#, "candidate 1 ends at 4 s, before its start at 5 s"),
        (r#""id": 2"#, r#""id": "q1""#, "two samples have the key `q1/change`"),
        (r#""video""#, r#""clip""#, "`q1`: candidate 1: unknown field `clip`"),
        ("c/a.mp4", "../a.mp4", "`../a.mp4` is not a path below the folder of the set"),
        (r#""final""#, r#""last""#, "cannot be parsed"),
    ] {
        write(at, &[("samples.json", &SAMPLES.replacen(from, to, 1))]);
        let said = refused(at, &format);
        assert!(said.contains(reason), "{said}");
    }
}
