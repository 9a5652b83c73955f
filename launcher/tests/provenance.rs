//! Tests of `run.json` and of `vljepa-launch reproduce`. Workers are fakes.

#![expect(clippy::disallowed_methods, reason = "these tests start the program and git")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod fake_run;

use std::process::Command;

use fake_run::FakeRun;
use serde_json::Value;

const TRAINS: &str = "hello; for s in 0 1 2 3 4 5 6 7 8 9; do step $s; done; complete";

fn record(fake: &FakeRun, run: &str) -> Value {
    serde_json::from_str(&fake.read(&format!("runs/{run}/run.json"))).unwrap()
}

fn git(fake: &FakeRun, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=x", "-c", "user.email=x@x"]).args(arguments);
    let mut child = fake_run::start(command.current_dir(fake.path(".")));
    assert!(child.wait().unwrap().success(), "git {arguments:?}");
}

#[test]
fn a_run_is_reproduced_bit_for_bit_and_says_so() {
    let fake = FakeRun::new(2, TRAINS);
    fake.launch(&["recipe.yaml"]).said(0, &[]);
    let ended = fake.launch(&["reproduce", "runs/fake"]);
    ended.said(0, &["complete: 10 steps"]);
    let verdict =
        "reproduced: 10 of 10 logged steps have the same loss and gradient norm, bit for bit";
    assert!(ended.out.contains(verdict), "{}", ended.out);
    for fact in ["recipe", "shards of a", "model.predictor.tokenizer", "vljepa-worker", "ranks"] {
        let line = ended.out.lines().find(|line| line.starts_with(fact)).unwrap();
        assert!(line.ends_with("same"), "{line}");
    }
    let new = record(&fake, "fake-reproduced");
    let of = fake.path("runs/fake").canonicalize().unwrap();
    assert_eq!(new["reproduces"].as_str(), of.to_str());
    assert_eq!(new["attempts"].as_array().unwrap().len(), 1);
    let comparison = fake.read("runs/fake-reproduced/reproduction.json");
    assert!(comparison.contains("\"equal\": 10"), "{comparison}");
    let page = fake.read("runs/fake-reproduced/report.html");
    assert!(page.contains("10 of 10 logged steps have the same loss"), "the report says so too");
    // The same command given again compares again and starts nothing.
    let again = fake.launch(&["reproduce", "runs/fake"]);
    again.said(0, &["already complete"]);
    assert!(again.out.contains(verdict));
    fake.launch(&["recipe.yaml", "--run", "runs/other"]).said(0, &[]);
    let taken = fake.launch(&["reproduce", "runs/fake", "--run", "runs/other"]);
    taken.said(2, &["holds a run that does not reproduce", "--run"]);
}

#[test]
fn the_first_step_that_differs_is_named_and_is_a_failure_where_equal_bits_are_expected() {
    let odd = "hello; for s in 0 1 2 3 4 5 6 7 8 9; do case $run$s in *reproduced6) loss=0.25 ;; *) loss=0.5 ;; esac; \
        step $s; done; complete";
    let fake = FakeRun::new(1, odd);
    fake.launch(&["recipe.yaml"]).said(0, &[]);
    let ended = fake.launch(&["reproduce", "runs/fake"]);
    ended.said(
        1,
        &["not reproduced: 9 of 10", "step 7 is the first", "loss 0.5 in the original, 0.25 here"],
    );
}

#[test]
fn another_program_is_shown_and_started_and_no_equal_bits_are_claimed() {
    let fake = FakeRun::new(1, TRAINS);
    fake.launch(&["recipe.yaml"]).said(0, &[]);
    let worker = include_str!("fake/worker.sh");
    fake.program("bin/vljepa-worker", &format!("{worker}# another build\n"));
    let ended = fake.launch(&["reproduce", "runs/fake", "--run", "runs/second"]);
    ended.said(0, &[]);
    for text in [
        "vljepa-worker differs: build the recorded commit",
        "10 of 10 logged steps",
        "the same bits cannot be expected: another worker program",
    ] {
        assert!(ended.out.contains(text), "`{text}` is missing in:\n{}", ended.out);
    }
}

