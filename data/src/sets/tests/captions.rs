//! Sets with captions.

use serde_json::json;

use super::{OpenSet, outline, read, refused, same_from_windows, write};

fn captions(set: &OpenSet) -> Vec<Vec<&str>> {
    set.samples.iter().map(|sample| sample.texts.captions().unwrap()).collect()
}

#[test]
fn a_table_of_captions_names_clips_by_its_columns() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let rows = "key,vid_key,video_id,sentence\nret0,msr9770,video9770,\"a man, walking\"\n\
                ret1,msr9771,video9771,a dog \n";
    write(at, &[("test.csv", rows)]);
    let format = json!({"caption_table": {"table": "test.csv", "caption": "sentence",
        "videos": "v/{video_id}.*"}});
    let set = read(at, &format);
    assert_eq!(outline(at, &set), ["video9770 v/video9770.*", "video9771 v/video9771.*"]);
    assert_eq!(captions(&set), [["a man, walking"], ["a dog"]]);
    assert!(set.labels.is_empty());
    same_from_windows(at, &format, "test.csv");
    write(at, &[("test.csv", &rows.replace("video9771", "video9770"))]);
    assert!(refused(at, &format).contains("two samples have the key `video9770`"));
    write(at, &[("test.csv", &rows.replace("a dog ", " "))]);
    assert!(refused(at, &format).contains("line 3: a caption is empty"));
    let unknown = json!({"caption_table": {"table": "test.csv", "caption": "sentence",
        "videos": "v/{name}.*"}});
    write(at, &[("test.csv", rows)]);
    assert!(refused(at, &unknown).contains("`{name}` is no field of the annotations"));
}

#[test]
fn a_cell_may_hold_several_captions_and_a_row_the_times_of_its_clip() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    write(at, &[("msvd.csv", "video_id,sentence\nabc_1_2,a cat@a kitten plays@a cat\n")]);
    let msvd = json!({"caption_table": {"table": "msvd.csv", "caption": "sentence",
        "separator": "@", "videos": "{video_id}.avi"}});
    let set = read(at, &msvd);
    assert_eq!(captions(&set), [["a cat", "a kitten plays", "a cat"]]);
    assert_eq!(set.samples[0].texts.caption(), Ok(Some("a cat")));

    let rows = "end,start,task,text,video_id\n10,5.5,226,cut the tofu,xyz\n20,10,226,fry it,xyz\n";
    write(at, &[("cook.csv", rows)]);
    let format = json!({"caption_table": {"table": "cook.csv", "caption": "text",
        "key": ["video_id", "start"], "seconds": ["start", "end"], "videos": "{video_id}.*"}});
    assert_eq!(outline(at, &read(at, &format)), ["xyz_5.5 xyz.* 5.5-10", "xyz_10 xyz.* 10-20"]);
    write(at, &[("cook.csv", &rows.replace("5.5", "five"))]);
    assert!(refused(at, &format).contains("line 2: `five` is not a number of seconds"));
}

#[test]
fn sentences_of_a_video_are_joined_to_one_paragraph() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let didemo = r#"[{"video": "a.b.avi", "description": "a dog runs\n", "times": [[0, 0]]},
        {"video": "c.mov", "description": "snow"},
        {"video": "a.b.avi", "description": " the dog  stops"}]"#;
    write(at, &[("test.json", didemo), ("list.txt", "a.b.avi\n")]);
    let format = |list: Option<&str>| {
        json!({"didemo": {"annotations": "test.json", "list": list, "seconds": 31,
            "videos": "v/{stem}.*"}})
    };
    let set = read(at, &format(None));
    assert_eq!(outline(at, &set), ["a.b.avi v/a.b.* 0-31", "c.mov v/c.* 0-31"]);
    assert_eq!(captions(&set), [["a dog runs the dog stops"], ["snow"]]);
    assert_eq!(outline(at, &read(at, &format(Some("list.txt")))), ["a.b.avi v/a.b.* 0-31"]);
    same_from_windows(at, &format(Some("list.txt")), "list.txt");
    write(at, &[("list.txt", "a.b.avi\nd.avi\n")]);
    assert!(refused(at, &format(Some("list.txt"))).contains("`d.avi` has no description"));

    let videos = r#"{"v_1": {"duration": 9.5, "timestamps": [[0, 1]], "sentences": ["One. ", " Two."]},
        "v_2": {"sentences": ["Three."]}}"#;
    write(at, &[("val.json", videos)]);
    let format = json!({"activity_net_captions": {"annotations": "val.json",
        "videos": "{video_id}.*"}});
    assert_eq!(captions(&read(at, &format)), [["One. Two."], ["Three."]]);
    same_from_windows(at, &format, "val.json");
    write(at, &[("val.json", &videos.replace("v_2", "v_1"))]);
    assert!(refused(at, &format).contains("two samples have the key `v_1`"));
}

#[test]
fn lines_of_json_hold_the_captions_of_dream_and_vdc() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let line = r#"{"messages": [{"role": "user", "content": [{"type": "video"}]}, {"role":
        "assistant", "content": [{"type": "text", "text": "", "reference": " A man digs. "}]}],
        "dataset": "DREAM/movie_animation", "task": "caption", "idx": 0, "vid": "clip_7"}"#;
    write(at, &[("dream.jsonl", &format!("{}\n\n", line.replace('\n', " ")))]);
    let dream = json!({"dream1k": {"annotations": "dream.jsonl", "videos": "v/{vid}.*"}});
    let set = read(at, &dream);
    assert_eq!(outline(at, &set), ["clip_7 v/clip_7.*"]);
    assert_eq!(captions(&set), [["A man digs."]]);
    same_from_windows(at, &dream, "dream.jsonl");
    write(at, &[("dream.jsonl", &line.replace('\n', " ").replace("reference", "ref"))]);
    assert!(refused(at, &dream).contains("line 1: the last message has no `reference`"));

    let lines = "{\"video_id\": \"x\", \"video_name\": \"x.mp4\", \"short\": \"s\", \"detailed\": \"d\"}\n\
                 {\"video_id\": \"y\", \"detailed\": {\"caption\": \"e\"}}\n";
    write(at, &[("vdc.jsonl", lines)]);
    let vdc = |caption: &str| json!({"vdc": {"annotations": "vdc.jsonl", "caption": caption, "videos": "{video_name}"}});
    let error = refused(at, &vdc("detailed"));
    let said = "line 2 has no text `detailed`, only detailed, video_id";
    assert!(error.contains(said), "{error}");
    write(at, &[("vdc.jsonl", lines.lines().next().unwrap())]);
    assert_eq!(captions(&read(at, &vdc("short"))), [["s"]]);
    assert_eq!(outline(at, &read(at, &vdc("detailed"))), ["x x.mp4"]);
}
