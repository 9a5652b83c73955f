//! Tests of the narrations of Ego4D. The expected times are worked out by hand from EgoVLP's rule.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Ego4d, Ego4dOptions, Ego4dPart};
use crate::prepare::item::Visual;
use crate::prepare::sets::testing::{Given, all, outline, touch};
use crate::storage::Storage;

fn narration(time: f64, text: &str) -> Value {
    json!({"timestamp_sec": time, "timestamp_frame": 9, "narration_text": text, "annotation_uid": "u"})
}

fn passes(first: &Value, second: &Value) -> Value {
    let pass = |narrations: &Value| {
        json!({"summaries": [{"start_sec": 0.0, "summary_text": "#Summary C cooks"}],
            "narrations": narrations})
    };
    json!({"status": "complete", "narration_pass_1": pass(first), "narration_pass_2": pass(second)})
}

/// Opens a file with this content, and the videos `one.mp4` and `two.mp4`.
fn set(folder: &Path, narrations: &str) -> Ego4d {
    let path = folder.join("narration.json");
    fs::write(&path, narrations).unwrap();
    for name in ["one.mp4", "two.mp4"] {
        touch(&folder.join("videos").join(name));
    }
    let options = Ego4dOptions::new(path.display().to_string(), folder.join("videos"));
    Ego4d::open(&Storage::default(), &options).unwrap()
}

fn read(set: &Ego4d, items: usize) -> Vec<Given> {
    let parts = set.parts(items).unwrap();
    let written = serde_json::to_string(&parts).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Ego4dPart>>(&written).unwrap(), parts);
    all(&parts, |part, give| set.read(part, give))
}

/// What one narration gives.
fn one(narration: &Value) -> Given {
    let folder = tempfile::tempdir().unwrap();
    let narrations = json!({"one": passes(&json!([narration]), &Value::Null)}).to_string();
    let mut given = read(&set(folder.path(), &narrations), 10);
    assert_eq!(given.len(), 1);
    given.remove(0)
}

fn seconds(given: &Given) -> (f64, f64) {
    match &given.as_ref().unwrap().visual {
        Visual::Clip { seconds: Some(seconds), .. } => (seconds.start, seconds.end),
        other => panic!("{other:?}"),
    }
}

fn assert_near(found: (f64, f64), expected: (f64, f64)) {
    let near = (found.0 - expected.0).abs() < 1e-9 && (found.1 - expected.1).abs() < 1e-9;
    assert!(near, "{found:?} is not {expected:?}");
}

#[test]
fn narrations_of_both_passes_become_clips_around_their_times() {
    let folder = tempfile::tempdir().unwrap();
    // The gaps of the first pass are 4.9 and 14.7 s, so β is 9.8 s and a clip lasts 2 s. The gap
    // of the second pass is 2.45 s, so its clips last half a second.
    let first = json!([
        narration(20.0, "#C C stirs coffee"),
        narration(0.4, "#C C lifts a spoon\n"),
        narration(5.3, "#O A man X nods."),
    ]);
    let second = json!([narration(7.55, "C turns"), narration(10.0, "#c  C looks around")]);
    let narrations = json!({"one": passes(&first, &second)}).to_string();
    let set = set(folder.path(), &narrations);
    let given = read(&set, 100);
    let expected = [
        ("one-1-00001", "C stirs coffee", (19.0, 21.0)),
        ("one-1-00002", "C lifts a spoon", (0.0, 1.4)),
        ("one-1-00003", "A man X nods.", (4.3, 6.3)),
        ("one-2-00001", "C turns", (7.3, 7.8)),
        ("one-2-00002", "C looks around", (9.75, 10.25)),
    ];
    assert_eq!(given.len(), expected.len());
    for (item, (key, caption, times)) in given.iter().zip(expected) {
        assert_near(seconds(item), times);
        let item = item.as_ref().unwrap();
        assert_eq!((&*item.key, item.caption.as_deref()), (key, Some(caption)));
    }
    let third = given[2].as_ref().unwrap();
    assert_eq!(third.json["narration_text"], "#O A man X nods.");
    assert_eq!(third.json["annotation_uid"], "u");
    assert_eq!(third.json["video_uid"], "one");
    assert_eq!(third.json["narration_pass"], 1);
    assert_eq!(third.json["timestamp_sec"], 5.3);
    assert_eq!(third.json["clip_end"], json!(seconds(&given[2]).1));
}

/// The first row of EgoClip, from EgoVLP's README: time 3.3445, clip 2.967651 to 3.721266. Its
/// length is β/α, so the average gap of the video is 3.6927135 s.
#[test]
fn a_row_of_egoclip_is_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let (time, beta) = ((2.967_651 + 3.721_266) / 2.0, 4.9 * (3.721_266 - 2.967_651));
    let picks = "#C C picks a bag of clothes from the floor";
    let pass = json!([narration(time, picks), narration(time + beta, "#C C walks")]);
    let narrations = json!({"one": passes(&pass, &json!([]))}).to_string();
    let given = read(&set(folder.path(), &narrations), 100);
    assert_near(seconds(&given[0]), (2.967_651, 3.721_266));
    assert_eq!(
        given[0].as_ref().unwrap().caption.as_deref(),
        Some("C picks a bag of clothes from the floor")
    );
}

