//! CPUs that a rank may use, and the NUMA nodes of the machine.

use std::path::Path;

use vljepa_recipes::node::{self, SlurmCpus, cpus_of_rank};
use vljepa_recipes::protocol::CheckName;
use vljepa_recipes::schema::{Device, Recipe};

use super::finding::{Fact, Finding};
use super::machine::{GroupVersion, control_groups, ranges, read};
use crate::platform::health::advice;

/// CPUs of this process and of its machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cpus {
    /// Number of CPUs in the affinity mask.
    pub allowed: usize,
    /// The mask as the kernel writes it, such as `0-7,16-23`; empty if `/proc` has none.
    pub mask: String,
    /// Number of CPUs of the machine; that of the mask if `/sys` has none.
    pub online: usize,
    /// CPUs that threads can keep busy: the mask and the quota of the control group bound them.
    pub usable: usize,
    /// CPUs' worth of time that the control group allows, or `None` without a limit.
    pub quota: Option<f64>,
    /// CPUs that Slurm has given to the job on each node.
    pub of_job: Option<usize>,
    /// CPUs that Slurm has given to this process, if it was started as a rank is.
    pub slurm: SlurmCpus,
}

impl Cpus {
    /// Reads the CPUs of this process below `root`, normally `/`. Slurm has given the CPUs `of_job`
    /// to the job on each node, and `slurm` to this process.
    pub(super) fn of(root: &Path, (of_job, slurm): (Option<usize>, SlurmCpus)) -> Self {
        let status = read(&root.join("proc/self/status"));
        let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let mask = mask.unwrap_or_default().trim().to_owned();
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let allowed = match ranges(&mask).len() {
            0 => available,
            count => count,
        };
        let online = ranges(&read(&root.join("sys/devices/system/cpu/online"))).len().max(allowed);
        let (usable, quota) = (available, quota(root));
        Self { allowed, mask, online, usable, quota, of_job, slurm }
    }

    /// Part of the machine's CPUs that this process or, on Slurm, the job may use, from 0 to 1.
    pub(super) fn share(&self) -> f64 {
        let own = self.of_job.unwrap_or(self.usable).min(self.online);
        #[expect(clippy::cast_precision_loss, reason = "CPUs are far fewer than 2^53")]
        let share = own as f64 / self.online.max(1) as f64;
        share
    }

    fn text(&self) -> String {
        let mut text = format!("{} of {} CPUs", self.allowed, self.online);
        if !self.mask.is_empty() && self.allowed < self.online {
            text += &format!(" (bound to {})", self.mask);
        }
        if let Some(quota) = self.quota {
            text += &format!(", of which the control group allows {quota:.1}");
        }
        text
    }
}

/// The smallest quota of the control groups of this process, which have version 2 or version 1.
fn quota(root: &Path) -> Option<f64> {
    let quotas = control_groups(root, "cpu").into_iter().filter_map(|(version, folder)| {
        let (limit, period) = match version {
            GroupVersion::Two => {
                let text = read(&folder.join("cpu.max"));
                let (limit, period) = text.trim().split_once(' ')?;
                (limit.to_owned(), period.to_owned())
            }
            GroupVersion::One => {
                (read(&folder.join("cpu.cfs_quota_us")), read(&folder.join("cpu.cfs_period_us")))
            }
        };
        // `max` and -1 mean no limit.
        let limit = limit.trim().parse::<f64>().ok().filter(|limit| *limit > 0.0)?;
        let period = period.trim().parse::<f64>().ok().filter(|period| *period > 0.0)?;
        Some(limit / period)
    });
    quotas.reduce(f64::min)
}

/// Judges the CPUs against the threads of the ranks. Without a recipe nothing is asked of them.
pub(super) fn judge(cpus: &Cpus, recipe: Option<&Recipe>) -> Finding {
    let found = cpus.text();
    let Some(recipe) = recipe else { return Finding::pass(Fact::Cpus, found) };
    let ranks = recipe.cluster.ranks_per_node;
    let slurm = cpus.slurm.of_ranks(recipe);
    let own = cpus_of_rank(cpus.usable, ranks, slurm);
    let of_rank = match node::cpus(recipe, own) {
        Ok(text) => text,
        Err(text) => {
            return Finding::fail(Fact::Cpus, format!("{found}; {text}"), advice(CheckName::Cpus));
        }
    };
    let (computing, reading) = threads(recipe);
    let ranks_text = if ranks == 1 { "1 rank".to_owned() } else { format!("{ranks} ranks") };
    let found = format!(
        "{found}; {of_rank} ({}, {}), {ranks_text}",
        count(computing, "compute"),
        count(reading, "reader")
    );
    // The threads of a rank on CPUs that compute and those that read share its CPUs without loss:
    // readers wait while they are ahead. The thread that gives work to a GPU needs a CPU of its
    // own. 0 threads take the CPUs that there are.
    let busy = match recipe.device {
        Device::Host => computing.max(reading).max(1),
        Device::Cuda => computing.saturating_add(reading),
    };
    // Ranks that share the CPUs of a process need one each.
    let has_own = slurm.of_task.is_some() || slurm.binds(cpus.usable, ranks);
    if busy <= own && (has_own || ranks <= cpus.usable) {
        return Finding::pass(Fact::Cpus, found);
    }
    // CPUs that a process has if nobody binds it more narrowly.
    let of_task = slurm.of_task;
    let expected = of_task.or(cpus.of_job).unwrap_or(cpus.online).min(cpus.online);
    let help = match (cpus.of_job, of_task) {
        _ if cpus.allowed >= expected => {
            "lower cluster.threads_per_rank, data.threads or cluster.ranks_per_node"
        }
        (Some(_), None) => "set cluster.slurm.cpus_per_rank: without it srun gives a task one CPU",
        (Some(_), Some(_)) => advice(CheckName::Cpus),
        (None, _) => "start it without taskset or numactl, or give its container more CPUs",
    };
    Finding::warn(Fact::Cpus, found, help)
}

