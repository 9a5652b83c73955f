//! Memory that the control group allows, shared memory, and the limits on open files and on locked
//! memory.

use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use vljepa_recipes::node;
use vljepa_recipes::protocol::CheckName;
use vljepa_recipes::schema::{Device, Recipe};

use super::finding::{Fact, Finding};
use super::machine::{GroupVersion, control_groups, read};
use super::slurm::WHOLE_NODES;
use crate::control::listen::{file_limits, files_needed};
use crate::error::LaunchError;
use crate::platform::health::advice;

/// Size of `/dev/shm` in a container that was started without `--shm-size`. Open MPI fits in it
/// with up to four ranks and NCCL with up to two, and the next program that shares it fails.
const CONTAINER_SHARED_BYTES: u64 = 64 << 20;

/// Smallest fair ratio of a control group's share of the memory to its share of the CPUs. A job
/// that asks Slurm for all CPUs of a node, but for no memory, gets the default memory only.
const FAIR_PART: f64 = 0.5;

/// Compares the memory that the control group of this process allows with that of the machine, of
/// whose CPUs it may use the part `cpus`. `None` if `/proc` does not say how much memory there is.
pub(super) fn of_group(root: &Path, cpus: f64, is_in_job: bool) -> Option<Finding> {
    let text = read(&root.join("proc/meminfo"));
    let all = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let all_kib: u64 = all.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let of_machine = all_kib << 10;
    let Some(limit) = group_limit(root).filter(|limit| *limit < of_machine) else {
        return Some(Finding::pass(Fact::Memory, format!("{} GiB", of_machine >> 30)));
    };
    let found = format!("the control group allows {} of {} GiB", limit >> 30, of_machine >> 30);
    #[expect(clippy::cast_precision_loss, reason = "a share needs few digits")]
    let share = limit as f64 / of_machine as f64;
    if share >= FAIR_PART * cpus {
        return Some(Finding::pass(Fact::Memory, found));
    }
    let found = format!("{found}, but {:.0} % of the CPUs are its own", 100.0 * cpus);
    let help =
        if is_in_job { WHOLE_NODES } else { "give its container or its service more memory" };
    Some(Finding::warn(Fact::Memory, found, help))
}

/// The smallest limit of the control groups of this process, in bytes.
fn group_limit(root: &Path) -> Option<u64> {
    let limits = control_groups(root, "memory").into_iter().filter_map(|(version, folder)| {
        let file = match version {
            GroupVersion::Two => "memory.max",
            GroupVersion::One => "memory.limit_in_bytes",
        };
        // `max` means no limit.
        read(&folder.join(file)).trim().parse::<u64>().ok()
    });
    limits.min()
}

/// Judges `/dev/shm`, against the ranks of a node if there is a recipe.
pub(super) fn shared_memory(recipe: Option<&Recipe>) -> Finding {
    let help = advice(CheckName::SharedMemory);
    let space = node::space(Path::new("/dev/shm"));
    if let Some(recipe) = recipe {
        let ranks = recipe.cluster.ranks_per_node;
        return match (node::shared_memory(recipe, ranks), space) {
            (Err(found), _) => Finding::fail(Fact::SharedMemory, found, help),
            (Ok(found), Ok([_, all])) if ranks > 1 && all <= CONTAINER_SHARED_BYTES => {
                Finding::warn(Fact::SharedMemory, format!("{found}; {}", small(all)), help)
            }
            (Ok(found), _) => Finding::pass(Fact::SharedMemory, found),
        };
    }
    match space {
        Err(why) => Finding::warn(Fact::SharedMemory, why, "mount a tmpfs on /dev/shm"),
        Ok([free, all]) => {
            let found = format!("/dev/shm has {} of {} MiB free", free >> 20, all >> 20);
            if all <= CONTAINER_SHARED_BYTES {
                Finding::warn(Fact::SharedMemory, format!("{found}; {}", small(all)), help)
            } else {
                Finding::pass(Fact::SharedMemory, found)
            }
        }
    }
}

fn small(all: u64) -> String {
    format!("its size of {} MiB is a container's default or less", all >> 20)
}

/// Judges the limit on open files, against the connections of all ranks if there is a recipe.
pub(super) fn open_files(recipe: Option<&Recipe>) -> Finding {
    judge_open_files(recipe, file_limits)
}

/// `limits` gives the soft and the hard limit, or an error if they are below its argument.
fn judge_open_files(
    recipe: Option<&Recipe>,
    limits: impl FnOnce(u64) -> Result<[u64; 2], LaunchError>,
) -> Finding {
    let ranks = recipe.map_or(1, |recipe| recipe.cluster.world_size());
    match limits(files_needed(ranks)) {
        Err(error) => Finding::refused(Fact::OpenFiles, &error),
        Ok([soft, hard]) => {
            let needed = match recipe {
                Some(_) => {
                    format!("; the supervisor of {ranks} ranks needs {}", files_needed(ranks))
                }
                None => String::new(),
            };
            let found = format!("{} now, {} at most{needed}", limit(soft), limit(hard));
            Finding::pass(Fact::OpenFiles, found)
        }
    }
}

