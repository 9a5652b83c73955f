//! `vljepa-launch stop PROGRAMME`: stops all runs of a programme.

use vljepa_recipes::run_directory::RunDirectory;

use super::{load, state};
use crate::cli;
use crate::commands::status::Job;
use crate::commands::stop::{stop_run, without_queue};
use crate::error::LaunchError;
use crate::platform::slurm::client::JobState;
use crate::terminal;

/// Stops the runs that work or wait in the queue. A run is stopped before those that it needs, so
/// that it does not start when they end. A run that cannot be stopped does not keep the others
/// running: the first error is returned at the end.
pub(crate) async fn stop(arguments: &cli::Stop) -> Result<u8, LaunchError> {
    let programme = load(&arguments.run, &arguments.set)?;
    let jobs = state::jobs(&state::submissions(&programme)).await;
    let (mut stopped, mut failed) = (0, None);
    for (run, job) in programme.runs.iter().zip(&jobs).rev() {
        let Ok(directory) = RunDirectory::open(&run.directory) else { continue };
        // `squeue` is not asked again for runs on which nothing works: it may take 30 s to fail.
        let answer = match job {
            Some(Job { state: Some(JobState::Gone), .. }) if !directory.is_in_use() => Ok(false),
            Some(Job { state: None, id }) if !directory.is_in_use() => {
                without_queue(&directory, id)
            }
            _ => stop_run(&directory).await,
        };
        match answer {
            Ok(true) => {
                terminal::note(&format!("  {}", run.name()));
                stopped += 1;
            }
            Ok(false) => {}
            Err(error) => {
                terminal::note(&format!("error: {} was not stopped: {error}", run.name()));
                failed.get_or_insert(error);
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None if stopped == 0 => Err(LaunchError::NothingRuns { programme: arguments.run.clone() }),
        None => Ok(0),
    }
}
