//! Tests of submitting, watching and stopping runs on Slurm.

use crate::cluster::{Cluster, Running, assert_same_end, undisturbed};
use crate::programs::{has_checkpoint, program, small_set, text};

#[test]
fn a_submitted_run_keeps_the_programs_and_the_recipe_it_was_submitted_with() {
    let trial = undisturbed();
    let run = trial.path("undisturbed");
    let script = std::fs::read_to_string(run.join("job.sbatch")).unwrap();
    let launcher = script.lines().find_map(|line| line.strip_prefix("launcher=")).unwrap();
    let (copy, own) =
        (std::fs::read(launcher).unwrap(), std::fs::read(program("vljepa-launch")).unwrap());
    assert!(launcher.starts_with(run.to_str().unwrap()) && copy == own, "{launcher}");
    let record = std::fs::read_to_string(run.join("run.json")).unwrap();
    assert!(record.contains("\"outcome\": \"completed\"") && record.contains("\"world_size\": 4"));
    let hosts: std::collections::BTreeSet<String> =
        std::fs::read_to_string(run.join("events.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|event| event["event"] == "rank_joined")
            .map(|event| event["host"].as_str().unwrap().to_owned())
            .collect();
    assert_eq!(hosts.into_iter().collect::<Vec<_>>(), ["node0", "node1"]);
}

#[test]
fn stop_saves_and_ends_the_job_and_the_same_command_continues() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    // The whole nodes of the paper's recipes.
    let options = ["cluster.slurm.cpus_per_rank=2", "cluster.slurm.extra=[--exclusive, --mem=0]"];
    let slow = ["slow:rank=0,step=0,seconds=0.1"];
    let mut running = cluster.launch(trial, "stopped", &options, &slow);
    running.wait_until("the first checkpoint", |run| has_checkpoint(run, 4));
    let launch = |arguments: &[&str]| {
        let mut command = cluster.command(program("vljepa-launch"));
        command.args(arguments).arg(trial.path("stopped")).output().unwrap()
    };
    let twice = cluster
        .command(program("vljepa-launch"))
        .arg(trial.recipe())
        .arg("--run")
        .arg(trial.path("stopped"))
        .output()
        .unwrap();
    assert!(text(&twice).contains("of this run is running"), "{}", text(&twice));
    let status = text(&launch(&["status"]));
    assert!(
        status.contains("running") && status.contains(&format!("{} runs", running.job())),
        "{status}"
    );
    let stopped = launch(&["stop"]);
    assert!(text(&stopped).contains("saves at its next step boundary"), "{}", text(&stopped));
    let output = running.end();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        running.diagnostics().contains("saved and stopped at step"),
        "{}",
        running.diagnostics()
    );
    let watched = launch(&["status", "--watch", "1"]);
    assert_eq!(watched.status.code(), Some(130), "{}", text(&watched));
    for part in ["stopped", "is not in the queue", "queue  "] {
        assert!(text(&watched).contains(part), "`{part}` is missing in {}", text(&watched));
    }
    let nothing = launch(&["stop"]);
    assert!(text(&nothing).contains("there is nothing to stop"), "{}", text(&nothing));
    cluster.launch(trial, "stopped", &[], &[]).complete();
    assert_same_end(trial, "stopped");
    let log = trial.path("stopped/logs/rank-0003-attempt-1.log");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("cpus=2"), "a rank has the CPUs that Slurm gave it: {log}");
}

#[test]
fn inside_an_allocation_the_same_command_works_on_the_run() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let output = cluster
        .command("salloc")
        .args(["--nodes=2", "--ntasks-per-node=2", "--no-kill"])
        .arg(program("vljepa-launch"))
        .arg(trial.recipe())
        .arg("--run")
        .arg(trial.path("allocated"))
        .args(["--drill", "kill:rank=3,step=9,phase=backward"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}{}", text(&output), cluster.state());
    assert!(text(&output).contains("rank 3 died"), "{}", text(&output));
    assert_same_end(trial, "allocated");
    let record = std::fs::read_to_string(trial.path("allocated/run.json")).unwrap();
    assert!(record.contains("\"job_id\": \""), "{record}");
}

