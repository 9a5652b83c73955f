//! Facts of a node that a run depends on: CPUs, disk space and shared memory. The worker's health
//! check and `vljepa-launch doctor` judge them by the same functions.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::protocol::LOCAL_WORLD_SIZE_VARIABLE;
use crate::schema::{Device, Recipe, Scheduler};

/// Space in `/dev/shm` that a rank on CPUs needs: Open MPI maps a few segments of 4 MiB.
const HOST_SHARED_BYTES: u64 = 16 << 20;
/// Space in `/dev/shm` that a rank on a GPU needs, for NCCL's buffers between processes of a node.
const CUDA_SHARED_BYTES: u64 = 32 << 20;

/// Text about the observed state, or as an error the reason why a run cannot use the node.
pub type Judgement = Result<String, String>;

/// CPUs that Slurm has given to a process that `srun` has started. Both are `None` elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlurmCpus {
    /// CPUs that `srun` was asked to give to this process (`--cpus-per-task`).
    pub of_task: Option<usize>,
    /// CPUs of the step on this node. If they are not known, the smallest number of CPUs that the
    /// job has on a node.
    pub of_node: Option<usize>,
}

/// Variables of a rank that another program than `srun` has started: the launcher, Open MPI's
/// `mpirun`, and that of MPICH. Such ranks share the CPUs of the step in which they run.
const OTHER_STARTERS: [&str; 3] =
    [LOCAL_WORLD_SIZE_VARIABLE, "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];

impl SlurmCpus {
    /// Reads the variables of a process. Slurm also sets most of them for a job's script, whose
    /// processes share the node: only `srun` sets a step. A shell that `srun` has started passes
    /// the step on to the ranks of a local run, which share the CPUs of the shell.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let by_srun = variable("SLURM_STEP_ID").is_some()
            && OTHER_STARTERS.iter().all(|name| variable(name).is_none());
        if !by_srun {
            return Self::default();
        }
        let of_task = variable("SLURM_CPUS_PER_TASK").and_then(|cpus| cpus.trim().parse().ok());
        let of_step = variable("SLURM_CPUS_ON_NODE").and_then(|list| least_cpus(&list));
        let of_job = || variable("SLURM_JOB_CPUS_PER_NODE").and_then(|list| least_cpus(&list));
        Self { of_task, of_node: of_step.or_else(of_job) }
    }

    /// What this says about the ranks of `recipe`, if the process is none of them: on one machine
    /// the launcher starts the ranks, also in a shell that `srun` has started.
    #[must_use]
    pub fn of_ranks(self, recipe: &Recipe) -> Self {
        match recipe.cluster.scheduler {
            Scheduler::Slurm => self,
            Scheduler::Local => Self::default(),
        }
    }

    /// Whether Slurm has bound this process, one of `ranks` ranks on this node, to `allowed` CPUs
    /// for itself. A wider mask belongs to several ranks: those of a socket, or all of the node if
    /// Slurm leaves out hyperthreads or CPUs of the system.
    #[must_use]
    pub fn binds(self, allowed: usize, ranks: usize) -> bool {
        self.of_node.is_some_and(|of_node| allowed <= of_node.div_ceil(ranks.max(1)))
    }
}

/// The smallest number in `SLURM_JOB_CPUS_PER_NODE`, such as 8 in `16(x2),8`: two nodes have 16 and
/// one has 8. `None` if the text is no such list.
#[must_use]
pub fn least_cpus(list: &str) -> Option<usize> {
    list.split(',').filter_map(|part| part.split('(').next()?.trim().parse().ok()).min()
}

