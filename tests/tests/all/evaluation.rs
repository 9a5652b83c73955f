//! Evaluations: the same scores on any number of ranks and after a kill, what is kept of them, and
//! samples that cannot be read.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use vljepa_data::reader::LoadedSample;
use vljepa_kernels::Device;
use vljepa_worker::engine::Engine;
use vljepa_worker::evaluation::embed::{Embedder, Embeds};
use vljepa_worker::evaluation::retrieval::Pool;

use crate::golden::Golden;
use crate::programs::{Trial, command, small_set, text, wait_until};

/// One step, and tasks of every kind that VL-JEPA without a Y-decoder has. The clips are more than
/// one chunk.
fn trial() -> Trial {
    let set = small_set().display();
    let clips = format!("shards: {set}/eval/heldout.tar");
    let labels = |of: &str| format!("candidates: {set}/labels/{of}.json");
    let (motions, colours) = (labels("motions"), labels("colours"));
    Trial::new(&format!(
        "
stages:
  - {{name: one, steps: 1, batch: 8, frames: 4, mixture: {{clips: 1}}, mixing: batch, learning_rate: {{peak: 1e-3}}}}
evaluation:
  tasks:
    - {{name: motion, {clips}, frames: 4, query: describe, kind: {{classification: {{field: motion, {motions}}}}}}}
    - {{name: colour, {clips}, frames: 4, query: describe, kind: {{classification: {{field: colour, {colours}}}}}}}
    - {{name: reversed, {clips}, frames: 4, query: describe, control: reversed, kind: {{classification: {{field: motion, {motions}}}}}}}
    - {{name: collapsed, {clips}, frames: 4, query: describe, control: collapsed, kind: {{classification: {{field: motion, {motions}}}}}}}
    - {{name: retrieval, {clips}, frames: 4, query: describe, kind: retrieval}}
    - {{name: none, {clips}, frames: 4, query: describe, control: collapsed, kind: retrieval}}
    - {{name: exists, shards: {set}/eval/exists.tar, frames: 2, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
    - {{name: triplets, shards: {set}/triplets.json, kind: triplets}}
"
    ))
}

fn scores(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("scores.json")).unwrap()).unwrap()
}

