//! Settings of Slurm and of a job that make runs slow or end them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vljepa_recipes::node::{SlurmCpus, least_cpus};
use vljepa_recipes::schema::{Recipe, Scheduler};

use super::finding::{Fact, Finding};
use crate::platform::Platform;
use crate::platform::slurm::submit;
use crate::process;
use crate::programs::on_path;
use crate::terminal;

/// Beginnings of the names of variables that [`job`] reads.
pub(super) const PREFIXES: [&str; 2] = ["SLURM_", "SRUN_"];

/// First version of Slurm whose `srun` ignores the job's `--cpus-per-task`.
const IGNORING: [u32; 2] = [22, 5];

/// How to get nodes that no other job shares, with all their memory.
pub(super) const WHOLE_NODES: &str =
    "ask for whole nodes: --set 'cluster.slurm.extra=[--exclusive, --mem=0]'";

/// What is known about the cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub findings: Vec<Finding>,
    /// First two numbers of Slurm's version, such as 22 and 5.
    pub version: Option<[u32; 2]>,
}

fn by_slurm(recipe: &&Recipe) -> bool {
    recipe.cluster.scheduler == Scheduler::Slurm
}

/// Facts of the cluster, or none on a machine without Slurm for a recipe that does not want it.
pub(super) async fn cluster(recipe: Option<&Recipe>, is_in_job: bool) -> Cluster {
    let recipe = recipe.filter(by_slurm);
    let wants = recipe.is_some();
    if !wants && !is_in_job && on_path("scontrol").is_none() {
        return Cluster::default();
    }
    let (mut findings, mut version) = (Vec::new(), None);
    if wants && !is_in_job {
        findings.push(match submit::check(None).await {
            Ok(()) => Finding::pass(Fact::SlurmPrograms, "sbatch works"),
            Err(error) => Finding::refused(Fact::SlurmPrograms, &error),
        });
    }
    match process::ask("scontrol", &["show", "config"]).await {
        Ok(text) => {
            let settings = parse(&text);
            version = settings.get("SLURM_VERSION").and_then(|text| numbers(text));
            findings.extend(config(&settings, recipe));
        }
        // Slurm's commands are installed, but this machine belongs to no cluster.
        Err(_) if !wants && !is_in_job => {}
        Err(why) => {
            let help = "without it, the settings of the cluster are not known here";
            findings.push(Finding::warn(Fact::TaskPlugin, why, help));
        }
    }
    Cluster { findings, version }
}

/// The first two numbers of a version such as `22.05.8`.
fn numbers(version: &str) -> Option<[u32; 2]> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??])
}

