//! `vljepa-launch doctor` inside a job: all nodes in one table, and each fault with its node.

use std::path::PathBuf;

use serde_json::Value;

use crate::cluster::{Cluster, TWO_STAGES};
use crate::programs::{Trial, program, repository, text};

/// Options of the job: three nodes with one rank of two CPUs each.
const JOB: [&str; 4] = ["--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=2", "--no-kill"];
const RECIPE: [&str; 3] =
    ["cluster.nodes=3", "cluster.ranks_per_node=1", "cluster.slurm.cpus_per_rank=2"];

/// What the doctor printed inside a job, and its exit code. `before` are commands of the job that
/// run before it.
fn doctor(
    cluster: &Cluster,
    trial: &Trial,
    before: &str,
    task_prolog: Option<&str>,
) -> (i32, Value) {
    let sets: Vec<String> = RECIPE.iter().map(|set| format!("--set {set}")).collect();
    let script = format!(
        "{before}\nexec {} doctor {} --json {}",
        program("vljepa-launch").display(),
        trial.recipe().display(),
        sets.join(" ")
    );
    let mut command = cluster.command("salloc");
    command.args(JOB).args(["bash", "-c", &script]);
    if let Some(task_prolog) = task_prolog {
        command.env("SLURM_TASK_PROLOG", task_prolog);
    }
    let output = command.output().unwrap();
    let table = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output), cluster.state()));
    (output.status.code().unwrap(), table)
}

/// Lines of a fact as `STATE NODES: TEXT`.
fn lines(table: &Value, fact: &str) -> Vec<String> {
    let all = table["findings"].as_array().unwrap().iter();
    let of_fact = all.filter(|line| line["fact"] == *fact);
    let word = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    of_fact
        .map(|line| {
            let [state, nodes, found] = ["state", "nodes", "found"].map(|key| word(line, key));
            format!("{state} {nodes}: {found}")
        })
        .collect()
}

/// Asserts that a fact is one line about all nodes with this beginning.
fn agrees(table: &Value, fact: &str, start: &str) {
    let found = lines(table, fact);
    assert!(found.len() == 1 && found[0].starts_with(start), "{fact}: {found:?}");
}

#[test]
fn all_nodes_of_a_job_are_one_table_and_a_wrong_binding_names_its_node() {
    let cluster = Cluster::up(3);
    let trial = Trial::new(TWO_STAGES);
    let (code, table) = doctor(&cluster, &trial, "", None);
    assert_eq!((code, table["nodes"].as_str()), (0, Some("node[0-2]")), "{table}");
    for fact in ["programs", "cpus", "shared_memory", "clock", "slurm_programs", "room"] {
        agrees(&table, fact, "pass node[0-2]: ");
    }
    agrees(&table, "cpus", "pass node[0-2]: 2 of ");
    // Facts of the job belong to no node.
    agrees(&table, "task_plugin", "warn : task/none, which binds no task");
    agrees(&table, "preemption", "pass : REQUEUE");
    agrees(&table, "srun_cpus", "pass : cluster.slurm.cpus_per_rank gives 2");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let first = mask.trim().split(['-', ',']).next().unwrap();
    let daemon = cluster.daemon("node1");
    let bound = cluster.ask(&format!("taskset -a -c -p {first} {daemon}"));
    let (code, table) = doctor(&cluster, &trial, "", None);
    assert_eq!(code, 3, "{bound}{table}");
    let cpus = lines(&table, "cpus");
    assert_eq!(cpus.len(), 2, "{cpus:?}");
    assert!(cpus[0].starts_with("pass node[0,2]: 2 of "), "{cpus:?}");
    assert!(cpus[1].starts_with("fail node1: 1 of "), "{cpus:?}");
    assert!(cpus[1].contains("cpus_per_rank asks for 2"), "{cpus:?}");
}

#[test]
fn a_clock_that_is_100_ms_ahead_is_named_with_its_node() {
    let cluster = Cluster::up(3);
    let trial = Trial::new(TWO_STAGES);
    let library = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library: Vec<PathBuf> = library
        .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
        .filter(|path| path.is_file())
        .collect();
    let library = library.first().expect("tests/install.sh installs faketime").display();
    // What a task prolog prints as `export` is set for the task.
    let prolog = |name: &str, offset: &str| {
        let path = trial.path(name);
        let script = format!(
            "#!/bin/sh\n[ \"$SLURMD_NODENAME\" = node1 ] || exit 0\necho export \
             LD_PRELOAD={library}\necho export FAKETIME={offset}\necho export \
             FAKETIME_DONT_FAKE_MONOTONIC=1\n"
        );
        std::fs::write(&path, script).unwrap();
        let made = cluster.command("chmod").arg("+x").arg(&path).status().unwrap();
        assert!(made.success());
        path.display().to_string()
    };
    for (offset, code, state) in [("+0.1", 0, "warn"), ("-3", 3, "fail")] {
        let (found_code, table) = doctor(&cluster, &trial, "", Some(&prolog("off.sh", offset)));
        let clocks = lines(&table, "clock");
        assert_eq!((found_code, clocks.len()), (code, 2), "{table}");
        assert!(clocks[0].starts_with("pass node[0,2]: "), "{clocks:?}");
        let wrong = clocks[1].strip_prefix(&format!("{state} node1: ")).expect(&clocks[1]);
        let ms: f64 = wrong.split(' ').next().unwrap().parse().unwrap();
        // The round trip through srun explains the rest.
        let (expected, side) = if state == "warn" { (100.0, "ahead") } else { (3000.0, "behind") };
        assert!((ms - expected).abs() < 50.0 && wrong.contains(side), "{wrong}");
    }
    let (code, table) = doctor(&cluster, &trial, "", Some(&prolog("right.sh", "+0.0")));
    assert_eq!(code, 0, "{table}");
    agrees(&table, "clock", "pass node[0-2]: ");
}

#[test]
fn a_node_that_does_not_answer_is_named_beside_the_facts_of_the_others() {
    let cluster = Cluster::up(3);
    let trial = Trial::new(TWO_STAGES);
    let kill = repository().join("tests/slurm/kill-node.sh");
    let kill = format!("{} {} node2 >&2", kill.display(), cluster.files().display());
    let (code, table) = doctor(&cluster, &trial, &kill, None);
    assert_eq!(code, 3, "{table}");
    let lost = lines(&table, "node");
    assert!(lost.len() == 1 && lost[0].starts_with("fail node2: "), "{lost:?}");
    agrees(&table, "programs", "pass node[0-1]: ");
}

#[test]
fn a_login_node_is_examined_as_such_and_a_missing_sbatch_is_named() {
    let cluster = Cluster::up(1);
    let trial = Trial::new(TWO_STAGES);
    let doctor = |cluster: &Cluster| {
        let mut command = cluster.command(program("vljepa-launch"));
        let output = command.arg("doctor").arg(trial.recipe()).arg("--json").output().unwrap();
        let table: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
        (output.status.code(), table)
    };
    let (code, table) = doctor(&cluster);
    assert_eq!(code, Some(0), "{table}");
    agrees(&table, "slurm_programs", "pass : sbatch works");
    assert!(lines(&table, "node")[0].contains("salloc"), "{table}");
    assert!(lines(&table, "cpus").is_empty(), "the CPUs of a login node do not matter");
    let (code, table) = doctor(&cluster.without("sbatch"));
    assert_eq!(code, Some(3), "{table}");
    agrees(&table, "slurm_programs", "fail : cluster.scheduler is slurm, but nothing can");
}
