//! Where the time of a run went. Each moment from the submission or the first attempt to now
//! belongs to one part, so the parts sum to the elapsed time.

use serde::Serialize;
use vljepa_recipes::protocol::Resumed;

use super::timeline::{Attempt, Gap, Intervals, Timeline};
use crate::record::provenance::AttemptOutcome;
use crate::statistics::to_f64;

/// What works on a run, or will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Nothing.
    Nothing,
    /// A process that has locked the run directory: a launcher, or `vljepa-launch evaluate`.
    Lock,
    /// The run's Slurm job, which waits or runs.
    Job,
}

/// Time of a run up to a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Elapsed {
    /// Seconds since the start of the run or its submission.
    pub(super) seconds: f64,
    pub(super) spent: Spent,
    /// Whether the time goes on.
    pub(super) is_running: bool,
}

/// Parts of the elapsed time of a run, in seconds of rank 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Spent {
    /// Forward and backward passes, collectives and the optimizer.
    pub steps_s: f64,
    /// Waits of steps for their batch.
    pub data_wait_s: f64,
    /// Evaluations.
    pub evaluation_s: f64,
    /// Waits of steps for checkpoints.
    pub checkpoints_s: f64,
    /// Start-up of the first attempt and of those that continue a stopped run: processes, weights,
    /// data, collectives. Of an attempt without a line of metrics it ends with the last rank that
    /// joined or with the loaded checkpoint.
    pub start_up_s: f64,
    /// From the end of an attempt that a fault ended to the first step of the next attempt.
    pub restarts_s: f64,
    /// Steps that were computed and lost in a fault, with their evaluations and checkpoints.
    pub lost_work_s: f64,
    /// Waits of the job in Slurm's queue.
    pub queue_s: f64,
    /// Time in which nothing worked on the run, because it was stopped or had given up.
    pub stopped_s: f64,
    /// Time that no line of metrics or event explains: since the last line of a running attempt,
    /// and the end of the last attempt.
    pub not_logged_s: f64,
}

impl Spent {
    /// Names and seconds of all parts, in the order in which they are shown.
    pub(crate) fn parts(&self) -> [(&'static str, f64); 10] {
        [
            ("steps", self.steps_s),
            ("data wait", self.data_wait_s),
            ("evaluation", self.evaluation_s),
            ("checkpoints", self.checkpoints_s),
            ("start-up", self.start_up_s),
            ("restarts", self.restarts_s),
            ("lost work", self.lost_work_s),
            ("queue", self.queue_s),
            ("stopped", self.stopped_s),
            ("not logged yet", self.not_logged_s),
        ]
    }
}

impl Timeline {
    /// Time from the start to `now_s`, or to the end of the last attempt if the run does not go on.
    pub(super) fn spent(&self, now_s: f64, activity: Activity) -> Elapsed {
        let (Some(first), Some(last)) = (self.attempts.first(), self.attempts.last()) else {
            return self.before_attempts(now_s, activity);
        };
        let is_running = self.goes_on(last, activity);
        let mut sums = Sums::default();
        let start_s = first.submitted_s.unwrap_or(first.started_s).min(first.started_s);
        let mut cursor = start_s;
        let mut before: Option<&Attempt> = None;
        for (number, attempt) in self.attempts.iter().enumerate() {
            let gap = self.gap(before);
            cursor = sums.gap(gap, attempt.submitted_s, cursor, attempt.started_s);
            let intervals = self.intervals.get(number).copied().unwrap_or_default();
            let is_last = number + 1 == self.attempts.len();
            let known = intervals.span.map_or(0.0, |(_, end)| end).max(attempt.last_sign_s);
            let runs = is_last && is_running && attempt.ended.is_none();
            let end_s = match attempt.ended {
                Some(ended) => ended.at_s,
                None if runs => now_s,
                None => known,
            };
            let place = Place {
                after_fault: before.is_some_and(|before| !before.is_ended_well()),
                runs,
                is_followed: !is_last || attempt.restarts,
            };
            cursor = sums.attempt(attempt, &intervals, [cursor, end_s.max(cursor)], place);
            before = Some(attempt);
        }
        if is_running && last.ended.is_some() {
            cursor = sums.gap(self.gap(before), self.submitted_s, cursor, now_s);
        }
        Elapsed { seconds: cursor - start_s, spent: sums.finish(self), is_running }
    }

    /// Whether the time goes on after the last attempt's last event.
    fn goes_on(&self, last: &Attempt, activity: Activity) -> bool {
        match activity {
            Activity::Nothing => false,
            // `evaluate` locks a run that has ended.
            Activity::Lock => last.ended.is_none() || last.restarts,
            // The job of a run that has ended leaves its nodes some seconds later.
            Activity::Job => self.submitted_s.is_some() || self.gap(Some(last)) != Gap::Stopped,
        }
    }

