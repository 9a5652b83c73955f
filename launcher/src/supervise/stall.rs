//! When a rank counts as hung: limits learned from the run's own steps. Pure; the caller brings the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::Phase;

/// Steps that are remembered.
const RECENT: usize = 50;

/// Bounds of the learned limits.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// A rank may stand still for this many times the slowest recent step: 10.
    pub factor: u32,
    /// … and never less than this: 60 s.
    pub floor: Duration,
    /// Until the first step is done, and for phases whose duration says nothing about a step's (checkpoint, evaluation):
    /// `cluster.start_timeout_s`.
    pub start: Duration,
}

impl Limits {
    pub(crate) fn new(start_timeout_s: u64) -> Self {
        Self {
            factor: 10,
            floor: Duration::from_secs(60),
            start: Duration::from_secs(start_timeout_s),
        }
    }
}

/// Durations of the run's recent steps.
#[derive(Debug, Default)]
pub(super) struct StepTimes {
    recent: VecDeque<Duration>,
    longest_aside: Duration,
}

impl StepTimes {
    /// A step took so long.
    pub(super) fn step(&mut self, duration: Duration) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(duration);
    }

    /// A checkpoint or an evaluation took so long.
    pub(super) fn aside(&mut self, duration: Duration) {
        self.longest_aside = self.longest_aside.max(duration);
    }

    /// How long a rank may stay in one phase of one step.
    pub(super) fn limit(&self, limits: &Limits, phase: Phase) -> Duration {
        let slowest = self.recent.iter().max().copied();
        match (phase, slowest) {
            (Phase::Start, _) | (_, None) => limits.start.max(limits.floor),
            (Phase::Checkpoint | Phase::Evaluation, Some(_)) => {
                limits.start.max(limits.floor).max(self.longest_aside * limits.factor)
            }
            (
                Phase::Data
                | Phase::Forward
                | Phase::Collective
                | Phase::Backward
                | Phase::Optimizer,
                Some(slowest),
            ) => limits.floor.max(slowest * limits.factor),
        }
    }

    /// How long a rank that reports every second may say nothing at all.
    pub(super) fn silence(limits: &Limits, phase: Phase) -> Duration {
        if phase == Phase::Start { limits.start.max(limits.floor) } else { limits.floor }
    }
}

/// Where a rank is, since when, and when it was last heard.
#[derive(Debug, Clone)]
pub(super) struct Position {
    pub(super) step: u64,
    pub(super) phase: Phase,
    /// Since when it is in this phase of this step.
    pub(super) since: Instant,
    /// When it last said anything.
    pub(super) heard: Instant,
}

/// A rank that stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hang {
    pub(super) rank: usize,
    pub(super) step: u64,
    pub(super) phase: Phase,
    pub(super) still_for: Duration,
    /// It does not even report.
    pub(super) silent: bool,
}