#[test]
fn a_pass_without_gaps_has_clips_of_one_second() {
    assert_near(seconds(&one(&narration(7.0, "#C C walks"))), (6.5, 7.5));
    assert_near(seconds(&one(&narration(0.0, "#C C walks"))), (0.0, 0.5));
}

#[test]
fn narrations_that_cannot_be_used_are_left_out_with_their_class() {
    for (narration, class, said) in [
        (narration(1.0, "#C C holds #unsure in her hand"), "unsure", "#unsure"),
        (narration(1.0, "#C C holds #Unsure"), "unsure", ""),
        (narration(1.0, "#C C"), "no text", "`#C C` describes nothing"),
        (narration(1.0, "#C"), "no text", ""),
        (narration(1.0, " "), "no text", ""),
        (narration(-1.0, "#C C walks"), "bad times", "-1 s"),
        (
            json!({"timestamp_sec": "1", "narration_text": "#C C walks"}),
            "broken record",
            "not a number",
        ),
        (
            json!({"timestamp_sec": null, "narration_text": "#C C walks"}),
            "broken record",
            "no `timestamp_sec`",
        ),
        (json!({"narration_text": "#C C walks"}), "broken record", "no `timestamp_sec`"),
        (json!({"timestamp_sec": 1.0}), "broken record", "`narration_text`"),
        (json!({"timestamp_sec": 1.0, "narration_text": 3}), "broken record", "`narration_text`"),
        (json!("#C C walks"), "broken record", "not an object"),
    ] {
        let left_out = one(&narration).unwrap_err();
        assert_eq!(left_out.class, class, "{narration}: {left_out:?}");
        assert!(left_out.reason.contains(said), "{narration}: {left_out:?}");
        assert_eq!(left_out.item, "video one, pass 1, narration 1");
    }
}

#[test]
fn videos_that_cannot_be_used_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let good = json!([narration(1.0, "#C C walks"), narration(2.0, "#C C sits")]);
    let one = passes(&good, &json!([]));
    let text = format!(
        "{{\"one\": {one}, \"three\": {one}, \"../one\": {one}, \"a\": [], \"b\": {{}}, \
         \"c\": {{\"narration_pass_1\": []}}, \"d\": {{\"narration_pass_2\": {{\"narrations\": {{}}}}}}, \
         \"e\": {{x}}, \"f\": {{\"narration_pass_1\": null, \"narration_pass_2\": {{}}}}, \"two\": {one}}}"
    );
    let set = set(folder.path(), &text);
    let whole = read(&set, 100);
    let expected = [
        "one-1-00001",
        "one-1-00002",
        "video three, pass 1, narration 1: no video",
        "video three, pass 1, narration 2: no video",
        "video ../one, pass 1, narration 1: bad path",
        "video ../one, pass 1, narration 2: bad path",
        "video a: broken record",
        "video b: no text",
        "video c: broken record",
        "video d: broken record",
        "video e: broken record",
        "video f: no text",
        "two-1-00001",
        "two-1-00002",
    ];
    assert_eq!(outline(&whole), expected);
    for items in [0, 1, 3, 4] {
        assert_eq!(read(&set, items), whole, "{items}");
    }
    // A summary counts as a narration: each video with passes has four objects.
    assert_eq!(set.parts(4).unwrap().len(), 5);
}

#[test]
fn a_file_that_is_cut_or_changes_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let pass = json!([narration(1.0, "#C C walks"), narration(2.0, "#C C sits")]);
    let whole = json!({"one": passes(&pass, &pass), "two": passes(&pass, &pass)}).to_string();
    for length in (1..whole.len()).step_by(7) {
        let set = set(folder.path(), &whole[..length]);
        let error = set.parts(1).unwrap_err().to_string();
        assert!(error.contains("narration.json"), "{length}: {error}");
    }
    let set = set(folder.path(), &whole);
    let parts = set.parts(1).unwrap();
    fs::write(folder.path().join("narration.json"), "{}").unwrap();
    let error = set.read(&parts[0], &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("narration.json") && error.contains("changed"), "{error}");
}

#[test]
fn options_that_cannot_be_used_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let narrations = folder.path().join("narration.json");
    fs::write(&narrations, "{}").unwrap();
    let good = Ego4dOptions::new(narrations.display().to_string(), folder.path());
    let open = |options: &Ego4dOptions| {
        Ego4d::open(&Storage::default(), options).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(open(&good), Ok(()));
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(open(&Ego4dOptions { alpha, ..good.clone() }).unwrap_err().contains("alpha is"));
    }
    let missing = Ego4dOptions { videos: "/none".into(), ..good.clone() };
    assert!(open(&missing).unwrap_err().contains("/none"));
    fs::write(&narrations, "<!DOCTYPE html>").unwrap();
    assert!(open(&good).unwrap_err().contains("HTML"));
}
