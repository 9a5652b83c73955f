//! The only file that reads environment variables.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Folders of the variable `PATH`, in its order.
pub(crate) fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Whether the variable `TERM` says that the terminal cannot move its cursor.
pub(crate) fn has_dumb_terminal() -> bool {
    std::env::var_os("TERM").is_some_and(|name| name == "dumb")
}

/// Variables of this process whose names begin with one of `prefixes`, by name.
pub(crate) fn variables(prefixes: &[&str]) -> BTreeMap<String, String> {
    let wanted = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let all = std::env::vars_os();
    let text = all.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let found = text.filter(|(name, _)| wanted(name));
    found.map(|(name, value)| (name, value.to_string_lossy().into_owned())).collect()
}

/// Environment variables that Slurm sets for the processes of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlurmVariables {
    /// Value of `SLURM_JOB_ID`.
    pub job: String,
    /// Value of `SLURM_JOB_NODELIST`, a compressed list such as `node[0-3]`.
    pub nodes: String,
    /// Value of `SLURM_RESTART_COUNT`, or `None` if the job was never requeued.
    pub restarts: Option<u32>,
    /// Value of `SLURM_JOB_END_TIME`, Unix seconds; older versions of Slurm do not set it.
    pub end_time: Option<i64>,
}

impl SlurmVariables {
    /// Reads the variables, or returns `None` outside a job.
    #[expect(clippy::disallowed_methods, reason = "the only place that reads variables")]
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