fn limit(value: u64) -> String {
    if value == RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() }
}

/// Judges the limit on locked memory. `infiniband` says whether the node has such adapters.
pub(super) fn locked_memory(recipe: Option<&Recipe>, infiniband: bool) -> Finding {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else {
        let why = "the limit cannot be read";
        return Finding::warn(Fact::LockedMemory, why, "look at `ulimit -l`");
    };
    judge_locked([soft, hard], recipe, infiniband)
}

/// The worker raises its soft limit to the hard limit, so only the hard one matters.
fn judge_locked(limits: [u64; 2], recipe: Option<&Recipe>, infiniband: bool) -> Finding {
    let text = |limit: u64| match limit {
        RLIM_INFINITY => "unlimited".to_owned(),
        bytes => format!("{} KiB", bytes >> 10),
    };
    let [soft, hard] = limits;
    let found = match soft == hard {
        true => text(hard),
        false => format!("{} now, {} at most", text(soft), text(hard)),
    };
    let registers =
        recipe.is_none_or(|recipe| recipe.device == Device::Cuda && recipe.cluster.nodes > 1);
    if hard != RLIM_INFINITY && infiniband && registers {
        let found = format!("{found}, but NCCL locks its buffers for InfiniBand");
        let help = "ulimit -l unlimited; docker: --ulimit memlock=-1; on Slurm: \
                    LimitMEMLOCK=infinity for slurmd and PropagateResourceLimitsExcept=MEMLOCK";
        return Finding::warn(Fact::LockedMemory, found, help);
    }
    Finding::pass(Fact::LockedMemory, found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::sys::resource::RLIM_INFINITY;
    use vljepa_recipes::Recipe;

    use super::{judge_locked, judge_open_files, of_group, open_files};
    use crate::control::listen::enough_files;
    use crate::doctor::finding::State;
    use crate::doctor::machine::tests::tree;

    #[test]
    fn a_job_with_all_cpus_of_a_node_and_little_of_its_memory_is_named() {
        const TOTAL: (&str, &str) =
            ("proc/meminfo", "MemTotal:       2113929216 kB\nMemFree: 1 kB\n");
        let of = |limit: &str, cpus: f64| {
            let two = [
                TOTAL,
                ("proc/self/cgroup", "0::/slurm/job_7/step_0\n"),
                ("sys/fs/cgroup/slurm/job_7/memory.max", limit),
                ("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n"),
            ];
            of_group(tree(&two).path(), cpus, true).unwrap()
        };
        let small = of("412316860416\n", 1.0);
        assert_eq!(small.state, State::Warn);
        let expected =
            "the control group allows 384 of 2016 GiB, but 100 % of the CPUs are its own";
        assert_eq!(small.found, expected);
        assert!(small.advice.unwrap().contains("--mem=0"));
        assert_eq!(of("412316860416\n", 0.25).state, State::Pass, "a quarter of the node");
        assert_eq!(of("max\n", 1.0).found, "2016 GiB");
        let one = [
            TOTAL,
            ("proc/self/cgroup", "4:memory:/x\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let service = of_group(tree(&one).path(), 1.0, false).unwrap();
        assert!(service.advice.unwrap().contains("container"));
        assert_eq!(of_group(tree(&[]).path(), 1.0, true), None);
    }

    #[test]
    fn locked_memory_matters_with_infiniband_only() {
        assert_eq!(judge_locked([64 << 10; 2], None, true).state, State::Warn);
        assert_eq!(judge_locked([64 << 10; 2], None, false).state, State::Pass);
        assert_eq!(judge_locked([RLIM_INFINITY; 2], None, true).state, State::Pass);
        let raised = judge_locked([64 << 10, RLIM_INFINITY], None, true);
        assert_eq!(raised.found, "64 KiB now, unlimited at most");
        assert_eq!(raised.state, State::Pass, "the worker raises it");
    }

    #[test]
    fn open_files_are_counted_against_the_connections_of_all_ranks() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let ranks = ["cluster.ranks_per_node=1000", "stages.0.batch=1000"].map(str::to_owned);
        let recipe = vljepa_recipes::load(&recipe, &ranks).unwrap().recipe;
        let judged = |hard: u64, recipe: Option<&Recipe>| {
            judge_open_files(recipe, |needed| enough_files([256, hard], needed))
        };
        let failed = judged(1024, Some(&recipe));
        assert_eq!(failed.state, State::Fail);
        assert!(failed.found.contains("need 1128 open files, but only 1024"), "{failed:?}");
        let enough = judged(1128, Some(&recipe));
        assert_eq!(enough.state, State::Pass, "{enough:?}");
        assert!(enough.found.contains("1000 ranks needs 1128"), "{enough:?}");
        assert_eq!(judged(1024, None).state, State::Pass, "one rank");
        assert_eq!(open_files(None).state, State::Pass);
    }
}
