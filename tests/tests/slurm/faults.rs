//! One test for each kind of fault. Each prints when the fault was detected, when training
//! continued, and how many steps were repeated.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, Events, assert_same_end, report, undisturbed};
use crate::programs::{Trial, has_checkpoint};

/// Drill that makes every step 0.1 s longer, so that a test can act while the run trains.
const SLOWER: &str = "slow:rank=0,step=0,seconds=0.1";

/// Asserts that a run ended like the undisturbed one, and that its faults are exactly `faults`.
fn survives(trial: &Trial, run: &str, events: &Events, faults: &[&str]) {
    assert_same_end(trial, run);
    let found = events.faults();
    let event_log = || std::fs::read_to_string(trial.path(run).join("events.jsonl")).unwrap();
    assert_eq!(found.len(), faults.len(), "{found:?}\n{}", event_log());
    for (found, expected) in found.iter().zip(faults) {
        assert!(found.contains(expected), "{found:?} does not say {expected}");
    }
}

#[test]
fn a_rank_killed_in_any_phase_costs_the_steps_since_the_last_checkpoint() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let places = ["data", "forward", "collective", "backward", "optimizer", "checkpoint", "write"];
    let drills: Vec<String> = places
        .iter()
        .zip(1..)
        .map(|(place, attempt)| {
            // Attempts 1 to 5 fail at steps 3 to 15, attempts 6 and 7 in the saves of steps 16 and
            // 20.
            let step = if attempt > 5 { 12 + 4 * (attempt - 5) } else { 3 * attempt };
            format!("kill:rank={},step={step},phase={place},attempt={attempt}", attempt % 4)
        })
        .collect();
    let drills: Vec<&str> = drills.iter().map(String::as_str).collect();
    let events = cluster.launch(trial, "killed", &[], &drills).complete();
    let expected = [
        "died rank 1",
        "died rank 2",
        "died rank 3",
        "died rank 0",
        "died rank 1",
        "died rank 2",
        "died rank 3",
    ];
    survives(trial, "killed", &events, &expected);
    report("kill -9 of a rank", &events);
}

#[test]
fn a_killed_supervisor_is_started_again_by_the_batch_script() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let events =
        cluster.launch(trial, "headless", &[], &[SLOWER, "kill-supervisor:step=10"]).complete();
    survives(trial, "headless", &events, &[]);
    assert_eq!(events.named("attempt_started").count(), 2);
    report("kill -9 of the supervisor", &events);
}

#[test]
fn a_stopped_rank_is_named_as_hung_and_the_run_goes_on() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let events = cluster
        .launch(trial, "hung", &[], &[SLOWER, "stop:rank=3,step=9,phase=backward"])
        .complete();
    survives(trial, "hung", &events, &["hung rank 3"]);
    report("SIGSTOP of a rank", &events);
}

#[test]
fn a_spare_takes_the_place_of_a_lost_node() {
    let trial = undisturbed();
    let cluster = Cluster::up_to_lose_nodes(3);
    let spare = ["cluster.restart.spare_nodes=1"];
    let mut running = cluster.launch(trial, "spare", &spare, &[SLOWER]);
    running.wait_until("the second checkpoint", |run| has_checkpoint(run, 8));
    running.inject(|| cluster.kill_node("node1"));
    let events = running.complete();
    survives(trial, "spare", &events, &["rank"]);
    assert!(events.named("rank_joined").any(|event| event["host"] == "node2"));
    report("power cut of a node, with a spare", &events);
}

#[test]
fn fewer_nodes_go_on_where_the_recipe_allows_it() {
    let trial = undisturbed();
    let cluster = Cluster::up_to_lose_nodes(2);
    let fewer = ["cluster.restart.allow_fewer_nodes=true"];
    let mut running = cluster.launch(trial, "fewer", &fewer, &[SLOWER]);
    running.wait_until("the second checkpoint", |run| has_checkpoint(run, 8));
    running.inject(|| cluster.kill_node("node1"));
    let events = running.complete();
    let worlds: Vec<u64> = events
        .named("attempt_started")
        .map(|event| event["world_size"].as_u64().unwrap())
        .collect();
    assert_eq!(worlds, [4, 2]);
    let (all, fewer) = (trial.losses("undisturbed"), trial.losses("fewer"));
    assert_eq!(all.len(), fewer.len());
    for (a, b) in all.iter().zip(&fewer) {
        // The samples are the same, but sums round differently. The difference passes through at
        // most 24 updates of AdamW, whose first updates divide by tiny moments.
        assert!((a.1 - b.1).abs() < 2e-2 * a.1.abs().max(1.0), "step {}: {} and {}", a.0, a.1, b.1);
    }
    report("power cut of a node, fewer go on", &events);
}

