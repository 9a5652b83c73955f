//! `vljepa-launch status RUN`: the state of a run, read from its directory and from Slurm's queue.

mod end;
pub(super) mod screen;
mod text;
mod watch;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::Recipe;

pub(super) use end::UNCLEAR_TIMEOUT;

use super::stop;
use crate::cli;
use crate::error::LaunchError;
use crate::platform::slurm::client::{self, JobState};
use crate::platform::slurm::submit::{self, Submission};
use crate::record::live::LiveRun;
use crate::record::provenance::{AttemptOutcome, RunRecord};
use crate::record::rates::{Activity, Summary};
use crate::record::stragglers::RankTable;
use crate::record::{completion, history};
use crate::supervise::StopSignal;
use crate::terminal;

/// State of a run; with `--json` it is printed in this form.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Status {
    /// Directory of the run.
    run: String,
    name: String,
    pub(super) state: State,
    pub(super) step: u64,
    pub(super) total_steps: u64,
    /// Stage of the newest line of metrics.
    stage: Option<String>,
    loss: Option<f64>,
    #[serde(flatten)]
    pub(super) rates: Summary,
    checkpoint: Option<String>,
    pub(super) attempts: usize,
    /// Fault that ended the newest attempt, or the job before its first attempt.
    pub(super) fault: Option<String>,
    /// Slurm job of the run and its state, or `None` if the run was never submitted.
    job: Option<String>,
    /// Table of the slowest ranks, or `None` before the first interval.
    ranks: Option<RankTable>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    #[serde(rename = "not started")]
    NotStarted,
    /// The job waits in Slurm's queue.
    Queued,
    Running,
    Completed,
    Stopped,
    Killed,
    Failed,
    /// The launcher ended without recording an outcome.
    Interrupted,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NotStarted => "not started",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether a launcher works on the run or its job waits.
    fn is_alive(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }

    /// Exit code of a run that ended in this state, or `None` if it has not ended. `stopped_by`
    /// is the request that stopped it.
    fn exit_code(self, stopped_by: Option<&str>) -> Option<u8> {
        match self {
            Self::NotStarted | Self::Queued | Self::Running => None,
            Self::Completed => Some(0),
            Self::Failed | Self::Interrupted => Some(1),
            Self::Stopped | Self::Killed => {
                let signal = stopped_by.and_then(StopSignal::of_name);
                Some(signal.unwrap_or(StopSignal::Asked).exit_code(false))
            }
        }
    }
}

/// Slurm job of a run.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: String,
    /// `None` if `squeue` does not answer.
    pub(super) state: Option<JobState>,
}

impl Job {
    /// Asks Slurm for the job of a run. `None` if the run was never submitted.
    async fn of(directory: &RunDirectory) -> Option<Self> {
        let Submission { job: id, .. } = Submission::read(directory)?;
        let state = client::job_state(&id).await;
        Some(Self { id, state })
    }

    fn text(&self) -> String {
        let state = match &self.state {
            Some(JobState::Pending(reason)) => format!("waits: {reason}"),
            Some(JobState::Running) => "runs".to_owned(),
            Some(JobState::Ending(_)) => "is leaving its nodes".to_owned(),
            Some(JobState::Gone) => "is not in the queue".to_owned(),
            None => "has an unknown state: squeue does not answer".to_owned(),
        };
        format!("{} {state}", self.id)
    }
}

/// Prints the state of the run as a table or as JSON, once or until the run ends.
pub(crate) async fn status(arguments: &cli::Status) -> Result<u8, LaunchError> {
    stop::no_sets(&arguments.run, &arguments.set)?;
    if let Some(interval) = arguments.watch {
        return watch::watch(arguments, interval.0).await;
    }
    let directory = RunDirectory::open(&arguments.run)?;
    let recipe = directory.load_recipe()?.recipe;
    let mut live = LiveRun::new(&directory, &recipe);
    live.update()?;
    let job = Job::of(&directory).await;
    let status = Status::of(&directory, &recipe, &live, job.as_ref());
    let text = if arguments.json { status.json(true)? } else { text::text(&status) };
    terminal::result(&text);
    Ok(0)
}

