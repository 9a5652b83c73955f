//! Optimizer state sharded over ranks computes the same step, resumes bit for bit, and changes hands with a whole one: real MPI
//! ranks.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::{Trial, wait_until};

/// Steps that are clipped, so that the norm matters.
const EIGHT_STEPS: &str = "
stages:
  - {name: one, steps: 8, batch: 9, frames: 2, mixture: {questions: 1}, learning_rate: {peak: 1e-3}}
optimizer: {clip_norm: 0.01}
evaluation: {tasks: []}
logging: {every_steps: 1}
checkpoints: {every_steps: 2, keep: 9}
";
const SHARD: &str = "optimizer.shard=true";

fn ranks(n: usize) -> String {
    format!("cluster.ranks_per_node={n}")
}

/// The largest difference of two buffers, relative to the largest element.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / largest
}

#[test]
fn sharded_steps_are_the_whole_ones_on_any_number_of_ranks() {
    let trial = Trial::new(EIGHT_STEPS);
    for n in [1, 2, 3] {
        let (whole, sharded) = (format!("whole-{n}"), format!("sharded-{n}"));
        trial.complete(&whole, &[&ranks(n)]);
        trial.complete(&sharded, &[&ranks(n), SHARD]);
        // The clip factor: shares of the squared norm are rounded to f32 once each and when they are added, and the root halves
        // that. A sum of three gradients may be taken in another order: two roundings, of terms at most three times its size.
        let tolerance = f32::EPSILON * if n == 1 { 0.0 } else { 8.0 };
        let first = |run| trial.buffer(run, 2, "first_moment");
        let far = apart(&first(&whole), &first(&sharded));
        assert!(far <= 2.0 * tolerance, "{n} ranks: moments differ by {far:e} after two steps");
        for (a, b) in trial.losses(&whole).iter().zip(trial.losses(&sharded)) {
            // Carried through at most eight updates of AdamW, whose first ones divide by tiny moments.
            let loss = if n == 1 { 0.0 } else { 1e-3 };
            assert!((a.1 - b.1).abs() <= loss, "{n} ranks, step {}: {} and {}", a.0, a.1, b.1);
        }
    }
    let moments = |run| trial.buffer(run, 2, "first_moment");
    assert!(apart(&moments("whole-1"), &trial.buffer("whole-1", 4, "first_moment")) > 1e-3);
}

/// Runs until the second checkpoint and interrupts.
fn interrupted(trial: &Trial, run: &str, sets: &[&str]) {
    let mut child = trial.launch(run, sets).spawn().unwrap();
    let second = trial.path(run).join("checkpoints/step-00000004/manifest.json");
    wait_until(&mut child, Duration::from_secs(120), "the second checkpoint", || second.exists());
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // The run may have ended by itself.
    kill(pid, Signal::SIGINT).ok();
    child.wait().unwrap();
}

#[test]
fn a_sharded_run_resumes_bit_for_bit() {
    let trial = Trial::new(EIGHT_STEPS);
    let sets = [&*ranks(2), SHARD];
    trial.complete("undisturbed", &sets);
    interrupted(&trial, "cut", &sets);
    trial.complete("cut", &sets);
    assert_eq!(trial.losses("undisturbed"), trial.losses("cut"));
    for buffer in ["weights", "first_moment", "second_moment"] {
        let bits = |run| {
            let values = trial.buffer(run, 8, buffer);
            values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(bits("undisturbed") == bits("cut"), "{buffer}");
    }
}

#[test]
fn shards_of_three_ranks_go_on_whole_on_two_and_as_shards_again() {
    let trial = Trial::new(EIGHT_STEPS);
    trial.complete("whole", &[&ranks(2)]);
    interrupted(&trial, "mixed", &[&ranks(3), SHARD]);
    // Steps 5 and 6 whole on two ranks, then shards on two.
    let run = trial.path("mixed");
    std::fs::remove_file(run.join("completed.json")).ok();
    for step in [6, 8] {
        std::fs::remove_dir_all(run.join(format!("checkpoints/step-{step:08}"))).ok();
    }
    trial.complete("mixed", &[&ranks(2)]);
    std::fs::remove_file(run.join("completed.json")).unwrap();
    std::fs::remove_dir_all(run.join("checkpoints/step-00000008")).unwrap();
    trial.complete("mixed", &[&ranks(2), SHARD]);
    let (whole, mixed) = (trial.losses("whole"), trial.losses("mixed"));
    assert_eq!(whole.len(), mixed.len());
    for (a, b) in whole.iter().zip(&mixed) {
        // As between numbers of ranks in `resume`.
        assert!((a.1 - b.1).abs() < 2e-2 * a.1.abs().max(1.0), "step {}: {} and {}", a.0, a.1, b.1);
    }
}
