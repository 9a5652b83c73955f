//! Mistakes of users at the command line. Each is refused with a message that names it and says
//! what to do, and without a panic.

use crate::programs::{Trial, command, repository, small_set, text};

const QUICK: &str = "
stages:
  - {name: one, steps: 2, batch: 4, frames: 4, mixture: {clips: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
cluster: {ranks_per_node: 1}
";

/// Asserts that `vljepa-launch` with `arguments` fails and prints all strings of `expected`.
pub fn refused(arguments: &[&str], expected: &[&str]) {
    let output = command("vljepa-launch").args(arguments).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{arguments:?} was accepted: {said}");
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    // Reports wrap and frame their lines, so only the words are compared.
    let words = |s: &str| {
        s.replace(['│', '×', '╰', '─', '▶', '╭', '├'], " ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    for part in expected {
        assert!(words(&said).contains(&words(part)), "{arguments:?} does not say `{part}`: {said}");
    }
}

#[test]
fn a_missing_recipe_is_named() {
    refused(&["nowhere.yaml"], &["nowhere.yaml"]);
}

#[test]
fn a_misspelt_key_is_shown_with_its_line_and_a_suggestion() {
    let trial = Trial::new("chekpoints: {keep: 2}");
    refused(&[trial.recipe().to_str().unwrap(), "--dry-run"], &["chekpoints", "checkpoints"]);
}

#[test]
fn a_misspelt_set_is_named() {
    let trial = Trial::new(QUICK);
    let recipe = trial.recipe();
    refused(
        &[recipe.to_str().unwrap(), "--dry-run", "--set", "optimizer.weight_decai=1"],
        &["weight_decai", "weight_decay"],
    );
}

#[test]
fn a_batch_smaller_than_the_number_of_ranks_is_refused() {
    let trial = Trial::new(QUICK);
    let recipe = trial.recipe();
    refused(
        &[recipe.to_str().unwrap(), "--dry-run", "--set", "cluster.ranks_per_node=5"],
        &["batch"],
    );
}

#[test]
fn shards_that_are_not_there_are_named_before_anything_starts() {
    let trial = Trial::new(QUICK);
    let run = trial.path("run");
    let recipe = trial.recipe();
    refused(
        &[
            recipe.to_str().unwrap(),
            "--run",
            run.to_str().unwrap(),
            "--set",
            "data.sources.clips.shards=/nowhere/clips-{000..003}.tar",
        ],
        &["/nowhere/clips-"],
    );
}

#[test]
fn shards_that_never_arrived_stop_a_run_and_a_dry_run_before_anything_starts() {
    let trial = Trial::new(QUICK);
    let folder = trial.path("shards");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(small_set().join("train/clips-000000.tar"), folder.join("a.tar")).unwrap();
    let pointer = repository().join("data/tests/cases/lfs_pointer.tar");
    std::fs::copy(pointer, folder.join("b.tar")).unwrap();
    std::fs::write(folder.join("c.tar"), "").unwrap();
    let (recipe, run) = (trial.recipe(), trial.path("run"));
    let shards = format!("data.sources.clips.shards={}", folder.display());
    let start = [recipe.to_str().unwrap(), "--run", run.to_str().unwrap(), "--set", &shards];
    let said = ["data.sources.clips.shards", "b.tar", "Git LFS pointer", "c.tar", "0 bytes"];
    refused(&start, &said);
    refused(&[&start[..], &["--dry-run"]].concat(), &said);
    assert!(!run.exists());
    for task in ["inspect", "index"] {
        let output = command("vljepa-shards").arg(task).arg(&folder).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in ["b.tar", "Git LFS pointer", "c.tar", "2 of 3 shards"] {
            assert!(said.contains(part), "{task} does not say `{part}`: {said}");
        }
    }
}

#[test]
fn a_task_whose_labels_are_not_in_its_samples_stops_a_run_before_anything_starts() {
    let trial = Trial::new(QUICK);
    let (recipe, run) = (trial.recipe(), trial.path("run"));
    let shards = small_set().join("eval/heldout.tar");
    let task = |field: &str| {
        format!(
            "evaluation.tasks=[{{name: t, shards: {}, kind: {{classification: \
             {{field: {field}, candidates: [moving left, moving right]}}}}}}]",
            shards.display()
        )
    };
    let start = |task: &str, extra: &[&str]| {
        let start = [recipe.to_str().unwrap(), "--run", run.to_str().unwrap(), "--set", task];
        let said = if task.contains("motions") { "no field `motions`" } else { "is not among" };
        refused(&[&start[..], extra].concat(), &["evaluation.tasks.0", "heldout.tar", said]);
    };
    for field in ["motions", "motion"] {
        start(&task(field), &[]);
        start(&task(field), &["--dry-run"]);
    }
    assert!(!run.exists());
}

/// Like `EmbeddingGemma`, whose tokenizer has one added token more than its embedding has rows.
#[test]
fn a_tokenizer_with_an_added_token_beyond_the_embedding_trains() {
    let trial = Trial::new(QUICK);
    let tokenizer = std::fs::read_to_string(small_set().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let mut added = json["added_tokens"][0].clone();
    // The quickstart's embedding has 128 rows. An added token gets the id after the last word.
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    for id in vocabulary.len()..128 {
        vocabulary.insert(format!("word{id}"), id.into());
    }
    (added["id"], added["content"]) = (128.into(), "<image_soft_token>".into());
    json["added_tokens"].as_array_mut().unwrap().push(added);
    let path = trial.path("one_more.json");
    std::fs::write(&path, json.to_string()).unwrap();
    let set = format!("model.y_encoder.tokenizer={}", path.display());
    trial.complete("run", &[&set]);
    trial.complete("usual", &[]);
    assert_eq!(trial.losses("run"), trial.losses("usual"));
    // The query of a rule uses it.
    let set = format!("model.predictor.tokenizer={}", path.display());
    let query = "data.sources.clips.targets=[{from: caption, query: a <image_soft_token>}]";
    let recipe = trial.recipe();
    refused(
        &[recipe.to_str().unwrap(), "--dry-run", "--set", &set, "--set", query],
        &["data.sources.clips.targets.0.query", "`<image_soft_token>` (id 128)", "only 128 rows"],
    );
}

#[test]
fn a_run_directory_of_another_recipe_is_refused_with_the_keys_that_differ() {
    let trial = Trial::new(QUICK);
    trial.complete("run", &[]);
    let (run, recipe) = (trial.path("run"), trial.recipe());
    refused(
        &[
            recipe.to_str().unwrap(),
            "--run",
            run.to_str().unwrap(),
            "--set",
            "optimizer.weight_decay=0.3",
        ],
        &["optimizer.weight_decay"],
    );
}

#[test]
fn an_unwritable_run_directory_is_named() {
    let trial = Trial::new(QUICK);
    let recipe = trial.recipe();
    // Not even root can create a folder in /proc.
    refused(&[recipe.to_str().unwrap(), "--run", "/proc/run"], &["/proc/run"]);
}

#[test]
fn questions_to_a_run_without_checkpoint_or_to_no_run_are_refused() {
    let trial = Trial::new(QUICK);
    let clip = small_set().join("eval/heldout.tar");
    let nowhere = trial.path("nowhere");
    refused(
        &["ask", nowhere.to_str().unwrap(), clip.to_str().unwrap(), "what?", "--answers", "a,b"],
        &["nowhere"],
    );
}

#[test]
fn errors_of_jobs_on_a_run_are_said_once_without_the_worker_s_log() {
    let trial = Trial::new(QUICK);
    trial.complete("run", &["checkpoints.every_steps=1"]);
    let (run, text_file) = (trial.path("run"), trial.path("notes.txt"));
    let run = run.to_str().unwrap();
    std::fs::write(&text_file, "hello").unwrap();
    let said_once = |arguments: &[&str], parts: &[&str]| {
        let output = command("vljepa-launch").args(arguments).output().unwrap();
        let said = text(&output).replace(['│', '×'], " ");
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in parts {
            assert_eq!(words.matches(part).count(), 1, "`{part}`: {said}");
        }
        for log in ["\u{1b}", "ERROR", "WARN", "vljepa_worker", "error:", "rank="] {
            assert!(!said.contains(log), "`{log}`: {said}");
        }
    };
    let ask = ["ask", run, text_file.to_str().unwrap(), "what?", "--answers", "a,b"];
    said_once(&ask, &["the worker failed: sample `notes.txt`", "not a picture"]);
    let export = ["export", run, "/proc/weights"];
    refused(&export, &["/proc/weights.part cannot be created", "No such file or directory"]);
    // A damaged checkpoint is a warning, because an older one is read.
    let part = trial.path("run/checkpoints/step-00000002/rank-0000.safetensors");
    let mut bytes = std::fs::read(&part).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let warning = "warning: a checkpoint does not verify: step-00000002";
    said_once(&ask, &[warning, "the worker failed: sample `notes.txt`"]);
}

#[test]
fn a_missing_mpirun_is_explained() {
    let trial = Trial::new(QUICK);
    let mut launch = trial.launch("run", &["cluster.ranks_per_node=2"]);
    let output = launch.env("PATH", "/nowhere").output().unwrap();
    assert!(!output.status.success());
    assert!(
        text(&output).contains("mpirun") && text(&output).contains("openmpi"),
        "{}",
        text(&output)
    );
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_that_is_not_there_is_named_and_nothing_else_computes() {
    let trial = Trial::new(QUICK);
    let recipe = trial.recipe();
    let changes = ["--set", "device=cuda", "--set", "precision=bf16"];
    // The empty variable hides all GPUs from an installed driver.
    let output = command("vljepa-launch")
        .arg(&recipe)
        .arg("--run")
        .arg(trial.path("gpu"))
        .args(changes)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("fail device") && said.contains("device: host") && !said.contains("panicked"),
        "{said}"
    );
    refused(&[recipe.to_str().unwrap(), "--set", "device=cuda"], &["GPUs compute in bf16 only"]);
}