impl Status {
    /// State of the run in a directory. `live` was updated before.
    pub(super) fn of(
        directory: &RunDirectory,
        recipe: &Recipe,
        live: &LiveRun,
        job: Option<&Job>,
    ) -> Self {
        let record = RunRecord::read(directory);
        let attempts = record.as_ref().map_or(&[][..], |record| &record.attempts);
        let outcome = attempts.last().map(|attempt| attempt.outcome);
        let is_in_use = directory.is_in_use();
        let is_complete = completion::check(directory, recipe).is_ok();
        let job_state = job.and_then(|job| job.state.as_ref());
        let mut state = state([is_in_use, is_complete], outcome, job_state);
        let mut fault = attempts.last().and_then(|attempt| attempt.fault.clone());
        if let (State::NotStarted, Some(log)) = (state, log_without_attempt(directory, job)) {
            state = State::Failed;
            fault = Some(format!("the job ended before its first attempt; see {}", log.display()));
        }
        let newest = live.newest();
        Self {
            run: directory.path().display().to_string(),
            name: recipe.name.clone(),
            state,
            step: newest.map_or(0, |interval| interval.step),
            total_steps: recipe.total_steps(),
            stage: newest.map(|interval| interval.stage.clone()),
            loss: newest.and_then(|interval| interval.loss),
            rates: live.summary(activity(is_in_use, job_state)),
            checkpoint: directory.newest_checkpoint(),
            attempts: attempts.len(),
            fault,
            job: job.map(Job::text),
            ranks: history::ranks(directory),
        }
    }

    /// The status as JSON, on several lines if `pretty`.
    fn json(&self, pretty: bool) -> Result<String, LaunchError> {
        let text =
            if pretty { serde_json::to_string_pretty(self) } else { serde_json::to_string(self) };
        text.map_err(|error| not_written(&error))
    }

    /// The status of a path without a run as a line of JSON: with the keys of all others, and the
    /// value null for those that are unknown.
    fn json_of_missing(run: &Path) -> Result<String, LaunchError> {
        let empty = Self {
            run: String::new(),
            name: String::new(),
            state: State::NotStarted,
            step: 0,
            total_steps: 0,
            stage: None,
            loss: None,
            rates: Summary::default(),
            checkpoint: None,
            attempts: 0,
            fault: None,
            job: None,
            ranks: None,
        };
        let mut value = serde_json::to_value(empty).map_err(|error| not_written(&error))?;
        clear(&mut value);
        value["run"] = run.display().to_string().into();
        value["state"] = State::NotStarted.name().into();
        Ok(value.to_string())
    }
}

/// Log of a job that is not in the queue, if the job has started. A job that was cancelled before
/// has none.
fn log_without_attempt(directory: &RunDirectory, job: Option<&Job>) -> Option<PathBuf> {
    let job = job.filter(|job| job.state == Some(JobState::Gone))?;
    let log = submit::log(directory, &job.id);
    log.is_file().then_some(log)
}

/// The error that a status cannot be written as JSON.
pub(super) fn not_written(error: &serde_json::Error) -> LaunchError {
    LaunchError::Start { what: "writing the status as JSON".to_owned(), why: error.to_string() }
}

/// Sets all values to null, also those in objects.
fn clear(value: &mut Value) {
    match value {
        Value::Object(entries) => entries.values_mut().for_each(clear),
        other => *other = Value::Null,
    }
}

/// What works on a run.
fn activity(is_in_use: bool, job: Option<&JobState>) -> Activity {
    match job {
        Some(JobState::Pending(_) | JobState::Running) => Activity::Job,
        _ if is_in_use => Activity::Lock,
        Some(JobState::Ending(_) | JobState::Gone) | None => Activity::Nothing,
    }
}

