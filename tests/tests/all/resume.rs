//! Interrupted runs: a killed run continues bit for bit, a damaged checkpoint is skipped, and a
//! full disk does not lose a run.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::breakage::{SmallDisk, flip_a_bit};
use crate::programs::{Trial, command, has_checkpoint, small_set, text, wait_until};

/// 24 steps in two stages on two ranks, with a checkpoint every 4 steps.
const TWO_STAGES: &str = "
stages:
  - {name: pictures, steps: 10, batch: 8, frames: 4, mixture: {images: 1, questions: 2}, mixing: batch, learning_rate: {peak: 1e-3, warmup_steps: 3}}
  - {name: clips, steps: 14, batch: 10, frames: 4, mixture: {clips: 2, questions: 1}, mixing: batch, learning_rate: {peak: 1e-3, schedule: cosine}}
evaluation: {tasks: []}
logging: {every_steps: 1}
checkpoints: {every_steps: 4, keep: 20}
cluster: {ranks_per_node: 2}
";
const LAST: u64 = 24;
const LIMIT: Duration = Duration::from_secs(120);

/// Sends a signal to a child process.
pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, signal).unwrap();
}

/// Returns the process ids of a run's workers, from /proc.
pub fn workers(run: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()?.parse().ok()) else { continue };
        let Ok(line) = std::fs::read(path.join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default();
        if program.ends_with("vljepa-worker") && line.contains(run.to_str().unwrap()) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// Waits until the workers of a run whose supervisor was killed have noticed it and exited.
pub fn wait_for_workers(run: &Path) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !workers(run).is_empty() {
        assert!(std::time::Instant::now() < end, "workers outlive their supervisor");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn assert_same_end(trial: &Trial, undisturbed: &str, run: &str) {
    assert_eq!(trial.losses(undisturbed), trial.losses(run), "losses differ");
    trial.assert_same_bits(undisturbed, run, LAST);
}

#[test]
fn kill_of_everything_loses_at_most_the_steps_since_the_last_checkpoint() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    // The kill follows as soon as the second checkpoint appears, so the moment does not depend on
    // the speed of the steps.
    let run = trial.path("killed");
    let mut child = trial.launch("killed", &[]).spawn().unwrap();
    wait_until(&mut child, LIMIT, "the second checkpoint", || has_checkpoint(&run, 8));
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    wait_for_workers(&run);
    trial.complete("killed", &[]);
    assert_same_end(&trial, "undisturbed", "killed");
}

#[test]
fn a_run_of_a_build_that_lacked_a_recipe_key_continues() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    let run = trial.path("older");
    let slower = ["--drill", "slow:rank=0,step=0,seconds=0.2,attempt=1"];
    let mut child = trial.launch("older", &[]).args(slower).spawn().unwrap();
    wait_until(&mut child, LIMIT, "the second checkpoint", || has_checkpoint(&run, 8));
    signal(&child, Signal::SIGTERM);
    child.wait().unwrap();
    assert!(!run.join("completed.json").exists(), "the run was stopped on its way");
    let edit = |path: &Path, edit: &dyn Fn(&str) -> String| {
        let old = std::fs::read_to_string(path).unwrap();
        let new = edit(&old);
        assert_ne!(old, new, "{}", path.display());
        std::fs::write(path, new).unwrap();
    };
    // The recipe without the key `field`, and checkpoints of format 1, which recorded another hash.
    edit(&run.join("recipe.yaml"), &|text| {
        text.lines().filter(|line| line.trim() != "field: null").collect::<Vec<_>>().join("\n")
    });
    for entry in std::fs::read_dir(run.join("checkpoints")).unwrap() {
        let manifest = entry.unwrap().path().join("manifest.json");
        if manifest.exists() {
            edit(&manifest, &|text| {
                let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
                value["version"] = 1.into();
                value["recipe_hash"] = "of all keys".into();
                for key in ["shard_lengths", "hash"] {
                    value.as_object_mut().unwrap().remove(key);
                }
                value.to_string()
            });
        }
    }
    trial.complete("older", &[]);
    assert_same_end(&trial, "undisturbed", "older");
}

