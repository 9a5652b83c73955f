//! Programmes on Slurm: jobs that wait for the jobs of the runs that they need.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, LIMIT};
use crate::programs::{Trial, has_checkpoint, program, small_set, text};

/// A programme on a cluster: `first` of 150 steps, `second`, which starts from its weights, and the
/// table `both`, which collects the scores of both.
struct Three {
    trial: Trial,
    cluster: Cluster,
}

impl Three {
    fn new(cluster: Cluster) -> Self {
        let set = small_set().display();
        let trial = Trial::new(&format!(
            "
stages:
  - {{name: one, steps: 4, batch: 8, frames: 4, mixture: {{clips: 1}}, mixing: batch, learning_rate: {{peak: 1e-3}}}}
checkpoints: {{every_steps: 10, keep: 100}}
logging: {{every_steps: 1}}
cluster: {{scheduler: slurm, ranks_per_node: 1, control: {{host: 127.0.0.1}}}}
evaluation:
  tasks:
    - {{name: gqa, shards: {set}/eval/exists.tar, frames: 2, limit: 20, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
"
        ));
        let path = |run: &str| trial.path(run).display().to_string();
        let [first, second, both] = ["first", "second", "both"].map(path);
        let table = format!(
            "name: both
table: {{of: table2, rows: {{vl_jepa_sft: {{run: {second}}}, before: {{run: {first}}}}}}}
cluster: {{scheduler: slurm}}
"
        );
        std::fs::write(trial.path("both.yaml"), table).unwrap();
        let programme = format!(
            "name: three
programme:
  - {{recipe: both.yaml, run: {both}}}
  - {{recipe: trial.yaml, run: {second}, set: [\"init.run={first}\"]}}
  - {{recipe: trial.yaml, run: {first}, set: [seed=1, stages.0.steps=150]}}
"
        );
        std::fs::write(trial.path("three.yaml"), programme).unwrap();
        Self { trial, cluster }
    }

    fn launch(&self, words: &[&str]) -> Output {
        let mut command = self.cluster.command(program("vljepa-launch"));
        let before = words.iter().take_while(|word| !word.starts_with("--")).count();
        command.args(&words[..before]).arg(self.trial.path("three.yaml")).args(&words[before..]);
        command.output().unwrap()
    }

    fn start(&self) -> String {
        let output = self.launch(&[]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    fn status(&self) -> Value {
        let output = self.launch(&["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// States of `first`, `second` and `both`.
    fn states(&self) -> [String; 3] {
        let status = self.status();
        [0, 1, 2].map(|run: usize| status["runs"][run]["state"].as_str().unwrap().to_owned())
    }

    fn job(&self, run: &str) -> String {
        let text = std::fs::read(self.trial.path(run).join("slurm.json")).unwrap();
        let submission: Value = serde_json::from_slice(&text).unwrap();
        submission["job"].as_str().unwrap().to_owned()
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        while !done() {
            assert!(Instant::now() < end, "waited for {what}: {}", self.diagnostics());
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    fn wait_for_queue(&self) {
        self.wait_until("an empty queue", || self.cluster.ask("squeue -h").trim().is_empty());
    }

    fn is_complete(&self, run: &str) -> bool {
        self.trial.path(run).join("completed.json").exists()
    }

    /// Logs of the jobs and Slurm's state, for failure messages.
    fn diagnostics(&self) -> String {
        let mut all = self.cluster.state();
        for run in ["first", "second", "both"] {
            let logs = std::fs::read_dir(self.trial.path(run).join("logs"));
            for log in logs.into_iter().flatten().flatten() {
                if log.file_name().to_string_lossy().starts_with("slurm") {
                    all += &format!("\n{}\n", log.path().display());
                    all += &std::fs::read_to_string(log.path()).unwrap_or_default();
                }
            }
        }
        all
    }

    fn all_complete(&self) {
        self.wait_until("the last run", || self.is_complete("both"));
        self.wait_for_queue();
        assert_eq!(self.states(), ["complete"; 3], "{}", self.diagnostics());
        let time = |run: &str| {
            let record = self.trial.path(run).join("completed.json");
            std::fs::metadata(record).unwrap().modified().unwrap()
        };
        assert!(time("first") < time("second") && time("second") < time("both"));
        assert_eq!(self.trial.losses("first").len(), 150);
        let table = std::fs::read_to_string(self.trial.path("both/table.json")).unwrap();
        assert!(table.contains("before") && table.contains("gqa"), "{table}");
    }
}

/// Times of the attempts of a run.
fn attempts(run: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let started = lines.filter(|event| event["event"] == "attempt_started");
    started.map(|event| event["time"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn jobs_start_when_the_runs_that_they_need_are_complete_also_if_one_is_requeued() {
    let three = Three::new(Cluster::up(2));
    let said = three.start();
    let [first, second, both] = ["first", "second", "both"].map(|run| three.job(run));
    assert!(said.contains(&format!("second after {first}")), "{said}");
    assert!(said.contains(&format!("both after {first}, {second}")), "{said}");
    let waits = three.cluster.ask(&format!("squeue -h --jobs {second},{both} --format=%T_%r"));
    assert_eq!(waits.matches("PENDING_Dependency").count(), 2, "{waits}");
    three.wait_until("a checkpoint", || has_checkpoint(&three.trial.path("first"), 10));
    let states = three.states();
    assert_eq!(states, ["running", "waits", "waits"], "{}", three.diagnostics());
    let text_of_status = text(&three.launch(&["status"]));
    assert!(text_of_status.contains("three, 3 runs: 1 running, 2 waits"), "{text_of_status}");
    // The same command submits nothing.
    let again = three.start();
    assert!(again.contains(&format!("job {first} is in the queue")), "{again}");
    assert!(!again.contains("submitted"), "{again}");

    three.cluster.ask(&format!("scancel --batch --signal=USR1 {first}"));
    let run = three.trial.path("first");
    three.wait_until("the requeued job", || {
        three.cluster.ask(&format!("squeue -h --jobs {first} --format=%r")).contains("BeginTime")
    });
    // Slurm holds a requeued job back for two minutes. One that is released in the second of its
    // requeueing is ended for good.
    std::thread::park_timeout(Duration::from_millis(2500));
    three.cluster.ask(&format!("scontrol update JobId={first} StartTime=now"));
    three.wait_until("the second attempt", || {
        assert!(attempts(&three.trial.path("second")).is_empty(), "{}", three.diagnostics());
        attempts(&run).len() == 2
    });
    assert_eq!(three.job("first"), first, "the requeued job keeps its id");
    let waits = three.cluster.ask(&format!("squeue -h --jobs {second},{both} --format=%T_%r"));
    assert_eq!(waits.matches("PENDING_Dependency").count(), 2, "{waits}");
    three.all_complete();
    let done = std::fs::read_to_string(run.join("completed.json")).unwrap();
    let done: Value = serde_json::from_str(&done).unwrap();
    let started = attempts(&three.trial.path("second"));
    assert!(started[0].as_str() > done["time"].as_str().unwrap(), "{started:?} {done}");
    let nothing = three.start();
    assert!(nothing.contains("all 3 runs of three are already complete"), "{nothing}");
}

#[test]
fn jobs_behind_one_that_is_cancelled_leave_the_queue_and_the_same_command_submits_what_is_missing()
{
    let three = Three::new(Cluster::up(2));
    three.start();
    three.wait_until("a checkpoint", || has_checkpoint(&three.trial.path("first"), 10));
    let first = three.job("first");
    three.cluster.ask(&format!("scancel {first}"));
    three.wait_for_queue();
    assert!(!three.is_complete("first"), "{}", three.diagnostics());
    assert_eq!(three.states(), ["stopped", "not started", "not started"]);
    assert!(attempts(&three.trial.path("second")).is_empty());

    // Now `stop` ends all three, those that wait first.
    three.start();
    three.wait_until("a later checkpoint", || {
        let run = three.trial.path("first");
        attempts(&run).len() == 2 && has_checkpoint(&run, 20)
    });
    let stopped = three.launch(&["stop"]);
    let said = text(&stopped);
    assert!(stopped.status.success() && said.matches("was cancelled").count() == 2, "{said}");
    assert!(said.contains("saves at its next step boundary"), "{said}");
    three.wait_for_queue();
    assert!(!three.is_complete("first"), "{}", three.diagnostics());
    assert!(attempts(&three.trial.path("second")).is_empty(), "{}", three.diagnostics());

    let followed = three.launch(&["--follow"]);
    assert!(followed.status.success(), "{}\n{}", text(&followed), three.diagnostics());
    three.all_complete();
}

#[test]
fn the_same_command_given_at_once_replaces_jobs_that_wait_for_a_stopped_one() {
    let three = Three::new(Cluster::up(2));
    three.start();
    let before = ["first", "second", "both"].map(|run| three.job(run));
    let [first, second, both] = &before;
    // The held job stays in the queue when Slurm takes the first one for successful.
    three.cluster.ask(&format!("scontrol hold {second}"));
    three.wait_until("a checkpoint", || has_checkpoint(&three.trial.path("first"), 10));
    let mut stop = three.cluster.command(program("vljepa-launch"));
    let stopped = stop.arg("stop").arg(three.trial.path("first")).output().unwrap();
    assert!(stopped.status.success(), "{}", text(&stopped));
    three.wait_until("the end of the first job", || {
        !three.cluster.ask(&format!("squeue -h --jobs {first} --format=%T")).contains("RUNNING")
    });
    let waits = three.cluster.ask(&format!("squeue -h --jobs {second},{both} --format=%T"));
    assert_eq!(waits.matches("PENDING").count(), 2, "{waits}");

    let again = three.start();
    for job in [second, both] {
        let words = format!("job {job} waits for other jobs than it must");
        assert!(again.contains(&words), "{again}");
    }
    let after = ["first", "second", "both"].map(|run| three.job(run));
    assert!(after.iter().zip(&before).all(|(after, before)| after != before), "{again}");
    assert!(again.contains(&format!("second after {}", after[0])), "{again}");
    three.all_complete();
    assert_eq!(attempts(&three.trial.path("second")).len(), 1, "{}", three.diagnostics());
}

#[test]
fn a_job_does_not_start_on_half_a_run_that_goes_on_in_another_job() {
    let three = Three::new(Cluster::up(2).without("scontrol"));
    three.start();
    let first = three.job("first");
    three.wait_until("a checkpoint", || has_checkpoint(&three.trial.path("first"), 10));
    three.cluster.ask(&format!("scancel --batch --signal=USR1 {first}"));
    // Slurm takes the first job for successful, because another job continues its run.
    let log = three.trial.path("second/logs").join(format!("slurm-{}.log", three.job("second")));
    three.wait_until("the refusal", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("which is not complete"))
    });
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("to continue both, run:") && text.contains("three.yaml"), "{text}");
    assert_ne!(three.job("first"), first, "another job goes on");
    three.wait_until("the first run", || three.is_complete("first"));
    three.wait_for_queue();
    assert!(attempts(&three.trial.path("second")).is_empty(), "{}", three.diagnostics());
    assert_eq!(three.states(), ["complete", "failed", "not started"], "{}", three.diagnostics());
    let fault = three.status()["runs"][1]["fault"].as_str().unwrap().to_owned();
    assert!(fault.contains(log.to_str().unwrap()), "{fault}");
    three.start();
    three.all_complete();
}
