//! The loss and the gradient of a batch depend neither on the number of ranks nor on micro-batches.
//! The ranks are real MPI ranks.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::programs::{Trial, text};

/// One optimizer step of 8 clips without gradient clipping. The first moment after the step is (1 −
/// β₁) times the gradient of the global batch.
const ONE_STEP: &str = "
stages:
  - {name: one, steps: 1, batch: 8, frames: 4, mixture: {clips: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
optimizer: {clip_norm: 0}
evaluation: {tasks: []}
logging: {every_steps: 1}
checkpoints: {every_steps: 1}
";

#[test]
#[expect(clippy::disallowed_methods, reason = "starts the program with fewer CPUs")]
fn a_rank_has_the_cpus_that_its_affinity_allows_and_shares_them_with_the_others() {
    let trial = Trial::new(ONE_STEP);
    let cpus = |run: &str, sets: &[&str], allowed: &str| {
        let launch = trial.launch(run, sets);
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", allowed]).arg(launch.get_program()).args(launch.get_args());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let log = trial.path(run).join("logs/rank-0000-attempt-1.log");
        let log = std::fs::read_to_string(log).unwrap();
        let found = log.split_whitespace().find_map(|word| word.strip_prefix("cpus="));
        found.unwrap_or_else(|| panic!("no number of CPUs: {log}")).to_owned()
    };
    let (alone, two) = (["cluster.ranks_per_node=1"], ["cluster.ranks_per_node=2"]);
    assert_eq!(cpus("one", &alone, "0"), "1");
    assert_eq!(cpus("both", &alone, "0,1"), "2");
    assert_eq!(cpus("shared", &two, "0,1"), "1");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "starts mpirun without a run")]
fn a_run_starts_while_another_mpirun_of_the_user_ends() {
    let trial = Trial::new(ONE_STEP);
    let temporary = trial.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    // The folder that OpenMPI 4 shares among all `mpirun` of a user. One that ends removes it if it
    // is empty, and another may be about to make its own folder in it.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let user = std::fs::metadata(&temporary).unwrap().uid();
    let name = format!("ompi.{}.{user}", host.trim().split('.').next().unwrap());
    let shared = temporary.join(name);
    let ends = |command: &mut Command| {
        command.env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            for _ in 0..1000 {
                std::fs::remove_dir(&shared).ok();
            }
        }
        child.wait_with_output().unwrap()
    };
    let alone = ["--allow-run-as-root", "--oversubscribe", "-np", "2", "true"];
    let fails = || !ends(Command::new("mpirun").args(alone)).status.success();
    assert!((0..100).any(|_| fails()), "the folder has another name");
    for run in ["one", "two", "three"] {
        let output = ends(&mut trial.launch(run, &["cluster.ranks_per_node=2"]));
        assert!(output.status.success(), "{}", text(&output));
    }
    let left = std::fs::read_dir(&temporary).unwrap().flatten().map(|entry| entry.file_name());
    assert!(left.filter(|name| name.to_string_lossy().starts_with("vljepa")).count() == 0);
}

struct Step {
    loss: f64,
    norm: f64,
    moment: Vec<f32>,
    parameters: Vec<(String, Range<usize>)>,
}

fn one_step(trial: &Trial, run: &str, sets: &[&str]) -> Step {
    trial.complete(run, sets);
    let lines = trial.losses(run);
    assert_eq!(lines.len(), 1);
    let moment = trial.buffer(run, 1, "first_moment");
    let parameters = trial.parameters(run, 1);
    Step { loss: lines[0].1, norm: lines[0].2, moment, parameters }
}

/// Returns the largest difference of a parameter, relative to the parameter's largest element, and
/// the parameter's name.
///
/// If a sum of n terms is computed in another order, its rounding error is at most n·ε times the
/// sum of magnitudes, and in practice about √n·ε. A parameter whose largest element is below a
/// thousandth of the whole gradient's largest is compared with that thousandth instead: the
/// gradient of a key's bias is zero except for rounding.
fn difference(a: &Step, b: &Step) -> (f64, String) {
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let floor = largest(&a.moment) * 1e-3;
    let mut worst = (0.0, String::new());
    for (name, range) in &a.parameters {
        let (x, y) = (&a.moment[range.clone()], &b.moment[range.clone()]);
        let apart = x.iter().zip(y).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
        let relative = f64::from(apart) / f64::from(largest(x).max(floor));
        if relative > worst.0 {
            worst = (relative, name.clone());
        }
    }
    worst
}

/// Tolerance for gradients. A parameter's gradient is a sum over 8 rows of about 45 tokens. It
/// passes through about 40 operations, whose roundings also depend on the order of sums and add up
/// like a random walk: ε·√(8·45)·√40 = 1.4e-5.
const GRADIENT_TOLERANCE: f64 = 1.4e-5;
/// Tolerance for the loss, a mean of 16 logarithms of order 1 from logits of at most 15: 15·ε·√40.
const LOSS_TOLERANCE: f64 = 1.2e-5;

