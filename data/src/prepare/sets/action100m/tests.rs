//! Tests of Action100M. The parquet files are pyarrow's (data/tests/cases/make_action100m.py), and
//! `rows.jsonl` is what pyarrow reads from them.

mod refused;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Action100m, Action100mOptions, Action100mPart};
use crate::prepare::item::{Item, LeftOut};
use crate::prepare::sets::testing::{Given, all, clip, outline, touch};
use crate::storage::Storage;
use crate::texts::Texts;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/action100m")
}

/// Rows of the files as pyarrow reads them.
fn rows() -> Vec<Value> {
    let text = fs::read_to_string(cases().join("rows.jsonl")).unwrap();
    text.lines().map(|line| crate::json::parse(line.as_bytes()).unwrap()).collect()
}

/// Folder with the videos of the rows, apart from `no-video`. Each of the three types is there.
fn videos(folder: &Path) -> PathBuf {
    let videos = folder.join("videos");
    for (number, row) in rows().iter().enumerate() {
        let extension = ["mp4", "mkv", "webm"][number % 3];
        let uid = row["video_uid"].as_str().unwrap();
        if uid != "no-video" {
            touch(&videos.join(format!("{uid}.{extension}")));
        }
    }
    videos
}

fn options(annotations: &Path, videos: PathBuf) -> Action100mOptions {
    Action100mOptions::new(annotations.display().to_string(), videos)
}

fn open(options: &Action100mOptions) -> Action100m {
    Action100m::open(&Storage::default(), options).unwrap()
}

fn read(options: &Action100mOptions, items: usize) -> Vec<Given> {
    let set = open(options);
    let parts = set.parts(items).unwrap();
    let written = serde_json::to_string(&parts).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Action100mPart>>(&written).unwrap(), parts);
    all(&parts, |part, give| set.read(part, give))
}

fn items(given: &[Given]) -> Vec<&Item> {
    given.iter().filter_map(|item| item.as_ref().ok()).collect()
}

#[test]
fn nodes_become_clips_with_their_texts_and_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let videos = videos(folder.path());
    let given = read(&options(&cases().join("zstd.parquet"), videos.clone()), 1000);
    let metadata = json!({
        "title": "Journal “39”", "description": "Journal with me!\nLinks", "view_count": 3170,
        "like_count": 227, "duration": 690, "upload_date": "20190212",
    });
    let stir = json!({
        "summary": {"brief": "A hand stirs coffee.",
            "detailed": "A right hand stirs coffee in a white mug."},
        "action": {"brief": "Stir coffee", "detailed": "Lift the spoon and stir.",
            "actor": "a hand"},
    });
    let root = given[0].as_ref().unwrap();
    assert_eq!(root.key, "00000-000000-0000");
    assert_eq!(root.caption, None);
    let video = videos.join("hySSAAw4t24.mp4");
    assert_eq!(root.visual, clip(&video, Some(0.0..689.830_017_089_843_8)));
    let expected = json!({
        "node_id": "node-0", "parent_id": null, "level": 0, "start": 0.0,
        "end": 689.830_017_089_843_8, "plm_caption": "A video about a journal.",
        "plm_action": "Stir milk", "gpt": stir, "video_uid": "hySSAAw4t24", "metadata": metadata,
    });
    assert_eq!(Value::Object(root.json.clone()), expected);
    // "N/A" and empty texts are no texts, and `nothing` has only a summary.
    let nothing = &given[1].as_ref().unwrap().json;
    assert_eq!(nothing["gpt"], json!({"summary": {"brief": "A title is shown."}}));
    assert_eq!((nothing.get("plm_action"), &nothing["parent_id"]), (None, &json!("node-0")));
    let outlined = outline(&given);
    for (number, class) in [
        (2, "no text"),
        (3, "no text"),
        (4, "bad times"),
        (5, "bad times"),
        (6, "broken record"),
        (7, "broken record"),
        (8, "bad times"),
    ] {
        let place = format!("zstd.parquet row 0, video hySSAAw4t24, node {number}: {class}");
        assert_eq!(outlined[number], place);
    }
    let second = given[9].as_ref().unwrap();
    assert_eq!((&*second.key, &second.json["metadata"]), ("00000-000001-0000", &Value::Null));
    assert_eq!(second.visual, clip(&videos.join("-a_B0123456.mkv"), Some(1.5..2.5)));
    assert_eq!(outlined[10], "zstd.parquet row 2, video no-video, node 0: no video");
    assert!(given[10].as_ref().unwrap_err().reason.contains("mp4, mkv, webm"));
}