    /// Time before the first attempt, or of a run whose events could not be written.
    fn before_attempts(&self, now_s: f64, activity: Activity) -> Elapsed {
        let is_running = activity != Activity::Nothing;
        let mut sums = Sums::default();
        if let Some((first_s, last_s)) = self.intervals.first().and_then(|sums| sums.span) {
            let end_s = if is_running { now_s.max(last_s) } else { last_s };
            let attempt = Attempt::started(first_s);
            let place = Place { after_fault: false, runs: true, is_followed: false };
            sums.attempt(&attempt, &self.intervals[0], [first_s, end_s], place);
            return Elapsed { seconds: end_s - first_s, spent: sums.finish(self), is_running };
        }
        let since_s = self.submitted_s.filter(|_| is_running);
        let queue_s = since_s.map_or(0.0, |at| (now_s - at).max(0.0));
        let spent = Spent { queue_s, ..Spent::default() };
        Elapsed { seconds: queue_s, spent, is_running }
    }
}

/// Neighbours of an attempt.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Whether a fault ended the attempt before.
    after_fault: bool,
    /// Whether the attempt has not ended.
    runs: bool,
    /// Whether another attempt follows or was announced.
    is_followed: bool,
}

/// Parts of the time while they are summed.
#[derive(Debug, Default)]
struct Sums {
    spent: Spent,
    /// Time between the last kept line before a fault and the first step after it: lost work and
    /// the restart itself.
    fault_s: f64,
}

impl Sums {
    /// Adds the time from `from_s` to `to_s` in which no attempt ran. Returns its end.
    fn gap(&mut self, gap: Gap, submitted_s: Option<f64>, from_s: f64, to_s: f64) -> f64 {
        let to_s = to_s.max(from_s);
        if let Some(submitted_s) = submitted_s {
            let submitted_s = submitted_s.max(from_s).min(to_s);
            self.spent.stopped_s += submitted_s - from_s;
            self.spent.queue_s += to_s - submitted_s;
            return to_s;
        }
        let part = match gap {
            Gap::Fault => &mut self.fault_s,
            Gap::Queue => &mut self.spent.queue_s,
            Gap::Stopped => &mut self.spent.stopped_s,
        };
        *part += to_s - from_s;
        to_s
    }

    /// Adds an attempt that lasted from `start_s` to `end_s`. Returns its end.
    fn attempt(
        &mut self,
        attempt: &Attempt,
        intervals: &Intervals,
        [start_s, end_s]: [f64; 2],
        place: Place,
    ) -> f64 {
        // Without a line, the last event of the start-up is its best known end.
        let ready_s = attempt.ready_s.unwrap_or(end_s);
        let (first_s, last_s) = intervals.span.unwrap_or((ready_s, ready_s));
        let (first_s, last_s) = (first_s.max(start_s).min(end_s), last_s.max(start_s).min(end_s));
        let start_up = first_s - start_s + intervals.start;
        let part = if place.after_fault { &mut self.fault_s } else { &mut self.spent.start_up_s };
        *part += start_up;
        let spent = &mut self.spent;
        spent.steps_s += intervals.steps;
        spent.data_wait_s += intervals.data;
        spent.evaluation_s += intervals.evaluation;
        spent.checkpoints_s += intervals.checkpoints;
        spent.lost_work_s += intervals.again;
        // Damaged lines leave holes. Clocks of two machines can make a small negative one.
        spent.not_logged_s += (last_s - first_s - intervals.sum()).max(0.0);
        let rest = end_s - last_s;
        let saves = attempt.saves.iter().filter(|(time_s, _)| *time_s > last_s);
        let saves = saves.map(|(_, stall_s)| stall_s).sum::<f64>().max(0.0).min(rest);
        match attempt.ended.map(|ended| ended.outcome) {
            Some(AttemptOutcome::Completed) => {
                let scored = attempt.scored_s.map_or(0.0, |at| (at - last_s - saves).max(0.0));
                let scored = scored.min(rest - saves);
                spent.checkpoints_s += saves;
                spent.evaluation_s += scored;
                spent.not_logged_s += rest - saves - scored;
            }
            Some(AttemptOutcome::Stopped) => {
                // Steps up to the stop that did not fill a logging interval.
                spent.checkpoints_s += saves;
                spent.steps_s += rest - saves;
            }
            None if place.runs => spent.not_logged_s += rest,
            None
            | Some(AttemptOutcome::Unfinished | AttemptOutcome::Killed | AttemptOutcome::Failed) => {
                let part =
                    if place.is_followed { &mut self.fault_s } else { &mut spent.not_logged_s };
                *part += rest;
            }
        }
        end_s
    }

    /// Divides the time of faults into lost work and restarts.
    fn finish(mut self, timeline: &Timeline) -> Spent {
        let sum = |part: fn(&Resumed) -> f64| timeline.resumed.iter().map(part).sum::<f64>();
        let kept_s = sum(|resumed| resumed.kept_s).max(0.0).min(self.fault_s);
        let rest = self.fault_s - kept_s;
        // Steps after the last line are known by their number alone.
        let logged = timeline.resumed.iter().map(|resumed| resumed.lost_steps);
        let logged = logged.fold(0, u64::saturating_add);
        let per_step =
            (self.spent.steps_s + self.spent.data_wait_s) / to_f64(timeline.highest_step.max(1));
        let unlogged_s = to_f64(timeline.lost_steps.saturating_sub(logged)) * per_step;
        let lost_s = (sum(|resumed| resumed.lost_s) + unlogged_s).max(0.0).min(rest);
        self.spent.steps_s += kept_s;
        self.spent.lost_work_s += lost_s;
        self.spent.restarts_s += rest - lost_s;
        self.spent
    }
}
