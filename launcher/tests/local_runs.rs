//! Tests of `vljepa-launch` on one machine, started as a user does, with fake workers that follow a
//! scenario (`fake/worker.sh`).

#![expect(clippy::disallowed_methods, reason = "these tests start the program and wait for it")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "fake/control_plane.rs"]
mod control_plane;
mod fake_run;

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use fake_run::{Ended, FakeRun, start};

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

const TRAINS: &str = "hello; for s in 0 1 2 3 4 5 6 7 8 9; do step $s; done; complete";
const WAITS: &str = "hello; step 0; echo ready >> \"$run/ready\"; while read -r -t 0.2 line <&3 || [ $? -gt 128 ]; do \
    beat 1 forward; [ -n \"$line\" ] && break; done; ";

#[test]
fn a_run_of_two_ranks_shows_progress_and_is_complete() {
    let fake = FakeRun::new(2, TRAINS);
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(0, &["only 10/10", "loss 0.5000", "complete: 10 steps", "report.html"]);
    let record = fake.read("runs/fake/run.json");
    for part in ["\"outcome\": \"completed\"", "\"last_step\": 10", "\"world_size\": 2"] {
        assert!(record.contains(part), "{record}");
    }
    assert!(fake.read("runs/fake/report.html").contains("completed"));
    let again = fake.launch(&["recipe.yaml"]);
    again.said(0, &["already complete", "report.html"]);
    assert_eq!(fake.read("runs/fake/pids").lines().count(), 2, "nothing was started again");
}

#[test]
fn exit_code_zero_without_a_record_is_no_success() {
    let fake = FakeRun::new(1, "hello; step 0; finished completed 10");
    fake.launch(&["recipe.yaml"]).said(1, &["without a completion record"]);
}

#[test]
fn a_killed_rank_is_named_with_phase_step_and_log_and_the_run_starts_again() {
    let fake = FakeRun::new(
        2,
        "hello; step 0; beat 1 forward; beat 1 backward; \
         if [ $rank$attempt = 11 ]; then echo last words >> $log; sleep 0.5; kill -9 $$; fi; \
         [ $attempt = 1 ] && sleep 60; complete",
    );
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(
        0,
        &[
            "rank 1 died in phase backward of step 1",
            "logs/rank-0001-attempt-1.log",
            "last words",
            "restarting from the newest checkpoint",
            "complete: 10 steps",
        ],
    );
    assert!(!ended.text.contains("rank 0 died"), "{}", ended.text);
    let record = fake.read("runs/fake/run.json");
    assert!(
        record.contains("\"outcome\": \"failed\"") && record.contains("\"number\": 2"),
        "{record}"
    );
    assert_eq!(fake.left_behind(), Vec::<String>::new());
}

#[test]
fn restarts_without_a_new_checkpoint_end_and_a_checkpoint_is_progress() {
    let fake = FakeRun::new(1, "hello; step 0; step 1; kill -9 $$");
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(1, &["signal 9, SIGKILL", "2 restarts in a row saved no new checkpoint"]);
    assert_eq!(fake.read("runs/fake/pids").lines().count(), 3);
    let fake = FakeRun::new(
        1,
        "hello; step 0; saved $attempt; [ $attempt = 4 ] && complete || kill -9 $$",
    );
    fake.launch(&["recipe.yaml"]).said(0, &["restart 1 of 2", "complete"]);
}

#[test]
fn a_wrong_set_up_is_reported_once_and_not_tried_again() {
    let failed = "{\\\"message\\\":\\\"failed\\\",\\\"step\\\":0,\\\"phase\\\":\\\"start\\\",\\\"error\\\":\\\"no tokenizer here\\\"}";
    let fake = FakeRun::new(1, &format!("hello; say \"{failed}\"; exit 1"));
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(
        1,
        &[
            "rank 0 failed in phase start of step 0: no tokenizer here",
            "another attempt would fail too",
        ],
    );
    assert_eq!(fake.read("runs/fake/pids").lines().count(), 1);
    let fake = FakeRun::new(2, "echo libmpi.so.40: cannot open shared object file >&2; exit 127");
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(
        1,
        &["did not start", "exit code 127", "libmpi.so.40: cannot open", "output-attempt-1.log"],
    );
}