#[test]
fn a_stage_does_not_continue_on_shards_with_other_numbers_of_samples() {
    let trial = Trial::new(TWO_STAGES);
    let (run, folder) = (trial.path("run"), trial.path("clips"));
    std::fs::create_dir(&folder).unwrap();
    let clips = small_set().join("train/clips-000000.tar");
    std::fs::copy(&clips, folder.join("a.tar")).unwrap();
    let sets = [&*format!("data.sources.clips.shards={}", folder.display())];
    let slower = ["--drill", "slow:rank=0,step=0,seconds=0.2,attempt=1"];
    let mut child = trial.launch("run", &sets).args(slower).spawn().unwrap();
    wait_until(&mut child, LIMIT, "a checkpoint of the second stage", || has_checkpoint(&run, 12));
    signal(&child, Signal::SIGTERM);
    child.wait().unwrap();
    assert!(!run.join("completed.json").exists(), "the run was stopped on its way");
    std::fs::copy(&clips, folder.join("b.tar")).unwrap();
    let refused = trial.launch("run", &sets).output().unwrap();
    let said = text(&refused);
    assert!(!refused.status.success(), "{said}");
    for part in ["checkpoint step-000000", "source `clips`", "other numbers of samples"] {
        assert!(said.contains(part), "{said}");
    }
    // With the shards of before, the run continues.
    std::fs::remove_file(folder.join("b.tar")).unwrap();
    trial.complete("run", &sets);
}

/// Returns whether some rank is writing a checkpoint of step `step` or later.
fn is_writing(run: &Path, step: u64) -> bool {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = name.strip_prefix(".step-").and_then(|n| n.strip_suffix(".writing")?.parse().ok());
        of.is_some_and(|of: u64| of >= step)
    })
}

#[test]
fn a_kill_while_a_checkpoint_is_written_costs_that_checkpoint_alone() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    let run = trial.path("killed");
    let mut child = trial.launch("killed", &[]).spawn().unwrap();
    let end = std::time::Instant::now() + LIMIT;
    // A checkpoint of this size is written within milliseconds, so the pauses are short.
    while !is_writing(&run, 8) && child.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < end, "no checkpoint is written");
        std::thread::park_timeout(Duration::from_micros(200));
    }
    for worker in workers(&run) {
        kill(worker, Signal::SIGKILL).ok();
    }
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    trial.complete("killed", &[]);
    assert_same_end(&trial, "undisturbed", "killed");
    assert!(!is_writing(&run, 0), "no unfinished checkpoint is left");
}

#[test]
fn a_killed_rank_is_named_and_the_run_goes_on_by_itself() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    let run = trial.path("bereft");
    let mut child = trial.launch("bereft", &[]).spawn().unwrap();
    wait_until(&mut child, LIMIT, "the first checkpoint", || has_checkpoint(&run, 4));
    if let Some(&victim) = workers(&run).last() {
        kill(victim, Signal::SIGKILL).ok();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_same_end(&trial, "undisturbed", "bereft");
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    // On a fast machine the run may end before the kill. Then nothing is restarted.
    let restarted = vljepa_recipes::RunDirectory::open(&run).unwrap().log(0, 2).exists();
    assert!(!restarted || text(&output).contains("rank"), "{}\n{events}", text(&output));
}

#[test]
fn interrupting_once_saves_and_the_same_command_continues() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    let run = trial.path("interrupted");
    let mut child = trial.launch("interrupted", &[]).spawn().unwrap();
    wait_until(&mut child, LIMIT, "the first checkpoint", || has_checkpoint(&run, 4));
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert!(workers(&run).is_empty(), "{}", text(&output));
    let completed = run.join("completed.json").exists();
    assert!(completed || output.status.code() == Some(130), "{}", text(&output));
    assert!(completed || text(&output).contains("continue"), "{}", text(&output));
    trial.complete("interrupted", &[]);
    assert_same_end(&trial, "undisturbed", "interrupted");
}

#[test]
fn signals_at_any_moment_also_during_a_save_lose_nothing() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    let run = trial.path("signalled");
    let done = |step: u64| move |run: &Path| has_checkpoint(run, step);
    type Moment = (Signal, &'static str, Box<dyn Fn(&Path) -> bool>);
    let moments: [Moment; 5] = [
        (
            Signal::SIGTERM,
            "the first log",
            Box::new(|run| run.join("logs/rank-0001-attempt-1.log").exists()),
        ),
        (Signal::SIGUSR1, "the first checkpoint", Box::new(done(4))),
        (Signal::SIGTERM, "a save", Box::new(|run| is_writing(run, 8) || has_checkpoint(run, 8))),
        (
            Signal::SIGUSR2,
            "a later save",
            Box::new(|run| is_writing(run, 12) || has_checkpoint(run, 12)),
        ),
        (Signal::SIGTERM, "a later checkpoint", Box::new(done(16))),
    ];
    for (attempt, (asked, what, moment)) in (1..).zip(moments) {
        let mut command = trial.launch("signalled", &[]);
        // The steps are slow, so that the run does not end before the signal.
        command.args(["--drill", &format!("slow:rank=0,step=0,seconds=0.1,attempt={attempt}")]);
        let mut child = command.spawn().unwrap();
        wait_until(&mut child, LIMIT, what, || moment(&run));
        // Each signal comes twice, as on Slurm: Slurm sends it to the launcher, and the batch
        // script passes on its own copy.
        signal(&child, asked);
        signal(&child, asked);
        let output = child.wait_with_output().unwrap();
        assert!(
            !output.status.success() && text(&output).contains("continue"),
            "{}",
            text(&output)
        );
        assert!(workers(&run).is_empty() && !is_writing(&run, 0), "{what}");
    }
    trial.complete("signalled", &[]);
    assert_same_end(&trial, "undisturbed", "signalled");
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over_and_named() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    trial.complete("damaged", &[]);
    let run = trial.path("damaged");
    // Simulates a run that died before it wrote its completion record, and a bit of the newest part
    // that flipped afterwards.
    std::fs::remove_file(run.join("completed.json")).unwrap();
    let part = run.join(format!("checkpoints/step-{LAST:08}/rank-0001.safetensors"));
    flip_a_bit(&part);
    trial.complete("damaged", &[]);
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    assert!(events.contains("step-00000024") && events.contains("damaged"), "{events}");
    assert_same_end(&trial, "undisturbed", "damaged");
}

