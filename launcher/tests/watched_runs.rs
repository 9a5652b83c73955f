//! Tests of `vljepa-launch status RUN --watch` on runs of fake workers.

#![expect(clippy::disallowed_methods, reason = "these tests start the program and wait for it")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod fake_run;
#[path = "fake_run/screen.rs"]
mod screen;

use std::io::Write;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use fake_run::{FakeRun, start};
use screen::screen;

const TRAINS: &str = "hello; for s in 0 1 2 3 4 5 6 7 8 9; do step $s; done; complete";
const WAITS: &str = "hello; step 0; echo ready >> $run/ready; \
    while [ ! -e $run/go ]; do beat 1 forward; sleep 0.05; done; complete";
const STOPS: &str = "hello; step 0; echo ready >> $run/ready; \
    while read -r -t 0.2 line <&3 || [ $? -gt 128 ]; do beat 1 forward; \
    [ -n \"$line\" ] && break; done; saved 1; finished stopped 1";

/// Sequence that clears the old block before each frame.
const FRAME: &str = "\x1b[J";

/// Starts to watch the run; the output goes to the file `watched`.
fn watch(fake: &FakeRun, more: &[&str]) -> Child {
    let mut command = fake.command(&["status", "runs/fake", "--watch", "0.1"]);
    let output = std::fs::File::create(fake.path("watched")).unwrap();
    start(command.args(more).stdout(output))
}

/// Watches the run in a terminal of `columns` and 60 rows; its output goes to the file `watched`.
fn watch_in_terminal(fake: &FakeRun, columns: usize) -> Child {
    let program = fake.path("bin/vljepa-launch");
    let line = format!(
        "stty cols {columns} rows 60; exec {} status runs/fake --watch 0.1",
        program.display()
    );
    let output = std::fs::File::create(fake.path("watched")).unwrap();
    let mut command = Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]).current_dir(fake.path(""));
    command.env("TERM", "xterm").stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped());
    start(&mut command)
}

/// Waits for the end of a process.
fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the display does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes a complete run one that has not started.
fn forget(fake: &FakeRun) {
    for name in ["run.json", "events.jsonl", "metrics.jsonl", "completed.json", "lock"] {
        std::fs::remove_file(fake.path("runs/fake").join(name)).unwrap();
    }
}

/// Rows of a block, with single blanks.
fn rows(text: &str) -> Vec<String> {
    text.lines().map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_run_is_followed_from_before_its_start_over_a_restart_to_its_end() {
    let scenario = "hello; step 0; step 1; sleep 0.5; [ $attempt = 1 ] && kill -9 $$; \
        for s in 2 3 4 5 6 7 8 9; do step $s; sleep 0.05; done; complete";
    let fake = FakeRun::new(1, scenario);
    let mut watching = watch(&fake, &[]);
    fake.wait_for("watched", "no run in runs/fake yet; waiting for its start");
    let mut run = fake.start(&["recipe.yaml"]);
    assert_eq!(ended(&mut watching).code(), Some(0));
    assert!(run.wait().unwrap().success());
    let said = fake.read("watched");
    let rows = rows(&said);
    for row in [
        "state running",
        "attempts 1",
        "attempts 2",
        "state completed",
        "step 10 of 10, stage only",
    ] {
        assert!(rows.iter().any(|line| line == row), "`{row}` is missing in:\n{said}");
    }
    assert!(said.contains("samples/s") && said.contains("whole run"), "{said}");
    assert!(said.contains("fault") && said.contains("signal 9"), "{said}");
    assert!(!said.contains('\x1b'), "no terminal: {said}");
    let waits = rows.iter().filter(|row| row.starts_with("no run in")).count();
    assert_eq!(waits, 1, "said once: {said}");
}

#[test]
fn without_a_terminal_only_changes_are_printed() {
    let fake = FakeRun::new(1, WAITS);
    let mut run = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready");
    let mut watching = watch(&fake, &["--json"]);
    fake.wait_for("watched", "\"step\":1");
    // Ten looks at a run that does not change.
    std::thread::sleep(Duration::from_secs(1));
    let lines = fake.read("watched").lines().count();
    assert!(lines <= 3, "{}", fake.read("watched"));
    fake.write("runs/fake/go", "");
    assert_eq!(ended(&mut watching).code(), Some(0));
    assert!(run.wait().unwrap().success());
    let said = fake.read("watched");
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&last["state"], last["total_steps"].as_u64()), (&"completed".into(), Some(10)));
    // The fake worker reports 100 samples in a second.
    assert!((last["recent_samples_per_s"].as_f64().unwrap() - 100.0).abs() < 1e-9, "{last}");
    assert_eq!(last["recent_intervals"].as_u64(), Some(1));
    for part in ["steps_s", "data_wait_s", "restarts_s", "lost_work_s", "queue_s"] {
        assert!(last["spent"][part].is_number(), "{part}: {last}");
    }
    assert!(last["elapsed_s"].as_f64().unwrap() > 0.0, "{last}");
}

