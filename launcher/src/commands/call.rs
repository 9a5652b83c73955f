//! Starts a worker for one job.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use vljepa_recipes::protocol::Job;
use vljepa_recipes::run_directory::RunDirectory;

use crate::error::LaunchError;
use crate::programs::{self, Programs, WorkerArguments};
use crate::record::provenance::RunRecord;
use crate::supervise::Signals;
use crate::terminal;

/// Program, arguments and folder of a worker for one job.
pub(super) struct Call {
    pub(super) programs: Programs,
    pub(super) arguments: WorkerArguments,
    /// Folder in which the run was started: relative paths in the recipe refer to it.
    pub(super) folder: PathBuf,
    /// Folder of the job's file, which is removed with this value.
    pub(super) _files: tempfile::TempDir,
}

impl Call {
    /// Finds the worker and writes the job's file.
    pub(super) fn new(directory: &RunDirectory, job: &Job) -> Result<Self, LaunchError> {
        let programs = Programs::find()?;
        let files =
            tempfile::tempdir().map_err(|error| failed("making a temporary folder", &error))?;
        let file = files.path().join("job.json");
        let text = serde_json::to_vec(job).map_err(|error| failed("writing the job", &error))?;
        std::fs::write(&file, text).map_err(|error| failed("writing the job", &error))?;
        let folder = RunRecord::read(directory)
            .map(|record| record.working_directory)
            .filter(|folder| folder.is_dir())
            .unwrap_or_else(|| PathBuf::from("."));
        let arguments =
            WorkerArguments { run: absolute(directory.path()), job: file, control: None };
        Ok(Self { programs, arguments, folder, _files: files })
    }
}

pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Listens to signals.
pub(super) fn signals() -> Result<Signals, LaunchError> {
    Signals::listen().map_err(|error| failed("listening to signals", &error))
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> LaunchError {
    LaunchError::Start { what: what.to_owned(), why: why.to_string() }
}

/// Starts a worker for one job and parses its result.
pub(super) async fn run_worker<T: DeserializeOwned>(
    directory: &RunDirectory,
    job: &Job,
) -> Result<T, LaunchError> {
    let Call { programs, arguments, folder, _files } = Call::new(directory, job)?;
    let mut signals = signals()?;
    let spinner = spinner();
    let output = tokio::select! {
        output = programs::one_shot(&programs, &arguments, &folder, |text| {
            spinner.set_message(text.to_owned());
        }) => output,
        signal = signals.next() => Err(LaunchError::Interrupted { exit_code: signal.exit_code(false) }),
    };
    spinner.finish_and_clear();
    let output = output?;
    serde_json::from_slice(&output).map_err(|error| LaunchError::JobFailed {
        error: format!(
            "its output is not a result ({error}): {}",
            String::from_utf8_lossy(&output)
        ),
    })
}

fn spinner() -> indicatif::ProgressBar {
    if !terminal::is_watched() {
        return indicatif::ProgressBar::hidden();
    }
    let spinner = indicatif::ProgressBar::new_spinner().with_message("working");
    spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    spinner
}
