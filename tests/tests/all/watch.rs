//! `status --watch` on runs with real workers, in a terminal: a rank is killed, and later the
//! launcher itself.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::programs::{Trial, command, has_checkpoint, program, text, wait_until};
use crate::resume::{signal, wait_for_workers};
use crate::screen::screen;

/// 24 steps in two stages on two ranks. Intervals of three steps end elsewhere than checkpoints.
const TWO_STAGES: &str = "
stages:
  - {name: pictures, steps: 14, batch: 8, frames: 2, mixture: {images: 1}, learning_rate: {peak: 1e-3}}
  - {name: clips, steps: 10, batch: 4, frames: 4, mixture: {clips: 1}, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
logging: {every_steps: 3}
checkpoints: {every_steps: 4}
cluster: {ranks_per_node: 2}
";
const LIMIT: Duration = Duration::from_secs(240);

/// Watches a run in a terminal of 60 rows and 70 columns; its output goes to `output`.
#[expect(clippy::disallowed_methods, reason = "tests run the programs")]
fn watch_in_terminal(run: &Path, output: &Path) -> Child {
    let watch = format!(
        "stty cols 70 rows 60; exec {} status {} --watch 0.2",
        program("vljepa-launch").display(),
        run.display()
    );
    let output = std::fs::File::create(output).unwrap();
    let mut command = Command::new("script");
    command.args(["-qefc", &watch, "/dev/null"]).env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(output).spawn().unwrap()
}

fn status(run: &Path) -> Value {
    let output = command("vljepa-launch").args(["status", "--json"]).arg(run).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that the parts of the elapsed time are not negative and sum to it.
fn assert_parts_sum(status: &Value) {
    let parts = status["spent"].as_object().unwrap().values();
    let parts: Vec<f64> = parts.map(|part| part.as_f64().unwrap()).collect();
    let elapsed = status["elapsed_s"].as_f64().unwrap();
    let sum: f64 = parts.iter().sum();
    assert!(parts.iter().all(|part| *part >= 0.0), "{status:#}");
    // Times of lines and events have milliseconds.
    assert!((sum - elapsed).abs() < 0.1, "{sum} of {elapsed}: {status:#}");
}

#[test]
fn a_run_whose_rank_dies_is_watched_to_its_end() {
    let trial = Trial::new(TWO_STAGES);
    let (run, output) = (trial.path("run"), trial.path("watched"));
    let mut watching = watch_in_terminal(&run, &output);
    let kill = ["--drill", "kill:rank=1,step=11,phase=backward,attempt=1"];
    let mut child = trial.launch("run", &[]).args(kill).spawn().unwrap();
    wait_until(&mut watching, LIMIT, "the end of the run", || run.join("completed.json").exists());
    assert!(watching.wait().unwrap().success());
    assert!(child.wait().unwrap().success());
    let shown = screen(&std::fs::read_to_string(&output).unwrap(), 70);
    let row = |start: &str| {
        let rows: Vec<_> = shown.iter().filter(|row| row.starts_with(start)).collect();
        assert_eq!(rows.len(), 1, "`{start}` in {shown:#?}");
        rows[0].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("state"), "state completed");
    assert_eq!(row("step "), "step 24 of 24, stage clips");
    assert_eq!(row("attempts"), "attempts 2");
    assert!(row("restarts").ends_with('%') && row("start-up").ends_with('%'), "{shown:#?}");
    // The checkpoint of step 8 was published before the kill in step 11, or that of step 4 was the
    // newest.
    assert!(row("lost work").starts_with("lost work, "), "{shown:#?}");
    let status = status(&run);
    assert_parts_sum(&status);
    let lost = status["lost_steps"].as_u64().unwrap();
    assert!((1..=8).contains(&lost), "{status:#}");
    for part in ["steps_s", "data_wait_s", "start_up_s", "restarts_s", "lost_work_s"] {
        assert!(status["spent"][part].as_f64().unwrap() > 0.0, "{part}: {status:#}");
    }
    // The window holds the intervals of the second stage in the second attempt alone.
    assert!((1..=4).contains(&status["recent_intervals"].as_u64().unwrap()), "{status:#}");
    assert!(status["left"].is_null(), "{status:#}");
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for part in ["since the start", "lost work", "median of the last", "in the whole run"] {
        assert!(page.contains(part), "`{part}` is missing");
    }
}

#[test]
fn a_run_whose_launcher_is_killed_and_started_again_is_watched_on() {
    let trial = Trial::new(TWO_STAGES);
    let (run, output) = (trial.path("run"), trial.path("watched"));
    let slower = ["--drill", "slow:rank=0,step=0,seconds=0.2,attempt=1"];
    let mut child = trial.launch("run", &[]).args(slower).spawn().unwrap();
    let mut watching = watch_in_terminal(&run, &output);
    wait_until(&mut child, LIMIT, "the second checkpoint", || has_checkpoint(&run, 8));
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    // The display waits half a minute for another launcher.
    let mut again = trial.launch("run", &[]).spawn().unwrap();
    wait_until(&mut watching, LIMIT, "the end of the run", || run.join("completed.json").exists());
    assert!(watching.wait().unwrap().success());
    assert!(again.wait().unwrap().success());
    let status = status(&run);
    assert_parts_sum(&status);
    assert_eq!((&status["state"], &status["attempts"]), (&"completed".into(), &2.into()));
    assert!(status["spent"]["restarts_s"].as_f64().unwrap() > 0.0, "{status:#}");
    assert!(status["spent"]["stopped_s"].as_f64().unwrap() < 0.1, "{status:#}");

    // Without another launcher the display ends.
    let mut child = trial.launch("alone", &[]).args(slower).spawn().unwrap();
    let alone = trial.path("alone");
    wait_until(&mut child, LIMIT, "the first checkpoint", || has_checkpoint(&alone, 4));
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    wait_for_workers(&alone);
    let mut watch = command("vljepa-launch");
    let output = watch.arg("status").arg(&alone).args(["--watch", "0.2"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.code() == Some(1) && said.contains("interrupted"), "{said}");
}
