//! Decides whether a failed run is restarted, from its failures so far. Pure.

use std::time::Duration;

use vljepa_recipes::schema::RestartPolicy;

use crate::record::events::FaultKind;

/// Longest delay before a restart; delays double up to it.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Fault of an attempt, and the progress before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Whether the attempt saved a new checkpoint.
    pub saved: bool,
    /// Whether at least one step was finished.
    pub trained: bool,
    pub kind: FaultKind,
    pub error: String,
}

/// Reaction to a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Restart after this delay.
    Restart(Duration),
    /// End the run, for this reason.
    GiveUp(String),
}

/// Restart policy and the failures under this launcher.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: RestartPolicy,
    without_progress: u32,
    has_trained: bool,
    last_start_error: Option<String>,
}

impl Restarts {
    /// `has_trained` says whether an attempt under an earlier launcher has trained.
    pub(super) fn new(policy: RestartPolicy, has_trained: bool) -> Self {
        Self { policy, without_progress: 0, has_trained, last_start_error: None }
    }

    /// Number of restarts in a row without a new checkpoint.
    pub(super) fn without_progress(&self) -> u32 {
        self.without_progress
    }

    /// Decides after a failure. A new checkpoint resets the count of restarts. An error that a
    /// worker reports before its first step is a wrong set-up, which a restart would not change; if
    /// an earlier attempt has trained, only the same error twice in a row counts as one.
    pub(super) fn decide(&mut self, failure: &Failure) -> Decision {
        let set_up = match failure.kind {
            FaultKind::Reported | FaultKind::NotStarted | FaultKind::Refused => !failure.trained,
            FaultKind::Died | FaultKind::Hung => false,
            FaultKind::NoRecord | FaultKind::Ended => {
                return Decision::GiveUp("another attempt would end the same way".to_owned());
            }
        };
        let same = self.last_start_error.as_deref() == Some(failure.error.as_str());
        self.last_start_error = set_up.then(|| failure.error.clone());
        if set_up && (!self.has_trained || same) {
            return Decision::GiveUp(
                "no step was finished, so another attempt would fail too".to_owned(),
            );
        }
        self.has_trained |= failure.trained;
        if failure.saved {
            self.without_progress = 0;
        }
        let limit = self.policy.max_without_progress;
        if limit == 0 {
            return Decision::GiveUp("cluster.restart.max_without_progress is 0".to_owned());
        }
        if self.without_progress >= limit {
            return Decision::GiveUp(format!(
                "{limit} restarts in a row saved no new checkpoint (cluster.restart.max_without_progress)"
            ));
        }
        self.without_progress += 1;
        let delay = Duration::from_secs(1 << (self.without_progress - 1).min(10));
        Decision::Restart(delay.min(LONGEST_DELAY))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vljepa_recipes::schema::RestartPolicy;

    use super::{Decision, Failure, Restarts};
    use crate::record::events::FaultKind;

    fn failure(saved: bool, trained: bool, error: &str) -> Failure {
        let kind = if error == "no tokenizer" { FaultKind::Reported } else { FaultKind::Died };
        Failure { saved, trained, kind, error: error.to_owned() }
    }

    fn restarts(max_without_progress: u32) -> Restarts {
        Restarts::new(RestartPolicy { max_without_progress, ..RestartPolicy::default() }, false)
    }

    #[test]
    fn restarts_end_after_the_recipes_number_without_progress() {
        let mut restarts = restarts(2);
        let died = failure(false, true, "rank 1 died");
        assert_eq!(restarts.decide(&died), Decision::Restart(Duration::from_secs(1)));
        assert_eq!(restarts.decide(&died), Decision::Restart(Duration::from_secs(2)));
        assert!(matches!(restarts.decide(&died), Decision::GiveUp(_)));
    }

    #[test]
    fn a_new_checkpoint_sets_the_count_back() {
        let mut restarts = restarts(1);
        for _ in 0..20 {
            let decision = restarts.decide(&failure(true, true, "rank 1 died"));
            assert_eq!(decision, Decision::Restart(Duration::from_secs(1)));
        }
        assert!(matches!(
            restarts.decide(&failure(false, true, "rank 1 died")),
            Decision::GiveUp(_)
        ));
    }

    #[test]
    fn a_wrong_set_up_does_not_restart_but_a_death_does() {
        let mut fresh = restarts(3);
        assert!(matches!(
            fresh.decide(&failure(false, false, "no tokenizer")),
            Decision::GiveUp(_)
        ));
        let mut continued = Restarts::new(RestartPolicy::default(), true);
        let no_tokenizer = failure(false, false, "no tokenizer");
        assert!(matches!(continued.decide(&no_tokenizer), Decision::Restart(_)));
        assert!(matches!(continued.decide(&no_tokenizer), Decision::GiveUp(_)));
        let killed = failure(false, false, "rank 0 died");
        assert!(matches!(restarts(3).decide(&killed), Decision::Restart(_)));
        let mut trained = restarts(3);
        trained.decide(&failure(true, true, "rank 1 died"));
        assert!(matches!(
            trained.decide(&failure(false, false, "no tokenizer")),
            Decision::Restart(_)
        ));
        assert!(matches!(
            trained.decide(&failure(false, false, "no tokenizer")),
            Decision::GiveUp(_)
        ));
    }

    #[test]
    fn a_run_that_a_worker_ended_is_not_restarted() {
        let collapsed = Failure { kind: FaultKind::Ended, ..failure(true, true, "collapsed") };
        assert!(matches!(restarts(3).decide(&collapsed), Decision::GiveUp(_)));
    }

    #[test]
    fn waits_grow_to_a_minute_and_no_policy_means_no_restart() {
        let mut many = restarts(40);
        let waits: Vec<Decision> =
            (0..40).map(|_| many.decide(&failure(false, true, "rank 0 died"))).collect();
        assert_eq!(waits[39], Decision::Restart(Duration::from_secs(60)));
        assert!(matches!(restarts(0).decide(&failure(true, true, "x")), Decision::GiveUp(_)));
    }
}