#[test]
fn workers_of_another_recipe_or_build_and_strangers_are_refused() {
    let fake = FakeRun::new(1, "recipe_hash=beef; hello; sleep 0.3; exit 1");
    fake.launch(&["recipe.yaml"]).said(1, &["rank 0 was refused", "another recipe (hash beef"]);
    assert!(fake.read("runs/fake/logs/rank-0000-attempt-1.log").contains("refused"));
    // A stranger is refused and the run goes on.
    let fake =
        FakeRun::new(1, &format!("right=$token; token=wrong; hello; token=$right; {TRAINS}"));
    fake.launch(&["recipe.yaml"]).said(0, &["refused a connection", "its token", "complete"]);
}

#[test]
fn the_first_ctrl_c_saves_and_the_same_command_continues() {
    let scenario = format!("{WAITS} saved 1; finished stopped 1");
    let fake = FakeRun::new(2, &format!("if [ $attempt = 1 ]; then {scenario}; else {TRAINS}; fi"));
    let child = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready\nready");
    signal(&child, Signal::SIGINT);
    let ended = Ended::from(child.wait_with_output().unwrap());
    ended.said(
        130,
        &["Ctrl-C: saving at the next step boundary", "saved and stopped at step 1", "to continue"],
    );
    assert_eq!(fake.left_behind(), Vec::<String>::new());
    fake.launch(&["recipe.yaml"]).said(0, &["complete"]);
}

#[test]
fn a_stop_before_all_ranks_have_connected_ends_the_run_at_once() {
    let fake = FakeRun::new(
        2,
        "[ $rank = 1 ] && sleep 60; hello; echo ready >> $run/ready; while sleep 0.1; do beat 0 start; done",
    );
    let child = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready");
    signal(&child, Signal::SIGINT);
    let ended = Ended::from(child.wait_with_output().unwrap());
    ended.said(130, &["Ctrl-C: ending before all ranks have started", "ended at once at step 0"]);
    assert_eq!(fake.left_behind(), Vec::<String>::new());
}

#[test]
fn the_second_ctrl_c_ends_everything_at_once() {
    // These workers do not read messages, and they ignore TERM.
    let fake = FakeRun::new(
        2,
        "trap '' TERM INT; hello; step 0; echo ready >> $run/ready; sleep 60; sleep 60",
    );
    let child = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready\nready");
    signal(&child, Signal::SIGINT);
    fake.wait_for("runs/fake/events.jsonl", "stop_requested");
    let asked = Instant::now();
    signal(&child, Signal::SIGINT);
    let ended = Ended::from(child.wait_with_output().unwrap());
    ended.said(130, &["ended at once", "to continue from the newest checkpoint"]);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(fake.left_behind(), Vec::<String>::new());
}

#[test]
fn a_run_belongs_to_one_launcher_and_a_killed_one_leaves_it_free() {
    let fake =
        FakeRun::new(1, &format!("if [ $attempt = 1 ]; then {WAITS} exit 1; else {TRAINS}; fi"));
    let mut child = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready");
    fake.launch(&["recipe.yaml"]).said(2, &["is in use by process"]);
    let state = || fake.launch(&["status", "runs/fake"]).out;
    assert!(state().contains("running"), "{}", state());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(state().contains("interrupted"), "{}", state());
    fake.launch(&["recipe.yaml"]).said(0, &["complete"]);
    let status = fake.launch(&["status", "runs/fake", "--json"]);
    assert!(status.out.contains("\"state\": \"completed\""), "{}", status.out);
}