#[test]
fn a_node_that_answers_again_within_a_minute_takes_part_although_fewer_nodes_may_go_on() {
    let trial = undisturbed();
    let cluster = Cluster::up_to_pause_nodes(2);
    let fewer = ["cluster.restart.allow_fewer_nodes=true"];
    let drills = [SLOWER, "kill:rank=0,step=14,phase=backward"];
    let mut running = cluster.launch(trial, "paused", &fewer, &drills);
    running.wait_until("the second checkpoint", |run| has_checkpoint(run, 8));
    // The daemon starts nothing, but Slurm does not miss it yet.
    let daemon = Pid::from_raw(cluster.daemon("node1").parse().unwrap());
    kill(daemon, Signal::SIGSTOP).unwrap();
    let log = trial.path("paused").join(format!("logs/slurm-{}.log", running.job()));
    running.wait_until("the end of the first checks", |_| {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("others are asked again"))
    });
    kill(daemon, Signal::SIGCONT).unwrap();
    let events = running.complete();
    survives(trial, "paused", &events, &["died rank 0"]);
    let worlds = events.named("attempt_started").map(|event| event["world_size"].as_u64());
    assert_eq!(worlds.collect::<Vec<_>>(), [Some(4), Some(4)]);
    report("kill -9 of a rank while a node does not answer", &events);
}

#[test]
fn a_job_that_loses_first_the_guard_s_node_and_then_its_own_is_requeued_and_goes_on_elsewhere() {
    let trial = undisturbed();
    let cluster = Cluster::up_to_lose_nodes(5);
    let spare = ["cluster.restart.spare_nodes=1"];
    let slower = "slow:rank=0,step=0,seconds=2";
    let mut running = cluster.launch(trial, "beheaded", &spare, &[slower]);
    running.wait_until("submission", |run| run.join("slurm.json").exists());
    let log = trial.path("beheaded").join(format!("logs/slurm-{}.log", running.job()));
    running.wait_until("the guard on the last node", |_| count_guards(&log, "node2") == 1);
    running.inject(|| cluster.kill_node("node2"));
    running.wait_until("another guard", |_| count_guards(&log, "node1") == 1);
    running.wait_until("the first checkpoint", |run| has_checkpoint(run, 4));
    running.inject(|| cluster.kill_node("node0"));
    let events = running.complete();
    survives(trial, "beheaded", &events, &[]);
    assert_eq!(events.named("supervisor_lost").count(), 1);
    report("power cut of the node with the supervisor", &events);
}

/// Returns how many guards on a node have logged that they watch.
fn count_guards(log: &Path, node: &str) -> usize {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.matches(&format!("a guard on {node} watches")).count()
}

#[test]
fn a_guard_that_ends_with_its_srun_is_replaced() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let slower = "slow:rank=0,step=0,seconds=1";
    let mut running = cluster.launch(trial, "unguarded", &[], &[slower]);
    running.wait_until("submission", |run| run.join("slurm.json").exists());
    let log = trial.path("unguarded").join(format!("logs/slurm-{}.log", running.job()));
    running.wait_until("the guard", |_| count_guards(&log, "node1") == 1);
    kill_guards_srun(&trial.path("unguarded"));
    running.wait_until("another guard", |_| count_guards(&log, "node1") == 2);
    let events = running.complete();
    survives(trial, "unguarded", &events, &[]);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("the guard on node 1 of this job has ended"), "{log}");
}

