//! Tests of the supervisor with short limits, against workers that hang. Tests that need no short
//! limits start the program (`tests/local_runs.rs`).

use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, getpgid};
use vljepa_recipes::load;
use vljepa_recipes::run_directory::RunDirectory;

use super::{Ending, Limits, Patience, Run, Signals, StopSignal, supervise};
use crate::error::LaunchError;
use crate::platform::Platform;
use crate::platform::workers;
use crate::programs::Programs;
use crate::record::provenance::RunRecord;

/// How long failed health checks are repeated in these tests.
const PATIENCE: Patience = Patience {
    window: Duration::from_secs(60),
    delay: Duration::from_millis(200),
    limit: Duration::from_secs(40),
};

fn limits() -> Limits {
    let seconds = Duration::from_secs;
    let (silence, start_silence) = (seconds(2), seconds(3));
    Limits { floor: seconds(3), start: seconds(3), silence, start_silence, stage_ends: vec![10] }
}

/// Supervises a run of fake workers and returns how it ended and its `events.jsonl`.
async fn run(folder: &Path, ranks: usize, scenario: &str) -> (Result<Ending, LaunchError>, String) {
    run_until(folder, (ranks, 0), scenario, Signals::listen().unwrap()).await
}

/// Like [`run`], with so many ranks and restarts.
async fn run_until(
    folder: &Path,
    (ranks, restarts): (usize, u32),
    scenario: &str,
    mut signals: Signals,
) -> (Result<Ending, LaunchError>, String) {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    // The programs are linked, not written: a program that was just written cannot be started while
    // a fork of another test holds it open.
    let link = |name: &str| {
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake").join(name);
        std::os::unix::fs::symlink(fake, folder.join(name)).unwrap();
        folder.join(name)
    };
    let (worker, mpirun) = (link("worker.sh"), link("mpirun.sh"));
    write("scenario.sh", scenario);
    let recipe = include_str!("../../tests/fake/recipe.yaml").replace("RANKS", &ranks.to_string());
    let restarts = format!("cluster.restart.max_without_progress={restarts}");
    let loaded = load(&write("recipe.yaml", &recipe), &[restarts]).unwrap();
    let (directory, _) = RunDirectory::create(&folder.join("run"), &loaded).unwrap();
    let programs = Programs { worker, mpirun: Some(mpirun) };
    let record = RunRecord::collect(&directory, &loaded.recipe, &loaded.hash, &programs).await;
    record.write(&directory).unwrap();
    let mut run = Run {
        directory,
        recipe: loaded.recipe,
        recipe_hash: loaded.hash,
        programs,
        platform: Platform::Local,
        limits: limits(),
        patience: PATIENCE,
        record,
        drills: Vec::new(),
    };
    let ended = supervise(&mut run, &mut signals).await;
    (ended, std::fs::read_to_string(run.directory.events()).unwrap())
}

fn failure(ended: Result<Ending, LaunchError>) -> String {
    ended.unwrap_err().to_string()
}

/// Asserts that every started worker has ended.
fn assert_nothing_left(folder: &Path) {
    let pids = std::fs::read_to_string(folder.join("run/pids")).unwrap();
    for pid in pids.lines() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(status.is_empty() || status.contains(") Z"), "process {pid} is left behind");
    }
}

