//! Evaluation sets from their files to their scores.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use crate::dual_encoder::{Folder, scores};
use crate::programs::{command, small_set, text};

/// Number of samples.
const SAMPLES: usize = 12;

/// Writes the first clips of a shard as files, and three sets over them: a table of captions with
/// the whole time of each clip as a segment, a table with two captions of each, and a table of
/// labels. `missing` more rows name clips that do not exist.
fn write_sets(folder: &Path, missing: usize) {
    let mut captions = "video_id,start,end,sentence\r\n".to_owned();
    let mut doubled = "video_id,sentence\n".to_owned();
    let mut labels = "label,youtube_id,time_start,time_end,split\n".to_owned();
    let shard = fs::File::open(small_set().join("eval/retrieval.tar")).unwrap();
    let (mut keys, mut of_key) = (Vec::new(), std::collections::BTreeMap::new());
    for entry in tar::Archive::new(shard).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let (key, extension) = name.split_once('.').unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if !keys.contains(&key.to_owned()) {
            keys.push(key.to_owned());
        }
        of_key.insert((key.to_owned(), extension.to_owned()), bytes);
    }
    for key in &keys[..SAMPLES] {
        let member = |extension: &str| &of_key[&(key.clone(), extension.to_owned())];
        let caption = String::from_utf8(member("txt").clone()).unwrap();
        let json: Value = serde_json::from_slice(member("json")).unwrap();
        let colour = json["colour"].as_str().unwrap();
        fs::create_dir_all(folder.join("clips")).unwrap();
        fs::write(folder.join("clips").join(format!("{key}.mp4")), member("mp4")).unwrap();
        write!(captions, "{key},0,1000,\"{}\"\r\n", caption.trim()).unwrap();
        writeln!(doubled, "{key},\"{0}@{0}\"", caption.trim()).unwrap();
        writeln!(labels, "{colour},{key},0,10,val").unwrap();
    }
    for number in 0..missing {
        write!(captions, "lost{number},0,1,a red circle\r\n").unwrap();
    }
    fs::write(folder.join("captions.csv"), captions).unwrap();
    fs::write(folder.join("doubled.csv"), doubled).unwrap();
    fs::write(folder.join("labels.csv"), labels).unwrap();
    let root = folder.display();
    let set = |name: &str, lines: &str| {
        let text = format!("name: {name}\nsource: this test\nroot: {root}\n{lines}");
        fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
    };
    set(
        "segments",
        "format: {caption_table: {table: captions.csv, caption: sentence, seconds: [start, end], \
         videos: 'clips/{video_id}.*'}}\nexpect: {samples: 12}\ntask: {frames: 2, kind: retrieval}\n",
    );
    set(
        "doubled",
        "format: {caption_table: {table: doubled.csv, caption: sentence, separator: '@', \
         videos: 'clips/{video_id}.mp4'}}\ntask: {frames: 2, kind: retrieval}\n",
    );
    set(
        "colours",
        "format: {kinetics: {annotations: labels.csv, videos: 'clips/{youtube_id}.mp4'}}\n\
         task: {frames: 2, kind: {classification: {field: label}}}\n",
    );
}

/// Recipe of a tiny CLIP that measures both sets and the same samples in shards.
fn write_recipe(folder: &Folder) {
    let set = small_set().display();
    let shards = format!("shards: {set}/eval/retrieval.tar, frames: 2, limit: {SAMPLES}");
    let colours = format!("{set}/labels/colours.json");
    let recipe = format!(
        "extends: recipe.yaml
evaluation:
  tasks:
    - {{set: segments.yaml}}
    - {{name: in_shards, {shards}, kind: retrieval}}
    - {{set: doubled.yaml}}
    - {{set: colours.yaml, kind: {{classification: {{candidates: {colours}}}}}}}
    - {{name: colours_in_shards, {shards}, kind: {{classification: {{field: colour, candidates: {colours}}}}}}}
"
    );
    fs::write(folder.path("sets.yaml"), recipe).unwrap();
}

fn launch(arguments: &[&str]) -> (bool, String) {
    let output = command("vljepa-launch").args(arguments).output().unwrap();
    (output.status.success(), text(&output))
}

#[test]
fn a_set_of_files_has_the_scores_of_the_same_samples_in_shards() {
    let folder = Folder::new();
    write_sets(&folder.path(""), 0);
    write_recipe(&folder);
    let (recipe, run) = (folder.path("sets.yaml"), folder.path("run"));
    let arguments = [recipe.to_str().unwrap(), "--run", run.to_str().unwrap()];
    let (done, said) = launch(&arguments);
    assert!(done, "{said}");
    let scores = scores(&run);
    let value = |metric: &str| (scores[metric]["value"].clone(), scores[metric]["n"].clone());
    for (of_set, of_shards) in [
        ("segments_r1", "in_shards_r1"),
        ("segments_r5", "in_shards_r5"),
        ("segments_r10", "in_shards_r10"),
        ("colours_top1", "colours_in_shards_top1"),
        ("colours_top5", "colours_in_shards_top5"),
    ] {
        assert_eq!(value(of_set), value(of_shards), "{of_set}");
        assert_eq!(value(of_set).1, SAMPLES, "{of_set}");
    }
    // Each of a sample's captions asks for it.
    let (recall, n) = value("doubled_r5");
    assert_eq!((&recall, n), (&value("in_shards_r5").0, (2 * SAMPLES).into()));
}

