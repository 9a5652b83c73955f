//! Optimizer state that is sharded over real MPI ranks: it computes the same steps as unsharded
//! state, resumes bit for bit, and may be exchanged with unsharded state between two starts.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::{Trial, wait_until};

/// Eight steps whose gradients are clipped, so that the gradient's norm affects the result.
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

/// Returns the largest difference of two buffers, relative to the largest element of `a`.
fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
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
        // The clip factor differs by rounding: the ranks' shares of the squared norm are rounded to
        // f32 once each and again when they are added, and the square root halves the error. A sum
        // of three gradients may have another order: two roundings of terms that are at most three
        // times as large as the sum.
        let tolerance = f32::EPSILON * if n == 1 { 0.0 } else { 8.0 };
        let first = |run| trial.buffer(run, 2, "first_moment");
        let difference = relative_difference(&first(&whole), &first(&sharded));
        assert!(
            difference <= 2.0 * tolerance,
            "{n} ranks: moments differ by {difference:e} after two steps"
        );
        for (a, b) in trial.losses(&whole).iter().zip(trial.losses(&sharded)) {
            // The difference passes through at most eight updates of AdamW, whose first updates
            // divide by tiny moments.
            let loss = if n == 1 { 0.0 } else { 1e-3 };
            assert!((a.1 - b.1).abs() <= loss, "{n} ranks, step {}: {} and {}", a.0, a.1, b.1);
        }
    }
    let moments = |run| trial.buffer(run, 2, "first_moment");
    assert!(
        relative_difference(&moments("whole-1"), &trial.buffer("whole-1", 4, "first_moment"))
            > 1e-3
    );
}

/// Runs until the second checkpoint and interrupts the run.
fn interrupt_after_second_checkpoint(trial: &Trial, run: &str, sets: &[&str]) {
    let mut child = trial.launch(run, sets).spawn().unwrap();
    let second = trial.path(run).join("checkpoints/step-00000004/manifest.json");
    wait_until(&mut child, Duration::from_secs(120), "the second checkpoint", || second.exists());
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // The run may have completed already.
    kill(pid, Signal::SIGINT).ok();
    child.wait().unwrap();
}

#[test]
fn a_sharded_run_with_a_moving_average_resumes_bit_for_bit() {
    let trial = Trial::new(EIGHT_STEPS);
    let sets = [&*ranks(2), SHARD, "model.y_encoder.update={ema: {decay: 0.9}}"];
    trial.complete("undisturbed", &sets);
    interrupt_after_second_checkpoint(&trial, "cut", &sets);
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
    interrupt_after_second_checkpoint(&trial, "mixed", &[&ranks(3), SHARD]);
    // Steps from 5 on run unsharded on two ranks; then steps 7 and 8 run again, sharded on two
    // ranks.
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
        // The tolerance of `resume` for another number of ranks.
        assert!((a.1 - b.1).abs() < 2e-2 * a.1.abs().max(1.0), "step {}: {} and {}", a.0, a.1, b.1);
    }
}