#[tokio::test]
async fn a_stopped_rank_is_named_as_hung_and_everything_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = "hello; for s in 0 1 2; do step $s; sleep 0.15; done; \
        if [ $rank = 1 ]; then beat 3 backward; sleep 0.2; kill -STOP $$; fi; \
        beat 3 collective; while sleep 0.2; do beat 3 collective; done";
    let (ended, events) = run(folder.path(), 2, scenario).await;
    let text = failure(ended);
    assert!(text.contains("rank 1 hangs in phase backward of step 3"), "{text}");
    assert!(text.contains("it sends no heartbeats"), "{text}");
    assert!(events.contains(r#""event":"fault","kind":"hung","rank":1"#), "{events}");
    assert_nothing_left(folder.path());
}

#[tokio::test]
async fn a_rank_that_reports_but_stands_still_is_named_with_its_phase() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = "hello; for s in 0 1 2; do step $s; sleep 0.15; done; while sleep 0.1; do beat 3 data; done";
    let started = Instant::now();
    let (ended, events) = run(folder.path(), 1, scenario).await;
    let text = failure(ended);
    let named = events.matches("waiting for the data of step 3 on ").count();
    assert_eq!(named, 1, "it is named once, before it counts as hung: {events}");
    assert!(text.contains("rank 0 hangs in phase data of step 3"), "{text}");
    assert!(text.contains("it still sends heartbeats"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_nothing_left(folder.path());
}

#[tokio::test]
async fn a_rank_that_stands_still_while_it_loads_is_named_with_its_node_and_the_collective() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = r#"hello
        while sleep 0.1; do
            if [ $rank = 1 ]; then beat 0 load 4; else beat 0 load 5 '"broadcast"'; fi
        done"#;
    let text = failure(run(folder.path(), 3, scenario).await.0);
    assert!(text.contains("rank 1 hangs in phase load of step 0: on here, no progress"), "{text}");
    let waits = "it has reached collective 4, others wait in collective 5 (broadcast)";
    assert!(text.contains(waits), "{text}");
    assert_nothing_left(folder.path());
}

#[tokio::test]
async fn work_outside_of_steps_takes_its_time_as_long_as_one_rank_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    // Each phase is longer than the limit of 3 s. Rank 0 works, and rank 1 waits for it.
    let scenario = r#"hello; work=0
        long() {
            for i in $(seq 45); do
                sleep 0.1; work=$((work + 1))
                if [ $rank = 0 ]; then beat $1 $2 8 null $work; else beat $1 $2 9 '"all_gather"'; fi
            done
        }
        long 0 load; for s in 0 1 2; do step $s; sleep 0.15; done
        long 3 checkpoint; step 3; sleep 0.15; long 4 evaluation; complete"#;
    let (ended, events) = run(folder.path(), 2, scenario).await;
    assert_eq!(ended.unwrap(), Ending::Completed, "{events}");
    let started = events.lines().find(|line| line.contains(r#""event":"started""#)).unwrap();
    let started: serde_json::Value = serde_json::from_str(started).unwrap();
    let load_s = started["load_s"].as_f64().unwrap();
    assert!(load_s > 3.0 && started["prepare_s"].as_f64().unwrap() < load_s, "{started}");
    assert_nothing_left(folder.path());
}

#[tokio::test]
async fn a_rank_that_does_not_come_up_is_named_after_the_start_limit() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = "[ $rank = 1 ] && sleep 60; hello; while sleep 0.1; do beat 0 start; done";
    let text = failure(run(folder.path(), 2, scenario).await.0);
    assert!(text.contains("rank 1 did not start: it did not connect within"), "{text}");
    assert_nothing_left(folder.path());
}

#[tokio::test]
async fn a_rank_that_ends_before_it_connects_is_a_fault_although_srun_goes_on() {
    for (ending, kind, named) in [
        ("Segmentation fault", "died", "rank 1 died"),
        ("Exited with exit code 127", "not_started", "rank 1 did not start"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let scenario = format!(
            "if [ $rank = 1 ]; then echo 'srun: error: node1: tasks 1-2: {ending}' >&2; sleep 60; fi; \
             hello; while sleep 0.1; do beat 0 start; done"
        );
        let (ended, events) = run(folder.path(), 2, &scenario).await;
        let text = failure(ended);
        let how = format!("its process ended before it connected: {ending}");
        assert!(text.contains(named) && text.contains(&how), "{text}");
        assert!(events.contains(&format!(r#""kind":"{kind}","rank":1"#)), "{events}");
        assert_nothing_left(folder.path());
    }
}

#[tokio::test]
async fn ranks_that_do_not_stop_are_ended_before_the_job_s_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = "hello; s=0; while sleep 0.1; do step $s; s=$((s + 1)); done";
    let over = Instant::now() + Duration::from_secs(6);
    let signals = Signals::listen().unwrap().watching(
        folder.path().join("stop"),
        Some(over),
        Duration::from_secs(2),
    );
    let (ended, events) = run_until(folder.path(), (2, 0), scenario, signals).await;
    assert_eq!(ended.unwrap(), Ending::Killed(StopSignal::EndTime));
    assert!(events.contains(r#""outcome":"killed""#), "{events}");
    assert_nothing_left(folder.path());
}

#[tokio::test]
async fn the_rank_that_died_first_is_named_although_another_connection_ended_first() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = "hello; for s in 0 1 2; do step $s; sleep 0.15; done; \
        if [ $rank = 0 ]; then exec 3>&-; sleep 60; fi; beat 3 backward; sleep 0.3; \
        echo 'Error handler invoked: status = -61, source = [slurm.pmix.7.0:1]' >&2; kill -9 $$";
    let (ended, events) = run(folder.path(), 2, scenario).await;
    let text = failure(ended);
    assert!(text.contains("rank 1 ") && text.contains("backward of step 3"), "{text}");
    assert!(events.contains(r#""event":"fault","kind":"died","rank":1"#), "{events}");
    assert_nothing_left(folder.path());
}

/// The first attempt dies and leaves a device that is not free until the file `free` exists.
const DIES: &str = "if [ $attempt = 1 ]; then hello; step 0; echo device > \"$here/unhealthy\"; \
    sleep 0.3; exit 1; fi; hello; step 1; complete";

/// Waits until the fake worker has run its checks `count` times while the device was not free.
async fn failed_checks(folder: &Path, count: usize) {
    while !folder.join("unhealthy").exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let checks = || {
        let log = std::fs::read_to_string(folder.join("checks.log")).unwrap_or_default();
        log.lines().count()
    };
    // A check that has begun before may still have seen a free device.
    let begin = checks();
    while checks() <= begin + count {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_attempt_after_a_fault_waits_until_killed_processes_have_left_the_devices() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_owned();
    let freed = tokio::spawn(async move {
        failed_checks(&here, 2).await;
        std::fs::remove_file(here.join("unhealthy")).unwrap();
    });
    let signals = Signals::listen().unwrap();
    let (ended, events) = run_until(folder.path(), (1, 2), DIES, signals).await;
    assert_eq!(ended.unwrap(), Ending::Completed, "{events}");
    assert_eq!(events.matches(r#""event":"attempt_started""#).count(), 2, "{events}");
    freed.await.unwrap();
}

#[tokio::test]
async fn a_stop_during_the_checks_of_a_later_attempt_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let stop = folder.path().join("stop");
    let (here, file) = (folder.path().to_owned(), stop.clone());
    let asked = tokio::spawn(async move {
        failed_checks(&here, 2).await;
        std::fs::write(file, "").unwrap();
    });
    let signals = Signals::listen().unwrap().watching(stop, None, Duration::ZERO);
    let started = Instant::now();
    let (ended, events) = run_until(folder.path(), (1, 2), DIES, signals).await;
    assert_eq!(ended.unwrap(), Ending::Stopped(StopSignal::Asked), "{events}");
    assert!(started.elapsed() < PATIENCE.window, "{:?}", started.elapsed());
    assert!(events.contains(r#""outcome":"stopped""#), "{events}");
    asked.await.unwrap();
}

#[tokio::test]
async fn processes_are_found_by_their_token_alone() {
    let folder = tempfile::tempdir().unwrap();
    let token = super::new_token().unwrap();
    assert_eq!(token.len(), 32);
    // A process that leaves the group, as OpenMPI's ranks do.
    let line = ["setsid", "sleep", "61"].map(str::to_owned);
    let mut group = workers::Group::program(&line, &token, &folder.path().join("out")).unwrap();
    let own_group = |pid: &Pid| getpgid(Some(*pid)).is_ok_and(|group| group == *pid);
    let left =
        || workers::with_token(&token).iter().any(|pid| *pid != group.leader() && own_group(pid));
    // `setsid` becomes `sleep`, and its environment is empty for a moment. The process is there if
    // several looks in a row find it.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut looks = 0;
    while looks < 5 {
        assert!(Instant::now() < deadline, "the process is not found");
        looks = if left() { looks + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(workers::with_token("another token").is_empty());
    group.end().await;
    assert!(workers::with_token(&token).is_empty());
}
