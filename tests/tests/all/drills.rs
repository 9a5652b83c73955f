//! Fault drills on real ranks. After each fault the message names it, the run continues by itself,
//! and its parameters equal those of an undisturbed run bit for bit.

use std::path::Path;
use std::process::{Child, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vljepa_recipes::protocol::Job;

use crate::programs::{Trial, text, wait_until};

const TWELVE_STEPS: &str = "
stages:
  - {name: one, steps: 12, batch: 8, frames: 2, mixture: {questions: 1}, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
logging: {every_steps: 1}
checkpoints: {every_steps: 4}
cluster: {ranks_per_node: 2, restart: {max_without_progress: 2}}
";

const LAST: u64 = 12;

/// Bits of the buffers of a checkpoint: weights, first moment, second moment.
type Bits = [Vec<u32>; 3];

fn bits(trial: &Trial, run: &str, step: u64) -> Bits {
    ["weights", "first_moment", "second_moment"]
        .map(|name| trial.buffer(run, step, name).iter().map(|x| x.to_bits()).collect())
}

/// Returns the bits at the end of a run without any fault, which is made once.
fn undisturbed() -> &'static Bits {
    static BITS: OnceLock<Bits> = OnceLock::new();
    BITS.get_or_init(|| {
        let trial = Trial::new(TWELVE_STEPS);
        trial.complete("plain", &[]);
        bits(&trial, "plain", LAST)
    })
}

fn drill(trial: &Trial, drills: &[&str]) -> Output {
    let mut command = trial.launch("run", &[]);
    drills.iter().for_each(|drill| {
        command.args(["--drill", drill]);
    });
    command.output().unwrap()
}

fn events(trial: &Trial) -> String {
    std::fs::read_to_string(trial.path("run").join("events.jsonl")).unwrap()
}

/// Asserts that a run with the drill completes, prints every string of `named`, and ends with the
/// bits of the undisturbed run.
fn survives(drill_text: &str, named: &[&str]) {
    let trial = Trial::new(TWELVE_STEPS);
    let output = drill(&trial, &[drill_text]);
    let said = text(&output);
    assert!(output.status.success(), "{drill_text}: {said}");
    for part in named {
        assert!(said.contains(part), "{drill_text}: `{part}` is missing in {said}");
    }
    let events = events(&trial);
    assert_eq!(events.matches(r#""event":"attempt_started""#).count(), 2, "{events}");
    let kind = drill_text.split_once(':').unwrap().0;
    let mut logs = (0..2).map(|rank| {
        let run = vljepa_recipes::RunDirectory::open(&trial.path("run")).unwrap();
        std::fs::read_to_string(run.log(rank, 1)).unwrap_or_default()
    });
    assert!(logs.any(|log| log.contains(&format!("drill {kind}:"))), "the rank logs the drill");
    assert_eq!(&bits(&trial, "run", LAST), undisturbed(), "{drill_text}");
    assert_eq!(half_written(&trial.path("run/checkpoints")), Vec::<String>::new());
}

/// Returns the folders of unfinished checkpoints.
fn half_written(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".writing")).collect()
}

#[test]
fn a_killed_rank_is_named_in_every_phase_and_the_run_goes_on() {
    for phase in ["data", "forward", "collective", "backward", "optimizer"] {
        let drill = format!("kill:rank=1,step=6,phase={phase}");
        survives(&drill, &["rank 1 died", "of step", "signal 9"]);
    }
}

#[test]
fn a_rank_killed_while_it_saves_costs_the_steps_since_the_last_checkpoint() {
    // The last heartbeat may be a tenth of a second older than the rank's death, so the message may
    // name the step and phase before.
    for (place, rank) in [("checkpoint", 1), ("write", 1), ("write", 0)] {
        let drill = format!("kill:rank={rank},step=8,phase={place}");
        survives(&drill, &[&format!("rank {rank} died in phase "), "signal 9"]);
    }
}

#[test]
fn a_panic_an_error_and_a_silent_exit_of_one_rank_end_the_others_and_are_named() {
    let panic = "rank 1 failed in phase collective of step 5: panic: panicked at";
    survives("panic:rank=1,step=5,phase=collective", &[panic, "drill panic:rank=1,step=5"]);
    let error = "rank 0 failed in phase backward of step 5: rank 0, step 5: drill error:rank=0";
    survives("error:rank=0,step=5,phase=backward", &[error]);
    let exit = "ended with an exit in the middle of the run, without an error";
    survives("exit:rank=1,step=5,phase=data", &["rank 1 died", exit]);
}

#[test]
fn a_stopped_rank_is_named_within_half_a_minute_and_the_run_goes_on() {
    survives("stop:rank=1,step=6,phase=backward", &["rank 1 hangs", "it sends no heartbeats"]);
}

#[test]
fn a_nan_of_one_rank_skips_the_step_on_all_and_nothing_else() {
    let trial = Trial::new(TWELVE_STEPS);
    let output = drill(&trial, &["nan:rank=1,step=5"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("step 6: gradient not finite, step skipped"),
        "{}",
        text(&output)
    );
    assert_eq!(events(&trial).matches(r#""event":"attempt_started""#).count(), 1);
    // A NaN of the other rank skips the same step, so both runs end with the same bits.
    let other = Trial::new(TWELVE_STEPS);
    assert!(drill(&other, &["nan:rank=0,step=5"]).status.success());
    assert_eq!(bits(&trial, "run", LAST), bits(&other, "run", LAST));
    assert_ne!(&bits(&trial, "run", LAST), undisturbed());
    assert_eq!(bits(&trial, "run", 4), bits(&other, "run", 4));
}

#[test]
fn a_slow_rank_changes_nothing_but_the_time() {
    let trial = Trial::new(TWELVE_STEPS);
    let output = drill(&trial, &["slow:rank=1,step=5,seconds=0.05"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(&bits(&trial, "run", LAST), undisturbed());
}

#[test]
fn a_killed_launcher_takes_its_workers_along_and_the_same_command_goes_on() {
    let trial = Trial::new(TWELVE_STEPS);
    let slow = "slow:rank=0,step=0,seconds=0.1";
    let output = drill(&trial, &["kill-supervisor:step=6", slow]);
    assert!(!output.status.success());
    let again = drill(&trial, &["kill-supervisor:step=6", slow]);
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(&bits(&trial, "run", LAST), undisturbed());
}

/// Starts a run whose steps take `seconds`, and waits until two steps are done.
fn slow_run(trial: &Trial, seconds: &str, sets: &[&str]) -> Child {
    let mut command = trial.launch("run", sets);
    command.args(["--drill", &format!("slow:rank=0,step=1,seconds={seconds}")]);
    let mut launcher = command.spawn().unwrap();
    wait_until(&mut launcher, Duration::from_secs(60), "two steps are done", || done(trial) >= 2);
    launcher
}

/// Returns the number of steps whose metrics are written.
fn done(trial: &Trial) -> usize {
    let metrics = trial.path("run").join("metrics.jsonl");
    std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count())
}

#[test]
fn a_launcher_that_freezes_for_a_while_loses_nothing() {
    let trial = Trial::new(TWELVE_STEPS);
    let launcher = slow_run(&trial, "2", &[]);
    let id = Pid::from_raw(launcher.id().try_into().unwrap());
    kill(id, Signal::SIGSTOP).unwrap();
    let before = done(&trial);
    // Longer than the 10 s after which a rank that sends nothing counts as hung.
    std::thread::park_timeout(Duration::from_secs(12));
    assert!(done(&trial) > before, "the ranks continue");
    kill(id, Signal::SIGCONT).unwrap();
    let output = launcher.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("this launcher did not run for"), "{}", text(&output));
    assert_eq!(events(&trial).matches(r#""event":"attempt_started""#).count(), 1);
    assert_eq!(&bits(&trial, "run", LAST), undisturbed());
}

#[test]
fn workers_of_an_older_attempt_publish_nothing_and_end() {
    let trial = Trial::new(TWELVE_STEPS);
    let launcher = slow_run(&trial, "0.5", &[]);
    let job = Job::Train { attempt: 9, world_size: 2, drills: Vec::new() };
    let file = trial.path("run").join("job.json");
    std::fs::write(file, serde_json::to_vec(&job).unwrap()).unwrap();
    let output = launcher.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let named = "attempt 9 of this run has started; this worker of attempt 1 writes nothing more";
    assert!(text(&output).contains(named), "{}", text(&output));
    assert_eq!(&bits(&trial, "run", LAST), undisturbed());
}

#[test]
fn workers_whose_supervisor_is_silent_for_too_long_end_themselves() {
    let trial = Trial::new(TWELVE_STEPS);
    let launcher = slow_run(&trial, "8", &["cluster.control.silence_s=30"]);
    let joined = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["event"] == "rank_joined").then(|| line["pid"].as_u64().unwrap())
    };
    let ranks: Vec<u64> = events(&trial).lines().filter_map(joined).collect();
    assert_eq!(ranks.len(), 2);
    let alive = || {
        let state = |pid: &u64| std::fs::read_to_string(format!("/proc/{pid}/stat"));
        ranks.iter().filter(|pid| state(pid).is_ok_and(|state| !state.contains(") Z"))).count()
    };
    let id = Pid::from_raw(launcher.id().try_into().unwrap());
    kill(id, Signal::SIGSTOP).unwrap();
    let frozen = Instant::now();
    while alive() > 0 {
        assert!(frozen.elapsed() < Duration::from_secs(60), "the workers are still running");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    // The supervisor sends a sign of life every 15 s, so the last one may be that much older than
    // the freeze.
    assert!(frozen.elapsed() > Duration::from_secs(14), "{:?}", frozen.elapsed());
    kill(id, Signal::SIGCONT).unwrap();
    let output = launcher.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(&bits(&trial, "run", LAST), undisturbed());
}

#[test]
fn a_drill_that_cannot_happen_is_refused_before_anything_starts() {
    let trial = Trial::new(TWELVE_STEPS);
    for (drill_text, why) in [
        ("kill:rank=2,step=5", "the run has 2 ranks"),
        ("kill:rank=1,step=13", "the run has 12 steps"),
        ("kick:rank=1,step=5", "valid are kill, stop, panic"),
    ] {
        let output = drill(&trial, &[drill_text]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(why), "{}", text(&output));
    }
    assert!(!trial.path("run").exists());
}
