//! Prevents workers of two attempts from writing at the same time: before a worker publishes a file
//! in the run directory, it checks that no later attempt has been started.
//!
//! A supervisor whose machine is lost or cut off leaves workers on other machines running for up to
//! `cluster.control.silence_s`. The next supervisor writes the number of its attempt into
//! `job.json` before it starts any worker.

use std::path::PathBuf;

use anyhow::Context;
use vljepa_recipes::protocol::Job;

use crate::error::WorkerError;

/// Attempt that this worker belongs to, and the file that announces a later attempt.
#[derive(Debug, Clone, Default)]
pub struct Generation(Option<(u32, PathBuf)>);

impl Generation {
    /// Returns the attempt of `job`. `file` is the job file of the run directory, in which a later
    /// attempt is announced. Jobs other than training have no attempt, and their check always
    /// passes.
    #[must_use]
    pub fn of(job: &Job, file: PathBuf) -> Self {
        match job {
            Job::Train { attempt, .. } => Self(Some((*attempt, file))),
            Job::Check(_)
            | Job::Evaluate { .. }
            | Job::Ask { .. }
            | Job::Caption { .. }
            | Job::Latency { .. }
            | Job::Stream(_)
            | Job::Search { .. }
            | Job::Export { .. } => Self(None),
        }
    }

    /// Checks that this is still the newest attempt.
    ///
    /// # Errors
    /// Returns [`WorkerError::Superseded`] if a later attempt was started. Also fails if the job
    /// file cannot be read, because then the newest attempt is unknown.
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
            other => {
                Err(anyhow::anyhow!("{} holds a job of another kind: {other:?}", file.display()))
            }
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
        Generation::of(&Job::Evaluate { step: None }, file.clone()).check().unwrap();
    }
}
