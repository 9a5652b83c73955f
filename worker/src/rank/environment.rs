//! Reads the process environment: who started this process, its token and its machine. No other
//! module of the worker reads environment variables.

use std::io::Read;
use std::path::Path;

use vljepa_recipes::node::{self, SlurmCpus};
use vljepa_recipes::protocol::{
    LOCAL_RANK_VARIABLE, LOCAL_WORLD_SIZE_VARIABLE, NVLS_VARIABLE, RANK_VARIABLE, TOKEN_VARIABLE,
    WORLD_SIZE_VARIABLE,
};
use vljepa_recipes::{RankId, Recipe};

use crate::collectives::record;

/// Facts about this process that are not on its command line.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Whether `mpirun` or `srun --mpi` started this process.
    pub started_by_mpi: bool,
    /// Rank of this process and number of ranks, as set by `vljepa-launch` or `srun`. `None` if
    /// neither set them; under MPI they come from MPI.
    pub rank: Option<RankId>,
    /// Whether NCCL is kept from reducing inside of NVLink switches (`NCCL_NVLS_ENABLE=0`).
    pub nvls_off: bool,
    /// Token of the run; empty without a supervisor.
    pub token: String,
    /// Host name of this machine.
    pub host: String,
    /// Version and hash of this program's binary.
    pub build: String,
    /// Index of this process among the run's processes on this machine; 0 if the starter does not
    /// set it.
    pub local_rank: usize,
    /// Number of the run's processes on this machine; 1 if the starter does not set it.
    pub local_world_size: usize,
    /// CPUs that Slurm has given to this process, if `srun` has started it as a rank.
    pub slurm_cpus: SlurmCpus,
}

impl Environment {
    /// Reads the environment variables of this process, its host name and its binary.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn read() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name)?.parse::<usize>().ok();
        let local_rank =
            [LOCAL_RANK_VARIABLE, "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
        let local = [
            LOCAL_WORLD_SIZE_VARIABLE,
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "MPI_LOCALNRANKS",
            "SLURM_NTASKS_PER_NODE",
        ];
        // Slurm also sets its variables for a job's script, whose processes are not ranks. Only
        // `srun` sets a step.
        let by_srun = variable("SLURM_STEP_ID").is_some();
        let rank_id = |[rank, world_size]: [&str; 2]| {
            Some(RankId { rank: number(rank)?, world_size: number(world_size)? })
        };
        Self {
            rank: rank_id([RANK_VARIABLE, WORLD_SIZE_VARIABLE])
                .or_else(|| rank_id(["SLURM_PROCID", "SLURM_NTASKS"]).filter(|_| by_srun)),
            nvls_off: variable(NVLS_VARIABLE).as_deref() == Some("0"),
            started_by_mpi: ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"]
                .into_iter()
                .any(|name| variable(name).is_some()),
            token: variable(TOKEN_VARIABLE).unwrap_or_default(),
            host: nix::unistd::gethostname()
                .map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned()),
            build: build(),
            local_rank: local_rank.into_iter().find_map(number).unwrap_or(0),
            local_world_size: local.into_iter().find_map(number).unwrap_or(1),
            slurm_cpus: SlurmCpus::of(&variable),
        }
    }

    /// Number of CPUs for the threads of this process, one of `ranks` ranks on this machine.
    #[must_use]
    pub fn cpus(&self, ranks: usize) -> usize {
        node::cpus_of_rank(allowed_cpus(), ranks, self.slurm_cpus)
    }

    /// Number of CPUs for the threads of each rank of `recipe` that will run on this machine.
    #[must_use]
    pub fn cpus_of_ranks(&self, recipe: &Recipe, ranks: usize) -> usize {
        node::cpus_of_rank(allowed_cpus(), ranks, self.slurm_cpus.of_ranks(recipe))
    }
}

