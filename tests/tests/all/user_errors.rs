//! Mistakes of users at the command line. Each is refused with a message that names it and says
//! what to do, and without a panic.

use crate::programs::{Trial, command, small_set, text};

const QUICK: &str = "
stages:
  - {name: one, steps: 2, batch: 4, frames: 4, mixture: {clips: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
cluster: {ranks_per_node: 1}
";

/// Asserts that `vljepa-launch` with `arguments` fails and prints all strings of `expected`.
fn refused(arguments: &[&str], expected: &[&str]) {
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
fn a_file_that_is_no_picture_is_refused_by_name() {
    let trial = Trial::new(QUICK);
    trial.complete("run", &[]);
    let text_file = trial.path("notes.txt");
    std::fs::write(&text_file, "hello").unwrap();
    refused(
        &[
            "ask",
            trial.path("run").to_str().unwrap(),
            text_file.to_str().unwrap(),
            "what?",
            "--answers",
            "a,b",
        ],
        &["notes.txt"],
    );
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