#[test]
fn loss_and_gradient_are_the_same_for_any_number_of_ranks_and_any_micro_batch() {
    let trial = Trial::new(ONE_STEP);
    let alone = one_step(&trial, "1x8", &["cluster.ranks_per_node=1"]);
    assert!(alone.norm > 0.0 && alone.loss > 0.0);
    let splits: [(&str, &[&str]); 6] = [
        ("2x4", &["cluster.ranks_per_node=2"]),
        ("4x2", &["cluster.ranks_per_node=4"]),
        ("3 uneven", &["cluster.ranks_per_node=3"]),
        ("1x8 in threes", &["cluster.ranks_per_node=1", "stages.0.micro_batch=3"]),
        ("2x4 in ones", &["cluster.ranks_per_node=2", "stages.0.micro_batch=1"]),
        ("3 uneven in twos", &["cluster.ranks_per_node=3", "stages.0.micro_batch=2"]),
    ];
    for (name, sets) in splits {
        let split = one_step(&trial, &name.replace(' ', "_"), sets);
        let (apart, where_) = difference(&alone, &split);
        println!("{name}: gradients differ by {apart:e} at most, in {where_}");
        assert!(apart < GRADIENT_TOLERANCE, "{name}: gradients of {where_} differ by {apart:e}");
        assert!(
            (alone.loss - split.loss).abs() < LOSS_TOLERANCE,
            "{name}: {} {}",
            alone.loss,
            split.loss
        );
        assert!(
            (alone.norm / split.norm - 1.0).abs() < GRADIENT_TOLERANCE,
            "{name}: {}",
            split.norm
        );
    }
}

#[test]
fn statistics_of_the_global_batch_are_the_same_for_any_number_of_ranks_and_any_micro_batch() {
    let trial = Trial::new(ONE_STEP);
    for kind in ["vic_reg", "sig_reg"] {
        let loss = format!("loss.kind={kind}");
        let step = |name: &str, sets: &[&str]| {
            let loss = [loss.as_str(), "loss.mask_equal_targets=false"];
            let sets: Vec<&str> = sets.iter().copied().chain(loss).collect();
            one_step(&trial, &format!("{kind}_{name}"), &sets)
        };
        let alone = step("1x8", &["cluster.ranks_per_node=1"]);
        assert!(alone.norm > 0.0 && alone.loss > 0.0);
        let splits: [(&str, &[&str]); 2] = [
            ("2x4", &["cluster.ranks_per_node=2"]),
            ("3_uneven_in_twos", &["cluster.ranks_per_node=3", "stages.0.micro_batch=2"]),
        ];
        for (name, sets) in splits {
            let split = step(name, sets);
            let (apart, where_) = difference(&alone, &split);
            println!("{kind} {name}: gradients differ by {apart:e} at most, in {where_}");
            assert!(apart < GRADIENT_TOLERANCE, "{kind} {name}: {apart:e} in {where_}");
            // These losses are sums of terms up to their own size, of which each rank has a share.
            let loss = (split.loss / alone.loss - 1.0).abs();
            assert!(loss < LOSS_TOLERANCE, "{kind} {name}: {} {}", alone.loss, split.loss);
        }
    }
}

#[test]
fn another_batch_would_be_seen() {
    let trial = Trial::new(ONE_STEP);
    let one = one_step(&trial, "one", &["cluster.ranks_per_node=1"]);
    let other = one_step(&trial, "other", &["cluster.ranks_per_node=1", "stages.0.batch=7"]);
    assert!(difference(&one, &other).0 > 100.0 * GRADIENT_TOLERANCE);
}

#[test]
fn how_gradients_are_cut_into_buckets_changes_no_bit() {
    let trial = Trial::new(ONE_STEP);
    for ranks in ["2", "3"] {
        let world = format!("cluster.ranks_per_node={ranks}");
        let step = |mib: &str| {
            let bucket = format!("cluster.bucket_mib={mib}");
            // The MLP is wide enough to fill several buckets.
            let sets = [world.as_str(), &bucket, "model.predictor.intermediate_size=4096"];
            one_step(&trial, &format!("{ranks}_ranks_{mib}_mib"), &sets)
        };
        let (small, whole) = (step("1"), step("1024"));
        assert!(small.moment.len() > 4 << 18, "there are several buckets of 1 MiB");
        let bits = |s: &Step| -> Vec<u32> { s.moment.iter().map(|x| x.to_bits()).collect() };
        assert!(bits(&small) == bits(&whole), "{ranks} ranks");
        assert_eq!(small.norm.to_bits(), whole.norm.to_bits(), "{ranks} ranks");
    }
}