#[test]
fn the_rules_of_the_pretraining_recipe_find_their_texts() {
    let folder = tempfile::tempdir().unwrap();
    let given = read(&options(&cases().join("zstd.parquet"), videos(folder.path())), 1000);
    let json = serde_json::to_vec(&given[0].as_ref().unwrap().json).unwrap();
    let texts = Texts::parse(None, Some(Ok(json)));
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/pretrain.yaml");
    let recipe = vljepa_recipes::load(&recipe, &[]).unwrap().recipe;
    let rules = &recipe.data.sources["action100m"].targets;
    let fields: Vec<&str> = rules.iter().map(|rule| rule.field.as_deref().unwrap()).collect();
    assert_eq!(fields, options(folder.path(), folder.path().to_owned()).texts);
    let found: Vec<_> = fields.iter().map(|field| texts.field(field).unwrap().unwrap()).collect();
    let expected = [
        "Stir coffee",
        "Lift the spoon and stir.",
        "A hand stirs coffee.",
        "A right hand stirs coffee in a white mug.",
    ];
    assert_eq!(found, expected);
}

#[test]
fn all_codecs_pages_and_parts_give_what_pyarrow_reads() {
    let folder = tempfile::tempdir().unwrap();
    let videos = videos(folder.path());
    let whole = read(&options(&cases().join("snappy.parquet"), videos.clone()), 1000);
    let mut nodes = Vec::new();
    for row in rows() {
        for node in row["nodes"].as_array().unwrap() {
            nodes.push((row["video_uid"].clone(), node.clone()));
        }
    }
    assert_eq!((whole.len(), nodes.len()), (nodes.len(), 11 + 37 * 3 - 3));
    let found = items(&whole);
    assert_eq!(found.len(), nodes.len() - 8);
    for item in found {
        let text = &item.json["gpt"]["summary"]["brief"];
        let id = (&item.json["video_uid"], &item.json["node_id"]);
        let (_, node) = nodes.iter().find(|(uid, node)| (uid, &node["node_id"]) == id).unwrap();
        assert_eq!(text, &node["gpt"]["summary"]["brief"]);
        for name in ["node_id", "parent_id", "level", "start", "end"] {
            assert_eq!(item.json[name], node[name], "{id:?}");
        }
    }
    // Row groups of 23 and 17 rows, and one of 40.
    for (name, about, parts) in [
        ("snappy.parquet", 1, 40),
        ("snappy.parquet", 30, 5),
        ("snappy.parquet", 1000, 2),
        ("zstd.parquet", 30, 4),
        ("zstd.parquet", 1000, 1),
    ] {
        let options = options(&cases().join(name), videos.clone());
        assert_eq!(open(&options).parts(about).unwrap().len(), parts, "{name} {about}");
        let given = read(&options, about);
        assert_eq!(
            outline(&given).join("\n").replace("zstd", "snappy"),
            outline(&whole).join("\n")
        );
        assert_eq!(items(&given), items(&whole), "{name} {about}");
    }
}

#[test]
fn json_gives_the_same_items_as_parquet_in_lists_of_one_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let videos = videos(folder.path());
    let from_parquet = read(&options(&cases().join("snappy.parquet"), videos.clone()), 1000);
    let contents = |given: &[Given]| {
        let content = |item: &&Item| (item.visual.clone(), item.json.clone());
        items(given).iter().map(content).collect::<Vec<_>>()
    };
    let plain = read(&options(&cases().join("rows.jsonl"), videos.clone()), 7);
    assert_eq!(contents(&plain), contents(&from_parquet));
    assert_eq!(items(&plain)[0].key, "00000-000001-0000");
    let wrapped = folder.path().join("wrapped");
    fs::create_dir(&wrapped).unwrap();
    for (number, row) in rows().iter().enumerate() {
        // As published: printed over many lines, with each field in a list.
        let row = json!({"video_uid": [row["video_uid"]], "metadata": [row["metadata"]],
            "nodes": [row["nodes"]]});
        let text = serde_json::to_string_pretty(&row).unwrap();
        fs::write(wrapped.join(format!("{number:02}.json")), text).unwrap();
    }
    fs::write(wrapped.join("README.md"), "not an annotation").unwrap();
    let given = read(&options(&wrapped, videos), 7);
    assert_eq!(contents(&given), contents(&from_parquet));
    assert_eq!(items(&given)[2].key, "00001-000000-0000");
}

#[test]
fn a_video_with_one_node_may_be_wrapped_or_not() {
    let folder = tempfile::tempdir().unwrap();
    touch(&folder.path().join("v.mp4"));
    let node = json!({"start": 0, "end": 1, "gpt": {"action": {"brief": "Stir"}}});
    for nodes in [json!([node]), json!([[node]])] {
        let path = folder.path().join("x.jsonl");
        fs::write(&path, json!({"video_uid": "v", "nodes": nodes}).to_string()).unwrap();
        let given = read(&options(&path, folder.path().to_owned()), 1);
        assert_eq!(given[0].as_ref().unwrap().json["gpt"]["action"]["brief"], "Stir", "{nodes}");
    }
}