/// What a run keeps of its last evaluation: the name of the model's folder, and each file's content
/// and inode.
fn kept(run: &Path) -> (String, BTreeMap<String, (Vec<u8>, u64)>) {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let folders = entries(&run.join("evaluations/kept"));
    assert_eq!(folders.len(), 1, "{folders:?}");
    let files = entries(&folders[0]).into_iter().map(|path| {
        let inode = std::fs::metadata(&path).unwrap().ino();
        (name(&path), (std::fs::read(&path).unwrap(), inode))
    });
    (name(&folders[0]), files.collect())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

/// Measures the checkpoint of the run `trained` again, as the run `run` with other keys.
fn measure_again(trial: &Trial, run: &str, sets: &[&str]) {
    unmeasured_copy(&trial.path("trained"), &trial.path(run));
    trial.complete(run, sets);
}

/// Copies a run without its scores, so that its checkpoint is measured again.
pub fn unmeasured_copy(from: &Path, to: &Path) {
    copy(from, to);
    std::fs::remove_dir_all(to.join("evaluations")).unwrap();
    std::fs::remove_file(to.join("scores.json")).unwrap();
    std::fs::remove_file(to.join("completed.json")).unwrap();
}

fn evaluate(run: &Path) -> String {
    let output = command("vljepa-launch").arg("evaluate").arg(run).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn scores_and_embeddings_have_the_same_bits_on_one_two_and_three_ranks() {
    let trial = trial();
    trial.complete("trained", &["cluster.ranks_per_node=1"]);
    let mut all = Vec::new();
    for ranks in ["1", "2", "3"] {
        measure_again(&trial, ranks, &[&format!("cluster.ranks_per_node={ranks}")]);
        let run = trial.path(ranks);
        let (model, files) = kept(&run);
        let files: BTreeMap<_, _> =
            files.into_iter().map(|(name, (bytes, _))| (name, bytes)).collect();
        all.push((scores(&run), model, files));
    }
    let (of_one, _, files) = &all[0];
    assert!(all.iter().all(|one| *one == all[0]));
    assert_eq!(of_one["motion_top1"]["n"], of_one["retrieval_r1"]["n"]);
    let clips = of_one["motion_top1"]["n"].as_u64().unwrap();
    let texts = of_one["triplets"]["n"].as_u64().unwrap() * 3;
    println!("{clips} clips, {texts} texts of triplets, {} files", files.len());
    let chunks = usize::try_from(clips).unwrap().div_ceil(256);
    assert!(chunks > 1, "{clips} clips are one chunk");
    for (name, score) in of_one.as_object().unwrap() {
        let [value, low, high] = [&score["value"], &score["interval"][0], &score["interval"][1]]
            .map(|number| number.as_f64().unwrap());
        assert!(low <= value && value <= high && low < high, "{name}: {score}");
        assert_eq!(score["measured"].as_str().unwrap().len(), 16, "{name}: {score}");
        assert_eq!(score["unreadable"], 0);
    }
    // The right label of a collapsed model is the first one's share; its captions are never found.
    let collapsed = of_one["collapsed_top1"]["value"].as_f64().unwrap();
    assert!((collapsed - 1.0 / 6.0).abs() < 0.1, "{collapsed}");
    assert_eq!(of_one["none_r1"]["value"], 0.0);
    assert_eq!(of_one["motion_top1"]["measured"], of_one["motion_top5"]["measured"]);
    assert_ne!(of_one["motion_top1"]["measured"], of_one["reversed_top1"]["measured"]);

    // Other frames, another query and other weights are measured anew.
    let first = |set: &str| {
        let (run, sets) = (set.replace(['.', '='], "-"), [set, "cluster.ranks_per_node=1"]);
        if set.starts_with("seed") {
            trial.complete(&run, &sets);
        } else {
            measure_again(&trial, &run, &sets);
        }
        let scores = scores(&trial.path(&run));
        (scores["motion_top1"]["measured"].clone(), kept(&trial.path(&run)))
    };
    let measured = &of_one["motion_top1"]["measured"];
    for (set, same_model) in [
        ("evaluation.tasks.0.frames=2", true),
        ("evaluation.tasks.0.query=what", true),
        ("seed=1", false),
    ] {
        let (other, (model, other_files)) = first(set);
        assert_ne!(other, *measured, "{set}");
        assert_eq!(model == all[0].1, same_model, "{set}");
        let new = other_files.keys().filter(|name| !files.contains_key(*name)).count();
        let changed = if same_model { chunks } else { files.len() };
        assert_eq!(new, changed, "{set}: new files");
    }
}

#[test]
fn a_killed_evaluation_computes_only_what_is_missing_or_damaged() {
    let trial = trial();
    trial.complete("run", &["cluster.ranks_per_node=1"]);
    let run = trial.path("run");
    let (whole, files) = (scores(&run), kept(&run).1);
    std::fs::remove_dir_all(run.join("evaluations/kept")).unwrap();
    std::fs::remove_file(run.join("scores.json")).unwrap();

    let job = trial.path("job.json");
    std::fs::write(&job, r#"{"job": "evaluate", "step": null}"#).unwrap();
    let mut worker = command("vljepa-worker");
    worker.args(["run", "--run"]).arg(&run).arg("--job").arg(&job);
    let mut child = worker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let model = || std::fs::read_dir(run.join("evaluations/kept")).ok()?.next()?.ok();
    let count = || model().map_or(0, |folder| std::fs::read_dir(folder.path()).unwrap().count());
    wait_until(&mut child, Duration::from_secs(120), "three files", || count() >= 3);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!run.join("scores.json").exists(), "the evaluation was killed");
    let before = kept(&run).1;
    let before: BTreeMap<_, _> =
        before.into_iter().filter(|(name, _)| !name.ends_with(".tmp")).collect();
    assert!(before.len() < files.len(), "{} of {}", before.len(), files.len());

    evaluate(&run);
    assert_eq!(scores(&run), whole);
    let mut after = kept(&run).1;
    after.retain(|name, _| !name.ends_with(".tmp"));
    let same = |(name, (bytes, _)): (&String, &(Vec<u8>, u64))| after[name].0 == *bytes;
    assert!(after.len() == files.len() && files.iter().all(same));
    for (name, (_, inode)) in &before {
        assert_eq!(after[name].1, *inode, "{name} was computed again");
    }

    // Half a file and a flipped bit: a warning, the same scores, and the file is whole again.
    let (name, (bytes, _)) = after.iter().next().unwrap();
    let path = model().unwrap().path().join(name);
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&bytes[..bytes.len() / 2], &flipped] {
        std::fs::write(&path, damaged).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let said = evaluate(&run);
        assert!(said.contains("is damaged; its values are computed again"), "{said}");
        assert_eq!(scores(&run), whole);
        assert_eq!(std::fs::read(&path).unwrap(), *bytes);
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), inode);
    }
}

/// Copies a shard, with junk instead of its first picture. Returns the name of that file.
fn damaged_copy(from: &Path, to: &Path) -> String {
    let mut shard = tar::Archive::new(std::fs::File::open(from).unwrap());
    let mut copy = tar::Builder::new(std::fs::File::create(to).unwrap());
    let mut damaged = None;
    for entry in shard.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let is_picture = path.ends_with("jpg") || path.ends_with("png");
        if damaged.is_none() && is_picture {
            bytes = b"junk".to_vec();
            damaged = Some(path.clone());
        }
        let mut header = entry.header().clone();
        header.set_size(bytes.len() as u64);
        copy.append_data(&mut header, path, &*bytes).unwrap();
    }
    copy.finish().unwrap();
    damaged.unwrap()
}

