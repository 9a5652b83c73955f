//! Attempts of a run and sums over their intervals, from its events and metrics.

use vljepa_recipes::clock;
use vljepa_recipes::protocol::{Phase, Resumed};

use super::LoggedInterval;
use crate::record::events::{Event, Line};
use crate::record::provenance::AttemptOutcome;

/// Number of steps that an attempt computes again: logged ones, or more if the attempt before it
/// had reached `reached` steps.
pub(crate) fn steps_again(resumed: &Resumed, reached: u64) -> u64 {
    resumed.lost_steps.max(reached.saturating_sub(resumed.from_step))
}

/// Attempts of a run and their intervals.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    on_slurm: bool,
    pub(super) attempts: Vec<Attempt>,
    /// Intervals of each attempt. Those before the first attempt's event are counted for the first.
    pub(super) intervals: Vec<Intervals>,
    /// Time of a submission after which no attempt has started yet.
    pub(super) submitted_s: Option<f64>,
    pub(super) resumed: Vec<Resumed>,
    pub(super) lost_steps: u64,
    pub(super) highest_step: u64,
}

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) submitted_s: Option<f64>,
    pub(super) started_s: f64,
    /// Time of the last event of the start-up: a rank joined, or weights were loaded.
    pub(super) ready_s: Option<f64>,
    pub(super) ended: Option<Ended>,
    /// Time of the last event or dropped line.
    pub(super) last_sign_s: f64,
    /// Times of checkpoints, and how long the step waited for each.
    pub(super) saves: Vec<(f64, f64)>,
    pub(super) scored_s: Option<f64>,
    /// Whether the supervisor has announced the next attempt.
    pub(super) restarts: bool,
    /// Whether the job was requeued because its supervisor was lost.
    requeued: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) at_s: f64,
    pub(super) outcome: AttemptOutcome,
    step: u64,
}

/// Sums over the intervals of an attempt, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Intervals {
    /// Start of the first interval and end of the last one.
    pub(super) span: Option<(f64, f64)>,
    pub(super) start: f64,
    pub(super) steps: f64,
    pub(super) data: f64,
    pub(super) evaluation: f64,
    pub(super) checkpoints: f64,
    /// Intervals of steps that an earlier line of the file had already counted.
    pub(super) again: f64,
}

impl Intervals {
    pub(super) fn sum(&self) -> f64 {
        self.start + self.steps + self.data + self.evaluation + self.checkpoints + self.again
    }
}

/// Cause of a time without an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    Fault,
    Queue,
    Stopped,
}

impl Timeline {
    pub(super) fn new(on_slurm: bool) -> Self {
        Self { on_slurm, ..Self::default() }
    }

    /// Number of the attempt that was running at a time, counted from 0.
    fn attempt_at(&self, time_s: f64) -> usize {
        self.attempts.iter().rposition(|attempt| attempt.started_s <= time_s).unwrap_or(0)
    }

    pub(super) fn event(&mut self, line: &Line) {
        let Some(time_s) = clock::seconds_of(&line.time) else { return };
        match &line.event {
            Event::Submitted { .. } => self.submitted_s = Some(time_s),
            Event::AttemptStarted { .. } => {
                let submitted_s = self.submitted_s.take();
                self.attempts.push(Attempt { submitted_s, ..Attempt::started(time_s) });
            }
            Event::Resumed(resumed) => self.resume(resumed),
            Event::NodeLeftOut { .. }
            | Event::RankJoined { .. }
            | Event::Refused { .. }
            | Event::Initialised { .. }
            | Event::Started(_)
            | Event::Saved { .. }
            | Event::Scores { .. }
            | Event::Warning { .. }
            | Event::Straggler(_)
            | Event::ShardsChanged(_)
            | Event::StopRequested { .. }
            | Event::SupervisorLost { .. }
            | Event::Fault(_)
            | Event::Restart { .. }
            | Event::AttemptEnded { .. } => {}
        }
        let Some(attempt) = self.attempts.last_mut() else { return };
        match &line.event {
            Event::RankJoined { .. } | Event::Initialised { .. } | Event::Resumed(_) => {
                attempt.ready_s = Some(time_s);
            }
            Event::Saved { stall_s, .. } => attempt.saves.push((time_s, *stall_s)),
            Event::Scores { .. } => attempt.scored_s = Some(time_s),
            Event::Restart { .. } => attempt.restarts = true,
            Event::SupervisorLost { .. } => attempt.requeued = true,
            Event::AttemptEnded { outcome, step } => {
                attempt.ended = Some(Ended { at_s: time_s, outcome: *outcome, step: *step });
            }
            // A guard and a submission write their events when the attempt may have ended.
            Event::Submitted { .. } => return,
            _ => {}
        }
        if !matches!(line.event, Event::SupervisorLost { .. }) {
            attempt.last_sign_s = attempt.last_sign_s.max(time_s);
        }
    }

