//! Bad samples and non-finite gradients during a run. They are counted, named and limited, in the
//! same way for any number of ranks.

use crate::breakage::write_spoiled_shard;
use crate::programs::{Trial, text};

const EIGHT_STEPS: &str = "
stages:
  - {name: one, steps: 8, batch: 8, frames: 2, mixture: {questions: 1}, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
logging: {every_steps: 1}
checkpoints: {every_steps: 100}
cluster: {ranks_per_node: 2, restart: {max_without_progress: 0}}
";

fn log_of(trial: &Trial, run: &str) -> std::path::PathBuf {
    vljepa_recipes::RunDirectory::open(&trial.path(run)).unwrap().log(0, 1)
}

#[test]
fn spoiled_samples_are_replaced_counted_and_the_same_on_any_number_of_ranks() {
    let trial = Trial::new(EIGHT_STEPS);
    let shard = trial.path("spoiled.tar");
    write_spoiled_shard(&shard);
    let shards = format!("data.sources.questions.shards={}", shard.display());
    let patient = "data.bad_samples.max_fraction=1";
    trial.complete("two", &[&shards, patient]);
    trial.complete("one", &[&shards, patient, "cluster.ranks_per_node=1"]);
    let (one, two) = (trial.bad_samples("one"), trial.bad_samples("two"));
    assert!(one > 0, "a third of the samples are spoiled and 64 were drawn");
    assert_eq!(one, two);
    let events = std::fs::read_to_string(log_of(&trial, "one")).unwrap();
    assert!(events.contains("cut short"), "images cut in half are reported: {events}");
    for (a, b) in trial.losses("one").iter().zip(trial.losses("two")) {
        // The samples are the same. Sums that are split between two ranks round differently, and
        // the difference passes through at most 8 updates.
        assert!((a.1 - b.1).abs() < 1e-2, "step {}: {} and {}", a.0, a.1, b.1);
    }
    let log = std::fs::read_to_string(log_of(&trial, "one")).unwrap();
    assert!(log.contains("left out") && log.contains("spoiled.tar"), "{log}");
}

#[test]
fn a_policy_of_zero_stops_at_the_first_bad_sample_and_names_it() {
    let trial = Trial::new(EIGHT_STEPS);
    let shard = trial.path("spoiled.tar");
    write_spoiled_shard(&shard);
    let shards = format!("data.sources.questions.shards={}", shard.display());
    let output =
        trial.launch("strict", &[&shards, "data.bad_samples.max_consecutive=0"]).output().unwrap();
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("spoiled.tar") && said.contains("rank"), "{said}");
    assert!(!trial.path("strict").join("completed.json").exists());
}

#[test]
fn steps_without_a_finite_gradient_are_skipped_and_then_end_the_run() {
    let trial = Trial::new(EIGHT_STEPS);
    let sets = ["stages.0.learning_rate.peak=1e30", "optimizer.non_finite.max_consecutive=2"];
    let output = trial.launch("diverged", &sets).output().unwrap();
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("3 steps in a row had a gradient that is not finite"), "{said}");
    let metrics = std::fs::read_to_string(trial.path("diverged").join("metrics.jsonl")).unwrap();
    assert!(metrics.lines().count() >= 3 && metrics.contains("\"loss\":null"), "{metrics}");
    let events = std::fs::read_to_string(trial.path("diverged").join("events.jsonl")).unwrap();
    assert!(events.contains("step skipped"), "{events}");
}

#[test]
fn a_rank_that_hangs_while_weights_are_loaded_or_tasks_measured_is_named_and_the_run_completes() {
    let trial = Trial::new(EIGHT_STEPS);
    for (phase, step) in [("load", 0), ("evaluation", 8)] {
        let sets = ["cluster.start_timeout_s=10", "cluster.restart.max_without_progress=1"];
        let mut command = trial.launch(phase, &sets);
        // The rank sends heartbeats all the time.
        let drill = format!("slow:rank=1,step={step},phase={phase},seconds=600");
        let output = command.args(["--drill", &drill]).output().unwrap();
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        let hangs = format!("rank 1 hangs in phase {phase} of step {step}: on ");
        assert!(said.contains(&hangs) && said.contains("it still sends heartbeats"), "{said}");
        assert!(said.contains("others wait in collective"), "{said}");
    }
}