/// Threads of a rank that compute and threads that read data; 0 means one for each of its CPUs.
fn threads(recipe: &Recipe) -> (usize, usize) {
    let computing = match recipe.device {
        Device::Host => recipe.cluster.threads_per_rank,
        // One thread gives work to the GPU.
        Device::Cuda => 1,
    };
    (computing, recipe.data.threads)
}

fn count(threads: usize, kind: &str) -> String {
    match threads {
        0 => format!("a {kind} thread per CPU"),
        1 => format!("1 {kind} thread"),
        threads => format!("{threads} {kind} threads"),
    }
}

/// The NUMA nodes of the machine, or `None` if `/sys` does not list them.
pub(super) fn numa(root: &Path) -> Option<Finding> {
    let nodes = root.join("sys/devices/system/node");
    let all = ranges(&read(&nodes.join("online")));
    let cpus = |node: &usize| {
        let list = read(&nodes.join(format!("node{node}/cpulist")));
        format!("{node} has CPUs {}", list.trim())
    };
    let lines: Vec<String> = all.iter().map(cpus).collect();
    let text = match all.len() {
        0 => return None,
        1 => "1 node".to_owned(),
        count => format!("{count} nodes: {}", lines.join("; ")),
    };
    Some(Finding::pass(Fact::Numa, text))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Cpus, SlurmCpus, judge, numa, quota};
    use crate::doctor::finding::State;
    use crate::doctor::machine::tests::tree;
    use vljepa_recipes::Recipe;

    fn quickstart(sets: &[&str]) -> Recipe {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        vljepa_recipes::load(&recipe, &sets).unwrap().recipe
    }

    fn cpus(allowed: usize, online: usize) -> Cpus {
        let mask = format!("0-{}", allowed - 1);
        let (usable, slurm) = (allowed, SlurmCpus::default());
        Cpus { allowed, mask, online, usable, quota: None, of_job: None, slurm }
    }

    #[test]
    fn threads_are_counted_against_the_cpus_and_a_binding_that_suffices_is_fine() {
        // Two ranks of one thread.
        let recipe = quickstart(&[]);
        let state = |cpus: &Cpus, recipe: Option<&Recipe>| judge(cpus, recipe).state;
        assert_eq!(state(&cpus(2, 2), Some(&recipe)), State::Pass);
        assert_eq!(state(&cpus(2, 64), Some(&recipe)), State::Pass, "2 of 64 suffice");
        assert_eq!(state(&cpus(1, 2), None), State::Pass, "nothing is asked of them");
        let bound = judge(&cpus(1, 2), Some(&recipe));
        assert_eq!(bound.state, State::Warn);
        let expected = "1 of 2 CPUs (bound to 0-0); 1 CPU per rank (1 compute thread, a reader \
                        thread per CPU), 2 ranks";
        assert_eq!(bound.found, expected);
        assert!(bound.advice.unwrap().contains("taskset"));
        let short = judge(&cpus(1, 1), Some(&recipe));
        assert_eq!(short.state, State::Warn);
        assert!(short.advice.unwrap().contains("cluster.threads_per_rank"));
        let half = Cpus { quota: Some(1.5), usable: 1, ..cpus(8, 8) };
        assert_eq!(state(&half, Some(&recipe)), State::Warn, "the quota leaves one CPU");
        assert_eq!(state(&Cpus { usable: 4, ..half }, Some(&recipe)), State::Pass);
        let container = Cpus { quota: Some(4.0), usable: 4, ..cpus(64, 64) };
        assert_eq!(container.share().to_bits(), 0.0625_f64.to_bits(), "docker --cpus=4");
        assert_eq!(Cpus { of_job: Some(32), ..container }.share().to_bits(), 0.5_f64.to_bits());
        let readers = quickstart(&["data.threads=4"]);
        assert_eq!(state(&cpus(8, 8), Some(&readers)), State::Pass);
        assert_eq!(state(&cpus(7, 8), Some(&readers)), State::Warn, "4 readers of 2 ranks");
        let huge = quickstart(&["data.threads=9223372036854775807"]);
        assert_eq!(state(&cpus(8, 8), Some(&huge)), State::Warn);
    }

    #[test]
    fn the_thread_that_gives_work_to_a_gpu_needs_a_cpu_beside_the_readers() {
        let sets = ["device=cuda", "precision=bf16", "cluster.ranks_per_node=2", "data.threads=3"];
        let recipe = quickstart(&sets);
        assert_eq!(judge(&cpus(8, 8), Some(&recipe)).state, State::Pass);
        assert_eq!(judge(&cpus(7, 8), Some(&recipe)).state, State::Warn);
    }

    #[test]
    fn a_task_of_slurm_is_compared_with_the_cpus_that_it_asked_for() {
        let recipe = quickstart(&["cluster.scheduler=slurm", "cluster.slurm.cpus_per_rank=2"]);
        let slurm = SlurmCpus { of_task: Some(2), of_node: Some(4) };
        let task = |allowed| Cpus { of_job: Some(4), slurm, ..cpus(allowed, 16) };
        assert_eq!(judge(&task(2), Some(&recipe)).state, State::Pass, "Slurm binds the task");
        assert_eq!(judge(&task(16), Some(&recipe)).state, State::Pass, "Slurm does not");
        let wrong = judge(&task(1), Some(&recipe));
        assert_eq!(wrong.state, State::Fail);
        assert!(wrong.found.contains("cpus_per_rank asks for 2"), "{wrong:?}");
    }

    #[test]
    fn a_task_that_slurm_binds_without_being_asked_has_its_cpus_for_itself() {
        let sets = ["cluster.scheduler=slurm", "cluster.threads_per_rank=12"];
        let recipe = quickstart(&[&sets[..], &["cluster.ranks_per_node=8"]].concat());
        let slurm = SlurmCpus { of_task: None, of_node: Some(96) };
        let bound = |allowed| Cpus { of_job: Some(96), slurm, ..cpus(allowed, 96) };
        let found = judge(&bound(12), Some(&recipe));
        assert_eq!(found.state, State::Pass, "DefCpuPerGPU=12: {found:?}");
        assert!(found.found.contains("12 CPUs per rank"), "{found:?}");
        let narrow = judge(&bound(1), Some(&recipe));
        assert_eq!(narrow.state, State::Warn);
        assert!(narrow.advice.unwrap().contains("cpus_per_rank"));
        assert_eq!(judge(&bound(96), Some(&recipe)).state, State::Pass, "Slurm does not bind it");
        let socket = judge(&bound(48), Some(&recipe));
        assert_eq!(socket.state, State::Warn, "four ranks share the CPUs of a socket: {socket:?}");
        let local = quickstart(&["cluster.threads_per_rank=12", "cluster.ranks_per_node=8"]);
        let shell = judge(&bound(12), Some(&local));
        assert_eq!(shell.state, State::Warn, "local ranks share the CPUs of a shell: {shell:?}");
    }

    #[test]
    fn quotas_of_both_versions_of_control_groups_are_read() {
        let two = tree(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(quota(two.path()).map(f64::to_bits), Some(1.5_f64.to_bits()));
        let one = tree(&[
            ("proc/self/cgroup", "3:cpuacct,cpu:/x\n2:cpuset:/x\n"),
            ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "400000\n"),
            ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(quota(one.path()).map(f64::to_bits), Some(4.0_f64.to_bits()));
        for wrong in ["", "0::/a", "nonsense", "0::"] {
            let files = [("proc/self/cgroup", wrong), ("sys/fs/cgroup/a/cpu.max", "x 0")];
            assert_eq!(quota(tree(&files).path()), None, "{wrong}");
        }
    }

    #[test]
    fn cpus_and_numa_nodes_are_read_and_an_empty_system_has_some_cpu() {
        let machine = tree(&[
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8-11\n"),
            ("sys/devices/system/cpu/online", "0-15\n"),
            ("sys/devices/system/node/online", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-7\n"),
            ("sys/devices/system/node/node1/cpulist", "8-15\n"),
        ]);
        let found = Cpus::of(machine.path(), (Some(8), SlurmCpus::default()));
        assert_eq!((found.allowed, found.online, found.of_job), (8, 16, Some(8)));
        // The system of this test bounds it, not the files.
        assert_eq!(found.usable, std::thread::available_parallelism().unwrap().get());
        let text = numa(machine.path()).unwrap().found;
        assert_eq!(text, "2 nodes: 0 has CPUs 0-7; 1 has CPUs 8-15");
        let bare = tree(&[]);
        let found = Cpus::of(bare.path(), (None, SlurmCpus::default()));
        assert!(found.allowed >= 1 && found.online >= found.allowed && found.mask.is_empty());
        assert_eq!(judge(&found, None).state, State::Pass);
        assert_eq!(numa(bare.path()), None);
    }
}
