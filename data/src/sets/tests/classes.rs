//! Sets with labels.

use serde_json::json;

use super::{fields, labels, outline, read, refused, same_from_windows, write};

#[test]
fn imagenet_takes_the_folder_as_label_and_its_first_name_as_text() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(
        at,
        &[
            ("names.txt", "n02 crane\nn01 tench, Tinca tinca\nn03 crane, derrick\n"),
            ("val/n01/b.JPEG", ""),
            ("val/n01/a.JPEG", ""),
            ("val/n01/notes.txt", ""),
            ("val/n03/c.png", ""),
        ],
    );
    let format = json!({"image_folders": {"images": "val", "names": "names.txt"}});
    let set = read(at, &format);
    let expected = ["n01/a val/n01/a.JPEG", "n01/b val/n01/b.JPEG", "n03/c val/n03/c.png"];
    assert_eq!(outline(at, &set), expected);
    assert_eq!(fields(&set, "label"), ["n01", "n01", "n03"]);
    assert_eq!(labels(&set), [("n01", "tench"), ("n02", "crane"), ("n03", "crane")]);
    same_from_windows(at, &format, "names.txt");
    write(at, &[("names.txt", "n01 a\nn01 b\n")]);
    assert!(refused(at, &format).ends_with("line 2 repeats the id `n01`"));
    write(at, &[("names.txt", "n01\n")]);
    assert!(refused(at, &format).contains("line 1 has no name after the id `n01`"));
}

#[test]
fn something_something_has_labels_without_brackets() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let clips = r#"[{"id": "7", "label": "pushing a cup", "template": "Pushing [something] left",
        "placeholders": ["a cup"]}, {"id": 8, "template": "Folding [something]"}]"#;
    let all =
        r#"{"Folding something": "0", "Pushing something left": "1", "Tearing something": "2"}"#;
    write(at, &[("val.json", clips), ("labels.json", all)]);
    let format = json!({"something_something":
        {"annotations": "val.json", "labels": "labels.json", "videos": "v/{id}.webm"}});
    let set = read(at, &format);
    assert_eq!(outline(at, &set), ["7 v/7.webm", "8 v/8.webm"]);
    assert_eq!(fields(&set, "label"), ["Pushing something left", "Folding something"]);
    assert_eq!(set.labels.len(), 3);
    same_from_windows(at, &format, "val.json");
    write(at, &[("labels.json", r#"{"Folding something": "0"}"#)]);
    assert!(refused(at, &format).contains("`Pushing something left` of the clip 7 is not among"));
}

#[test]
fn kinetics_takes_labels_and_clips_from_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let rows = "label,youtube_id,time_start,time_end,split\n\
                \"riding, a horse\",-abc,3,13,val\nabseiling,xyz,43,53,val\n";
    write(at, &[("val.csv", rows)]);
    let videos = "val/{youtube_id}_{time_start:06}_{time_end:06}.mp4";
    let format = json!({"kinetics": {"annotations": "val.csv", "videos": videos}});
    let set = read(at, &format);
    let expected = ["-abc_3 val/-abc_000003_000013.mp4", "xyz_43 val/xyz_000043_000053.mp4"];
    assert_eq!(outline(at, &set), expected);
    assert_eq!(fields(&set, "label"), ["riding, a horse", "abseiling"]);
    assert_eq!(labels(&set)[0], ("abseiling", "abseiling"));
    same_from_windows(at, &format, "val.csv");
    write(at, &[("val.csv", &rows.replace("time_end", "end"))]);
    assert!(refused(at, &format).contains("no column `time_end`; its columns are label, "));
}

#[test]
fn epic_kitchens_pairs_the_classes_of_verb_and_noun_in_segments() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let header = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,\
                  stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,\
                  all_nouns,all_noun_classes\n";
    let rows = "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.50,1,1,take,take,0,board,1,\
                \"['board', 'tap']\",\"[1, 0]\"\n\
                P01_11_1,P01,P01_11,00:01:00.560,00:01:00.00,01:00:02.00,1,1,on,turn-on,1,tap,0,x,x\n";
    write(
        at,
        &[
            ("val.csv", &format!("{header}{rows}")),
            ("verbs.csv", "id,key,instances,category\n0,take,\"['take']\",r\n1,turn-on,x,a\n"),
            ("nouns.csv", "id,key,instances,category\n0,tap,x,a\n1,board:chopping,x,c\n"),
        ],
    );
    let format = json!({"epic_kitchens": {"annotations": "val.csv", "verbs": "verbs.csv",
        "nouns": "nouns.csv", "videos": "{participant_id}/{video_id}.MP4"}});
    let set = read(at, &format);
    let expected = ["P01_11_0 P01/P01_11.MP4 0-1.5", "P01_11_1 P01/P01_11.MP4 60-3602"];
    assert_eq!(outline(at, &set), expected);
    assert_eq!(fields(&set, "label"), ["take chopping board", "turn on tap"]);
    assert_eq!(set.labels.len(), 2);
    same_from_windows(at, &format, "val.csv");
    write(at, &[("nouns.csv", "id,key\n0,tap\n")]);
    assert!(refused(at, &format).contains("line 2: there is no noun class 1"));
    write(at, &[("nouns.csv", "id,key\n0,tap\n0,cup\n")]);
    assert!(refused(at, &format).contains("line 3 repeats the class 0"));
}

