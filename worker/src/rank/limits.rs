//! Limits of the process: memory that may be locked, files that may be open, and core files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Limit on the bytes of a core file with which Linux writes none: neither to a file, nor to a
/// program, which a limit of 0 would allow (core(5)).
const NO_CORE: u64 = 1;

/// Raises the limits on locked memory and open files to the largest that this process may have, and
/// turns core files off. Slurm hands the limits of the login shell to the ranks: with a small one,
/// NCCL cannot register memory for InfiniBand. When one rank fails, all others abort, and writing
/// their cores would keep nodes and GPUs busy for minutes.
pub(crate) fn set() {
    for resource in [Resource::RLIMIT_MEMLOCK, Resource::RLIMIT_NOFILE] {
        if let Ok((soft, hard)) = getrlimit(resource)
            && soft < hard
            && let Err(error) = setrlimit(resource, hard, hard)
        {
            tracing::warn!("{resource:?} stays at {soft} of {hard}: {error}");
        }
    }
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE)
        && let Err(error) = setrlimit(Resource::RLIMIT_CORE, NO_CORE.min(hard), hard)
    {
        tracing::warn!("core files stay on: {error}");
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use crate::testing::is_alone;

    #[test]
    fn a_rank_may_lock_and_open_what_the_machine_allows_and_leaves_no_core_file() {
        let name = "rank::limits::tests::\
                    a_rank_may_lock_and_open_what_the_machine_allows_and_leaves_no_core_file";
        if !is_alone(name) {
            return;
        }
        let raised = [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK];
        let before = raised.map(|resource| getrlimit(resource).unwrap().1);
        for (resource, hard) in raised.into_iter().zip(before) {
            setrlimit(resource, hard / 2, hard).unwrap();
        }
        super::set();
        for (resource, hard) in raised.into_iter().zip(before) {
            assert_eq!(getrlimit(resource).unwrap(), (hard, hard), "{resource:?}");
        }
        assert!(getrlimit(Resource::RLIMIT_CORE).unwrap().0 <= super::NO_CORE);
    }
}
