//! Connects the ranks of a run: on CPUs through MPI; on GPUs through the supervisor, which
//! distributes rank 0's NCCL id.

use vljepa_kernels::Device;
use vljepa_recipes::schema;
use vljepa_recipes::{RankId, Recipe};

use crate::collectives::{Collectives, Solo};
use crate::error::WorkerError;
use crate::rank::control::Control;
use crate::rank::environment::Environment;
#[cfg(feature = "cuda")]
use crate::rank::environment::GpuEnvironment;

/// Returns this process's rank, and on CPUs also the collectives. `wanted`
/// is the number of ranks in the job.
///
/// # Errors
/// Fails if MPI cannot be joined, or if a process of a run on several GPUs does not know its rank.
pub fn rank_id(
    recipe: &Recipe,
    environment: &Environment,
    wanted: usize,
) -> anyhow::Result<(RankId, Option<Collectives>)> {
    match recipe.device {
        schema::Device::Host => {
            let cpus = Collectives::join(environment.started_by_mpi)?;
            Ok((cpus.rank_id(), Some(cpus)))
        }
        schema::Device::Cuda if wanted == 1 => Ok((RankId::SINGLE, None)),
        schema::Device::Cuda => {
            let rank = environment.rank.ok_or(WorkerError::NoRank { wanted })?;
            Ok((rank, None))
        }
    }
}

/// Joins the collectives of a rank on a GPU: NCCL, or [`Solo`] if there is only one rank. Waits for
/// the other ranks up to the recipe's start timeout.
///
/// # Errors
/// Fails if a rank does not join, or if NCCL is missing or fails.
pub fn join_gpus(
    recipe: &Recipe,
    environment: &Environment,
    device: Device,
    rank: RankId,
    control: &Control,
) -> anyhow::Result<Collectives> {
    if rank.world_size == 1 {
        return Ok(Collectives::Solo(Solo));
    }
    match device {
        Device::Host => {
            let _ = (recipe, environment, control);
            Err(WorkerError::NoCuda.into())
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            use std::time::Duration;

            use vljepa_recipes::protocol::{FromWorker, NVLS_VARIABLE};

            use crate::collectives::nccl::{Id, Library, Nccl, TimeOuts};

            let library = Library::open(&GpuEnvironment::read().libraries)?;
            tracing::info!("NCCL {} from {}", library.version(), library.path().display());
            if recipe.deterministic && !environment.nvls_off {
                tracing::warn!(
                    "the recipe is deterministic, but NCCL may reduce inside of NVLink switches; \
                     set {NVLS_VARIABLE}=0 for every rank"
                );
            }
            if rank.rank == 0 {
                control.report(FromWorker::NcclId { id: library.unique_id()?.text() });
            }
            let seconds = Duration::from_secs;
            let cluster = &recipe.cluster;
            let (start, collective) =
                (seconds(cluster.start_timeout_s), seconds(cluster.collective_timeout_s));
            let id = Id::parse(&control.nccl_id(start)?)?;
            let supervisor = control.clone();
            let last_words = Box::new(move |error: &str| {
                let (step, phase) = supervisor.position();
                let error = error.to_owned();
                supervisor.report_last(FromWorker::Failed { step, phase, error });
            });
            let time_outs = TimeOuts { start, collective };
            let nccl = Nccl::join(library, id, rank, cuda, time_outs, last_words)?;
            Ok(Collectives::Nccl(nccl))
        }
    }
}
