//! The only file that reads environment variables.

use std::path::PathBuf;

/// Folders of `PATH`.
pub(crate) fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// What Slurm tells a process of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlurmVariables {
    /// `SLURM_JOB_ID`.
    pub job: String,
    /// `SLURM_JOB_NODELIST`, compressed.
    pub nodes: String,
    /// `SLURM_RESTART_COUNT`, which is not set in a job's first run.
    pub restarts: Option<u32>,
    /// `SLURM_JOB_END_TIME`, which older versions do not set; Unix seconds.
    pub end_time: Option<i64>,
}

impl SlurmVariables {
    /// Reads them; none outside of a job.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(crate) fn read() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self {
            job: variable("SLURM_JOB_ID")?,
            nodes: variable("SLURM_JOB_NODELIST").unwrap_or_default(),
            restarts: variable("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok()),
            end_time: variable("SLURM_JOB_END_TIME").and_then(|time| time.parse().ok()),
        })
    }
}
