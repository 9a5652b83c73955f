//! Sets with annotations of long videos.

use serde_json::json;
use vljepa_recipes::schema::Count;

use super::{OpenSet, outline, read, refused, same_from_windows, write};

fn annotations(set: &OpenSet) -> Vec<Vec<(f64, &str)>> {
    let of_sample = set.samples.iter().map(|sample| sample.texts.annotations().unwrap());
    of_sample.map(|all| all.iter().map(|it| (it.t, it.text.as_str())).collect()).collect()
}

const TAKES: &str = r#"[
    {"take_uid": "u1", "take_name": "cook_1", "root_dir": "takes/cook_1", "duration_sec": 9.5,
     "parent_task_name": "Cooking", "is_dropped": false, "best_exo": "cam01",
     "frame_aligned_videos": {"best_exo": null, "collage": {"0": {"relative_path": "f/collage.mp4"}},
        "cam01": {"0": {"relative_path": "f/cam01.mp4"}},
        "aria01": {"slam-left": {"relative_path": "f/aria01_1201-1.mp4"},
                   "rgb": {"relative_path": "f/aria01_214-1.mp4"}}}},
    {"take_uid": "u2", "take_name": "bike_2", "root_dir": "takes/bike_2",
     "parent_task_name": "Bike Repair", "frame_aligned_videos":
        {"aria03": {"rgb": {"relative_path": "f/aria03_214-1.mp4"}}}},
    {"take_uid": "u3", "take_name": "ball_3", "root_dir": "takes/ball_3",
     "parent_task_name": "Basketball"},
    {"take_uid": "u4", "take_name": "cook_4", "root_dir": "takes/cook_4",
     "parent_task_name": "Cooking", "is_dropped": true},
    {"take_uid": "u5", "take_name": "odd_5", "root_dir": "takes/odd_5", "parent_task_name": null}]"#;

const DESCRIPTIONS: &str = r#"{"ds": "x", "take_cam_id_map": {}, "annotations": {
    "u2": [{"annotation_uid": "a", "annotator_id": "b", "rejected": false, "descriptions": [
            {"text": "C turns the wheel.", "timestamp": 4.5, "subject": "C", "ego_visible": true,
             "best_exo": {}, "unsure": false},
            {"text": " C lifts a tyre ", "timestamp": 2, "unsure": true}]},
        {"annotator_id": "c", "descriptions": [
            {"text": "C turns the wheel.", "timestamp": 4.5},
            {"text": "C turns the wheel.", "timestamp": 5.5},
            {"text": "", "timestamp": 6}, {"text": "C rests", "timestamp": NaN}]},
        {"annotator_id": "d", "rejected": true, "descriptions": [
            {"text": "nonsense", "timestamp": 3}]}],
    "u1": [{"descriptions": [{"text": "C cuts", "timestamp": 0.25}]}],
    "u3": [{"descriptions": [{"text": "C jumps", "timestamp": 1}]}],
    "u4": [{"descriptions": [{"text": "C cuts", "timestamp": 1}]}],
    "u5": [{"descriptions": [{"text": "C waits", "timestamp": 1}]}]}}"#;

#[test]
fn descriptions_of_ego_exo4d_are_those_of_the_passes_that_were_not_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, &[("takes.json", TAKES), ("val.json", DESCRIPTIONS)]);
    let format = |tasks: &[&str]| {
        json!({"ego_exo4d_descriptions": {"descriptions": "val.json", "takes": "takes.json",
            "tasks": tasks, "videos": "{root_dir}/448/{ego}"}})
    };
    let procedural = format(&["Cooking", "Bike Repair"]);
    let set = read(at, &procedural);
    let expected = ["u2 takes/bike_2/448/aria03_214-1.mp4", "u1 takes/cook_1/448/aria01_214-1.mp4"];
    assert_eq!(outline(at, &set), expected);
    let turns = "C turns the wheel.";
    assert_eq!(
        annotations(&set),
        [vec![(2.0, "C lifts a tyre"), (4.5, turns), (5.5, turns)], vec![(0.25, "C cuts")]]
    );
    assert_eq!((set.count(Count::Samples), set.count(Count::Annotations)), (2, 4));
    assert_eq!(set.missing().1, 2, "the videos are missing, and the samples stay in the list");
    same_from_windows(at, &procedural, "takes.json");
    same_from_windows(at, &procedural, "val.json");

    let error = refused(at, &format(&["Cooking", "Bikes"]));
    let said = "no take has the `parent_task_name` `Bikes`; there are Basketball, Bike Repair, Coo";
    assert!(error.contains(said), "{error}");
    let error = refused(at, &format(&["Basketball"]));
    assert!(error.contains("the take ball_3 has no rgb video of an aria camera"), "{error}");
    write(at, &[("val.json", &DESCRIPTIONS.replace("\"u5\"", "\"u6\""))]);
    assert!(refused(at, &procedural).contains("the take u6 is not in the takes"));
    write(at, &[("val.json", &DESCRIPTIONS.replace("\"annotations\"", "\"videos\""))]);
    assert!(refused(at, &procedural).contains("missing field `annotations`"));
}