#[test]
fn keysteps_of_ego_exo4d_have_ids_as_labels_and_times_if_they_are_not_cut() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let segments = r#"{"date": "x", "segments": [{"segment_name_list": [], "ego_segment_name": "s1",
        "take_uid": "u", "take_name": "cook_1", "start_time": 1.5, "end_time": 2.5,
        "step_unique_id": 9, "label_id": 3, "step_name": "Get"}]}"#;
    let mapping =
        "label_id,step_unique_id,step_name,scenario_name\n3,9,Get,Cooking\n4,1,Get,Bike\n";
    write(at, &[("val.json", segments), ("map.csv", mapping)]);
    let format = |videos: &str, trimmed: bool| {
        json!({"ego_exo4d_keysteps": {"segments": "val.json", "labels": "map.csv",
            "videos": videos, "trimmed": trimmed}})
    };
    let set = read(at, &format("clips/{ego_segment_name}.*", true));
    assert_eq!(outline(at, &set), ["s1 clips/s1.*"]);
    assert_eq!(fields(&set, "label"), ["3"]);
    assert_eq!(labels(&set), [("3", "Get"), ("4", "Get")]);
    let whole = format("takes/{take_name}/a.mp4", false);
    assert_eq!(outline(at, &read(at, &whole)), ["s1 takes/cook_1/a.mp4 1.5-2.5"]);
    same_from_windows(at, &whole, "map.csv");
    write(at, &[("map.csv", "label_id,step_name\n4,Get\n")]);
    assert!(refused(at, &whole).contains("the label 3 of the segment s1 is not among"));
    write(at, &[("map.csv", "label_id,step_name\n3,Get\n3,Get\n")]);
    assert!(refused(at, &whole).contains("line 3 repeats the label `3`"));
}

#[test]
fn coin_merges_steps_with_equal_texts_and_measures_its_testing_videos() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let coin = r#"{"database": {
        "a1": {"duration": 9.0, "class": "ReplaceSIMCard", "recipe_type": 12, "subset": "testing",
            "annotation": [{"id": "1", "segment": [1.0, 2.0], "label": "open"},
                {"id": "2", "segment": [3, 4.5], "label": "process (crop, fold) paper"}]},
        "b2": {"class": "InstallTV", "recipe_type": 1, "subset": "training",
            "annotation": [{"id": "77", "segment": [0.0, 1.0], "label": "open"},
                {"id": "3", "segment": [0.0, 1.0], "label": "close"}]}}}"#;
    write(at, &[("COIN.json", coin)]);
    let format = |labelled: &str| {
        json!({"coin": {"annotations": "COIN.json", "labelled": labelled,
            "videos": "{recipe_type}/{video_id}.*"}})
    };
    let steps = read(at, &format("steps"));
    assert_eq!(outline(at, &steps), ["a1_0 12/a1.* 1-2", "a1_1 12/a1.* 3-4.5"]);
    assert_eq!(fields(&steps, "label"), ["open", "crop and fold paper"]);
    assert_eq!(steps.labels.keys().collect::<Vec<_>>(), ["close", "crop and fold paper", "open"]);
    let tasks = read(at, &format("tasks"));
    assert_eq!(outline(at, &tasks), ["a1 12/a1.*"]);
    assert_eq!(fields(&tasks, "label"), ["replace SIM card"]);
    assert_eq!(tasks.labels.keys().collect::<Vec<_>>(), ["install TV", "replace SIM card"]);
    same_from_windows(at, &format("steps"), "COIN.json");
    write(at, &[("COIN.json", &coin.replace("b2", "a1").replace("training", "testing"))]);
    assert!(refused(at, &format("tasks")).contains("two samples have the key `a1`"));
}

#[test]
fn cross_task_reads_blocks_of_tasks_and_the_segments_of_each_video() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let tasks = "16815\nGrill Steak\nhttp://x\n2\nseason steak,flip steak\n\n\
                 44047\nMake Bread\nhttp://y\n2\nknead,flip steak\n";
    write(
        at,
        &[
            ("tasks.txt", tasks),
            ("val.csv", "16815,vid1,http://v\n44047,vid2,http://w\n99,vid3,http://z\n"),
            ("ann/16815_vid1.csv", "2,10.5,12\n1,3,4\n"),
            ("ann/44047_vid2.csv", "1,0,1\n"),
        ],
    );
    let format = |labelled: &str| {
        json!({"cross_task": {"tasks": "tasks.txt", "list": "val.csv", "labelled": labelled,
            "segments": "ann/{task}_{video_id}.csv", "videos": "v/{video_id}.*"}})
    };
    let steps = read(at, &format("steps"));
    let expected =
        ["16815_vid1_0 v/vid1.* 10.5-12", "16815_vid1_1 v/vid1.* 3-4", "44047_vid2_0 v/vid2.* 0-1"];
    assert_eq!(outline(at, &steps), expected);
    assert_eq!(fields(&steps, "label"), ["flip steak", "season steak", "knead"]);
    assert_eq!(steps.labels.len(), 3, "a step of two tasks is one label");
    let whole = read(at, &format("tasks"));
    assert_eq!(outline(at, &whole), ["16815_vid1 v/vid1.*", "44047_vid2 v/vid2.*"]);
    assert_eq!(fields(&whole, "label"), ["Grill Steak", "Make Bread"]);
    same_from_windows(at, &format("steps"), "tasks.txt");
    same_from_windows(at, &format("steps"), "ann/16815_vid1.csv");
    write(at, &[("ann/16815_vid1.csv", "3,1,2\n")]);
    assert!(refused(at, &format("steps")).contains("line 1: the task has no step of this number"));
    write(at, &[("tasks.txt", &tasks.replacen("\n2\n", "\n3\n", 1))]);
    assert!(refused(at, &format("tasks")).contains("the task in line 1 has 2 steps, not `3`"));
    write(at, &[("tasks.txt", "1\na\n")]);
    assert!(refused(at, &format("tasks")).contains("line 1 has less than five lines"));
}
