//! The guard of a job: it runs on another node than the supervisor and requeues the job if the
//! supervisor's node is lost.
//!
//! The supervisor increments a counter in a file of the run directory. If the counter does not
//! change for `cluster.control.silence_s`, the node counts as lost: a supervisor that was only
//! killed is started again by the batch script within seconds. After that time no worker of the
//! lost supervisor is left, because workers that receive no signs of life have ended themselves.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use vljepa_recipes::run_directory::RunDirectory;

use super::render::REQUEUE;
use super::requeue::requeue;
use super::submit::current_job;
use crate::error::LaunchError;
use crate::record::events::{Event, EventLog};
use crate::record::provenance::RunRecord;
use crate::{process, terminal};

/// Time between two increments of the counter, and between two looks at it.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);

/// Starts a task that increments the counter of the run until it is aborted.
pub(crate) fn count(directory: &RunDirectory) -> tokio::task::JoinHandle<()> {
    let file = directory.alive();
    tokio::spawn(async move {
        let mut count = 0_u64;
        loop {
            // A full disk stops the counter but not the run; requeueing the job is then the right
            // reaction too.
            std::fs::write(&file, format!("{} {count}", std::process::id())).ok();
            count += 1;
            tokio::time::sleep(COUNT_INTERVAL).await;
        }
    })
}

/// `vljepa-launch guard RUN`: watches the counter and requeues the job when the counter stops.
pub(crate) async fn guard(run: &Path) -> Result<u8, LaunchError> {
    let Some(variables) = current_job() else { return Err(LaunchError::NotInJob) };
    let directory = RunDirectory::open(run)?;
    let silence = directory.load_recipe()?.recipe.cluster.control.silence_s;
    let host = nix::unistd::gethostname().unwrap_or_default();
    terminal::note(&format!("a guard on {} watches the supervisor", host.display()));
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let now = std::fs::read(directory.alive()).ok();
        if now.is_none() || now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > Duration::from_secs(silence) {
            // An event, because the output of a guard is lost with the node that writes the job's
            // log.
            let attempt = RunRecord::read(&directory).map_or(0, |record| record.next_attempt() - 1);
            let (job, silent_s) = (variables.job.clone(), silence);
            EventLog::new(&directory, attempt).write(Event::SupervisorLost { job, silent_s });
            match requeue(&directory, &variables.job).await {
                Ok(REQUEUE) => {}
                Ok(code) => {
                    // Another job continues the run after this one. This job has lost the node of
                    // its batch script and would not end by itself.
                    while process::ask("scancel", &[&variables.job]).await.is_err() {
                        tokio::time::sleep(COUNT_INTERVAL).await;
                    }
                    return Ok(code);
                }
                Err(error) => {
                    terminal::note(&format!("error: {error}; next try in {silence} s"));
                }
            }
            since = Instant::now();
        }
        tokio::time::sleep(COUNT_INTERVAL).await;
    }
}