    fn resume(&mut self, resumed: &Resumed) {
        let until_s = resumed.lost_until.as_deref().and_then(clock::seconds_of);
        if let Some(until_s) = until_s {
            let number = self.attempt_at(until_s);
            if let Some(attempt) = self.attempts.get_mut(number) {
                attempt.last_sign_s = attempt.last_sign_s.max(until_s);
            }
        }
        let reached = match self.attempts.as_slice() {
            [.., before, _] => before.ended.map_or(0, |ended| ended.step),
            [] | [_] => 0,
        };
        self.lost_steps = self.lost_steps.saturating_add(steps_again(resumed, reached));
        self.resumed.push(resumed.clone());
    }

    /// Adds an interval. Returns whether it is the first one of its attempt.
    pub(super) fn interval(&mut self, interval: &LoggedInterval) -> bool {
        let Some(end_s) = interval.end_s() else { return false };
        let number = self.attempt_at(end_s);
        if self.intervals.len() <= number {
            self.intervals.resize(number + 1, Intervals::default());
        }
        let sums = &mut self.intervals[number];
        let is_first = sums.span.is_none();
        let start_s = end_s - interval.seconds();
        let from_s = sums.span.map_or(start_s, |(first, _)| first);
        sums.span = Some((from_s, end_s));
        sums.start += interval.in_phase(Phase::Start);
        if interval.step <= self.highest_step {
            sums.again += interval.seconds() - interval.in_phase(Phase::Start);
            return is_first;
        }
        self.highest_step = interval.step;
        for (phase, seconds) in &interval.phase_s {
            match phase {
                Phase::Start | Phase::Load => {}
                Phase::Data => sums.data += seconds,
                Phase::Forward | Phase::Collective | Phase::Backward | Phase::Optimizer => {
                    sums.steps += seconds;
                }
                Phase::Checkpoint => sums.checkpoints += seconds,
                Phase::Evaluation => sums.evaluation += seconds,
            }
        }
        is_first
    }

    /// Cause of the time between `before` and the next attempt.
    pub(super) fn gap(&self, before: Option<&Attempt>) -> Gap {
        let Some(before) = before else { return Gap::Queue };
        match before.ended.map(|ended| ended.outcome) {
            _ if before.restarts => Gap::Fault,
            _ if before.requeued => Gap::Queue,
            None | Some(AttemptOutcome::Unfinished) => Gap::Fault,
            Some(AttemptOutcome::Stopped | AttemptOutcome::Killed) if self.on_slurm => Gap::Queue,
            Some(
                AttemptOutcome::Stopped
                | AttemptOutcome::Killed
                | AttemptOutcome::Completed
                | AttemptOutcome::Failed,
            ) => Gap::Stopped,
        }
    }

    pub(super) fn forget_intervals(&mut self) {
        self.intervals.clear();
        self.highest_step = 0;
    }
}

impl Attempt {
    /// An attempt that started at a time and of which nothing else is known.
    pub(super) fn started(started_s: f64) -> Self {
        Self {
            submitted_s: None,
            started_s,
            ready_s: None,
            ended: None,
            last_sign_s: started_s,
            saves: Vec::new(),
            scored_s: None,
            restarts: false,
            requeued: false,
        }
    }

    /// Whether the attempt lost no work.
    pub(super) fn is_ended_well(&self) -> bool {
        let outcome = self.ended.map(|ended| ended.outcome);
        matches!(outcome, Some(AttemptOutcome::Stopped | AttemptOutcome::Completed))
    }
}
