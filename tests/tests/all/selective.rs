//! Selective decoding of long videos: the same scores on any number of ranks and from shards and
//! files, and videos that cannot be read.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::evaluation::unmeasured_copy;
use crate::programs::{Trial, command, small_set, text};
use crate::y_decoder::{complete, decoder, scores, trial};

/// Annotations of both videos of the stream.
const ANNOTATIONS: usize = 61;

/// Writes the synthetic stream beside the trial's runs.
fn stream(trial: &Trial) -> PathBuf {
    let folder = trial.path("stream");
    let output = command("vljepa-shards").arg("synth-stream").arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    folder.join("stream.tar")
}

/// The `--set` flags of a decoder that measures the stream.
fn flags(trial: &Trial, tasks: &[String]) -> Vec<String> {
    let mut sets = decoder(trial);
    sets.pop();
    sets.push(format!("evaluation.tasks=[{}]", tasks.join(", ")));
    sets
}

const KIND: &str = "frames: 4, query: describe the video, kind: {selective_decoding: \
                    {window_s: 0.5, stride_s: 0.5, frequencies: [2, 1, 0.2, 0.02]}}";

fn curves(trial: &Trial, run: &str) -> Value {
    let path = trial.path(run).join("evaluations/step-00000010-selective.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Members of the stream's shard.
fn members(shard: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(fs::File::open(shard).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    });
    entries.collect()
}

#[test]
fn curves_have_the_same_bits_on_one_two_and_three_ranks_and_from_files() {
    let trial = trial(&[]);
    let shard = stream(&trial);
    let root = trial.path("takes");
    as_takes(&members(&shard), &root);
    let set = trial.path("set.yaml");
    let lines = format!(
        "name: of_files\nsource: this test\nroot: {}\nformat: {{ego_exo4d_descriptions: \
         {{descriptions: val.json, takes: takes.json, tasks: [Cooking], videos: '{{root_dir}}/{{ego}}'}}}}\n\
         expect: {{samples: 2, annotations: {ANNOTATIONS}}}\ntask: {{{KIND}}}\n",
        root.display()
    );
    fs::write(&set, lines).unwrap();
    let shards = format!("shards: {}", shard.display());
    let tasks = [
        format!("{{name: stream, {shards}, {KIND}}}"),
        format!("{{set: {}}}", set.display()),
        format!("{{name: collapsed, {shards}, control: collapsed, {KIND}}}"),
    ];
    let sets = flags(&trial, &tasks);
    let mut all = Vec::new();
    for ranks in ["1", "2", "3"] {
        // The same checkpoint is measured on each number of ranks.
        if ranks != "1" {
            unmeasured_copy(&trial.path("1"), &trial.path(ranks));
        }
        complete(&trial, ranks, &sets, &[&format!("cluster.ranks_per_node={ranks}")]);
        all.push((scores(&trial, ranks), curves(&trial, ranks)));
    }
    assert!(all.iter().all(|one| *one == all[0]));
    let (scores, curves) = &all[0];
    assert_eq!(curves["stream"], curves["of_files"], "files are read as shards");
    assert_eq!(scores["stream_uniform_cider"]["n"], ANNOTATIONS);
    assert_eq!(scores["stream_adaptive_cider"]["unreadable"], 0);
    let stream = &curves["stream"];
    assert_eq!((&stream["videos"], &stream["annotations"]), (&json!(2), &json!(ANNOTATIONS)));
    assert_eq!(stream["curves"].as_array().unwrap().len(), 4);
    let at = |curve: usize, frequency: usize| {
        stream["curves"][curve]["scores"][frequency]["decodes_per_s"].as_f64().unwrap()
    };
    assert!((at(0, 1) - 1.0).abs() < 0.01 && (at(3, 2) - 0.2).abs() < 0.01, "{stream}");
    // A saving is a metric only if there is one.
    let has_saving = scores.get("stream_saving").is_some();
    assert_eq!(has_saving, !stream["saving"].is_null(), "{scores}");
    // Equal embeddings have one text, wherever it is decoded.
    let collapsed = &curves["collapsed"]["curves"];
    let ciders = (0..4).flat_map(|curve| (0..4).map(move |f| (curve, f)));
    let ciders: Vec<f64> =
        ciders.map(|(curve, f)| collapsed[curve]["scores"][f]["cider"].as_f64().unwrap()).collect();
    assert!(ciders.iter().all(|cider| cider.to_bits() == ciders[0].to_bits()), "{ciders:?}");
}

/// Writes the videos of a stream and their annotations as takes of Ego-Exo4D.
fn as_takes(members: &[(String, Vec<u8>)], root: &Path) {
    let (mut takes, mut annotations) = (Vec::new(), serde_json::Map::new());
    for (name, bytes) in members {
        let (key, extension) = name.split_once('.').unwrap();
        let folder = root.join("takes").join(key);
        fs::create_dir_all(&folder).unwrap();
        if extension == "mp4" {
            fs::write(folder.join("aria01_214-1.mp4"), bytes).unwrap();
            takes.push(
                json!({"take_uid": key, "take_name": key, "root_dir": format!("takes/{key}"),
                "parent_task_name": "Cooking", "frame_aligned_videos":
                {"aria01": {"rgb": {"relative_path": "frame_aligned_videos/aria01_214-1.mp4"}}}}),
            );
        } else {
            let of_stream: Value = serde_json::from_slice(bytes).unwrap();
            let description =
                |it: &Value| json!({"text": it["text"], "timestamp": it["t"], "subject": "C"});
            let all = of_stream["annotations"].as_array().unwrap().iter().map(description);
            let all: Vec<Value> = all.collect();
            annotations.insert(key.to_owned(), json!([{"descriptions": all}]));
        }
    }
    fs::write(root.join("takes.json"), serde_json::to_vec(&takes).unwrap()).unwrap();
    let file = json!({"ds": "x", "annotations": annotations});
    fs::write(root.join("val.json"), serde_json::to_vec(&file).unwrap()).unwrap();
}

#[test]
fn a_video_that_cannot_be_read_counts_as_wrong_and_is_listed() {
    let trial = trial(&[]);
    let shard = stream(&trial);
    let damaged = trial.path("damaged.tar");
    let mut copy = tar::Builder::new(fs::File::create(&damaged).unwrap());
    for (name, bytes) in members(&shard) {
        let cut = if name == "stream-000001.mp4" { bytes.len() / 2 } else { bytes.len() };
        let mut header = tar::Header::new_ustar();
        header.set_size(cut as u64);
        copy.append_data(&mut header, name, &bytes[..cut]).unwrap();
    }
    copy.finish().unwrap();
    let tasks = [format!("{{name: stream, shards: {}, {KIND}}}", damaged.display())];
    complete(&trial, "run", &flags(&trial, &tasks), &["cluster.ranks_per_node=1"]);
    let score = &scores(&trial, "run")["stream_uniform_cider"];
    assert_eq!((&score["n"], &score["unreadable"]), (&json!(ANNOTATIONS), &json!(1)), "{score}");
    let list = trial.path("run").join("evaluations/step-00000010-unreadable.json");
    let list: Value = serde_json::from_slice(&fs::read(list).unwrap()).unwrap();
    let reason = list["stream"]["samples"][0].as_str().unwrap();
    assert!(reason.contains("stream-000001") && reason.contains("cut short"), "{reason}");
    let curves = &curves(&trial, "run")["stream"];
    assert_eq!((&curves["videos"], &curves["annotations"]), (&json!(2), &json!(ANNOTATIONS)));

    // A sample without annotations is refused before the start.
    let clips = small_set().join("eval/heldout.tar");
    let tasks = [format!("{{name: stream, shards: {}, {KIND}}}", clips.display())];
    let sets = flags(&trial, &tasks);
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let refused = trial.launch("refused", &sets).output().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("has no `annotations`"));
}