#[test]
fn what_the_machine_lacks_is_said_before_anything_starts() {
    let fake = FakeRun::new(2, TRAINS);
    std::fs::remove_file(fake.path("bin/mpirun")).unwrap();
    let only_own = |arguments: &[&str]| {
        let path = fake.path("bin").display().to_string();
        let child = start(fake.command(arguments).env("PATH", path));
        Ended::from(child.wait_with_output().unwrap())
    };
    only_own(&["recipe.yaml"]).said(3, &["2 ranks needs mpirun", "apt-get install openmpi-bin"]);
    fake.program("bin/mpirun", "");
    fake.program("bin/vljepa-worker", "#!/bin/sh\necho '{\"mpi\":false,\"video\":true}'");
    let lacks = fake.launch(&["recipe.yaml"]);
    lacks.said(
        3,
        &["the run has 2 ranks, but", "without the feature `mpi`", "--features mpi,video"],
    );
    fake.program("bin/vljepa-worker", "#!/bin/sh\necho no such library >&2; exit 127");
    fake.launch(&["recipe.yaml"]).said(3, &["does not work: no such library"]);
    std::fs::remove_file(fake.path("bin/vljepa-worker")).unwrap();
    only_own(&["recipe.yaml"])
        .said(3, &["vljepa-worker was not found, neither beside", "cargo build --release"]);
    assert!(!fake.path("runs").exists(), "a refused start leaves no run directory");
}

#[test]
fn wrong_command_lines_recipes_and_directories_are_explained() {
    let fake = FakeRun::new(1, TRAINS);
    let wrong = |arguments: &[&str], texts: &[&str]| fake.launch(arguments).said(2, texts);
    wrong(&["missing.yaml"], &["cannot read the recipe missing.yaml", "no such file"]);
    wrong(&["recipe.yaml", "--set", "stages.0.stepz=3"], &["stepz", "steps"]);
    wrong(
        &["recipe.yaml", "--set", "data.sources.a.shards=nowhere"],
        &["data.sources.a.shards", "nowhere"],
    );
    wrong(&["recipe.yaml", "--run", "recipe.yaml/x"], &["recipe.yaml/x", "cannot make"]);
    wrong(&["recipe.yaml", "--run", "bin"], &["bin contains other files but no run"]);
    wrong(&["recipe.yaml", "--set", "cluster.nodes=2"], &["this machine is one node, not 2"]);
    wrong(&["status", "shards"], &["shards is not a run directory"]);
    wrong(&["ask", "recipe.yaml", "x", "y", "--answers", "z"], &["not a run directory"]);
    wrong(&["recipe.yaml", "--dryrun"], &["--dry-run"]);
    fake.launch(&["recipe.yaml"]).said(0, &[]);
    wrong(&["recipe.yaml", "--set", "seed=5"], &["another recipe", "seed: 0 → 5"]);
    wrong(&["evaluate", "runs/fake"], &["has no checkpoint yet"]);
}