#[test]
fn a_job_that_waits_in_the_queue_is_cancelled_by_stop() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let blocker = cluster
        .ask("sbatch --parsable --nodes=2 --exclusive --output=/dev/null tests/slurm/hold.sh");
    let mut running = cluster.launch(trial, "waiting", &[], &[]);
    running.wait_until("submission", |run| run.join("slurm.json").exists());
    let shown = trial.path("shown");
    let mut watching = cluster.command(program("vljepa-launch"));
    watching.arg("status").arg(trial.path("waiting")).args(["--watch", "1", "--json"]);
    let mut watching = watching.stdout(std::fs::File::create(&shown).unwrap()).spawn().unwrap();
    let shown = || std::fs::read_to_string(&shown).unwrap();
    running.wait_until("the state in the queue", |_| shown().contains("\"state\":\"queued\""));
    let output = cluster
        .command(program("vljepa-launch"))
        .arg("stop")
        .arg(trial.path("waiting"))
        .output()
        .unwrap();
    assert!(text(&output).contains("had not started; it was cancelled"), "{}", text(&output));
    assert!(!running.end().status.success());
    assert_eq!(watching.wait().unwrap().code(), Some(1), "{}", shown());
    assert!(shown().contains("is not in the queue"), "{}", shown());
    cluster.ask(&format!("scancel {}", blocker.trim()));
}

#[test]
fn what_slurm_refuses_and_a_missing_slurm_are_said_with_what_to_do() {
    let trial = undisturbed();
    let cluster = Cluster::up(1);
    let launch = |set: &str, path: Option<&str>| {
        let mut command = cluster.command(program("vljepa-launch"));
        command.arg(trial.recipe()).arg("--run").arg(trial.path("refused")).args(["--set", set]);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        text(&command.output().unwrap())
    };
    let said = launch("cluster.slurm.partition=nowhere", None);
    assert!(said.contains("sbatch refuses") && said.contains("nvalid partition"), "{said}");
    let said = launch("cluster.nodes=2", Some("/nowhere"));
    assert!(
        said.contains("nothing can be submitted from here") && said.contains("scheduler=local"),
        "{said}"
    );
}

#[test]
fn nodes_that_cannot_reach_the_supervisor_say_so_before_any_worker_starts() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    // RFC 5737 reserves this address for documentation, so no machine has it.
    let elsewhere = ["cluster.control.host=192.0.2.1", "cluster.control.port=16999"];
    let running = cluster.launch(trial, "firewalled", &elsewhere, &[]);
    never_begins(running, &["node1: control: ", "192.0.2.1 port 16999"]);
}

/// Asserts that the run ends before its first attempt and prints every string of `why`.
fn never_begins(mut running: Running<'_>, why: &[&str]) {
    assert_eq!(running.end().status.code(), Some(1));
    let story = running.diagnostics();
    for said in why.iter().chain(&["no attempt of this run has started yet"]) {
        assert!(story.contains(said), "{said}: {story}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_run_whose_nodes_all_lack_something_ends_and_says_what() {
    let trial = undisturbed();
    let cluster = Cluster::up(2);
    let gpu = ["device=cuda", "precision=bf16"];
    let running = cluster.launch(trial, "no-gpu", &gpu, &[]);
    never_begins(running, &["node1: device: opening the GPU"]);
    let script = std::fs::read_to_string(trial.path("no-gpu").join("job.sbatch")).unwrap();
    assert!(script.contains("#SBATCH --gpus-per-node=2\n"), "{script}");
}

#[test]
fn a_table_is_measured_by_the_ranks_of_a_job_with_the_scores_of_one_rank_on_this_machine() {
    let trial = undisturbed();
    let set = small_set().display();
    let recipe = format!(
        "name: table
table:
  of: table2
  rows:
    vl_jepa_sft: {{run: {}}}
    half: {{run: {0}, step: 12}}
evaluation:
  tasks:
    - {{name: gqa, shards: {set}/eval/exists.tar, frames: 2, kind: {{question_answering: {{question_kind: exists, candidates: [\"yes\", \"no\"]}}}}}}
cluster: {{scheduler: slurm, nodes: 2, ranks_per_node: 2, control: {{host: 127.0.0.1}}}}
",
        trial.path("undisturbed").display()
    );
    let table = trial.path("table.yaml");
    std::fs::write(&table, recipe).unwrap();
    let cluster = Cluster::up(2);
    let measure = |run: &str, options: &[&str]| {
        let mut command = cluster.command(program("vljepa-launch"));
        command.arg(&table).arg("--run").arg(trial.path(run)).args(options);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output), cluster.state());
        let rows = trial.path(run).join("rows");
        ["vl_jepa_sft", "half"]
            .map(|row| std::fs::read_to_string(rows.join(row).join("scores.json")).unwrap())
    };
    let job = measure("table", &["--follow"]);
    let events = std::fs::read_to_string(trial.path("table/events.jsonl")).unwrap();
    assert!(events.contains("node0") && events.contains("node1"), "{events}");
    let here = ["cluster.scheduler=local", "cluster.nodes=1", "cluster.ranks_per_node=1"];
    let here = measure("here", &here.map(|set| ["--set", set]).concat());
    assert_eq!(job, here);
    assert_ne!(job[0], job[1], "another checkpoint has other scores");
    let table = std::fs::read_to_string(trial.path("table/table.json")).unwrap();
    assert!(table.contains("\"step\": 24") && table.contains("\"step\": 12"), "{table}");
}