/// State of a run, from whether its directory is in use and its completion record is valid, the
/// outcome of its newest attempt, and its job.
fn state(
    [is_in_use, is_complete]: [bool; 2],
    outcome: Option<AttemptOutcome>,
    job: Option<&JobState>,
) -> State {
    // `evaluate` locks a run that is complete.
    if is_complete && (!is_in_use || outcome == Some(AttemptOutcome::Completed)) {
        return State::Completed;
    }
    if is_in_use {
        return State::Running;
    }
    match job {
        Some(JobState::Pending(_)) => return State::Queued,
        // Some file systems do not show the lock of another machine.
        Some(JobState::Running) => return State::Running,
        Some(JobState::Ending(_) | JobState::Gone) | None => {}
    }
    match outcome {
        None => State::NotStarted,
        Some(AttemptOutcome::Unfinished) => State::Interrupted,
        Some(AttemptOutcome::Completed) => State::Completed,
        Some(AttemptOutcome::Stopped) => State::Stopped,
        Some(AttemptOutcome::Killed) => State::Killed,
        Some(AttemptOutcome::Failed) => State::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::{Job, RunDirectory, State, Status, activity, log_without_attempt, state};
    use crate::platform::slurm::client::JobState;
    use crate::record::provenance::AttemptOutcome;
    use crate::record::rates::Activity;

    #[test]
    fn a_missing_run_has_the_keys_of_all_others() {
        let line = Status::json_of_missing(Path::new("runs/a")).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["run"], &line["state"]), (&"runs/a".into(), &"not started".into()));
        let keys = line.as_object().unwrap();
        for key in ["name", "step", "samples", "elapsed_s", "left", "job", "ranks"] {
            assert_eq!(keys.get(key), Some(&Value::Null), "{key}");
        }
        assert_eq!(line["spent"].as_object().unwrap().get("queue_s"), Some(&Value::Null));
    }

    #[test]
    fn a_complete_run_that_an_evaluation_locks_is_complete() {
        let completed = Some(AttemptOutcome::Completed);
        assert_eq!(state([true, true], completed, None), State::Completed);
        // The worker has written the record, and its launcher has not ended.
        let unfinished = Some(AttemptOutcome::Unfinished);
        assert_eq!(state([true, true], unfinished, None), State::Running);
        assert_eq!(state([true, false], completed, None), State::Running);
        assert_eq!(state([false, true], unfinished, None), State::Completed);
        assert_eq!(activity(true, Some(&JobState::Gone)), Activity::Lock);
        assert_eq!(activity(true, Some(&JobState::Running)), Activity::Job);
        assert_eq!(activity(false, None), Activity::Nothing);
    }

    #[test]
    fn a_job_that_started_and_left_the_queue_without_an_attempt_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("logs")).unwrap();
        std::fs::write(folder.path().join("recipe.yaml"), "").unwrap();
        let run = RunDirectory::open(folder.path()).unwrap();
        let job = |state: Option<JobState>| Job { id: "7".to_owned(), state };
        let gone = job(Some(JobState::Gone));
        assert_eq!(log_without_attempt(&run, Some(&gone)), None, "it was cancelled in the queue");
        let log = run.logs().join("slurm-7.log");
        std::fs::write(&log, "").unwrap();
        assert_eq!(log_without_attempt(&run, Some(&gone)), Some(log));
        for other in [job(None), job(Some(JobState::Running))] {
            assert_eq!(log_without_attempt(&run, Some(&other)), None);
        }
    }

    #[test]
    fn a_run_that_ended_has_the_exit_code_of_its_launcher() {
        let code = |state: State, by| state.exit_code(by);
        assert_eq!(code(State::Completed, None), Some(0));
        assert_eq!(code(State::Failed, None), Some(1));
        for (signal, expected) in
            [("Ctrl-C", 130), ("stop", 130), ("TERM", 143), ("USR1", 138), ("HUP", 129)]
        {
            assert_eq!(code(State::Stopped, Some(signal)), Some(expected), "{signal}");
        }
        assert_eq!(code(State::Killed, None), Some(130));
        for state in [State::NotStarted, State::Queued, State::Running] {
            assert_eq!(code(state, Some("TERM")), None);
        }
    }
}