/// The rank to blame when one stands still too long: a silent one before one that reports, then the one that is furthest
/// behind, and one that computes before one that waits in a collective, because the others wait for it there.
pub(super) fn find_hang<'a>(
    ranks: impl Iterator<Item = (usize, &'a Position)> + Clone,
    times: &StepTimes,
    limits: &Limits,
    now: Instant,
) -> Option<Hang> {
    let silence = |p: &Position| now.saturating_duration_since(p.heard);
    let still = |p: &Position| now.saturating_duration_since(p.since);
    let is_silent = |p: &Position| silence(p) > StepTimes::silence(limits, p.phase);
    // Ranks wait for each other, so all have the time of the one that may take longest.
    let limit = ranks.clone().map(|(_, p)| times.limit(limits, p.phase)).max()?;
    let stuck = ranks.clone().any(|(_, p)| is_silent(p) || still(p) > limit);
    if !stuck {
        return None;
    }
    // A rank that missed several heartbeats while others send theirs is the cause even before its own limit.
    let quiet = |p: &Position| silence(p) > Duration::from_secs(5).min(limits.floor / 2);
    let (rank, position) =
        ranks.min_by_key(|(_, p)| (!quiet(p), p.step, p.phase == Phase::Collective, p.since))?;
    Some(Hang {
        rank,
        step: position.step,
        phase: position.phase,
        still_for: still(position),
        silent: quiet(position),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use vljepa_recipes::protocol::Phase;

    use super::{Limits, Position, StepTimes, find_hang};

    const SECOND: Duration = Duration::from_secs(1);

    fn times(steps: &[u64]) -> StepTimes {
        let mut times = StepTimes::default();
        steps.iter().for_each(|s| times.step(SECOND * u32::try_from(*s).unwrap()));
        times
    }

    /// A rank that has been in a phase for `still` seconds and was heard `heard` seconds ago.
    fn position(step: u64, phase: Phase, still: u32, heard: u32, now: Instant) -> Position {
        Position { step, phase, since: now - SECOND * still, heard: now - SECOND * heard }
    }

    fn hung(ranks: &[Position], times: &StepTimes, now: Instant) -> Option<(usize, Phase)> {
        let limits = Limits::new(600);
        find_hang(ranks.iter().enumerate(), times, &limits, now).map(|h| (h.rank, h.phase))
    }

    #[test]
    fn the_limit_is_ten_slowest_steps_and_at_least_a_minute() {
        let limits = Limits::new(600);
        assert_eq!(times(&[1, 2, 1]).limit(&limits, Phase::Forward), SECOND * 60);
        assert_eq!(times(&[1, 20, 1]).limit(&limits, Phase::Forward), SECOND * 200);
        assert_eq!(times(&[]).limit(&limits, Phase::Forward), SECOND * 600);
        assert_eq!(times(&[1]).limit(&limits, Phase::Evaluation), SECOND * 600);
        let mut forgets = times(&[20]);
        (0..50).for_each(|_| forgets.step(SECOND));
        assert_eq!(forgets.limit(&limits, Phase::Forward), SECOND * 60);
    }

    #[test]
    fn a_stopped_rank_is_named_although_the_others_wait_in_a_collective() {
        let now = Instant::now() + SECOND * 1000;
        let ranks = [
            position(7, Phase::Collective, 62, 1, now),
            position(7, Phase::Backward, 61, 61, now),
            position(7, Phase::Collective, 63, 0, now),
        ];
        assert_eq!(hung(&ranks, &times(&[1]), now), Some((1, Phase::Backward)));
    }

    #[test]
    fn the_rank_behind_is_named_when_all_report() {
        let now = Instant::now() + SECOND * 1000;
        let ranks =
            [position(8, Phase::Collective, 62, 1, now), position(7, Phase::Data, 61, 1, now)];
        assert_eq!(hung(&ranks, &times(&[1]), now), Some((1, Phase::Data)));
        let still_in_time =
            [position(8, Phase::Collective, 59, 1, now), position(7, Phase::Data, 58, 1, now)];
        assert_eq!(hung(&still_in_time, &times(&[1]), now), None);
        assert_eq!(hung(&ranks, &times(&[7]), now), None, "slow steps learn a longer limit");
    }

    #[test]
    fn silence_in_an_evaluation_is_a_hang_but_its_length_is_not() {
        let now = Instant::now() + SECOND * 1000;
        let reporting = [position(9, Phase::Evaluation, 300, 1, now)];
        assert_eq!(hung(&reporting, &times(&[1]), now), None);
        let waiting = [
            position(9, Phase::Evaluation, 300, 1, now),
            position(9, Phase::Collective, 300, 1, now),
        ];
        assert_eq!(hung(&waiting, &times(&[1]), now), None);
        let silent = [position(9, Phase::Evaluation, 300, 61, now)];
        assert_eq!(hung(&silent, &times(&[1]), now), Some((0, Phase::Evaluation)));
    }
}