#[test]
fn clips_of_a_set_that_are_missing_count_as_wrong_and_are_named() {
    let folder = Folder::new();
    write_sets(&folder.path(""), 3);
    write_recipe(&folder);
    let file = folder.path("segments.yaml");
    let (right, said) = launch(&["sets", file.to_str().unwrap()]);
    assert!(!right, "{said}");
    for part in [
        "15 of 12 samples, 3 of 15 files missing",
        "segments: it holds 15 samples, where 12 are expected: 3 more",
        "3 of 15 pictures or videos are missing, so that 3 samples count as wrong",
        "lost0",
        "this test",
    ] {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    let (recipe, run) = (folder.path("sets.yaml"), folder.path("run"));
    let start = [recipe.to_str().unwrap(), "--run", run.to_str().unwrap()];
    let (started, said) = launch(&start);
    assert!(!started && said.contains("3 more"), "{said}");
    let expect = ["--set", "evaluation.tasks.0.set.expect.samples=15"];
    let (done, said) = launch(&[&start[..], &expect].concat());
    assert!(done && said.contains("lost0"), "{said}");
    assert_eq!(scores(&run)["segments_r10"]["n"], SAMPLES + 3);
}

#[test]
fn the_sets_of_the_repository_are_listed_with_what_to_download() {
    let (right, said) = launch(&["sets"]);
    assert!(right, "{said}");
    for part in ["gqa", "question answering", "sugarcrepe_pp", "https://epic-kitchens.github.io"] {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    let output = command("vljepa-launch").args(["sets", "--json"]).output().unwrap();
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(listed.as_array().unwrap().iter().all(|set| set["state"]["state"] == "absent"));
}

/// Writes four pictures and a set of questions in which a change is the same picture twice, and one
/// of the actions is that picture.
fn write_actions(folder: &Path, right: impl Fn(usize) -> usize) {
    let shard = fs::File::open(small_set().join("train/images-000000.tar")).unwrap();
    let mut pictures = Vec::new();
    for entry in tar::Archive::new(shard).entries().unwrap() {
        let mut entry = entry.unwrap();
        if pictures.len() < 4 && entry.path().unwrap().extension().is_some_and(|e| e == "jpg") {
            let name = format!("{}.jpg", pictures.len());
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            fs::write(folder.join(&name), bytes).unwrap();
            pictures.push(name);
        }
    }
    let questions: Vec<Value> = (0..4)
        .map(|item| {
            let shown = &pictures[item];
            serde_json::json!({
                "id": item, "initial": shown, "final": shown, "candidates": pictures,
                "answer": right(item),
            })
        })
        .collect();
    fs::write(folder.join("samples.json"), Value::from(questions).to_string()).unwrap();
    let set = format!(
        "name: worldprediction\nsource: this test\nroot: {}\nformat: {{world_prediction: \
         {{samples: samples.json}}}}\nexpect: {{questions: 4}}\ntask: {{frames: 3, kind: world_prediction}}\n",
        folder.display()
    );
    fs::write(folder.join("actions.yaml"), set).unwrap();
    let recipe = "extends: recipe.yaml\nevaluation: {tasks: [{set: actions.yaml}]}\n";
    fs::write(folder.join("sets.yaml"), recipe).unwrap();
}

#[test]
fn the_action_that_shows_the_change_is_nearest_to_it() {
    let folder = Folder::new();
    let at = folder.path("");
    let measured = |run: &str, more: &[&str]| {
        let (recipe, path) = (folder.path("sets.yaml"), folder.path(run));
        let mut arguments = vec![recipe.to_str().unwrap(), "--run", path.to_str().unwrap()];
        arguments.extend(more);
        let (done, said) = launch(&arguments);
        assert!(done, "{said}");
        scores(&path)["worldprediction"].clone()
    };
    write_actions(&at, |item| item);
    let right = measured("right", &[]);
    assert_eq!((&right["value"], &right["n"]), (&Value::from(1.0), &Value::from(4)));
    assert_eq!(right["chance"], 0.25);
    assert_eq!(measured("two", &["--set", "cluster.ranks_per_node=2"]), right);
    let recipe = folder.path("sets.yaml");
    let (done, said) =
        launch(&[recipe.to_str().unwrap(), "--set", "evaluation.tasks.0.frames=1", "--dry-run"]);
    assert!(!done && said.contains("a clip of two pictures cannot have 1 frame"), "{said}");
    write_actions(&at, |item| (item + 1) % 4);
    assert_eq!(measured("wrong", &[])["value"], 0.0);
}