/// Returns the number of CPUs for the threads of one of `ranks` ranks on a node, of which a process
/// may use `allowed` CPUs.
///
/// Under Slurm these are the CPUs that `srun` was asked for. If it was asked for none, a cluster
/// may still bind each rank (`DefCpuPerGPU`): the rank then has its CPUs for itself. Otherwise the
/// ranks share the CPUs.
#[must_use]
pub fn cpus_of_rank(allowed: usize, ranks: usize, slurm: SlurmCpus) -> usize {
    let own = match slurm.of_task {
        Some(asked) => asked.min(allowed),
        None if slurm.binds(allowed, ranks) => allowed,
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

    use super::{SlurmCpus, cpus_of_rank, room, shared_memory, writable};

    #[test]
    fn a_rank_has_the_cpus_that_slurm_gave_it_or_its_share_of_the_machine() {
        let asked = SlurmCpus { of_task: Some(12), of_node: Some(96) };
        assert_eq!(cpus_of_rank(12, 8, asked), 12, "Slurm binds the task to its CPUs");
        assert_eq!(cpus_of_rank(96, 8, asked), 12, "Slurm does not bind it");
        assert_eq!(cpus_of_rank(4, 8, asked), 4);
        let elsewhere = SlurmCpus::default();
        assert_eq!(cpus_of_rank(96, 8, elsewhere), 12, "ranks share the machine");
        assert_eq!(cpus_of_rank(4, 8, elsewhere), 1);
        assert_eq!(cpus_of_rank(4, 0, elsewhere), 4);
    }

    #[test]
    fn a_rank_that_slurm_binds_without_being_asked_has_its_cpus_for_itself() {
        let of_node = |cpus| SlurmCpus { of_task: None, of_node: Some(cpus) };
        assert_eq!(cpus_of_rank(12, 8, of_node(96)), 12, "DefCpuPerGPU=12");
        assert_eq!(cpus_of_rank(1, 8, of_node(96)), 1, "bound to one CPU");
        assert_eq!(cpus_of_rank(96, 8, of_node(96)), 12, "Slurm does not bind it");
        assert_eq!(cpus_of_rank(13, 8, of_node(100)), 13, "one rank has the CPU that is left over");
        assert_eq!(cpus_of_rank(14, 8, of_node(100)), 1, "this is no rank's part of the node");
    }

    #[test]
    fn a_mask_that_all_ranks_of_a_node_share_is_no_binding_of_one_rank() {
        let of_node = |cpus| SlurmCpus { of_task: None, of_node: Some(cpus) };
        assert_eq!(cpus_of_rank(48, 8, of_node(96)), 6, "--hint=nomultithread");
        assert_eq!(cpus_of_rank(94, 8, of_node(96)), 11, "two CPUs are the system's own");
        // The step has one CPU for each rank, and does not bind the ranks to them.
        assert_eq!(cpus_of_rank(8, 8, of_node(8)), 1);
    }

    #[test]
    fn only_a_step_of_slurm_has_cpus_of_its_own() {
        let of = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
            SlurmCpus::of(|name| find(name).map(|(_, value)| (*value).to_owned()))
        };
        let step = ("SLURM_STEP_ID", "0");
        let (task, job) =
            (("SLURM_CPUS_PER_TASK", "12"), ("SLURM_JOB_CPUS_PER_NODE", "96(x24),48"));
        let all = of(&[step, task, job, ("SLURM_CPUS_ON_NODE", "64")]);
        assert_eq!(all, SlurmCpus { of_task: Some(12), of_node: Some(64) }, "those of the node");
        assert_eq!(of(&[step, job]).of_node, Some(48), "the node may be the smallest of the job");
        let small = of(&[step, job, ("SLURM_CPUS_ON_NODE", "8")]);
        assert_eq!(small, SlurmCpus { of_task: None, of_node: Some(8) });
        assert_eq!(of(&[step, ("SLURM_JOB_CPUS_PER_NODE", "many")]), SlurmCpus::default());
        let script = of(&[task, job]);
        assert_eq!(script, SlurmCpus::default(), "mpirun in a job's script shares the machine");
        for starter in ["VLJEPA_LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"]
        {
            let in_shell = of(&[step, task, job, (starter, "4")]);
            assert_eq!(in_shell, SlurmCpus::default(), "{starter}: srun has started the shell");
            assert_eq!(cpus_of_rank(12, 4, in_shell), 3);
        }
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
