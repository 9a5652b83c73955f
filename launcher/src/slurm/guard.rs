//! The guard of a job: on another node than the supervisor's, it puts the job into the queue again when the supervisor's node is lost.
//!
//! The supervisor counts in a file of the run directory. A count that stands still for `cluster.control.silence_s`, after which no worker
//! of that supervisor is left, is a lost node: one that was merely killed is started again by the batch script within seconds.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use vljepa_recipes::run_directory::RunDirectory;

use super::render::REQUEUE;
use super::requeue::requeue;
use super::submit::inside;
use crate::error::LaunchError;
use crate::events::{Event, EventLog};
use crate::provenance::RunRecord;
use crate::{local, terminal};

/// Between two counts.
const COUNT: Duration = Duration::from_secs(2);

/// Counts until it is dropped.
pub(crate) fn count(directory: &RunDirectory) -> tokio::task::JoinHandle<()> {
    let file = directory.alive();
    tokio::spawn(async move {
        let mut count = 0_u64;
        loop {
            // A full disk stops the count and not the run: then the guard's requeue is what a person would do as well.
            std::fs::write(&file, format!("{} {count}", std::process::id())).ok();
            count += 1;
            tokio::time::sleep(COUNT).await;
        }
    })
}

/// `vljepa-launch guard RUN`: watches the count until it stands still.
pub(crate) async fn guard(run: &Path) -> Result<u8, LaunchError> {
    let Some(variables) = inside() else { return Err(LaunchError::NotInJob) };
    let directory = RunDirectory::open(run)?;
    let silence = directory.load_recipe()?.recipe.cluster.control.silence_s;
    let host = nix::unistd::gethostname().unwrap_or_default();
    terminal::note(&format!("a guard on {} watches over the supervisor", host.display()));
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let now = std::fs::read(directory.alive()).ok();
        if now.is_none() || now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > Duration::from_secs(silence) {
            // What a guard prints is lost with the node of its job's log.
            let attempt = RunRecord::read(&directory).map_or(0, |record| record.next_attempt() - 1);
            let (job, silent_s) = (variables.job.clone(), silence);
            EventLog::new(&directory, attempt).write(Event::SupervisorLost { job, silent_s });
            match requeue(&directory, &variables.job).await {
                Ok(REQUEUE) => {}
                Ok(code) => {
                    // Another job goes on after this one, which has lost the node of its script and would not end by itself.
                    while local::ask("scancel", &[&variables.job]).await.is_err() {
                        tokio::time::sleep(COUNT).await;
                    }
                    return Ok(code);
                }
                Err(error) => {
                    terminal::note(&format!("error: {error}; tried again in {silence} s"));
                }
            }
            since = Instant::now();
        }
        tokio::time::sleep(COUNT).await;
    }
}
