//! Requeueing: a run continues later in the same job, or in another one.

use vljepa_recipes::run_directory::RunDirectory;

use super::client::{self, JobState};
use super::render::REQUEUE;
use super::submit;
use crate::error::LaunchError;
use crate::{process, terminal};

/// Requeues a job. If its nodes have no `scontrol` or Slurm refuses, submits the batch script of
/// the run as another job that starts when this one has ended. Returns the exit code for the batch
/// script.
///
/// # Errors
/// If neither is possible, with the messages of both commands.
pub(crate) async fn requeue(directory: &RunDirectory, job: &str) -> Result<u8, LaunchError> {
    terminal::note(&format!("requeueing job {job}"));
    let Err(why) = process::ask("scontrol", &["requeue", job]).await else { return Ok(REQUEUE) };
    // Slurm ends the processes of a job that it requeues, perhaps before this one gets its answer.
    // It also refuses if it has already begun to requeue the job by itself or for another request.
    let state = client::job_state(job).await;
    let begun = matches!(state, Some(JobState::Pending(_) | JobState::Ending(_)));
    if begun || why.contains("ended with signal") {
        return Ok(REQUEUE);
    }
    let script = directory.batch_script();
    let after = format!("--dependency=afterany:{job}");
    match process::ask("sbatch", &["--parsable", &after, &script.display().to_string()]).await {
        Ok(answer) => {
            let next = submit::job_of(&answer);
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
