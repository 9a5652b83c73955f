//! How long the parts of an attempt's start take, and whether they stay within the budget.

use std::time::{Duration, Instant};

use vljepa_recipes::protocol::Phase;

use crate::record::events::StartTimes;

/// Seconds that a start may take, for any number of ranks: from the health checks to rank 0's first
/// batch. If nodes or GPUs recover only after a while, the start takes longer, and the warning
/// names the wait with the health checks.
const BUDGET_S: f64 = 120.0;

/// The times at which the parts of a start have ended so far.
#[derive(Debug)]
pub(super) struct StartUp {
    checks: Duration,
    started: Instant,
    connected: Option<Instant>,
    loaded: Option<Instant>,
    phase: Phase,
    ended: bool,
}

impl StartUp {
    /// The processes are being started, after health checks that took `checks`.
    pub(super) fn new(checks: Duration, now: Instant) -> Self {
        let phase = Phase::Start;
        Self { checks, started: now, connected: None, loaded: None, phase, ended: false }
    }

    /// All ranks have connected.
    pub(super) fn connected(&mut self, now: Instant) {
        self.connected = Some(now);
    }

    /// Rank 0 is in `phase`. Returns the times once, when the start has ended.
    pub(super) fn at(&mut self, phase: Phase, now: Instant) -> Option<StartTimes> {
        if self.phase == Phase::Load && phase != Phase::Load {
            self.loaded = Some(now);
        }
        self.phase = phase;
        if self.ended {
            return None;
        }
        match phase {
            Phase::Start | Phase::Load | Phase::Data => None,
            Phase::Forward
            | Phase::Collective
            | Phase::Backward
            | Phase::Optimizer
            | Phase::Checkpoint
            | Phase::Evaluation => {
                self.ended = true;
                let connected = self.connected.unwrap_or(self.started);
                let loaded = self.loaded.unwrap_or(connected);
                let seconds =
                    |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
                Some(StartTimes {
                    checks_s: self.checks.as_secs_f64(),
                    connect_s: seconds(self.started, connected),
                    load_s: seconds(connected, loaded),
                    prepare_s: seconds(loaded, now),
                })
            }
        }
    }
}

/// Warning about a start that took longer than the budget.
pub(super) fn over_budget(times: &StartTimes) -> Option<String> {
    let StartTimes { checks_s, connect_s, load_s, prepare_s } = times;
    let total_s = checks_s + connect_s + load_s + prepare_s;
    (total_s > BUDGET_S).then(|| {
        format!(
            "starting took {total_s:.0} s, more than {BUDGET_S:.0} s: health checks and waiting for nodes {checks_s:.0} s, starting and connecting the ranks {connect_s:.0} s, reading weights {load_s:.0} s, catalogues and the first batch {prepare_s:.0} s"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use vljepa_recipes::protocol::Phase;

    use super::{StartUp, over_budget};

    #[test]
    fn the_parts_of_a_start_are_told_once_and_a_slow_one_is_named() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut start = StartUp::new(Duration::from_secs(3), begin);
        start.connected(after(10));
        let early = [(Phase::Start, 10), (Phase::Load, 12), (Phase::Load, 80), (Phase::Start, 90)];
        for (phase, seconds) in early {
            assert_eq!(start.at(phase, after(seconds)), None);
        }
        assert_eq!(start.at(Phase::Data, after(95)), None);
        let times = start.at(Phase::Forward, after(120)).unwrap();
        let parts = [times.checks_s, times.connect_s, times.load_s, times.prepare_s];
        assert_eq!(parts.map(|s| format!("{s:.1}")), ["3.0", "10.0", "80.0", "30.0"]);
        assert_eq!(start.at(Phase::Backward, after(121)), None);
        let said = over_budget(&times).unwrap();
        assert!(said.contains("took 123 s") && said.contains("reading weights 80 s"), "{said}");
    }

    #[test]
    fn phases_that_were_too_short_to_be_seen_and_runs_that_only_measure_have_times_too() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        for phase in [Phase::Optimizer, Phase::Evaluation] {
            let mut start = StartUp::new(Duration::ZERO, begin);
            start.connected(after(2));
            let times = start.at(phase, after(7)).unwrap();
            let parts = [times.connect_s, times.load_s, times.prepare_s];
            assert_eq!(parts.map(|s| format!("{s:.1}")), ["2.0", "0.0", "5.0"]);
            assert_eq!(over_budget(&times), None);
        }
    }
}
