//! Where workers run: on this machine, or on the nodes of a Slurm job.

use std::time::{Duration, Instant};

use vljepa_recipes::schema::{Device, Recipe};

use crate::error::LaunchError;
use crate::local::{Programs, Step, WorkerArguments};
use crate::slurm::allocation::{Allocation, Placement};
use crate::slurm::client;

/// The closed list of places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Platform {
    /// This machine.
    Local,
    /// The job this process runs in.
    Slurm(Allocation),
}

impl Platform {
    /// The Slurm job, where there is one.
    pub(crate) fn job(&self) -> Option<&str> {
        match self {
            Self::Local => None,
            Self::Slurm(allocation) => Some(&allocation.job),
        }
    }

    /// When the job's time is over, if it has a limit.
    pub(crate) async fn end(&self) -> Option<Instant> {
        let Self::Slurm(allocation) = self else { return None };
        let end_s = match allocation.end_time {
            Some(end_s) => end_s,
            None => client::end_time(&allocation.job).await?.as_second(),
        };
        let left = end_s.saturating_sub(vljepa_recipes::clock::now_s());
        Some(Instant::now() + Duration::from_secs(u64::try_from(left).unwrap_or(0)))
    }

    /// Ends what a supervisor that was killed left running.
    pub(crate) async fn clear(&self) {
        if let Self::Slurm(allocation) = self {
            client::end_steps(&allocation.job, None).await;
        }
    }

    /// The command line of an attempt, and the step that it becomes.
    ///
    /// # Errors
    /// When this machine has no `mpirun` and needs one.
    pub(crate) fn command(
        &self,
        programs: &Programs,
        recipe: &Recipe,
        placement: &Placement,
        attempt: u32,
        arguments: &WorkerArguments,
    ) -> Result<(Vec<String>, Option<Step>), LaunchError> {
        let Self::Slurm(allocation) = self else {
            // Ranks on GPUs need nobody to introduce them to each other but the supervisor.
            let line = match recipe.device {
                Device::Cuda => programs.rank_command(arguments),
                Device::Host => programs.train_command(placement.world_size, arguments)?,
            };
            return Ok((line, None));
        };
        let name = format!("vljepa-{attempt}");
        let mut line = allocation.srun(recipe, &name, placement);
        line.push(programs.worker.display().to_string());
        line.extend(arguments.list());
        Ok((line, Some(Step { job: allocation.job.clone(), name })))
    }
}