/// Kills the `srun` of a run's guard. The child of `srun`, which has the same command line,
/// survives and ends the guard.
fn kill_guards_srun(run: &Path) {
    let read = |process: &str, file: &str| {
        std::fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default()
    };
    let parent = |process: &str| {
        let status = read(process, "status");
        status.lines().find_map(|line| Some(line.strip_prefix("PPid:")?.trim().to_owned()))
    };
    let is_srun = |process: &str| read(process, "comm").trim() == "srun";
    let of_guard = |process: &String| {
        let line = read(process, "cmdline");
        is_srun(process) && line.contains("vljepa-guard") && line.contains(run.to_str().unwrap())
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut sruns = processes
        .map(|process| process.file_name().to_string_lossy().into_owned())
        .filter(of_guard)
        .filter(|process| parent(process).is_some_and(|parent| !is_srun(&parent)));
    let (srun, other) = (sruns.next().unwrap(), sruns.next());
    assert_eq!(other, None);
    kill(Pid::from_raw(srun.parse().unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn where_nodes_have_no_scontrol_the_guard_has_another_job_go_on_for_the_one_that_lost_its_first_node()
 {
    let trial = undisturbed();
    let cluster = Cluster::up_to_lose_nodes(4).without("scontrol");
    let mut running = cluster.launch(trial, "inherited", &[], &[SLOWER]);
    running.wait_until("the second checkpoint", |run| has_checkpoint(run, 8));
    let first = running.job();
    running.inject(|| cluster.kill_node("node0"));
    let events = running.complete();
    survives(trial, "inherited", &events, &[]);
    let lost: Vec<&str> =
        events.named("supervisor_lost").map(|event| event["job"].as_str().unwrap()).collect();
    assert_eq!(lost, [first.as_str()]);
    let job = std::fs::read_to_string(trial.path("inherited/slurm.json")).unwrap();
    assert!(!job.contains(&first), "another job than {first} went on: {job}");
    report("power cut of the node with the supervisor, no scontrol", &events);
}

#[test]
fn usr1_saves_and_requeues_and_so_does_a_preemption() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let slower = [SLOWER, "slow:rank=0,step=0,seconds=0.3,attempt=2"];
    let mut running = cluster.launch(trial, "signalled", &[], &slower);
    running.wait_until("the first checkpoint", |run| has_checkpoint(run, 4));
    cluster.ask(&format!("scancel --batch --signal=USR1 {}", running.job()));
    running
        .wait_until("the second attempt", |run| run.join("logs/rank-0000-attempt-2.log").exists());
    running.wait_until("a later checkpoint", |run| has_checkpoint(run, 12));
    // A job of the higher partition preempts this one.
    cluster.ask(
        "sbatch --partition=high --nodes=2 --exclusive --output=/dev/null tests/slurm/hold.sh 2",
    );
    let job = running.job();
    // `complete` waits until the job has left the queue, because Slurm 24.05 and newer would start
    // it once more.
    let events = running.complete();
    survives(trial, "signalled", &events, &[]);
    let job = cluster.ask(&format!("scontrol show job {job}"));
    assert!(job.contains("Requeue=0") && job.contains("ExitCode=0:0"), "{job}");
    let asked: Vec<&str> =
        events.named("stop_requested").map(|event| event["signal"].as_str().unwrap()).collect();
    assert_eq!(asked, ["USR1", "TERM"]);
    report("USR1, then preemption", &events);
}

#[test]
fn the_end_of_the_job_s_time_is_known_and_the_run_is_saved_before_it() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    // The limit is 60 s and the signal comes 50 s before it, so the save starts after 10 s.
    let limit = ["cluster.slurm.time_limit=0:01:00", "cluster.slurm.signal_ahead_s=50"];
    let slow: Vec<String> =
        (1..4).map(|attempt| format!("slow:rank=0,step=0,seconds=0.7,attempt={attempt}")).collect();
    let slow: Vec<&str> = slow.iter().map(String::as_str).collect();
    let events = cluster.launch(trial, "limited", &limit, &slow).complete();
    survives(trial, "limited", &events, &[]);
    assert!(events.named("stop_requested").count() >= 1);
    report("time limit", &events);
}

#[test]
fn a_stop_that_comes_at_any_moment_loses_nothing() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let mut running = cluster.launch(trial, "often", &[], &[]);
    // The delays after the start of each attempt spread the signals over start, steps and saves.
    for (attempt, delay_ms) in (1..=4).zip([0, 400, 900, 150]) {
        let log = format!("logs/rank-0000-attempt-{attempt}.log");
        let done = |run: &Path| run.join(&log).exists() || run.join("completed.json").exists();
        running.wait_until("the next attempt", done);
        std::thread::park_timeout(Duration::from_millis(delay_ms));
        let signal = if attempt % 2 == 0 { "USR2" } else { "USR1" };
        cluster.ask(&format!("scancel --batch --signal={signal} {}", running.job()));
    }
    let events = running.complete();
    survives(trial, "often", &events, &[]);
    report("USR1 and USR2 at four moments", &events);
}

#[test]
fn a_job_that_is_cancelled_at_any_moment_has_saved_and_the_same_command_continues() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    // Cancels during the start, between saves, and during a save. Slurm sends TERM, and KILL 5 s
    // later.
    type Moment = (&'static str, fn(&Path) -> bool);
    let moments: [Moment; 3] = [
        ("the first attempt", |run| run.join("events.jsonl").exists()),
        ("the first checkpoint", |run| has_checkpoint(run, 4)),
        ("an unfinished checkpoint", |run| is_writing(run, 12) || has_checkpoint(run, 12)),
    ];
    // A worker that gets TERM before it handles signals dies, and the supervisor may start another
    // attempt before it ends too.
    let slower: Vec<String> = (1..10)
        .map(|attempt| format!("slow:rank=0,step=0,seconds=0.2,attempt={attempt}"))
        .collect();
    let slower: Vec<&str> = slower.iter().map(String::as_str).collect();
    for (what, moment) in moments {
        let mut running = cluster.launch(trial, "cancelled", &[], &slower);
        running.wait_until(what, moment);
        cluster.ask(&format!("scancel {}", running.job()));
        running.wait_until_gone();
    }
    let events = cluster.launch(trial, "cancelled", &[], &[]).complete();
    assert_same_end(trial, "cancelled");
    let stopped = events.ends().iter().filter(|end| **end == "stopped").count();
    assert!(stopped >= 2, "{:?} {:?}", events.ends(), events.faults());
}

#[test]
fn a_job_that_is_cancelled_while_it_saves_for_its_requeueing_does_not_come_back() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    // The two steps until all ranks know of the stop must be shorter than the cluster's KillWait,
    // and long enough that the job is cancelled before it ends.
    let slower = "slow:rank=0,step=0,seconds=0.6";
    let mut running = cluster.launch(trial, "renounced", &[], &[slower]);
    running.wait_until("the first step", |run| run.join("metrics.jsonl").exists());
    cluster.ask(&format!("scancel --batch --signal=USR1 {}", running.job()));
    // Slurm does not promise to deliver two signals in their order.
    running.wait_until("the request to stop", |run| {
        std::fs::read_to_string(run.join("events.jsonl"))
            .is_ok_and(|events| events.contains("\"stop_requested\""))
    });
    cluster.ask(&format!("scancel {}", running.job()));
    running.wait_until_gone();
    let events = cluster.launch(trial, "renounced", &[], &[]).complete();
    survives(trial, "renounced", &events, &[]);
    assert_eq!(events.ends(), ["stopped", "completed"]);
    let asked: Vec<&str> =
        events.named("stop_requested").map(|event| event["signal"].as_str().unwrap()).collect();
    assert_eq!(asked, ["USR1", "TERM"]);
}

/// Returns whether some rank is writing the checkpoint of a step.
fn is_writing(run: &Path, step: u64) -> bool {
    run.join(format!("checkpoints/.step-{step:08}.writing")).exists()
}

#[test]
fn where_nodes_have_no_scontrol_a_job_of_its_own_continues_the_run() {
    let trial = undisturbed();
    let cluster = Cluster::up(2).without("scontrol");
    let mut running = cluster.launch(trial, "continued", &[], &[SLOWER]);
    running.wait_until("the first checkpoint", |run| has_checkpoint(run, 4));
    let first = running.job();
    cluster.ask(&format!("scancel --batch --signal=USR1 {first}"));
    running.wait_until("another job", |run| {
        std::fs::read_to_string(run.join("slurm.json"))
            .is_ok_and(|text| !text.contains(&format!("\"job\": \"{first}\"")))
    });
    let second = running.job();
    let events = running.complete();
    survives(trial, "continued", &events, &[]);
    let log = trial.path("continued").join(format!("logs/slurm-{first}.log"));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains(&format!("continued by job {second}")), "{log}");
    report("USR1 where nodes have no scontrol", &events);
}