#[test]
fn the_exit_code_is_that_of_the_run() {
    let failed = FakeRun::new(1, "hello; step 0; kill -9 $$");
    failed.launch(&["recipe.yaml"]).said(1, &["died"]);
    assert_eq!(ended(&mut watch(&failed, &[])).code(), Some(1));
    let said = rows(&failed.read("watched"));
    assert!(said.iter().any(|row| row == "state failed"), "{said:#?}");

    let stopped = FakeRun::new(1, STOPS);
    let mut run = stopped.start(&["recipe.yaml"]);
    stopped.wait_for("runs/fake/ready", "ready");
    let mut watching = watch(&stopped, &[]);
    stopped.wait_for("watched", "running");
    kill(Pid::from_raw(run.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(143));
    assert_eq!(ended(&mut watching).code(), Some(143));
    let said = rows(&stopped.read("watched"));
    assert!(said.iter().any(|row| row == "state stopped"), "{said:#?}");

    let complete = FakeRun::new(1, TRAINS);
    complete.launch(&["recipe.yaml"]).said(0, &["complete"]);
    assert_eq!(ended(&mut watch(&complete, &[])).code(), Some(0));
}

#[test]
fn a_complete_run_that_is_locked_keeps_its_state_and_its_rate() {
    let fake = FakeRun::new(1, TRAINS);
    fake.launch(&["recipe.yaml"]).said(0, &["complete"]);
    let status = || -> Value {
        let said = fake.launch(&["status", "runs/fake", "--json"]);
        serde_json::from_str(&said.out).unwrap()
    };
    let before = status();
    // `evaluate` holds the lock while it measures.
    let lock = std::fs::File::open(fake.path("runs/fake/lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let locked = status();
    for key in ["state", "elapsed_s", "whole_run_samples_per_s", "spent"] {
        assert_eq!(locked[key], before[key], "{key}");
    }
    assert_eq!(locked["state"], "completed");
    assert_eq!(ended(&mut watch(&fake, &[])).code(), Some(0));
    let block = fake.launch(&["status", "runs/fake"]).out;
    assert!(!block.contains("not logged yet"), "{block}");
}

#[test]
fn a_run_whose_job_leaves_the_queue_before_it_starts_has_failed() {
    let fake = FakeRun::new(1, TRAINS);
    fake.launch(&["recipe.yaml"]).said(0, &["complete"]);
    forget(&fake);
    fake.write("runs/fake/slurm.json", r#"{"job":"7","submitted":"now","script":"job.sbatch"}"#);
    fake.write("answer", "PENDING Resources");
    fake.program("bin/squeue", "#!/bin/bash\ncat answer\n");
    let mut watching = watch(&fake, &[]);
    fake.wait_for("watched", "7 waits: Resources");
    // Somebody cancels the job.
    fake.write("answer", "");
    assert_eq!(ended(&mut watching).code(), Some(1));
    let said = rows(&fake.read("watched"));
    assert!(said.iter().any(|row| row == "state not started"), "{said:#?}");
    assert!(said.iter().any(|row| row == "job 7 is not in the queue"), "{said:#?}");
}

#[test]
fn a_run_that_is_deleted_is_named() {
    let fake = FakeRun::new(1, TRAINS);
    fake.launch(&["recipe.yaml"]).said(0, &["complete"]);
    forget(&fake);
    let mut command = fake.command(&["status", "runs/fake", "--watch", "0.1"]);
    let output = std::fs::File::create(fake.path("watched")).unwrap();
    let mut watching = start(command.stdout(output));
    fake.wait_for("watched", "not started");
    std::fs::remove_dir_all(fake.path("runs/fake")).unwrap();
    assert_eq!(ended(&mut watching).code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut watching.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("the run in runs/fake was deleted while it was watched"), "{said}");
    fake.write("a-file", "");
    let mut watching = start(&mut fake.command(&["status", "a-file", "--watch"]));
    assert_eq!(ended(&mut watching).code(), Some(2), "a file never becomes a run");
}

#[test]
fn a_terminal_shows_one_block_that_fits_and_ctrl_c_ends_the_display_alone() {
    let fake = FakeRun::new(1, WAITS);
    let mut run = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready");
    let columns = 30;
    let mut watching = watch_in_terminal(&fake, columns);
    fake.wait_for("watched", "1 of 10, stage");
    fake.wait_until("watched", "four frames", |said| said.matches(FRAME).count() >= 4);
    watching.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    assert_eq!(ended(&mut watching).code(), Some(130));
    let said = fake.read("watched");
    let shown = screen(&said, columns);
    for name in ["run ", "state ", "step ", "time "] {
        assert_eq!(shown.iter().filter(|row| row.starts_with(name)).count(), 1, "{shown:#?}");
    }
    assert!(shown.iter().any(|row| row.ends_with('…')), "long rows are cut: {shown:#?}");
    assert!(run.try_wait().unwrap().is_none(), "the run goes on");
    fake.write("runs/fake/go", "");
    assert!(run.wait().unwrap().success());
}

#[test]
fn a_terminal_shows_the_whole_block_at_the_end() {
    let fake = FakeRun::new(1, WAITS);
    let mut run = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready");
    let columns = 40;
    let mut watching = watch_in_terminal(&fake, columns);
    fake.wait_for("watched", "running");
    fake.write("runs/fake/go", "");
    assert_eq!(ended(&mut watching).code(), Some(0));
    assert!(run.wait().unwrap().success());
    let shown = screen(&fake.read("watched"), 200);
    assert!(shown.iter().any(|row| row.ends_with("whole run")), "{shown:#?}");
    let states: Vec<_> = shown.iter().filter(|row| row.starts_with("state ")).collect();
    assert!(states.len() == 1 && states[0].ends_with("completed"), "{shown:#?}");
    assert_eq!(shown.iter().filter(|row| row.starts_with("run ")).count(), 1, "{shown:#?}");
}
