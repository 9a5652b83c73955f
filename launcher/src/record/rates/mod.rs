//! Rates of a run and where its time went, from its metrics and events. `status`, the progress
//! line, the report and the Prometheus endpoint show them.
//!
//! `interval` is the part of a line of metrics that is used here, `recent` has medians of the
//! newest intervals, `timeline` and `spent` divide the time since the start among its parts, and
//! `left` estimates the time to the end.

mod interval;
mod left;
mod recent;
mod spent;
#[cfg(test)]
mod tests;
mod timeline;

use serde::Serialize;
use vljepa_recipes::clock;
use vljepa_recipes::protocol::Metrics;
use vljepa_recipes::schema::{Recipe, Scheduler};

pub(crate) use interval::{LoggedInterval, working_rate};
pub(crate) use left::{Left, StagePlan};
pub(crate) use recent::Recent;
pub(crate) use spent::{Activity, Spent};
pub(crate) use timeline::steps_again;

use super::events::Line;
use crate::statistics::to_f64;
use crate::terminal::thousands;
use timeline::Timeline;

/// Rates of a run at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Number of samples trained on.
    pub samples: u64,
    /// Median of the newest intervals of the current stage and attempt, or `None` before the first.
    pub recent_samples_per_s: Option<f64>,
    /// Number of these intervals, at most [`Recent::WINDOW`].
    pub recent_intervals: usize,
    /// `samples` divided by `elapsed_s`, or `None` before the first interval.
    pub whole_run_samples_per_s: Option<f64>,
    /// Seconds since the start of the run or its submission to Slurm, over all attempts. They
    /// end with the last attempt if no other one follows.
    pub elapsed_s: f64,
    /// Whether `elapsed_s` goes on: an attempt runs or the next one is awaited.
    #[serde(skip)]
    pub is_running: bool,
    /// Parts of `elapsed_s`.
    pub spent: Spent,
    /// Number of steps that were computed, lost and computed again.
    pub lost_steps: u64,
    /// Time to the end of training, or `None` if the rate is unknown or all steps are done.
    pub left: Option<Left>,
}

impl Summary {
    /// Smallest part of the elapsed time, in seconds, that has a row of its own.
    const MIN_SHOWN_S: f64 = 0.05;

    /// Names and seconds of the parts of the elapsed time that are long enough to be shown.
    pub(crate) fn rows(&self) -> Vec<(String, f64)> {
        // Steps that were lost are named even if they were short.
        let lost = |name: &str| name == "lost work" && self.lost_steps > 0;
        let parts = self.spent.parts().into_iter();
        let parts = parts.filter(|(name, time)| *time >= Self::MIN_SHOWN_S || lost(name));
        let name = |name: &str| match (name, self.lost_steps) {
            ("lost work", 1..) => format!("{name}, {} steps", thousands(self.lost_steps)),
            ("not logged yet", _) if !self.is_running => "other".to_owned(),
            _ => name.to_owned(),
        };
        parts.map(|(part, seconds)| (name(part), seconds)).collect()
    }

    /// Intervals of which `recent_samples_per_s` is the rate, to be read after it.
    pub(crate) fn window(&self) -> String {
        match self.recent_intervals {
            1 => "in the last interval".to_owned(),
            count => format!("median of the last {count} intervals"),
        }
    }
}

/// Rates of a run, updated with each new line of its metrics and events.
#[derive(Debug)]
pub(crate) struct Rates {
    plan: StagePlan,
    recent: Recent,
    newest: Option<LoggedInterval>,
    timeline: Timeline,
}

impl Rates {
    /// Rates of a run that has not started.
    pub(crate) fn new(recipe: &Recipe) -> Self {
        Self {
            plan: StagePlan::of(recipe),
            recent: Recent::default(),
            newest: None,
            timeline: Timeline::new(recipe.cluster.scheduler == Scheduler::Slurm),
        }
    }

    /// Rates of a run with the given history.
    pub(crate) fn of(recipe: &Recipe, events: &[Line], metrics: &[Metrics]) -> Self {
        let mut rates = Self::new(recipe);
        events.iter().for_each(|line| rates.event(line));
        metrics.iter().for_each(|line| rates.interval(LoggedInterval::from(line)));
        rates
    }

    /// Takes the next event. The event of an attempt's start is taken before its intervals.
    pub(crate) fn event(&mut self, line: &Line) {
        self.timeline.event(line);
    }

    /// Takes the next line of metrics.
    pub(crate) fn interval(&mut self, interval: LoggedInterval) {
        if self.timeline.interval(&interval) {
            self.recent.restart();
        }
        self.recent.add(&interval);
        self.newest = Some(interval);
    }

    /// Forgets all lines of metrics, because they will be read again.
    pub(crate) fn forget_intervals(&mut self) {
        self.timeline.forget_intervals();
        self.recent.restart();
        self.newest = None;
    }

    /// Medians of the newest intervals.
    pub(crate) fn recent(&self) -> &Recent {
        &self.recent
    }

    /// The newest line of metrics.
    pub(crate) fn newest(&self) -> Option<&LoggedInterval> {
        self.newest.as_ref()
    }

    /// [`Self::summary`] of this moment.
    pub(crate) fn now(&self, activity: Activity) -> Summary {
        self.summary(clock::now().as_duration().as_secs_f64(), activity)
    }

    /// Rates at the moment `now_s`, in seconds since 1970.
    pub(crate) fn summary(&self, now_s: f64, activity: Activity) -> Summary {
        let elapsed = self.timeline.spent(now_s, activity);
        let newest = self.newest.as_ref();
        let samples = newest.map_or(0, |newest| newest.samples);
        let recent_samples_per_s = self.recent.samples_per_s();
        let left = newest.zip(recent_samples_per_s);
        Summary {
            samples,
            recent_samples_per_s,
            recent_intervals: self.recent.intervals(),
            whole_run_samples_per_s: newest
                .map(|newest| to_f64(newest.samples) / elapsed.seconds)
                .filter(|rate| rate.is_finite()),
            elapsed_s: elapsed.seconds,
            is_running: elapsed.is_running,
            spent: elapsed.spent,
            lost_steps: self.timeline.lost_steps,
            left: left.and_then(|(newest, rate)| self.plan.left(newest.step, &newest.stage, rate)),
        }
    }
}
