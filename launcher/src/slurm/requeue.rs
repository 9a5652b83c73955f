//! Back into the queue: a run goes on later in its job, or in another one.

use vljepa_recipes::run_directory::RunDirectory;

use super::client::{self, JobState};
use super::render::REQUEUE;
use super::submit;
use crate::error::LaunchError;
use crate::{local, terminal};

/// Puts a job into the queue again, or, where its nodes have no `scontrol` or Slurm refuses it, submits the run's script as a job of its own that
/// begins when this one has ended. Returns what the batch script should end with.
///
/// # Errors
/// Slurm's words, where neither can be done from here.
pub(crate) async fn requeue(directory: &RunDirectory, job: &str) -> Result<u8, LaunchError> {
    terminal::note(&format!("job {job} goes back into the queue"));
    let Err(why) = local::ask("scontrol", &["requeue", job]).await else { return Ok(REQUEUE) };
    // Slurm ends the processes of a job that it requeues, perhaps before the asking one has its answer, and refuses what it has begun by
    // itself or for somebody else.
    let state = client::job_state(job).await;
    let begun = matches!(state, Some(JobState::Pending(_) | JobState::Ending(_)));
    if begun || why.contains("ended with signal") {
        return Ok(REQUEUE);
    }
    let script = directory.batch_script();
    let after = format!("--dependency=afterany:{job}");
    match local::ask("sbatch", &["--parsable", &after, &script.display().to_string()]).await {
        Ok(said) => {
            let next = submit::job_of(&said);
            submit::take_over(directory, &next)?;
            terminal::note(&format!("continued by job {next}"));
            Ok(0)
        }
        Err(other) => {
            let (job, why) = (job.to_owned(), format!("{why}; {other}"));
            Err(LaunchError::NotRequeued { job, why, script })
        }
    }
}
