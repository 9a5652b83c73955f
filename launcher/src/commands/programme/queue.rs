//! Which runs of a programme on Slurm keep their jobs, and which are submitted.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use vljepa_recipes::Programme;

use super::state;
use crate::error::LaunchError;
use crate::platform::slurm::client::{self, JobState};
use crate::platform::slurm::submit::Submission;
use crate::terminal;

/// How long a job may take to leave its nodes: Slurm kills a process that ignores its end after
/// 30 s (the default of `KillWait`).
const LEAVING_TIMEOUT: Duration = Duration::from_secs(40);
/// Time between two questions about a job that leaves its nodes.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Reason of a job that waits for a job that failed. Slurm removes it from the queue soon.
const NEVER: &str = "DependencyNeverSatisfied";

/// What a submission of the programme does with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// The run is complete.
    Complete,
    /// Its job works on it, or waits for the jobs of all runs that it needs.
    Keep(String),
    /// The run was never submitted.
    Submit,
    /// `squeue` does not list its job.
    SubmitAgain,
    /// The job in the queue waits for other jobs than it must, so it is replaced.
    Replace(String),
}

impl Decision {
    /// Whether a new job is submitted.
    pub(super) fn is_start(&self) -> bool {
        matches!(self, Self::Submit | Self::SubmitAgain | Self::Replace(_))
    }

    /// Id of the job that stays in the queue.
    pub(super) fn kept(&self) -> Option<&String> {
        match self {
            Self::Keep(job) => Some(job),
            Self::Complete | Self::Submit | Self::SubmitAgain | Self::Replace(_) => None,
        }
    }
}

/// A run as one look at the directories and the queue shows it.
#[derive(Debug)]
struct Known {
    is_complete: bool,
    /// Indices of the runs that it needs.
    needs: Vec<usize>,
    /// Absolute paths of the directories that it reads.
    reads: Vec<PathBuf>,
    /// Its newest submission and the state of that job.
    submitted: Option<(Submission, JobState)>,
}

