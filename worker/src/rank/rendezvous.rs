//! Connects the ranks of a run: on CPUs through MPI; on GPUs through NCCL, whose id of rank 0 the
//! supervisor distributes.

use std::time::Duration;

use vljepa_kernels::Device;
use vljepa_recipes::schema;
use vljepa_recipes::{RankId, Recipe};

use crate::collectives::{Collectives, Solo};
use crate::error::WorkerError;
use crate::rank::control::Control;
use crate::rank::environment::Environment;
use crate::rank::gpu;

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

/// Waits until all ranks on CPUs have connected to the supervisor, if there is one. A rank connects
/// after MPI's start, and OpenMPI crashes if a message of a faster rank arrives in its own start,
/// which Slurm's PMIx does not always prevent.
///
/// # Errors
/// Fails if a rank does not connect within the recipe's start timeout.
pub fn await_cpus(recipe: &Recipe, rank: RankId, control: &Control) -> Result<(), WorkerError> {
    if rank.world_size == 1 || control.is_alone() {
        return Ok(());
    }
    let own = (rank.rank == 0).then(String::new);
    control.rendezvous(own, Duration::from_secs(recipe.cluster.start_timeout_s)).map(drop)
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
        Device::Host => Err(WorkerError::NoCuda.into()),
        Device::Cuda(cuda) => {
            Ok(Collectives::Nccl(gpu::join(recipe, environment.nvls_off, cuda, rank, control)?))
        }
    }
}