#[test]
fn other_data_or_another_recipe_are_refused_until_they_are_allowed() {
    let fake = FakeRun::new(1, TRAINS);
    fake.launch(&["recipe.yaml"]).said(0, &[]);
    let refused = |fact: &str, advice: &str| {
        let ended = fake.launch(&["reproduce", "runs/fake"]);
        ended.said(2, &["cannot reproduce", fact, "--allow-differences"]);
        assert!(ended.out.contains(advice), "`{advice}` is missing in:\n{}", ended.out);
        assert!(!fake.path("runs/fake-reproduced").exists(), "nothing was started");
    };
    fake.write("shards/a.tar", "other");
    refused(
        "shards of a",
        "shards of a differs: restore the shards that data.sources.a.shards names",
    );
    fake.write("shards/a.tar", "x");
    fake.write("tokenizer.json", "{ }");
    refused(
        "model.y_encoder.tokenizer",
        "model.y_encoder.tokenizer differs: restore tokenizer.json",
    );
    std::fs::remove_file(fake.path("tokenizer.json")).unwrap();
    refused(
        "model.predictor.tokenizer",
        "model.predictor.tokenizer missing: restore tokenizer.json",
    );
    fake.write("tokenizer.json", "{}");
    let recipe = fake.read("runs/fake/recipe.yaml");
    fake.write("runs/fake/recipe.yaml", &recipe.replace("seed: 0", "seed: 1"));
    refused("recipe", "recipe differs: restore recipe.yaml");
    let allowed = fake.launch(&["reproduce", "runs/fake", "--allow-differences"]);
    allowed.said(0, &["complete"]);
    assert!(allowed.out.contains("cannot be expected: another recipe"), "{}", allowed.out);
    fake.write("runs/fake/recipe.yaml", &recipe);
    let dry = fake.launch(&["reproduce", "runs/fake", "--run", "runs/third", "--dry-run"]);
    dry.said(0, &[]);
    assert!(!fake.path("runs/third").exists());
    std::fs::remove_file(fake.path("runs/fake/run.json")).unwrap();
    fake.launch(&["reproduce", "runs/fake"]).said(2, &["run.json", "nothing is known"]);
}

#[test]
fn run_json_holds_commit_diff_files_drivers_and_machines() {
    let fake = FakeRun::new(2, TRAINS);
    fake.program(
        "bin/nvidia-smi",
        "#!/bin/sh\n[ $# = 2 ] && echo 'NVIDIA H200, 580.65.06' || echo '| CUDA Version: 13.0 |'",
    );
    fake.write(
        "bin/features.json",
        r#"{"mpi":true,"video":true,"cuda":false,"nccl_version":"2.27.3"}"#,
    );
    fake.write(".gitignore", "runs\nbin\n");
    git(&fake, &["init", "-q"]);
    git(&fake, &["add", "."]);
    git(&fake, &["commit", "-qm", "x"]);
    fake.write("tokenizer.json", "{\"changed\": true}");
    fake.launch(&["recipe.yaml"]).said(0, &[]);
    let record = record(&fake, "fake");
    assert_eq!(record["versions"]["driver"], "580.65.06");
    assert_eq!(record["versions"]["cuda"], "13.0");
    assert_eq!(record["versions"]["nccl"], "2.27.3");
    assert_eq!(record["attempts"][0]["hosts"], serde_json::json!(["here"]));
    assert_eq!(record["attempts"][0]["job_id"], Value::Null);
    assert_eq!(record["attempts"][0]["shards"]["a"], record["shards"]["a"]["hash"]);
    assert_eq!(record["files"]["model.predictor.tokenizer"]["bytes"], 17);
    assert_eq!(record["git"]["commit"].as_str().unwrap().len(), 40);
    let diff = fake.read("runs/fake/source.diff");
    assert!(diff.contains("+{\"changed\": true}"), "{diff}");
    git(&fake, &["checkout", "-q", "tokenizer.json"]);
    git(&fake, &["apply", "runs/fake/source.diff"]);
    assert_eq!(
        fake.read("tokenizer.json"),
        "{\"changed\": true}",
        "the diff brings the sources back"
    );
    git(&fake, &["commit", "-qam", "y"]);
    fake.launch(&["recipe.yaml"]).said(0, &["already complete"]);
}

#[test]
fn shards_that_changed_between_attempts_are_a_warning_and_an_event() {
    let fake = FakeRun::new(
        1,
        "hello; step 0; if [ $attempt = 1 ]; then echo more >> $here/../shards/a.tar; kill -9 $$; fi; complete",
    );
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(
        0,
        &["warning: the shards of data.sources.a differ from those of the previous attempt"],
    );
    assert!(
        fake.read("runs/fake/events.jsonl").contains(r#""event":"shards_changed","source":"a""#)
    );
    let shards = |attempt: usize| record(&fake, "fake")["attempts"][attempt]["shards"]["a"].clone();
    assert_ne!(shards(0), shards(1));
}
