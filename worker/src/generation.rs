//! Two generations of workers never write at once: before a worker publishes anything in the run directory, it looks whether a later
//! attempt has been started there.
//!
//! A supervisor whose machine is lost, or cut off, leaves workers on other machines for up to `cluster.control.silence_s`. The next
//! supervisor writes its attempt's number into `job.json` before it starts anything.

use std::path::PathBuf;

use anyhow::Context;
use vljepa_recipes::protocol::Job;

use crate::error::WorkerError;

/// Which attempt this worker belongs to, and where a later one would be announced.
#[derive(Debug, Clone, Default)]
pub struct Generation(Option<(u32, PathBuf)>);

impl Generation {
    /// That of a job which `job` holds; jobs that train nothing have none, and nothing to lose.
    #[must_use]
    pub fn of(job: &Job, file: PathBuf) -> Self {
        match job {
            Job::Train { attempt, .. } => Self(Some((*attempt, file))),
            Job::Check(_)
            | Job::Evaluate
            | Job::Ask { .. }
            | Job::Search { .. }
            | Job::Export { .. }
            | Job::Import { .. } => Self(None),
        }
    }

    /// Makes sure that this is still the newest attempt.
    ///
    /// # Errors
    /// [`WorkerError::Superseded`] when it is not; or when that cannot be known, because the run directory cannot be read.
    pub fn check(&self) -> anyhow::Result<()> {
        let Some((own, file)) = &self.0 else { return Ok(()) };
        let text =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let job: Job = serde_json::from_slice(&text)
            .with_context(|| format!("{} does not parse", file.display()))?;
        match job {
            Job::Train { attempt, .. } if attempt == *own => Ok(()),
            Job::Train { attempt: newest, .. } => {
                Err(WorkerError::Superseded { own: *own, newest }.into())
            }
            other => Err(anyhow::anyhow!("{} holds another job: {other:?}", file.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_of_an_older_attempt_may_not_publish() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("job.json");
        let job = |attempt| Job::Train { attempt, world_size: 1, drills: Vec::new() };
        let write = |job: &Job| std::fs::write(&file, serde_json::to_vec(job).unwrap()).unwrap();
        write(&job(2));
        let own = Generation::of(&job(2), file.clone());
        own.check().unwrap();
        write(&job(3));
        let error = own.check().unwrap_err().to_string();
        assert!(error.contains("attempt 3") && error.contains("attempt 2"), "{error}");
        std::fs::remove_file(&file).unwrap();
        assert!(own.check().is_err(), "what cannot be known is refused");
        Generation::of(&Job::Evaluate, file.clone()).check().unwrap();
    }
}