#[test]
fn a_sample_that_cannot_be_read_counts_as_wrong_and_is_listed() {
    let trial = trial();
    let shard = trial.path("exists.tar");
    let name = damaged_copy(&small_set().join("eval/exists.tar"), &shard);
    let key = name.split('.').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let tasks = format!(
        "evaluation.tasks=[{{name: exists, shards: {}, frames: 2, kind: {{question_answering: \
         {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}]",
        shard.display()
    );
    trial.complete("whole", &["cluster.ranks_per_node=1"]);
    trial.complete("run", &[&tasks, "cluster.ranks_per_node=1"]);
    let (run, of_whole) = (trial.path("run"), scores(&trial.path("whole")));
    let score = &scores(&run)["exists"];
    assert_eq!(score["n"], of_whole["exists"]["n"], "the sample counts");
    assert_eq!((&score["unreadable"], &of_whole["exists"]["unreadable"]), (&1.into(), &0.into()));
    assert_ne!(score["measured"], of_whole["exists"]["measured"]);
    let list = run.join("evaluations/step-00000001-unreadable.json");
    let listed: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    assert_eq!(listed["exists"]["count"], 1);
    let reason = listed["exists"]["samples"][0].as_str().unwrap();
    assert!(reason.contains(&format!("`{key}`")) && reason.contains("exists.tar"), "{reason}");
    let said = evaluate(&run);
    assert!(said.contains(reason) && said.contains("1 unreadable, counted as wrong"), "{said}");
    let report = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("1 unreadable"), "{report}");
    assert!(!trial.path("whole").join("evaluations/step-00000001-unreadable.json").exists());
}

/// Rows of a product do not depend on the number of rows on the host, so the embeddings of several
/// questions about a picture are equal to those of single ones, bit for bit.
#[test]
fn a_picture_that_is_encoded_once_for_its_questions_gives_the_same_embeddings() {
    let trial = trial();
    let recipe = vljepa_recipes::load(&trial.recipe(), &[]).unwrap().recipe;
    let engine = Engine::for_inference(&recipe, Device::Host).unwrap();
    let embedder = Embedder::new(&recipe, Embeds::VlJepa(&engine)).unwrap();
    let shards = small_set().join("eval/exists.tar");
    let reader = embedder.reader(shards.to_str().unwrap(), None).unwrap();
    let options = embedder.load_options(Some(2));
    let load = |i| reader.load(i, &options).unwrap();
    // More rows than are predicted at once.
    let pictures: Vec<LoadedSample> = (0..9).map(|i| load(i % reader.len())).collect();
    let queries = ["is there a red circle?", "what colour is the square?", "how many?", ""];
    let asked = |i: usize| (&pictures[i / 9], queries[i % 4]);
    let together: Vec<(&LoadedSample, &str)> = (0..81).map(asked).collect();
    let copies: Vec<LoadedSample> = together.iter().map(|(sample, _)| (*sample).clone()).collect();
    let apart: Vec<_> = copies.iter().zip(&together).map(|(copy, (_, q))| (copy, *q)).collect();
    let (once, each) = (embedder.samples(&together).unwrap(), embedder.samples(&apart).unwrap());
    let bits = |rows: &[Vec<f32>]| rows.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&once), bits(&each));
    assert_ne!(once[0], once[1], "another question gives another embedding");
}

#[test]
fn ranks_in_a_pool_are_those_of_numpy_in_f64() {
    let golden = Golden::open("retrieval");
    let rows = |name: &str| -> Vec<Vec<f32>> {
        let width = golden.shape(name)[1];
        golden.get(name).chunks(width).map(<[f32]>::to_vec).collect()
    };
    let (samples, texts) = (rows("in.samples"), rows("in.texts"));
    let right: Vec<Vec<usize>> = serde_json::from_value(golden.config["right"].clone()).unwrap();
    let wanted = |name: &str| -> Vec<Option<usize>> {
        serde_json::from_value(golden.config[name].clone()).unwrap()
    };
    let pool = Pool::new(&samples);
    assert_eq!(pool.ranks(&texts, &right).unwrap(), wanted("ranks"));
    assert_ne!(wanted("ranks"), wanted("optimistic"), "ties would decide otherwise");
    assert_ne!(wanted("ranks"), wanted("in_f32"), "f32 would decide otherwise");
    // A model that copies the truth finds each sample first.
    let itself: Vec<Vec<usize>> = (30..60).map(|i| vec![i]).collect();
    let ranks = pool.ranks(&samples[30..60], &itself).unwrap();
    assert!(ranks.iter().all(|rank| *rank == Some(1)), "{ranks:?}");
}