/// CPUs that this process may use: its affinity mask and its control group bound the number.
fn allowed_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Locations of NVIDIA's libraries and of the compiled kernels.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone)]
pub struct GpuEnvironment {
    /// Files and folders of the libraries.
    pub libraries: vljepa_kernels::library::Libraries,
    /// Folder for compiled kernels in `XDG_CACHE_HOME` or `~/.cache`, or in the working folder if
    /// neither is known.
    pub cache: std::path::PathBuf,
}

#[cfg(feature = "cuda")]
impl GpuEnvironment {
    /// Reads the environment variables of this process.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn read() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let path = |name: &str| {
            variable(name).filter(|value| !value.is_empty()).map(std::path::PathBuf::from)
        };
        let home = || path("HOME").map(|home| home.join(".cache"));
        let cache = path("XDG_CACHE_HOME").or_else(home).unwrap_or_default();
        Self {
            libraries: vljepa_kernels::library::Libraries::of(variable),
            cache: cache.join("vljepa").join("kernels"),
        }
    }
}

/// Returns the version and hash of this program's binary, by which ranks of different builds are
/// refused.
fn build() -> String {
    let hash = std::env::current_exe()
        .and_then(|path| hash_file(&path))
        .map_or_else(|_| "unknown".to_owned(), |hash| hash.to_hex()[..16].to_owned());
    format!("{} {hash}", env!("CARGO_PKG_VERSION"))
}

/// Bytes that count as one piece of work when a file is hashed.
const HASHED_BYTES: u64 = 16 << 20;

/// Returns the BLAKE3 hash of a file's content.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn hash_file(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path)?;
    while std::io::copy(&mut file.by_ref().take(HASHED_BYTES), &mut hasher)? > 0 {
        record::of_process().work_done();
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::{Environment, RankId, SlurmCpus};

    fn of(variables: &[(&str, &str)]) -> Environment {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Environment::of(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_launcher_tells_a_rank_its_number_before_slurm_does() {
        let own = [
            ("VLJEPA_RANK", "5"),
            ("VLJEPA_WORLD_SIZE", "8"),
            ("VLJEPA_LOCAL_RANK", "1"),
            ("VLJEPA_LOCAL_WORLD_SIZE", "4"),
        ];
        let slurm = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "2"),
            ("SLURM_NTASKS", "3"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NTASKS_PER_NODE", "2"),
        ];
        let both = of(&[&own[..], &slurm[..]].concat());
        assert_eq!(
            (both.rank, both.local_rank, both.local_world_size),
            (Some(RankId { rank: 5, world_size: 8 }), 1, 4)
        );
        let by_srun = of(&slurm);
        assert_eq!(
            (by_srun.rank, by_srun.local_rank),
            (Some(RankId { rank: 2, world_size: 3 }), 0)
        );
        assert_eq!(by_srun.local_world_size, 2);
    }

    #[test]
    fn a_step_of_slurm_knows_the_cpus_of_its_job_on_the_node() {
        let step = of(&[("SLURM_STEP_ID", "0"), ("SLURM_JOB_CPUS_PER_NODE", "96(x24)")]);
        assert_eq!(step.slurm_cpus, SlurmCpus { of_task: None, of_node: Some(96) });
        assert_eq!(of(&[("SLURM_JOB_CPUS_PER_NODE", "96")]).slurm_cpus, SlurmCpus::default());
        let in_shell = [("SLURM_STEP_ID", "0"), ("SLURM_JOB_CPUS_PER_NODE", "96")];
        let in_shell = of(&[&in_shell[..], &[("VLJEPA_LOCAL_WORLD_SIZE", "4")]].concat());
        assert_eq!(in_shell.slurm_cpus, SlurmCpus::default(), "srun has started a shell");
    }

    #[test]
    fn a_job_s_script_is_no_rank_and_a_rank_needs_both_numbers() {
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "192")]).rank, None);
        assert_eq!(of(&[("VLJEPA_RANK", "0")]).rank, None);
        assert_eq!(of(&[("VLJEPA_RANK", "x"), ("VLJEPA_WORLD_SIZE", "2")]).rank, None);
        assert!(!of(&[("VLJEPA_RANK", "0"), ("VLJEPA_WORLD_SIZE", "2")]).started_by_mpi);
    }
}
