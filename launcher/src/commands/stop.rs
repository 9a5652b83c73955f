//! `vljepa-launch stop RUN`: asks a run to save a checkpoint and end, on whichever machine it
//! works.

use std::path::Path;

use vljepa_recipes::run_directory::{RunDirectory, atomic_write};

use super::jobs::path_error;
use crate::cli;
use crate::error::LaunchError;
use crate::platform::slurm::client::{self, JobState};
use crate::platform::slurm::submit::Submission;
use crate::process;
use crate::record::completion;
use crate::terminal;

/// Writes a stop file that the supervisor of the run finds, on this machine or on another one. A
/// job that still waits in the queue is cancelled.
pub(crate) async fn stop(arguments: &cli::Stop) -> Result<u8, LaunchError> {
    let run = &arguments.run;
    let directory = RunDirectory::open(run)?;
    no_sets(run, &arguments.set)?;
    if !stop_run(&directory).await? {
        return Err(LaunchError::NotRunning { run: run.to_owned() });
    }
    Ok(0)
}

/// Refuses `--set` for a run, whose keys are in its directory. For a path without a run, the error
/// says so.
pub(super) fn no_sets(run: &Path, sets: &[String]) -> Result<(), LaunchError> {
    if sets.is_empty() {
        return Ok(());
    }
    RunDirectory::open(run)?;
    Err(path_error("`--set` says with which keys a programme was started;", run, "is a run"))
}

/// Stops a run, and returns whether there was something to stop.
///
/// # Errors
/// If nobody on this machine works on the run and `squeue` does not answer for its job.
pub(super) async fn stop_run(directory: &RunDirectory) -> Result<bool, LaunchError> {
    if let Some(Submission { job, .. }) = Submission::read(directory) {
        match client::job_state(&job).await {
            Some(JobState::Pending(_)) => {
                process::ask("scancel", &[job.as_str()]).await.map_err(|why| {
                    LaunchError::Start { what: format!("cancelling job {job}"), why }
                })?;
                terminal::note(&format!("job {job} had not started; it was cancelled"));
                return Ok(true);
            }
            Some(JobState::Running) => {
                atomic_write(&directory.stop(), b"")?;
                terminal::note(&format!(
                    "stop requested: job {job} saves at its next step boundary and ends"
                ));
                return Ok(true);
            }
            Some(JobState::Ending(_) | JobState::Gone) => {}
            None if directory.is_in_use() => {}
            None => return without_queue(directory, &job),
        }
    }
    if !directory.is_in_use() {
        return Ok(false);
    }
    atomic_write(&directory.stop(), b"")?;
    terminal::note("stop requested: the run saves at its next step boundary and ends");
    Ok(true)
}

/// Whether there was something to stop in a run on which nothing on this machine works, if `squeue`
/// does not answer for its job.
///
/// # Errors
/// If the run is not complete: its job may run or wait.
pub(super) fn without_queue(directory: &RunDirectory, job: &str) -> Result<bool, LaunchError> {
    let run = directory.path().to_owned();
    match completion::check_run(&run) {
        Ok(()) => Ok(false),
        Err(_) => Err(LaunchError::NoSqueue { job: job.to_owned(), run }),
    }
}