#[test]
fn parameters_that_are_never_trained_survive_and_are_made_again_when_damaged() {
    let trial = Trial::new(TWO_STAGES);
    let frozen = ["model.x_encoder.trainable=false", "model.predictor.train_embeddings=false"];
    trial.complete("undisturbed", &frozen);
    let run = trial.path("damaged");
    let mut child = trial.launch("damaged", &frozen).spawn().unwrap();
    wait_until(&mut child, LIMIT, "the first checkpoint", || has_checkpoint(&run, 4));
    signal(&child, Signal::SIGINT);
    child.wait_with_output().unwrap();
    let file = run.join("checkpoints/frozen.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    // The run may have completed before the interruption. It must read its checkpoint again in any
    // case.
    std::fs::remove_file(run.join("completed.json")).ok();
    trial.complete("damaged", &frozen);
    assert_same_end(&trial, "undisturbed", "damaged");
    assert!(std::fs::read(&file).unwrap() == whole, "the file is written again, bit for bit");
    let events = std::fs::read_to_string(run.join("events.jsonl")).unwrap();
    assert!(events.contains("made again"), "{events}");
}

#[test]
fn a_run_continues_on_another_number_of_ranks_with_the_same_samples() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("two", &[]);
    let run = trial.path("two-then-one");
    let mut child = trial.launch("two-then-one", &[]).spawn().unwrap();
    wait_until(&mut child, LIMIT, "the second checkpoint", || has_checkpoint(&run, 8));
    signal(&child, Signal::SIGINT);
    child.wait_with_output().unwrap();
    trial.complete("two-then-one", &["cluster.ranks_per_node=1"]);
    let (two, mixed) = (trial.losses("two"), trial.losses("two-then-one"));
    assert_eq!(two.len(), mixed.len());
    for (a, b) in two.iter().zip(&mixed) {
        // The sums of a step round differently. The difference passes through at most 24 updates of
        // AdamW, whose first updates divide by tiny moments.
        assert!((a.1 - b.1).abs() < 2e-2 * a.1.abs().max(1.0), "step {}: {} and {}", a.0, a.1, b.1);
    }
}

#[test]
fn a_full_disk_costs_a_checkpoint_but_not_the_run() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("undisturbed", &[]);
    let (place, run) = (trial.path("disk"), trial.path("disk/full"));
    let _disk = SmallDisk::mount(&place, 64);
    // Leaves room for logs and the first checkpoints, but not for all checkpoints.
    let size = {
        let folder = trial.path("undisturbed").join(format!("checkpoints/step-{LAST:08}"));
        let files = std::fs::read_dir(folder).unwrap();
        files.map(|f| f.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let ballast = place.join("ballast");
    let room = 64 * 1024 * 1024 - 2 * size - size / 2;
    std::fs::write(&ballast, vec![1u8; usize::try_from(room).unwrap()]).unwrap();
    let output = trial.launch("disk/full", &[]).output().unwrap();
    assert!(!output.status.success(), "the last checkpoint cannot be written");
    assert!(text(&output).contains("No space left"), "{}", text(&output));
    let left: Vec<_> = std::fs::read_dir(run.join("checkpoints")).unwrap().collect();
    assert!(!left.is_empty(), "earlier checkpoints are untouched");
    std::fs::remove_file(&ballast).unwrap();
    trial.complete("disk/full", &[]);
    assert_same_end(&trial, "undisturbed", "disk/full");
}

#[test]
fn status_of_a_finished_run_says_so() {
    let trial = Trial::new(TWO_STAGES);
    trial.complete("done", &[]);
    let output = command("vljepa-launch").arg("status").arg(trial.path("done")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("complete"), "{}", text(&output));
}
