//! The platform of a run: this machine, or the nodes of a Slurm job.

pub(crate) mod health;
pub(crate) mod slurm;
pub(crate) mod workers;

use std::time::{Duration, Instant};

use vljepa_recipes::schema::{Device, Recipe};

use crate::error::LaunchError;
use crate::programs::{Programs, WorkerArguments};
use slurm::allocation::{Allocation, NodeChoice};
use slurm::client;
use workers::Step;

/// Where the workers of a run are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Platform {
    /// On this machine.
    Local,
    /// On the nodes of the Slurm job that this process belongs to.
    Slurm(Allocation),
}

impl Platform {
    /// Id of the Slurm job, or `None` for a local run.
    pub(crate) fn job(&self) -> Option<&str> {
        match self {
            Self::Local => None,
            Self::Slurm(allocation) => Some(&allocation.job),
        }
    }

    /// The moment when the job's time limit is reached, or `None` without a limit.
    pub(crate) async fn end(&self) -> Option<Instant> {
        let Self::Slurm(allocation) = self else { return None };
        let end_s = match allocation.end_time {
            Some(end_s) => end_s,
            None => client::end_time(&allocation.job).await?.as_second(),
        };
        let left = end_s.saturating_sub(vljepa_recipes::clock::now_s());
        Some(Instant::now() + Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }

    /// Ends the steps that a killed supervisor of the same job left running.
    pub(crate) async fn clear(&self) {
        if let Self::Slurm(allocation) = self {
            client::end_steps(&allocation.job, None).await;
        }
    }

    /// Command line of an attempt, and on Slurm the step that it starts.
    ///
    /// # Errors
    /// If the attempt needs `mpirun` and this machine has none.
    pub(crate) fn command(
        &self,
        programs: &Programs,
        recipe: &Recipe,
        choice: &NodeChoice,
        attempt: u32,
        arguments: &WorkerArguments,
    ) -> Result<(Vec<String>, Option<Step>), LaunchError> {
        let Self::Slurm(allocation) = self else {
            // Ranks on GPUs find each other through the supervisor and need no MPI.
            let line = match recipe.device {
                Device::Cuda => programs.rank_command(arguments),
                Device::Host => programs.train_command(choice.world_size, arguments)?,
            };
            return Ok((line, None));
        };
        let name = format!("vljepa-{attempt}");
        let mut line = allocation.srun(recipe, &name, choice);
        line.push(programs.worker.display().to_string());
        line.extend(arguments.list());
        Ok((line, Some(Step { job: allocation.job.clone(), name })))
    }
}