/// Looks at all runs and asks Slurm once; a job that leaves its nodes is waited for, because its
/// run may go on in the same job.
///
/// # Errors
/// If `squeue` does not answer, and if a job does not leave its nodes.
pub(super) async fn decisions(programme: &Programme) -> Result<Vec<Decision>, LaunchError> {
    let deadline = Instant::now() + LEAVING_TIMEOUT;
    let mut noted = false;
    loop {
        let known = look(programme).await?;
        let leaving = known.iter().zip(&programme.runs).find_map(|(known, run)| {
            let (submission, state) = known.submitted.as_ref().filter(|_| !known.is_complete)?;
            matches!(state, JobState::Ending(_)).then(|| (submission.job.clone(), run))
        });
        let Some((job, run)) = leaving else { return Ok(decide(&known)) };
        if Instant::now() >= deadline {
            return Err(LaunchError::Leaving { job, run: run.directory.clone() });
        }
        if !noted {
            terminal::note(&format!("{}: waiting until job {job} has left its nodes", run.name()));
            noted = true;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn look(programme: &Programme) -> Result<Vec<Known>, LaunchError> {
    let submissions = state::submissions(programme);
    let jobs = state::jobs(&submissions).await;
    // A run that completes during the question has no job, but a record.
    let complete = state::complete(programme);
    let mut known = Vec::with_capacity(complete.len());
    let found = submissions.into_iter().zip(jobs).zip(complete);
    for (run, ((submission, job), is_complete)) in programme.runs.iter().zip(found) {
        let submitted = match (submission, job.and_then(|job| job.state)) {
            (Some(submission), Some(state)) => Some((submission, state)),
            (Some(Submission { job, .. }), None) if !is_complete => {
                return Err(LaunchError::NoSqueue { job, run: run.directory.clone() });
            }
            _ => None,
        };
        let reads = reads(programme, run).iter().map(std::path::absolute).collect::<Result<_, _>>();
        let reads = reads.map_err(|error| LaunchError::Start {
            what: "resolving a path".to_owned(),
            why: error.to_string(),
        })?;
        known.push(Known { is_complete, needs: run.needs.clone(), reads, submitted });
    }
    Ok(known)
}

/// Directories of all runs that a run needs, whether the programme makes them or not.
pub(super) fn reads(programme: &Programme, run: &vljepa_recipes::ProgrammeRun) -> Vec<PathBuf> {
    let made = run.needs.iter().map(|need| programme.runs[*need].directory.clone());
    made.chain(run.needs_elsewhere.iter().cloned()).collect()
}

/// Each run comes after all that it needs.
fn decide(runs: &[Known]) -> Vec<Decision> {
    let mut decisions: Vec<Decision> = Vec::with_capacity(runs.len());
    for run in runs {
        let decision = match &run.submitted {
            _ if run.is_complete => Decision::Complete,
            None => Decision::Submit,
            Some((_, JobState::Gone)) => Decision::SubmitAgain,
            // Its supervisor has checked that the runs that it needs are complete.
            Some((submission, JobState::Running | JobState::Ending(_))) => {
                Decision::Keep(submission.job.clone())
            }
            Some((submission, JobState::Pending(reason))) => {
                let waits_for = |need: &usize| match &decisions[*need] {
                    Decision::Complete => true,
                    Decision::Keep(job) => submission.after_jobs.contains(job),
                    Decision::Submit | Decision::SubmitAgain | Decision::Replace(_) => false,
                };
                let checks_all = run.reads.iter().all(|read| submission.after.contains(read));
                match reason != NEVER && checks_all && run.needs.iter().all(waits_for) {
                    true => Decision::Keep(submission.job.clone()),
                    false => Decision::Replace(submission.job.clone()),
                }
            }
        };
        decisions.push(decision);
    }
    decisions
}

/// Takes the jobs that are to be replaced out of the queue.
///
/// # Errors
/// If one of them has started meanwhile, or cannot be cancelled.
pub(super) async fn cancel_replaced(
    programme: &Programme,
    decisions: &[Decision],
) -> Result<(), LaunchError> {
    let mut replaced = Vec::new();
    for (run, decision) in programme.runs.iter().zip(decisions) {
        if let Decision::Replace(job) = decision {
            let name = run.name();
            terminal::note(&format!(
                "{name}: job {job} waits for other jobs than it must; it is cancelled"
            ));
            replaced.push(job.clone());
        }
    }
    if replaced.is_empty() {
        return Ok(());
    }
    let failed = |why: String| LaunchError::Start { what: "cancelling jobs".to_owned(), why };
    client::cancel_waiting(&replaced).await.map_err(failed)?;
    let states = client::job_states(&replaced).await.unwrap_or_default();
    match states.into_iter().find(|(_, state)| *state != JobState::Gone) {
        Some((job, _)) => Err(LaunchError::Submitted { job, state: "running".to_owned() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Decision, JobState, Known, NEVER, PathBuf, Submission, decide};

    /// A run whose job, if it has one, waits for `after` jobs; `state` is that of the job.
    fn run(needs: &[usize], job: Option<(&str, &[&str], JobState)>) -> Known {
        let reads: Vec<PathBuf> = needs.iter().map(|need| format!("/runs/{need}").into()).collect();
        let submitted = job.map(|(job, after, state)| {
            let after_jobs = after.iter().map(|job| (*job).to_owned()).collect();
            let (job, after) = (job.to_owned(), reads.clone());
            (Submission { job, after, after_jobs, ..Submission::default() }, state)
        });
        Known { is_complete: false, needs: needs.to_vec(), reads, submitted }
    }

    fn pending(reason: &str) -> JobState {
        JobState::Pending(reason.to_owned())
    }

    fn keep(job: &str) -> Decision {
        Decision::Keep(job.to_owned())
    }

    fn replace(job: &str) -> Decision {
        Decision::Replace(job.to_owned())
    }

    #[test]
    fn jobs_that_work_or_wait_for_the_right_jobs_are_kept() {
        let waits = || pending("Dependency");
        let mut runs = [
            run(&[], Some(("1", &[], JobState::Running))),
            run(&[0], Some(("2", &["1"], waits()))),
            run(&[0, 1], Some(("3", &["1", "2"], waits()))),
        ];
        assert_eq!(decide(&runs), [keep("1"), keep("2"), keep("3")]);
        // Slurm has released the job from waiting for a run that is complete now.
        runs[0].is_complete = true;
        runs[1].submitted = Some((Submission::default(), JobState::Gone));
        let decided = decide(&runs);
        assert_eq!(decided, [Decision::Complete, Decision::SubmitAgain, replace("3")]);
    }

    #[test]
    fn a_job_behind_one_that_ended_is_replaced_whatever_it_waits_for_with_all_behind_it() {
        // A failed job, a stopped one whose end Slurm takes for success, and a job that another
        // one continues.
        for (first, reason) in [
            (JobState::Gone, NEVER),
            (JobState::Gone, "Priority"),
            (JobState::Gone, "Dependency"),
            (JobState::Running, "Dependency"),
        ] {
            let runs = [
                run(&[], Some(("4", &[], first.clone()))),
                run(&[0], Some(("2", &["1"], pending(reason)))),
                run(&[1], Some(("3", &["2"], pending("Dependency")))),
            ];
            let decided = decide(&runs);
            assert_eq!(decided[1..], [replace("2"), replace("3")], "{first:?} {reason}");
            assert_eq!(decided[0].is_start(), first == JobState::Gone);
        }
        let mut alone = run(&[], Some(("5", &[], pending(NEVER))));
        assert_eq!(decide(&[alone]), [replace("5")]);
        alone = run(&[], Some(("5", &[], pending("Resources"))));
        assert_eq!(decide(&[alone]), [keep("5")]);
    }

    #[test]
    fn a_job_that_was_submitted_without_its_needs_is_replaced() {
        let mut second = run(&[0], Some(("2", &[], pending("Priority"))));
        let first = || run(&[], None);
        assert_eq!(decide(&[first(), second]), [Decision::Submit, replace("2")]);
        // Nor would it check at its start that a complete run is still complete.
        second = run(&[0], Some(("2", &[], pending("Priority"))));
        second.submitted.as_mut().unwrap().0.after.clear();
        let complete = Known { is_complete: true, ..first() };
        assert_eq!(decide(&[complete, second]), [Decision::Complete, replace("2")]);
    }
}
