//! Programmes on this machine: the order of their runs, what a second start skips, failures, stops,
//! and what is refused before anything starts.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::programs::{Trial, command, has_checkpoint, repository, small_set, text, wait_until};

/// Runs of two steps on one rank. The programme lists a table of both, then `second`, which starts
/// from the weights of `first`, and then `first`.
struct Two(Trial);

impl Two {
    fn new() -> Self {
        let two = Self(Trial::new(
            "
stages:
  - {name: one, steps: 2, batch: 8, frames: 4, mixture: {clips: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
checkpoints: {every_steps: 1, keep: 2}
cluster: {ranks_per_node: 1}
evaluation: {tasks: []}
logging: {every_steps: 1}
",
        ));
        let set = small_set().display();
        let [first, second] = ["first", "second"].map(|run| two.0.path(run).display().to_string());
        two.write(
            "table.yaml",
            &format!(
                "name: table
table: {{of: table2, rows: {{vl_jepa_sft: {{run: {second}}}, before: {{run: {first}}}}}}}
evaluation:
  tasks:
    - {{name: gqa, shards: {set}/eval/exists.tar, frames: 2, limit: 20, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
"
            ),
        );
        two.programme(&[], &[]);
        two
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path(name), text).unwrap();
    }

    /// Writes the programme, with changes of `first` and of `second`.
    fn programme(&self, of_first: &[&str], of_second: &[&str]) {
        let path = |run: &str| self.0.path(run).display().to_string();
        let sets =
            |sets: &[&str]| sets.iter().map(|set| format!(", \"{set}\"")).collect::<String>();
        let (of_first, of_second) = (sets(of_first), sets(of_second));
        self.write(
            "two.yaml",
            &format!(
                "name: two
programme:
  - {{recipe: table.yaml, run: {}}}
  - {{recipe: trial.yaml, run: {}, set: [\"init.run={}\"{of_second}]}}
  - {{recipe: trial.yaml, run: {}, set: [\"seed=1\"{of_first}]}}
",
                path("table"),
                path("second"),
                path("first"),
                path("first")
            ),
        );
    }

    fn launch(&self, arguments: &[&str]) -> Output {
        let mut command = command("vljepa-launch");
        let words = arguments.iter().take_while(|word| !word.starts_with("--"));
        let words = words.count();
        command.args(&arguments[..words]).arg(self.0.path("two.yaml")).args(&arguments[words..]);
        command.output().unwrap()
    }

    fn states(&self) -> Vec<String> {
        let output = self.launch(&["status", "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let runs = found["runs"].as_array().unwrap().iter();
        runs.map(|run| run["state"].as_str().unwrap().to_owned()).collect()
    }
}

/// When the record of a complete run was written.
fn completed(run: &Path) -> std::time::SystemTime {
    std::fs::metadata(run.join("completed.json")).unwrap().modified().unwrap()
}

/// The text of an output in one line, without the marks of reports.
fn said(output: &Output) -> String {
    let line = text(output).replace(['│', '×', '╰', '▶', '╭', '├', '─'], " ");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn runs_start_in_the_order_of_their_needs_until_one_fails_and_the_same_command_goes_on() {
    let two = Two::new();
    assert_eq!(two.states(), ["not started"; 3]);
    // The port of the second run's metrics is taken, so that run cannot start.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("logging.prometheus={}", taken.local_addr().unwrap());
    two.programme(&[], &[&port]);
    let failed = two.launch(&[]);
    assert_eq!(failed.status.code(), Some(2), "{}", text(&failed));
    let words = said(&failed);
    assert!(words.contains("second is not complete, so no other run starts"), "{words}");
    assert!(words.contains("cannot listen"), "{words}");
    assert_eq!(two.states(), ["complete", "not started", "not started"]);
    assert!(!two.0.path("table").exists(), "{words}");

    // Without the port: another test may take it as soon as it is free.
    two.programme(&[], &[]);
    let first = completed(&two.0.path("first"));
    let rest = two.launch(&[]);
    assert!(rest.status.success(), "{}", text(&rest));
    assert!(said(&rest).contains("first: already complete"), "{}", text(&rest));
    assert_eq!(two.states(), ["complete"; 3]);
    assert_eq!(completed(&two.0.path("first")), first, "a complete run is not started again");
    let record = std::fs::read_to_string(two.0.path("second/run.json")).unwrap();
    assert!(record.contains("init.run"), "the weights of the first run were read: {record}");
    let table = std::fs::read_to_string(two.0.path("table/table.json")).unwrap();
    assert!(table.contains("before"), "{table}");

    let nothing = two.launch(&[]);
    assert!(nothing.status.success(), "{}", text(&nothing));
    assert!(
        said(&nothing).contains("all 3 runs of two are already complete"),
        "{}",
        text(&nothing)
    );
    let watched = two.launch(&["status", "--watch"]);
    assert_eq!(watched.status.code(), Some(0), "{}", text(&watched));
    assert!(text(&watched).contains("two, 3 runs: 3 complete"), "{}", text(&watched));

    // A table that is older than one of its runs is measured again.
    let record = two.0.path("second/completed.json");
    let same = std::fs::read(&record).unwrap();
    std::fs::write(&record, same).unwrap();
    assert_eq!(two.states(), ["complete", "complete", "out of date"]);
    let again = two.launch(&[]);
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(two.states(), ["complete"; 3]);
}

#[test]
fn stop_and_a_signal_end_the_run_and_the_programme_and_the_same_command_continues() {
    let two = Two::new();
    // Many steps, so that the run is not complete before two requests to stop and a `status`.
    two.programme(&["stages.0.steps=400", "checkpoints.keep=500"], &[]);
    let none = two.launch(&["stop"]);
    assert_eq!(none.status.code(), Some(2), "{}", text(&none));
    assert!(said(&none).contains("nothing to stop"), "{}", text(&none));
    let start = || {
        let mut command = command("vljepa-launch");
        command.arg(two.0.path("two.yaml")).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let (limit, run) = (Duration::from_secs(120), two.0.path("first"));
    let mut running = start();
    wait_until(&mut running, limit, "the second checkpoint", || has_checkpoint(&run, 2));
    assert_eq!(two.states(), ["running", "not started", "not started"]);
    let stopped = two.launch(&["stop"]);
    assert!(stopped.status.success(), "{}", text(&stopped));
    let ended = running.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", text(&ended));
    assert_eq!(two.states(), ["stopped", "not started", "not started"]);
    let steps = || std::fs::read_dir(run.join("checkpoints")).map_or(0, Iterator::count);
    let before = steps();

    let mut running = start();
    wait_until(&mut running, limit, "a later checkpoint", || steps() > before + 1);
    let id = nix::unistd::Pid::from_raw(running.id().try_into().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = running.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(143), "{}", text(&ended));
    assert!(said(&ended).contains("no other run starts"), "{}", text(&ended));
    assert!(!two.0.path("second").exists());

    let rest = two.launch(&[]);
    assert!(rest.status.success(), "{}", text(&rest));
    assert_eq!(two.states(), ["complete"; 3]);
    assert_eq!(two.0.losses("first").len(), 400);
}

#[test]
fn what_cannot_run_to_its_end_is_refused_before_the_first_run_starts() {
    let two = Two::new();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let output = two.launch(arguments);
        let words = said(&output);
        assert_eq!(output.status.code(), Some(2), "{words}");
        for part in parts {
            assert!(words.contains(part), "`{part}` is missing in: {words}");
        }
        for run in ["first", "second", "table"] {
            assert!(!two.0.path(run).exists(), "{run}: {words}");
        }
    };
    refused(&["--run", "x"], &["--run is for one run", "run: DIR"]);
    refused(&["--drill", "nan:rank=0,step=1"], &["--drill is for one run"]);
    refused(&["plan", "--html", "x.html"], &["--html is for one run"]);
    refused(&["plan", "--gpus", "1..4"], &["a range of --gpus is for one run"]);
    refused(&["--set", "sed=1"], &["entry 0 of the programme", "unknown key `sed`", "`seed`"]);
    refused(&["doctor"], &["a programme of runs", "a recipe is expected"]);

    two.programme(&[], &["data.sources.clips.shards=nowhere.tar"]);
    refused(&[], &["data.sources.clips.shards of", "second", "there is no shard nowhere.tar"]);
    two.programme(&[], &["init.run=elsewhere"]);
    refused(&[], &["init.run of", "no run of the programme makes elsewhere"]);
    two.programme(&["cluster.scheduler=slurm"], &[]);
    refused(&[], &["one scheduler", "first is slurm"]);
    // A row whose run is not there yet is checked with the recipe of that run.
    two.programme(&[], &["model.predictor.tokenizer=none.json"]);
    refused(&[], &["model.predictor.tokenizer of", "none.json"]);
    two.programme(&[], &[]);
    let table = std::fs::read_to_string(two.0.path("table.yaml")).unwrap();
    two.write("table.yaml", &table.replace("exists.tar", "missing.tar"));
    refused(&[], &["evaluation.tasks.0.shards of", "missing.tar"]);
    two.write("table.yaml", &table.replace("[\"yes\", \"no\"]", "[\"yes\", \"never\"]"));
    refused(&[], &["evaluation.tasks.0", "of", "table"]);
}

#[test]
fn a_path_without_a_run_is_named_before_the_options_of_programmes() {
    let two = Two::new();
    for word in ["status", "stop"] {
        let mut command = command("vljepa-launch");
        let path = two.0.path("tow.yaml");
        let output = command.arg(word).arg(path).args(["--set", "seed=2"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(said(&output).contains("is not a run directory"), "{}", text(&output));
    }
}

#[test]
fn a_submitted_run_is_unknown_and_not_stopped_if_squeue_does_not_answer() {
    let two = Two::new();
    two.0.complete("first", &["seed=1"]);
    std::fs::create_dir(two.0.path("table")).unwrap();
    let table = two.0.path("table");
    std::fs::copy(two.0.path("first/recipe.yaml"), table.join("recipe.yaml")).unwrap();
    for run in ["first", "table"] {
        let submission = serde_json::json!({"job": "7", "submitted": "", "script": ""});
        std::fs::write(two.0.path(run).join("slurm.json"), submission.to_string()).unwrap();
    }
    // No cluster answers in this folder of programs.
    let run = |word: &str| {
        let mut command = command("vljepa-launch");
        command.arg(word).arg(two.0.path("two.yaml")).env("PATH", "/nowhere").output().unwrap()
    };
    let status = run("status");
    assert!(said(&status).contains("1 complete, 1 unknown, 1 not started"), "{}", text(&status));
    let stopped = run("stop");
    assert_eq!(stopped.status.code(), Some(3), "{}", text(&stopped));
    let words = said(&stopped);
    assert!(words.contains("table was not stopped") && !words.contains("first"), "{words}");
}

#[test]
fn a_folder_of_other_files_is_refused_before_the_first_run_starts_and_by_a_dry_run() {
    let two = Two::new();
    std::fs::create_dir(two.0.path("table")).unwrap();
    std::fs::write(two.0.path("table/notes.txt"), "").unwrap();
    for arguments in [&[][..], &["--dry-run"]] {
        let output = two.launch(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(said(&output).contains("contains other files"), "{}", text(&output));
        assert!(!two.0.path("first").exists());
    }
}

#[test]
fn a_run_directory_of_another_recipe_is_refused_before_the_first_run_starts() {
    let two = Two::new();
    two.0.complete("second", &["seed=3"]);
    let output = two.launch(&[]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(said(&output).contains("holds a run of another recipe"), "{}", text(&output));
    assert!(!two.0.path("first").exists());
}

#[test]
fn the_plan_of_the_paper_s_programme_is_the_committed_text() {
    let folder = tempfile::tempdir().unwrap();
    let paper = repository().join("recipes/paper.yaml");
    let plan = |more: &[&str]| {
        let mut command = command("vljepa-launch");
        let output = command.current_dir(folder.path()).arg("plan").arg(&paper).args(more).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    crate::plan::is_golden("paper.txt", &plan(&[]));
    // Hours of a run are those of its own plan.
    let all: Value = serde_json::from_str(&plan(&["--json", "--gpus", "64"])).unwrap();
    let own = crate::plan::json(folder.path(), "finetune.yaml", &["--gpus", "64"]);
    let run = |name: &str| {
        let runs = all["runs"].as_array().unwrap().iter();
        runs.into_iter().find(|run| run["run"] == name).unwrap()
    };
    assert_eq!(run("runs/finetune")["hours"], own["plan"]["hours"]);
    assert_eq!(run("runs/finetune")["needs"], serde_json::json!(["runs/pretrain"]));
    assert_eq!(run("runs/finetune")["gpus"], 64);
    let hours = |value: &Value| value["value"].as_f64().unwrap();
    assert!(hours(&all["longest_chain_hours"]) < hours(&all["one_after_another_hours"]));
    assert_eq!(all["longest_chain"][0], "runs/pretrain");
}