/// Settings in the output of `scontrol show config`, by name.
fn parse(text: &str) -> BTreeMap<String, String> {
    let settings = text.lines().filter_map(|line| line.split_once('='));
    settings.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

fn config(settings: &BTreeMap<String, String>, recipe: Option<&Recipe>) -> Vec<Finding> {
    let value = |name: &str| settings.get(name).map_or("", String::as_str);
    let cpus = recipe.filter(by_slurm).map(|recipe| recipe.cluster.slurm.cpus_per_rank);
    vec![
        task_plugin(value("TaskPlugin"), cpus),
        preemption(value("PreemptMode"), value("PreemptType")),
        sharing(value("SelectType"), value("ConstrainCores")),
    ]
}

/// `cpus` is the `cluster.slurm.cpus_per_rank` of a recipe that runs on Slurm.
fn task_plugin(plugin: &str, cpus: Option<usize>) -> Finding {
    let binds = plugin.contains("affinity") || plugin.contains("cgroup");
    if plugin.is_empty() {
        let help = "ask an administrator which TaskPlugin the cluster has";
        return Finding::warn(Fact::TaskPlugin, "scontrol does not say", help);
    }
    if !binds {
        let found = format!("{plugin}, which binds no task to CPUs");
        return Finding::warn(Fact::TaskPlugin, found, WHOLE_NODES);
    }
    if cpus == Some(0) {
        let found = format!("{plugin}, which binds each task to one CPU by default");
        let help = "set cluster.slurm.cpus_per_rank to the CPUs of a node divided by its ranks";
        return Finding::warn(Fact::TaskPlugin, found, help);
    }
    Finding::pass(Fact::TaskPlugin, plugin)
}

fn preemption(mode: &str, kind: &str) -> Finding {
    let modes = mode.to_uppercase();
    if kind.is_empty() || kind.contains("none") || modes.is_empty() || modes == "OFF" {
        return Finding::pass(Fact::Preemption, "jobs are not preempted");
    }
    if modes.contains("CANCEL") {
        let found = format!("{mode}: a preempted job is cancelled and not requeued");
        let help = "the run saves on TERM; continue it with the same command, or take a partition \
                    or QOS that is not preempted";
        return Finding::warn(Fact::Preemption, found, help);
    }
    if modes.contains("SUSPEND") {
        let found = format!("{mode}: a suspended job keeps its GPU memory, and its ranks hang");
        let help = "take a partition or QOS that is not preempted";
        return Finding::warn(Fact::Preemption, found, help);
    }
    Finding::pass(Fact::Preemption, format!("{mode}: a preempted run saves and is requeued"))
}

fn sharing(select: &str, constrains: &str) -> Finding {
    let found = match constrains {
        "" => select.to_owned(),
        constrains => format!("{select}, ConstrainCores={constrains}"),
    };
    if select.contains("linear") || constrains != "no" {
        return Finding::pass(Fact::NodeSharing, found);
    }
    let found = format!("{found}: processes of other jobs may use the CPUs of this one");
    Finding::warn(Fact::NodeSharing, found, WHOLE_NODES)
}

/// Facts of the job of this process. `variables` begin with [`PREFIXES`].
pub(super) async fn job(
    variables: &BTreeMap<String, String>,
    platform: &Platform,
    recipe: Option<&Recipe>,
    version: Option<[u32; 2]>,
) -> Vec<Finding> {
    vec![srun_cpus(variables, recipe, version), time_limit(platform, recipe).await]
}

/// CPUs that `srun` gives to each task. `version` is that of Slurm.
fn srun_cpus(
    variables: &BTreeMap<String, String>,
    recipe: Option<&Recipe>,
    version: Option<[u32; 2]>,
) -> Finding {
    if recipe.is_some_and(|recipe| !by_slurm(&recipe)) {
        let found = "not used: with cluster.scheduler: local, srun starts no rank";
        return Finding::pass(Fact::SrunCpus, found);
    }
    let value = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let asked = recipe.map_or(0, |recipe| recipe.cluster.slurm.cpus_per_rank);
    let (of_job, of_step) = (value("SLURM_CPUS_PER_TASK"), value("SRUN_CPUS_PER_TASK"));
    match (asked, of_job, of_step) {
        (1.., _, _) => {
            let found = format!("cluster.slurm.cpus_per_rank gives {asked} to each rank");
            Finding::pass(Fact::SrunCpus, found)
        }
        (0, Some(of_job), None) if version.is_some_and(|version| version < IGNORING) => {
            let found = format!("srun takes --cpus-per-task={of_job} over from the job");
            Finding::pass(Fact::SrunCpus, found)
        }
        (0, Some(of_job), None) => {
            let found = format!(
                "the job has --cpus-per-task={of_job}, which srun ignores since Slurm 22.05: a \
                 rank gets one CPU"
            );
            let help = format!(
                "set cluster.slurm.cpus_per_rank={of_job}, or export SRUN_CPUS_PER_TASK={of_job}"
            );
            Finding::warn(Fact::SrunCpus, found, help)
        }
        (0, _, Some(of_step)) => {
            Finding::pass(Fact::SrunCpus, format!("SRUN_CPUS_PER_TASK={of_step}"))
        }
        (0, None, None) => {
            let found = "neither the recipe nor the job asks for CPUs for each task";
            Finding::pass(Fact::SrunCpus, found)
        }
    }
}

async fn time_limit(platform: &Platform, recipe: Option<&Recipe>) -> Finding {
    let left = platform.end().await.map(|end| end.saturating_duration_since(Instant::now()));
    judge_time(left, recipe.map_or(0, |recipe| recipe.cluster.slurm.signal_ahead_s))
}

/// `left` is the time until the limit of the job, and a run saves `ahead_s` before it.
fn judge_time(left: Option<Duration>, ahead_s: u64) -> Finding {
    let Some(left) = left else {
        return Finding::pass(Fact::TimeLimit, "none, or squeue does not say");
    };
    let found = format!("{} left", terminal::duration(left.as_secs_f64()));
    if left.as_secs() <= ahead_s {
        let found = format!("{found}, and a run saves {ahead_s} s before the end");
        let help = "start a longer job, or lower cluster.slurm.signal_ahead_s";
        return Finding::warn(Fact::TimeLimit, found, help);
    }
    Finding::pass(Fact::TimeLimit, found)
}

/// Programs of Slurm on a node of a job: the supervisor starts the ranks from the first one.
pub(super) fn programs() -> Finding {
    judge_programs(|name| on_path(name).is_some())
}

fn judge_programs(there: impl Fn(&str) -> bool) -> Finding {
    let all = ["srun", "squeue", "sinfo", "scontrol"];
    let missing: Vec<&str> = all.iter().filter(|name| !there(name)).copied().collect();
    if missing.is_empty() {
        return Finding::pass(Fact::SlurmPrograms, all.join(", "));
    }
    let found = format!("no {} on PATH", missing.join(" and no "));
    if missing.contains(&"srun") {
        let help = "install Slurm's commands on every node, or add their folder to PATH";
        return Finding::fail(Fact::SlurmPrograms, found, help);
    }
    let help = if missing == ["sinfo"] {
        "install sinfo: without it a run waits longer for nodes that are down"
    } else {
        "a run that has to continue later submits a new job instead of requeueing its own"
    };
    Finding::warn(Fact::SlurmPrograms, found, help)
}

/// CPUs of the job on each node, the smallest number if nodes differ, and those of a step.
pub(super) fn cpus(variables: &BTreeMap<String, String>) -> (Option<usize>, SlurmCpus) {
    let of_job = variables.get("SLURM_JOB_CPUS_PER_NODE").and_then(|list| least_cpus(list));
    (of_job, SlurmCpus::of(|name| variables.get(name).cloned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::Duration;

    use super::{
        SlurmCpus, config, cpus, judge_programs, judge_time, numbers, parse, preemption, srun_cpus,
    };
    use crate::doctor::finding::State::{Fail, Pass, Warn};

    /// Part of the output of Slurm 22.05.
    const CONFIG: &str = "\
Configuration data as of 2026-11-29T12:00:00
ClusterName             = virtual
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SelectType              = select/cons_tres
TaskPlugin              = task/cgroup,task/affinity
TaskPluginParam         = (null type)

Cgroup Support Configuration:
ConstrainCores          = yes
ConstrainRAMSpace       = no

Slurmctld(primary) at head is UP
";

    fn variables(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn traps_in_the_configuration_are_named() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let load = |sets: &[String]| vljepa_recipes::load(&recipe, sets).unwrap().recipe;
        let (local, recipe) = (load(&[]), load(&["cluster.scheduler=slurm".to_owned()]));
        let states = |from: &str, to: &str, with_recipe: bool| {
            let settings = parse(&CONFIG.replace(from, to));
            let findings = config(&settings, with_recipe.then_some(&recipe));
            findings.iter().map(|finding| finding.state).collect::<Vec<_>>()
        };
        assert_eq!(states("", "", false), [Pass, Pass, Pass]);
        assert_eq!(states("", "", true), [Warn, Pass, Pass], "a rank would get one CPU");
        assert_eq!(states("task/cgroup,task/affinity", "task/none", false), [Warn, Pass, Pass]);
        assert_eq!(states("= REQUEUE", "= CANCEL", false), [Pass, Warn, Pass]);
        assert_eq!(
            states("ConstrainCores          = yes", "ConstrainCores = no", false),
            [Pass, Pass, Warn]
        );
        let of_local = config(&parse(CONFIG), Some(&local));
        assert_eq!(of_local[0].state, Pass, "mpirun starts its ranks");
        let job = variables(&[("SLURM_CPUS_PER_TASK", "12")]);
        assert_eq!(srun_cpus(&job, Some(&local), None).state, Pass);
        assert_eq!(srun_cpus(&job, Some(&recipe), None).state, Warn);
        assert!(parse("nothing").is_empty());
        assert_eq!(config(&parse(""), None)[0].state, Warn);
        for (mode, kind, expected) in [
            ("GANG,SUSPEND", "preempt/qos", Warn),
            ("OFF", "preempt/none", Pass),
            ("CANCEL", "preempt/none", Pass),
        ] {
            assert_eq!(preemption(mode, kind).state, expected, "{mode}");
        }
    }

    #[test]
    fn each_missing_program_of_slurm_is_named_with_what_it_is_needed_for() {
        let without = |missing: &[&str]| judge_programs(|name| !missing.contains(&name));
        assert_eq!(without(&[]).state, Pass);
        for (missing, state, advice) in [
            (&["srun"][..], Fail, "install Slurm's commands"),
            (&["sinfo"], Warn, "nodes that are down"),
            (&["scontrol"], Warn, "submits a new job"),
            (&["squeue", "sinfo"], Warn, "submits a new job"),
        ] {
            let found = without(missing);
            assert_eq!(found.state, state, "{missing:?}");
            let named = missing.iter().all(|name| found.found.contains(&format!("no {name}")));
            assert!(named && found.advice.unwrap().contains(advice), "{missing:?}");
        }
    }

    #[test]
    fn the_cpus_of_a_job_that_srun_ignores_are_named() {
        let job = [("SLURM_CPUS_PER_TASK", "12")];
        let ignored = srun_cpus(&variables(&job), None, None);
        assert_eq!(ignored.state, Warn);
        for (version, expected) in
            [("21.08.8-2", Pass), ("22.05.0", Warn), ("22.05", Warn), ("25.11.1", Warn)]
        {
            let found = srun_cpus(&variables(&job), None, numbers(version));
            assert_eq!(found.state, expected, "{version}");
        }
        assert_eq!((numbers("22.05.8"), numbers("new")), (Some([22, 5]), None));
        assert!(ignored.advice.unwrap().contains("SRUN_CPUS_PER_TASK=12"));
        let exported = [job[0], ("SRUN_CPUS_PER_TASK", "12")];
        assert_eq!(srun_cpus(&variables(&exported), None, None).state, Pass);
        assert_eq!(srun_cpus(&variables(&[]), None, None).state, Pass);
        let step = [("SLURM_STEP_ID", "0"), ("SLURM_JOB_CPUS_PER_NODE", "16(x2),8"), job[0]];
        let given = SlurmCpus { of_task: Some(12), of_node: Some(8) };
        assert_eq!(cpus(&variables(&step)), (Some(8), given));
        assert_eq!(cpus(&variables(&step[1..])), (Some(8), SlurmCpus::default()));
        assert_eq!(cpus(&variables(&job)), (None, SlurmCpus::default()));
    }

    #[test]
    fn a_job_that_ends_before_a_run_could_save_is_a_warning() {
        let seconds = Duration::from_secs;
        assert_eq!(judge_time(Some(seconds(299)), 300).state, Warn);
        assert_eq!(judge_time(Some(seconds(7200)), 300).state, Pass);
        assert_eq!(judge_time(None, 300).state, Pass);
    }
}
