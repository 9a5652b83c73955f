//! The runs of a programme with their states, from the run directories and Slurm's queue alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::{Programme, ProgrammeRun};

use super::state;
use crate::commands::status::{Job, State, Status};
use crate::error::LaunchError;
use crate::platform::slurm::client::JobState;
use crate::record::live::LiveRun;
use crate::terminal::{self, duration, thousands};

/// State of a programme; `--json` prints it in this form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Progress {
    pub name: String,
    /// Runs in the order in which they can run.
    pub runs: Vec<RunProgress>,
}

/// State of one run of a programme.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RunProgress {
    /// Directory of the run.
    pub run: String,
    pub state: RunState,
    /// Directories of the needed runs for which a job in the queue waits.
    pub waits_for: Vec<String>,
    pub step: u64,
    pub total_steps: u64,
    /// Id of the Slurm job that works on the run or waits for it.
    pub job: Option<String>,
    /// Seconds until the end of the last stage.
    pub left_s: Option<f64>,
    /// Why the job ended before its first attempt. Faults of attempts are shown by `status RUN`.
    pub fault: Option<String>,
}

/// Metrics and events of the runs by directory, of which each look reads only what is new.
#[derive(Debug, Default)]
pub(super) struct LiveRuns(BTreeMap<PathBuf, LiveRun>);

impl LiveRuns {
    /// Reads what is new in the directory of a run, or returns `None` if it holds no run.
    fn update(&mut self, run: &ProgrammeRun) -> Result<Option<&LiveRun>, LaunchError> {
        let Ok(directory) = RunDirectory::open(&run.directory) else {
            self.0.remove(&run.directory);
            return Ok(None);
        };
        let new = || LiveRun::new(&directory, &run.loaded.recipe);
        let live = self.0.entry(run.directory.clone()).or_insert_with(new);
        live.update()?;
        Ok(Some(live))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RunState {
    Complete,
    Running,
    /// The job waits in Slurm's queue for nodes.
    Queued,
    /// The job waits in Slurm's queue for runs that are not complete.
    Waits,
    Failed,
    Stopped,
    Killed,
    /// The launcher ended without recording an outcome.
    Interrupted,
    /// The run was submitted, and `squeue` does not answer.
    Unknown,
    /// A complete run of another recipe, or a table that was measured before a run that it needs
    /// was complete.
    #[serde(rename = "out of date")]
    OutOfDate,
    #[serde(rename = "not started")]
    NotStarted,
}

impl RunState {
    const ALL: [Self; 11] = [
        Self::Complete,
        Self::Running,
        Self::Queued,
        Self::Waits,
        Self::Failed,
        Self::Stopped,
        Self::Killed,
        Self::Interrupted,
        Self::Unknown,
        Self::OutOfDate,
        Self::NotStarted,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Queued => "queued",
            Self::Waits => "waits",
            Self::Unknown => "unknown",
            Self::OutOfDate => "out of date",
            Self::Running => State::Running.name(),
            Self::Failed => State::Failed.name(),
            Self::Stopped => State::Stopped.name(),
            Self::Killed => State::Killed.name(),
            Self::Interrupted => State::Interrupted.name(),
            Self::NotStarted => State::NotStarted.name(),
        }
    }

    /// Whether a launcher works on the run, or its job waits.
    fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Queued | Self::Waits)
    }

    /// State of a run that is not complete. `waits` says that it needs a run that is not complete,
    /// and `is_unknown` that `squeue` does not answer for its job.
    fn of(state: State, waits: bool, is_unknown: bool) -> Self {
        match state {
            State::Running => Self::Running,
            _ if is_unknown => Self::Unknown,
            State::Completed => Self::OutOfDate,
            State::Queued if waits => Self::Waits,
            State::Queued => Self::Queued,
            State::Failed => Self::Failed,
            State::Stopped => Self::Stopped,
            State::Killed => Self::Killed,
            State::Interrupted => Self::Interrupted,
            State::NotStarted => Self::NotStarted,
        }
    }
}

impl Progress {
    /// Reads the state of each run, and asks Slurm once for all jobs.
    pub(super) async fn read(
        programme: &Programme,
        live_runs: &mut LiveRuns,
    ) -> Result<Self, LaunchError> {
        let jobs = state::jobs(&state::submissions(programme)).await;
        // A run that completes during the question has no job, but a record.
        let complete = state::complete(programme);
        let mut runs = Vec::with_capacity(jobs.len());
        for ((index, run), job) in programme.runs.iter().enumerate().zip(&jobs) {
            let open = run.needs.iter().filter(|need| !complete[**need]);
            let open: Vec<String> = open.map(|need| programme.runs[*need].name()).collect();
            let live = live_runs.update(run)?;
            runs.push(RunProgress::read(run, live, job.as_ref(), complete[index], open));
        }
        Ok(Self { name: programme.name.clone(), runs })
    }

    /// The states without durations, which change all the time.
    pub(super) fn without_times(&self) -> Self {
        let mut progress = self.clone();
        progress.runs.iter_mut().for_each(|run| run.left_s = None);
        progress
    }

    pub(super) fn is_complete(&self) -> bool {
        self.runs.iter().all(|run| run.state == RunState::Complete)
    }

    /// Whether a launcher works on one of the runs, or one has a job in the queue.
    pub(super) fn is_alive(&self) -> bool {
        self.runs.iter().any(|run| run.state.is_alive())
    }

    /// Whether the state of a run is unknown.
    pub(super) fn is_unknown(&self) -> bool {
        self.runs.iter().any(|run| run.state == RunState::Unknown)
    }