#[test]
fn options_choose_texts_levels_and_lengths() {
    let folder = tempfile::tempdir().unwrap();
    let default = options(&cases().join("snappy.parquet"), videos(folder.path()));
    let ids = |options: &Action100mOptions| {
        let given = read(options, 1000);
        items(&given).iter().map(|item| item.key[6..].to_owned()).collect::<Vec<_>>()
    };
    let texts = |names: &[&str]| Action100mOptions {
        texts: names.iter().map(|name| (*name).to_owned()).collect(),
        ..default.clone()
    };
    assert_eq!(
        ids(&texts(&["plm_action", "llama3_caption"])),
        ["000000-0000", "000000-0002", "000000-0003"]
    );
    assert_eq!(ids(&texts(&["gpt.action.actor"])), ["000000-0000", "000001-0000"]);
    let levels = Action100mOptions { levels: Some((3, 9)), ..default.clone() };
    assert_eq!(ids(&levels).len(), 7 + 7 + 7);
    let seconds = Action100mOptions { seconds: Some((360.0, 689.0)), ..default.clone() };
    assert_eq!(ids(&seconds), ["000000-0001"]);
    let given = read(&seconds, 1000);
    let left_out = given[0].as_ref().unwrap_err();
    assert_eq!(left_out.class, "not wanted");
    assert!(left_out.reason.contains("689.83"), "{left_out:?}");
}

/// What a `.jsonl` file with this line leaves out, if levels 1 and 2 are wanted.
fn left_out(line: &str) -> LeftOut {
    let folder = tempfile::tempdir().unwrap();
    touch(&folder.path().join("v.mp4"));
    let path = folder.path().join("x.jsonl");
    fs::write(&path, format!("{line}\n")).unwrap();
    let levels = Some((1, 2));
    let options = Action100mOptions { levels, ..options(&path, folder.path().to_owned()) };
    let mut given = read(&options, 10);
    assert_eq!(given.len(), 1, "{line}");
    given.remove(0).expect_err(line)
}

#[test]
fn lines_that_cannot_be_used_are_left_out_as_broken_records() {
    let node = json!({"level": 1, "start": 0, "end": 1, "gpt": {"action": {"brief": "Stir"}}});
    for (line, said) in [
        ("{\"video_uid\": ".to_owned(), "cannot be parsed"),
        ("[1]".to_owned(), "not a JSON object"),
        (json!({"nodes": [node]}).to_string(), "no `video_uid`"),
        (json!({"video_uid": "v"}).to_string(), "no `nodes`"),
        (json!({"video_uid": 3, "nodes": [node]}).to_string(), "not a text"),
        (json!({"video_uid": "v", "nodes": {}}).to_string(), "not a list"),
        (json!({"video_uid": "v", "nodes": []}).to_string(), "empty"),
    ] {
        let left_out = left_out(&line);
        assert_eq!((left_out.class, &*left_out.item), ("broken record", "x.jsonl line 1"));
        assert!(left_out.reason.contains(said), "{line}: {left_out:?}");
    }
}

#[test]
fn nodes_that_cannot_be_used_are_left_out_with_their_class() {
    let node = json!({"level": 1, "start": 0, "end": 1, "gpt": {"action": {"brief": "Stir"}}});
    let with = |name: &str, value: Value| {
        let mut node = node.clone();
        node[name] = value;
        ("v", node)
    };
    for ((uid, node), class, said) in [
        (("v", json!(3)), "broken record", "not an object"),
        (("../v", node.clone()), "bad path", "../v"),
        (("", node.clone()), "no video", ""),
        (("w", node.clone()), "no video", "no file w with mp4, mkv, webm"),
        (with("start", json!("0")), "broken record", "`start` is not a number"),
        (with("end", json!(null)), "broken record", "no `end`"),
        (with("end", json!(0)), "bad times", "from 0 s to 0 s"),
        (with("gpt", json!("Stir")), "no text", "`gpt.action.brief`"),
        (with("gpt", json!({"action": {"brief": 3}})), "no text", ""),
        (with("level", json!("1")), "broken record", "`level`"),
        (with("level", json!(0)), "not wanted", "level 0"),
    ] {
        let left_out = left_out(&json!({"video_uid": uid, "nodes": [node]}).to_string());
        let place = format!("x.jsonl line 1, video {uid}, node 0");
        assert_eq!((left_out.class, left_out.item.clone()), (class, place), "{node}");
        assert!(left_out.reason.contains(said), "{node}: {left_out:?}");
    }
}
