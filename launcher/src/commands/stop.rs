//! `vljepa-launch stop RUN`: asks a run to save a checkpoint and end, on whichever machine it
//! works.

use std::path::Path;

use vljepa_recipes::run_directory::{RunDirectory, atomic_write};

use crate::error::LaunchError;
use crate::platform::slurm::client::{self, JobState};
use crate::platform::slurm::submit::Submission;
use crate::process;
use crate::terminal;

/// Writes a stop file that the supervisor of the run finds, on this machine or on another one. A
/// job that still waits in the queue is cancelled.
pub(crate) async fn stop(run: &Path) -> Result<u8, LaunchError> {
    let directory = RunDirectory::open(run)?;
    if let Some(Submission { job, .. }) = Submission::read(&directory) {
        match client::job_state(&job).await {
            Some(JobState::Pending(_)) => {
                process::ask("scancel", &[job.as_str()]).await.map_err(|why| {
                    LaunchError::Start { what: format!("cancelling job {job}"), why }
                })?;
                terminal::note(&format!("job {job} had not started; it was cancelled"));
                return Ok(0);
            }
            Some(JobState::Running) => {
                atomic_write(&directory.stop(), b"")?;
                terminal::note(&format!(
                    "stop requested: job {job} saves at its next step boundary and ends"
                ));
                return Ok(0);
            }
            Some(JobState::Ending(_) | JobState::Gone) | None => {}
        }
    }
    if !directory.is_in_use() {
        return Err(LaunchError::NotRunning { run: run.to_owned() });
    }
    atomic_write(&directory.stop(), b"")?;
    terminal::note("stop requested: the run saves at its next step boundary and ends");
    Ok(0)
}
