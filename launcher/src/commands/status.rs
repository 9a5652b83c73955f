//! `vljepa-launch status RUN`: the state of a run, read from its directory and from Slurm's queue.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use vljepa_recipes::run_directory::RunDirectory;

use crate::cli::RunJson;
use crate::error::LaunchError;
use crate::platform::slurm::client::{self, JobState};
use crate::platform::slurm::submit::Submission;
use crate::record::provenance::{AttemptOutcome, RunRecord};
use crate::record::stragglers::RankTable;
use crate::record::{completion, history};
use crate::terminal;

/// State of a run; with `--json` it is printed in this form.
#[derive(Debug, Serialize)]
struct Status {
    name: String,
    /// `running`, `completed`, `stopped`, `killed`, `failed`, `interrupted` or `not started`.
    state: String,
    step: u64,
    total_steps: u64,
    loss: Option<f64>,
    samples_per_s: Option<f64>,
    checkpoint: Option<String>,
    attempts: usize,
    fault: Option<String>,
    /// Slurm job of the run and its state, or `None` if the run was never submitted.
    job: Option<String>,
    /// Table of the slowest ranks, or `None` before the first interval.
    ranks: Option<RankTable>,
}

/// Prints the state of the run as a table or as JSON.
pub(crate) async fn status(arguments: &RunJson) -> Result<u8, LaunchError> {
    let directory = RunDirectory::open(&arguments.run)?;
    let mut status = of(&directory)?;
    status.job = job(&directory).await;
    if arguments.json {
        let text = serde_json::to_string_pretty(&status).map_err(|error| {
            LaunchError::Unreadable { path: arguments.run.clone(), why: error.to_string() }
        })?;
        terminal::result(&text);
        return Ok(0);
    }
    let mut rows = vec![
        vec!["run".to_owned(), status.name.clone()],
        vec!["state".to_owned(), status.state.clone()],
        vec![
            "step".to_owned(),
            format!(
                "{} of {}",
                terminal::thousands(status.step),
                terminal::thousands(status.total_steps)
            ),
        ],
    ];
    let mut add = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_owned(), value]));
    };
    add("loss", status.loss.map(|loss| format!("{loss:.4}")));
    add("samples/s", status.samples_per_s.map(|rate| format!("{rate:.1}")));
    add("checkpoint", status.checkpoint.clone());
    add("attempts", Some(status.attempts.to_string()));
    add("fault", status.fault.clone());
    add("job", status.job.clone());
    terminal::result(&terminal::table(&rows));
    if let Some(table) = &status.ranks {
        terminal::result(&format!("\n{}", ranks(table)));
    }
    Ok(0)
}

/// The table of the slowest ranks as text.
fn ranks(table: &RankTable) -> String {
    let ms = |seconds: f64| format!("{:.1}", 1e3 * seconds);
    let percent = |over: f64| format!("{:+.0}%", 100.0 * over);
    let mut text = format!(
        "ranks at step {} ({}), {} of {} reported; the median rank works {} ms per step",
        terminal::thousands(table.step),
        table.time,
        terminal::thousands(table.reported as u64),
        terminal::thousands(table.world_size as u64),
        ms(table.median_work_s)
    );
    text.extend(table.slowest_text().map(|words| format!("\n{words}")));
    let header = [
        "rank",
        "host",
        "work ms",
        "over",
        "phase",
        "data ms",
        "collective ms",
        "TFLOP/s",
        "MiB",
        "GPU MiB",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(table.slowest.iter().map(|row| {
        vec![
            row.rank.to_string(),
            row.host.clone(),
            ms(row.work_s),
            percent(row.over),
            row.phase.name().to_owned(),
            ms(row.data_s),
            ms(row.collective_s),
            format!("{:.3}", row.tflops),
            terminal::thousands(row.memory_mib),
            row.device_memory_mib.map_or_else(|| "–".to_owned(), terminal::thousands),
        ]
    }));
    text += &format!("\n{}", terminal::table(&rows));
    if table.slowest.len() < table.reported {
        text += "\nonly the slowest ranks are listed";
    }
    text
}

fn of(directory: &RunDirectory) -> Result<Status, LaunchError> {
    let recipe = directory.load_recipe()?.recipe;
    let record = RunRecord::read(directory);
    let newest = history::metrics(directory).pop();
    let last = record.as_ref().and_then(|record| record.attempts.last());
    let state = if is_held(directory) {
        "running"
    } else if completion::check(directory, &recipe).is_ok() {
        "completed"
    } else {
        match last.map(|attempt| attempt.outcome) {
            None => "not started",
            // The launcher ended without recording an outcome.
            Some(AttemptOutcome::Unfinished) => "interrupted",
            Some(outcome) => outcome.name(),
        }
    };
    Ok(Status {
        name: recipe.name.clone(),
        state: state.to_owned(),
        step: newest.as_ref().map_or(0, |metrics| metrics.step),
        total_steps: recipe.total_steps(),
        loss: newest.as_ref().map(|metrics| metrics.loss),
        samples_per_s: newest.as_ref().map(|metrics| metrics.samples_per_s),
        checkpoint: directory.newest_checkpoint(),
        attempts: record.as_ref().map_or(0, |record| record.attempts.len()),
        fault: last.and_then(|attempt| attempt.fault.clone()),
        job: None,
        ranks: history::ranks(directory),
    })
}

/// Slurm job of a submitted run and its state, as text.
async fn job(directory: &RunDirectory) -> Option<String> {
    let Submission { job, .. } = Submission::read(directory)?;
    let state = match client::job_state(&job).await {
        Some(JobState::Pending(reason)) => format!("waits: {reason}"),
        Some(JobState::Running) => "runs".to_owned(),
        Some(JobState::Ending(_)) => "is leaving its nodes".to_owned(),
        Some(JobState::Gone) => "is not in the queue".to_owned(),
        None => "has an unknown state: squeue does not answer".to_owned(),
    };
    Some(format!("{job} {state}"))
}

/// Whether a launcher holds the lock of the run, on this machine or, if the file system supports
/// it, on another one. The only exact test is to try the lock; the trial lock is shared, so two
/// calls at the same time do not disturb each other, and is held for some microseconds.
pub(crate) fn is_held(directory: &RunDirectory) -> bool {
    let Ok(file) = File::open(directory.path().join("lock")) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}
