//! Facts of a node that a run depends on: CPUs, disk space and shared memory. The worker's health
//! check and `vljepa-launch doctor` judge them by the same functions.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::schema::{Device, Recipe, Scheduler};

/// Space in `/dev/shm` that a rank on CPUs needs: Open MPI maps a few segments of 4 MiB.
const HOST_SHARED_BYTES: u64 = 16 << 20;
/// Space in `/dev/shm` that a rank on a GPU needs, for NCCL's buffers between processes of a node.
const CUDA_SHARED_BYTES: u64 = 32 << 20;

/// Text about the observed state, or as an error the reason why a run cannot use the node.
pub type Judgement = Result<String, String>;

/// Returns the number of CPUs for the threads of one of `ranks` ranks on a node, of which a process
/// may use `allowed` CPUs. `asked` is what `srun` was asked to give to this process: under Slurm
/// these are the rank's own CPUs, if Slurm binds tasks, or all of the node. Elsewhere the ranks of
/// a machine share its CPUs.
#[must_use]
pub fn cpus_of_rank(allowed: usize, ranks: usize, asked: Option<usize>) -> usize {
    let own = match asked {
        Some(asked) => asked.min(allowed),
        None => allowed / ranks.max(1),
    };
    own.max(1)
}

/// Compares the CPUs of one rank with those that the recipe asks Slurm for.
///
/// # Errors
/// If the rank has fewer.
pub fn cpus(recipe: &Recipe, found: usize) -> Judgement {
    let cluster = &recipe.cluster;
    let asked = match cluster.scheduler {
        Scheduler::Slurm => cluster.slurm.cpus_per_rank,
        Scheduler::Local => 0,
    };
    if found >= asked {
        let cpus = if found == 1 { "CPU" } else { "CPUs" };
        return Ok(format!("{found} {cpus} per rank"));
    }
    Err(format!("a rank may use {found}, but cluster.slurm.cpus_per_rank asks for {asked}"))
}

/// Writes, syncs, reads back and deletes a small file in the folder `root`. `host` makes its name
/// unique among nodes that share the folder.
///
/// # Errors
/// If one of these fails.
pub fn writable(root: &Path, host: &str) -> Judgement {
    let file = root.join(format!(".check-{host}-{}", std::process::id()));
    let text = b"written and read back";
    let work = || -> std::io::Result<bool> {
        let mut writing = File::create(&file)?;
        writing.write_all(text)?;
        writing.sync_all()?;
        let same = std::fs::read(&file)? == text;
        std::fs::remove_file(&file)?;
        Ok(same)
    };
    match work() {
        Ok(true) => Ok(root.display().to_string()),
        Ok(false) => Err(format!("{}: a file read back differs from its source", root.display())),
        Err(error) => {
            // The file may not exist. Report the first error, not this one.
            std::fs::remove_file(&file).unwrap_or_default();
            Err(format!("{}: {error}", root.display()))
        }
    }
}

/// Returns the free and all bytes of the file system that holds `folder`.
///
/// # Errors
/// If the folder does not exist or cannot be asked.
pub fn space(folder: &Path) -> Result<[u64; 2], String> {
    let space = statvfs(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.fragment_size());
    Ok([bytes(space.blocks_available()), bytes(space.blocks())])
}

/// Compares the free space of a folder's disk with a checkpoint of `needed` bytes. With 0 only a
/// full disk fails.
///
/// # Errors
/// If the checkpoint does not fit.
pub fn room(folder: &Path, needed: u64) -> Judgement {
    let [free, _] = space(folder)?;
    let text = match needed {
        0 => format!("{} MiB free", free >> 20),
        _ => format!("{} MiB free, a checkpoint takes {} MiB", free >> 20, (needed >> 20) + 1),
    };
    if free > needed { Ok(text) } else { Err(text) }
}

/// Compares the free space of `/dev/shm` with what `ranks` ranks of the recipe need on one node.
///
/// # Errors
/// If it is too small.
pub fn shared_memory(recipe: &Recipe, ranks: usize) -> Judgement {
    if ranks < 2 {
        return Ok("not needed by one rank".to_owned());
    }
    let each = match recipe.device {
        Device::Host => HOST_SHARED_BYTES,
        Device::Cuda => CUDA_SHARED_BYTES,
    };
    let ([free, _], needed) = (space(Path::new("/dev/shm"))?, each * ranks as u64);
    let text =
        format!("/dev/shm has {} MiB free, {ranks} ranks need {} MiB", free >> 20, needed >> 20);
    if free >= needed { Ok(text) } else { Err(text) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{cpus_of_rank, room, shared_memory, writable};

    #[test]
    fn a_rank_has_the_cpus_that_slurm_gave_it_or_its_share_of_the_machine() {
        assert_eq!(cpus_of_rank(12, 8, Some(12)), 12, "Slurm binds the task to its CPUs");
        assert_eq!(cpus_of_rank(96, 8, Some(12)), 12, "Slurm does not bind it");
        assert_eq!(cpus_of_rank(4, 8, Some(12)), 4);
        assert_eq!(cpus_of_rank(96, 8, None), 12, "ranks share the machine");
        assert_eq!(cpus_of_rank(4, 8, None), 1);
        assert_eq!(cpus_of_rank(4, 0, None), 4);
    }

    #[test]
    fn a_folder_that_cannot_be_written_and_a_full_disk_fail() {
        let folder = tempfile::tempdir().unwrap();
        writable(folder.path(), "here").unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        // Not even root can write there.
        let refused = writable(Path::new("/proc/self"), "here").unwrap_err();
        assert!(refused.contains("/proc/self"), "{refused}");
        room(folder.path(), 1).unwrap();
        assert!(room(folder.path(), u64::MAX).unwrap_err().contains("a checkpoint takes"));
        assert!(room(Path::new("/nowhere"), 1).is_err());
    }

    #[test]
    fn shared_memory_is_measured_against_the_ranks_of_a_node() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
        let recipe = crate::load(&recipe, &[]).unwrap().recipe;
        shared_memory(&recipe, 1).unwrap();
        let text = shared_memory(&recipe, 1 << 30).unwrap_err();
        assert!(text.contains("/dev/shm"), "{text}");
    }
}
