//! Decides when a watched run has ended and will not go on by itself.

use std::time::Duration;

use tokio::time::Instant;

use super::{Job, State};
use crate::platform::slurm::client::JobState;

/// How long a run whose launcher was killed counts as watched: a user or a script may start it
/// again.
const INTERRUPTED_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a run counts as watched after its job has left the queue: `squeue` does not list a job
/// while it is being requeued.
const GONE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a run that has ended counts as watched while its job leaves its nodes or `squeue` does
/// not answer. A lost node and a restart of Slurm's controller take some minutes.
pub(in crate::commands) const UNCLEAR_TIMEOUT: Duration = Duration::from_secs(600);

/// Since when a watched run is in a state that ends the display.
#[derive(Debug, Default)]
pub(super) struct End {
    since: Option<Instant>,
    /// Since when the job is not in the queue.
    gone_since: Option<Instant>,
}

impl End {
    /// Exit code of the run if it has ended and will not go on by itself. `stopped_by` is the
    /// request that stopped it.
    pub(super) fn code(
        &mut self,
        now: Instant,
        state: State,
        stopped_by: Option<&str>,
        job: Option<&Job>,
    ) -> Option<u8> {
        let answer = job.map(|job| job.state.as_ref());
        let has_left = match answer {
            Some(Some(JobState::Gone | JobState::Ending(_))) => true,
            Some(None) => self.since.is_some(),
            Some(Some(JobState::Pending(_) | JobState::Running)) | None => false,
        };
        let code = match state {
            // The job has ended before its first attempt.
            State::NotStarted if has_left => Some(1),
            _ => state.exit_code(stopped_by),
        };
        let Some(code) = code else {
            *self = Self::default();
            return None;
        };
        let waited = now.duration_since(*self.since.get_or_insert(now));
        let is_over = match answer {
            _ if state == State::Completed => true,
            Some(Some(JobState::Gone)) => {
                now.duration_since(*self.gone_since.get_or_insert(now)) >= GONE_TIMEOUT
            }
            // The answer before this question still holds.
            Some(None) => waited >= UNCLEAR_TIMEOUT,
            Some(Some(_)) => {
                self.gone_since = None;
                waited >= UNCLEAR_TIMEOUT
            }
            None if state == State::Interrupted => waited >= INTERRUPTED_TIMEOUT,
            None => true,
        };
        is_over.then_some(code)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{End, Job, JobState, State};

    /// Seconds after the start at which a look at the run ended the display, and the exit code. The
    /// run is looked at every second.
    fn ended(state: State, job: impl Fn(u64) -> Option<Job>) -> Option<(u64, u8)> {
        let (mut end, start) = (End::default(), Instant::now());
        (0..2000).find_map(|second| {
            let now = start + Duration::from_secs(second);
            Some((second, end.code(now, state, Some("TERM"), job(second).as_ref())?))
        })
    }

    fn job(state: Option<JobState>) -> Option<Job> {
        Some(Job { id: "7".to_owned(), state })
    }

    fn leaving() -> Option<JobState> {
        Some(JobState::Ending("COMPLETING".to_owned()))
    }

    #[test]
    fn a_run_without_a_job_ends_at_once_unless_it_may_be_started_again() {
        assert_eq!(ended(State::Completed, |_| None), Some((0, 0)));
        assert_eq!(ended(State::Stopped, |_| None), Some((0, 143)));
        assert_eq!(ended(State::Interrupted, |_| None), Some((30, 1)));
        for state in [State::NotStarted, State::Running, State::Queued] {
            assert_eq!(ended(state, |_| None), None, "{state:?}");
        }
    }

    #[test]
    fn a_job_that_left_the_queue_before_its_first_attempt_ends_the_display() {
        let gone = |_| job(Some(JobState::Gone));
        assert_eq!(ended(State::NotStarted, gone), Some((15, 1)));
        assert_eq!(ended(State::NotStarted, |_| job(leaving())), Some((600, 1)));
        assert_eq!(ended(State::NotStarted, |_| job(None)), None, "squeue does not answer");
        assert_eq!(ended(State::Failed, gone), Some((15, 1)));
        assert_eq!(ended(State::Completed, gone), Some((0, 0)));
    }

    #[test]
    fn a_job_is_gone_only_if_squeue_says_so() {
        // The time of an unanswered question is no absence from the queue.
        let answers =
            |from: u64| move |second| job(if second < from { None } else { Some(JobState::Gone) });
        assert_eq!(ended(State::Stopped, answers(100)), Some((115, 143)));
        assert_eq!(ended(State::Stopped, |_| job(None)), Some((600, 143)));
        // Nor does it prolong one.
        let flickers = |second: u64| job(second.is_multiple_of(2).then_some(JobState::Gone));
        assert_eq!(ended(State::NotStarted, flickers), Some((16, 1)));
        // A job leaves its nodes for 100 s and is requeued then.
        let requeued =
            |second: u64| job(if second < 100 { leaving() } else { Some(JobState::Gone) });
        assert_eq!(ended(State::Stopped, requeued), Some((115, 143)));
    }

    #[test]
    fn a_job_that_never_leaves_its_nodes_does_not_hold_the_display_for_ever() {
        assert_eq!(ended(State::Failed, |_| job(leaving())), Some((600, 1)));
    }
}
