//! Connects the ranks of a benchmark. `multi_gpu.sh` starts one process per rank; the processes
//! find each other through a file.

use std::path::Path;

use vljepa_kernels::Device;
use vljepa_worker::collectives::Collectives;
use vljepa_worker::rank::environment::Environment;

/// Joins the collectives of this process: NCCL with all ranks that were given the same file `meet`,
/// MPI if `mpirun` started the process, otherwise this process alone.
pub(crate) fn join(meet: Option<&Path>, device: Device) -> anyhow::Result<Collectives> {
    let environment = Environment::read();
    match (meet, environment.rank, device) {
        #[cfg(feature = "cuda")]
        (Some(file), Some(rank), Device::Cuda(cuda)) => nccl(file, rank, cuda),
        (Some(_), _, _) => {
            anyhow::bail!("--meet needs GPUs, feature `cuda`, VLJEPA_RANK and VLJEPA_WORLD_SIZE")
        }
        (None, _, Device::Host) => Ok(Collectives::join(environment.started_by_mpi)?),
        (None, _, Device::Cuda(_)) => Ok(Collectives::Solo(vljepa_worker::collectives::Solo)),
    }
}

#[cfg(feature = "cuda")]
fn nccl(
    file: &Path,
    rank: vljepa_recipes::RankId,
    cuda: &'static vljepa_kernels::device::cuda::Cuda,
) -> anyhow::Result<Collectives> {
    use std::time::{Duration, Instant};

    use vljepa_worker::collectives::nccl::{Id, Library, Nccl, TimeOuts};
    use vljepa_worker::rank::environment::GpuEnvironment;

    const LONG: Duration = Duration::from_secs(120);
    let library = Library::open(&GpuEnvironment::read().libraries)?;
    if rank.rank == 0 {
        let id = library.unique_id()?.text();
        vljepa_recipes::run_directory::atomic_write(file, id.as_bytes())?;
    }
    let since = Instant::now();
    while !file.exists() {
        anyhow::ensure!(since.elapsed() < LONG, "rank 0 did not write {}", file.display());
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let id = Id::parse(&std::fs::read_to_string(file)?)?;
    let time_outs = TimeOuts { start: LONG, collective: LONG };
    let nccl = Nccl::join(library, id, rank, cuda, time_outs, Box::new(|_| ()))?;
    Ok(Collectives::Nccl(nccl))
}