    /// A line for each run, the faults of jobs without attempts, and how many runs are in each
    /// state.
    pub(super) fn text(&self) -> String {
        let header = ["run", "state", "step", "of", "job", "left"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.runs.iter().map(RunProgress::row));
        let count = |state: RunState| self.runs.iter().filter(|run| run.state == state).count();
        let counts = RunState::ALL.into_iter().filter(|state| count(*state) > 0);
        let counts = counts.map(|state| format!("{} {}", count(state), state.name()));
        let counts = counts.collect::<Vec<_>>().join(", ");
        let faults = self.runs.iter().filter_map(|run| Some((&run.run, run.fault.as_ref()?)));
        let mut notes: Vec<String> =
            faults.map(|(run, fault)| format!("{run}: {fault}\n")).collect();
        if self.is_unknown() {
            notes.push("squeue does not answer, so it is unknown which jobs run\n".to_owned());
        }
        if !notes.is_empty() {
            notes.push("\n".to_owned());
        }
        let (table, notes, count) = (terminal::table(&rows), notes.concat(), self.runs.len());
        format!("{table}\n\n{notes}{}, {count} runs: {counts}", self.name)
    }
}

impl RunProgress {
    /// `live` is `None` if the run has no directory.
    fn read(
        run: &ProgrammeRun,
        live: Option<&LiveRun>,
        job: Option<&Job>,
        is_complete: bool,
        waits_for: Vec<String>,
    ) -> Self {
        let recipe = &run.loaded.recipe;
        let mut progress = Self {
            run: run.name(),
            state: RunState::NotStarted,
            waits_for: Vec::new(),
            step: 0,
            total_steps: recipe.total_steps(),
            job: None,
            left_s: None,
            fault: None,
        };
        let (Ok(directory), Some(live)) = (RunDirectory::open(&run.directory), live) else {
            return progress;
        };
        let status = Status::of(&directory, recipe, live, job);
        progress.step = status.step;
        let is_unknown = job.is_some_and(|job| job.state.is_none());
        progress.state = match is_complete {
            true => RunState::Complete,
            false => RunState::of(status.state, !waits_for.is_empty(), is_unknown),
        };
        if progress.state == RunState::Failed && status.attempts == 0 {
            progress.fault = status.fault;
        }
        if progress.state == RunState::Waits {
            progress.waits_for = waits_for;
        }
        let in_queue =
            |job: &&Job| job.state.as_ref().is_some_and(|state| *state != JobState::Gone);
        if progress.state.is_alive() {
            progress.job = job.filter(in_queue).map(|job| job.id.clone());
            let left = status.rates.left;
            progress.left_s = left.map(|left| left.stage_s + left.later_stages_s);
        }
        progress
    }

    fn row(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let state = match self.state {
            RunState::Waits => {
                let first = self.waits_for.first().map_or("–", String::as_str);
                match self.waits_for.len() {
                    0 | 1 => format!("waits for {first}"),
                    count => format!("waits for {first} and {} more", count - 1),
                }
            }
            state => state.name().to_owned(),
        };
        let steps = |count: u64| or_dash((self.total_steps > 0).then(|| thousands(count)));
        vec![
            self.run.clone(),
            state,
            steps(self.step),
            steps(self.total_steps),
            or_dash(self.job.clone()),
            or_dash(self.left_s.map(duration)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{Progress, RunProgress, RunState, State};

    fn run(name: &str, state: RunState) -> RunProgress {
        RunProgress {
            run: name.to_owned(),
            state,
            waits_for: vec!["runs/a".to_owned()],
            step: 5,
            total_steps: 1000,
            job: Some("7".to_owned()),
            left_s: None,
            fault: None,
        }
    }

    #[test]
    fn only_a_queued_run_waits_for_others() {
        assert_eq!(RunState::of(State::Queued, true, false), RunState::Waits);
        assert_eq!(RunState::of(State::Queued, false, false), RunState::Queued);
        assert_eq!(RunState::of(State::NotStarted, true, false), RunState::NotStarted);
        // A run whose record is valid is complete; `of` is asked about the others.
        assert_eq!(RunState::of(State::Completed, false, false), RunState::OutOfDate);
    }

    #[test]
    fn a_submitted_run_is_unknown_if_squeue_does_not_answer_and_nothing_here_works_on_it() {
        for state in [State::NotStarted, State::Interrupted, State::Stopped, State::Failed] {
            assert_eq!(RunState::of(state, false, true), RunState::Unknown, "{state:?}");
        }
        assert_eq!(RunState::of(State::Running, false, true), RunState::Running);
        let runs = vec![run("runs/a", RunState::Complete), run("runs/b", RunState::Unknown)];
        let progress = Progress { name: "all".to_owned(), runs };
        assert!(progress.is_unknown() && !progress.is_alive());
        let text = progress.text();
        assert!(text.ends_with("all, 2 runs: 1 complete, 1 unknown"), "{text}");
        assert!(text.contains("squeue does not answer"), "{text}");
    }

    #[test]
    fn the_fault_of_a_job_without_attempts_is_shown() {
        let mut failed = run("runs/a", RunState::Failed);
        failed.fault = Some("see logs/slurm-7.log".to_owned());
        let progress = Progress { name: "all".to_owned(), runs: vec![failed] };
        let text = progress.text();
        assert!(text.contains("\nruns/a: see logs/slurm-7.log\n"), "{text}");
    }

    #[test]
    fn the_last_line_counts_the_states() {
        let runs = vec![
            run("runs/a", RunState::Running),
            run("runs/b", RunState::Waits),
            run("runs/c", RunState::Waits),
        ];
        let progress = Progress { name: "all".to_owned(), runs };
        let text = progress.text();
        assert!(text.ends_with("all, 3 runs: 1 running, 2 waits"), "{text}");
        assert!(text.contains("waits for runs/a") && text.contains("1,000"), "{text}");
        assert!(progress.is_alive() && !progress.is_complete());
    }
}
