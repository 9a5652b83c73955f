//! Shared memory, and the limits on open files and on locked memory.

use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use vljepa_recipes::node;
use vljepa_recipes::protocol::CheckName;
use vljepa_recipes::schema::{Device, Recipe};

use super::finding::{Fact, Finding};
use crate::control::listen::{file_limits, files_needed};
use crate::error::LaunchError;
use crate::platform::health::advice;

/// Size of `/dev/shm` in a container that was started without `--shm-size`. Open MPI fits in it
/// with up to four ranks and NCCL with up to two, and the next program that shares it fails.
const CONTAINER_SHARED_BYTES: u64 = 64 << 20;

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
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK) else {
        let why = "the limit cannot be read";
        return Finding::warn(Fact::LockedMemory, why, "look at `ulimit -l`");
    };
    judge_locked(soft, recipe, infiniband)
}

fn judge_locked(soft: u64, recipe: Option<&Recipe>, infiniband: bool) -> Finding {
    let found = match soft {
        RLIM_INFINITY => "unlimited".to_owned(),
        bytes => format!("{} KiB", bytes >> 10),
    };
    let registers =
        recipe.is_none_or(|recipe| recipe.device == Device::Cuda && recipe.cluster.nodes > 1);
    if soft != RLIM_INFINITY && infiniband && registers {
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

    use super::{judge_locked, judge_open_files, open_files};
    use crate::control::listen::enough_files;
    use crate::doctor::finding::State;

    #[test]
    fn locked_memory_matters_with_infiniband_only() {
        assert_eq!(judge_locked(64 << 10, None, true).state, State::Warn);
        assert_eq!(judge_locked(64 << 10, None, false).state, State::Pass);
        assert_eq!(judge_locked(RLIM_INFINITY, None, true).state, State::Pass);
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