#[test]
fn jobs_on_a_trained_run_print_tables_and_json() {
    let fake = FakeRun::new(1, "saved 9 2> /dev/null");
    let answer = |text: &str| {
        fake.write("answer", text);
        fake.program("bin/vljepa-worker", "#!/bin/sh\ncp \"$5\" job; cat answer");
    };
    std::fs::create_dir_all(fake.path("runs/fake/checkpoints/step-00000009")).unwrap();
    std::fs::copy(fake.path("recipe.yaml"), fake.path("runs/fake/recipe.yaml")).unwrap();
    fake.write("x.jpg", "x");
    answer(r#"{"answers":[{"text":"red","score":0.9},{"text":"dark blue","score":0.1}],"step":9}"#);
    let asked = fake.launch(&["ask", "runs/fake", "x.jpg", "which?", "--answers", "red,dark blue"]);
    asked.said(0, &["checkpoint of step 9"]);
    assert_eq!(
        asked.out,
        "rank  answer      score\n   1  red        0.9000\n   2  dark blue  0.1000\n"
    );
    let job = fake.read("job");
    assert!(
        job.contains(r#""job":"ask""#) && job.contains(fake.path("x.jpg").to_str().unwrap()),
        "{job}"
    );
    answer(
        r#"{"results":[{"shard":"s/a.tar","key":"k","caption":"a red circle","score":0.5}],"step":9}"#,
    );
    let found = fake.launch(&["search", "runs/fake", "shards", "red", "--limit", "3", "--json"]);
    found.said(0, &[]);
    assert!(found.out.contains("\"caption\": \"a red circle\""), "{}", found.out);
    fake.launch(&["search", "runs/fake", "nowhere.tar", "red"]).said(2, &["nowhere.tar"]);
    answer(
        r#"{"scores":{"motion_top1":{"value":0.9,"interval":[0.786,0.957],"chance":0.17,"baseline":0.2,"n":50,"unreadable":2,"measured":"ab12"}},"step":9}"#,
    );
    let scored = fake.launch(&["evaluate", "runs/fake", "--step", "9"]);
    scored.said(0, &["checkpoint of step 9", "report.html"]);
    for part in ["motion_top1", "90.0%", "78.6–95.7", "2 unreadable, counted as wrong"] {
        assert!(scored.out.contains(part), "{}", scored.out);
    }
    assert!(fake.read("job").contains(r#""step":9"#), "{}", fake.read("job"));
    answer(r#"{"files":["out/x.safetensors"],"step":9}"#);
    let exported = fake.launch(&["export", "runs/fake", "out"]);
    assert_eq!(exported.out, "out/x.safetensors\nrecipe.yaml\nREADME.md\n");
    assert!(fake.read("out/README.md").contains("step 9, "));
    assert!(!fake.path("out.part").exists());
    fake.launch(&["export", "runs/fake", "bin"]).said(2, &["not empty"]);
    fake.program(
        "bin/vljepa-worker",
        "#!/bin/sh\necho 'progress: 1 of 2\nwarning: little\nerror: no sense in it' >&2; exit 1",
    );
    let failed = fake.launch(&["ask", "runs/fake", "x.jpg", "which?", "--answers", "red"]);
    failed.said(1, &["warning: little", "no sense in it"]);
    assert!(!failed.text.contains("1 of 2"), "progress is no message: {}", failed.text);
    assert!(Path::new(&fake.path("runs/fake/report.html")).is_file());
}

#[test]
fn a_dry_run_prints_recipe_and_plan_and_starts_nothing() {
    let fake = FakeRun::new(3, TRAINS);
    // Three newest, the ends of the stage and of a point, and one that is being written.
    let kept = "checkpoints.keep_at={stage_ends: true, samples_seen: [9]}";
    let sets = ["--set", "stages.0.steps=20", "--set", kept];
    let ended = fake.launch(&[&["recipe.yaml", "--dry-run"], &sets[..]].concat());
    ended.said(0, &["do not divide evenly among 3 ranks"]);
    for text in ["steps: 20", "weight_decay: 0.05", "2–3", "1 of 1", "160", "at most 6 at once"] {
        assert!(ended.out.contains(text), "`{text}` is missing in:\n{}", ended.out);
    }
    assert!(!fake.path("runs").exists());
}

#[test]
fn a_file_that_the_worker_refuses_stops_a_start_and_a_dry_run_in_the_same_words() {
    let fake = FakeRun::new(1, TRAINS);
    fake.write(
        "bin/inputs.json",
        r#"{"problems":[{"key":"data.sources.a.shards","what":"no tar","help":"fetch it"}],
            "warnings":["shards/a.tar: 3 bytes are not read"]}"#,
    );
    for arguments in [&["recipe.yaml"][..], &["recipe.yaml", "--dry-run"]] {
        let ended = fake.launch(arguments);
        ended.said(2, &["data.sources.a.shards: no tar", "fetch it", "3 bytes are not read"]);
    }
    assert!(!fake.path("runs").exists());
    // Only a dry run accepts missing files.
    let asked = fake.read("bin/inputs.log");
    let skips: Vec<bool> = asked.lines().map(|line| line.contains("--skip-missing")).collect();
    assert_eq!(skips, [false, true]);
    fake.write("bin/inputs.json", r#"{"problems":[],"warnings":["only a remark"]}"#);
    fake.launch(&["recipe.yaml"]).said(0, &["warning: only a remark", "complete: 10 steps"]);
}

/// A folder whose workers have the feature `cuda` but no MPI, so that ranks are started one by one.
fn on_gpus(ranks: usize, scenario: &str) -> FakeRun {
    let fake = FakeRun::new(ranks, scenario);
    std::fs::remove_file(fake.path("bin/mpirun")).unwrap();
    fake.write("bin/features.json", r#"{"version":"1","mpi":false,"video":true,"cuda":true}"#);
    fake
}

const ON_GPUS: [&str; 5] = ["recipe.yaml", "--set", "device=cuda", "--set", "precision=bf16"];

#[test]
fn ranks_on_gpus_are_started_one_by_one_and_get_rank_0_s_nccl_id() {
    let scenario = r#"
echo "$VLJEPA_RANK of $VLJEPA_WORLD_SIZE, here $VLJEPA_LOCAL_RANK of $VLJEPA_LOCAL_WORLD_SIZE, NVLS $NCCL_NVLS_ENABLE" > "$run/fake-$rank"
[ "$rank" = 2 ] && sleep 0.5
hello
[ "$rank" = 0 ] && say '{"message":"rendezvous","id":"rank 0 listens here"}'
read -r answer <&3
echo "$answer" > "$run/id-$rank"
complete
"#;
    let fake = on_gpus(3, scenario);
    let deterministic = ["--set", "deterministic=true"];
    fake.launch(&[&ON_GPUS[..], &deterministic].concat()).said(0, &["complete: 10 steps"]);
    for rank in 0..3 {
        let text = fake.read(&format!("runs/fake/fake-{rank}"));
        assert_eq!(text.trim(), format!("{rank} of 3, here {rank} of 3, NVLS 0"));
        let id = fake.read(&format!("runs/fake/id-{rank}"));
        assert_eq!(id.trim(), r#"{"message":"rendezvous","id":"rank 0 listens here"}"#);
    }
    assert_eq!(fake.left_behind(), [""; 0]);
}

#[test]
fn the_death_of_one_rank_on_a_gpu_is_named_and_ends_the_others() {
    let scenario = r#"
hello
beat 0 forward
if [ "$rank" = 1 ]; then sleep 0.3; kill -9 $$; fi
sleep 60
"#;
    let fake = on_gpus(3, scenario);
    let since = Instant::now();
    let ended = fake.launch(&[&ON_GPUS[..], &["--set", NO_RESTART]].concat());
    ended.said(1, &["rank 1", "ended with signal 9, SIGKILL"]);
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    assert_eq!(fake.left_behind(), [""; 0]);
}

#[test]
fn a_rank_on_a_gpu_that_cannot_start_is_named_with_what_it_said() {
    let scenario = r#"
if [ "$rank" = 2 ]; then echo "error: GPU 2 is broken"; exit 1; fi
hello
sleep 60
"#;
    let fake = on_gpus(3, scenario);
    let ended = fake.launch(&[&ON_GPUS[..], &["--set", NO_RESTART]].concat());
    ended.said(1, &["rank 2", "exit code 1 before it connected", "GPU 2 is broken"]);
    assert_eq!(fake.left_behind(), [""; 0]);
}

#[test]
fn ranks_that_never_connect_are_named_when_their_time_is_over() {
    let scenario = r#"
[ "$rank" != 0 ] && sleep 60
hello
sleep 60
"#;
    let fake = on_gpus(4, scenario);
    let limit = ["--set", "cluster.start_timeout_s=2", "--set", NO_RESTART];
    let ended = fake.launch(&[&ON_GPUS[..], &limit].concat());
    ended.said(1, &["rank 1", "did not connect within 2 s, nor did 2 others: 2, 3"]);
    assert_eq!(fake.left_behind(), [""; 0]);
}

const NO_RESTART: &str = "cluster.restart.max_without_progress=0";
