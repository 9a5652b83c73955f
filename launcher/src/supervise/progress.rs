//! The progress line: stage, step, loss, samples/s, time left. Without a terminal, a plain line
//! every few seconds.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vljepa_recipes::protocol::{Metrics, Phase};
use vljepa_recipes::schema::Recipe;

use crate::record::rates::{LoggedInterval, Recent, StagePlan};
use crate::terminal;

/// Shortest time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Smallest share of time waiting for data that is shown.
const MIN_SHOWN_WAIT: f64 = 0.05;

/// The progress line of a run.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    total_steps: u64,
    plan: StagePlan,
    newest: Option<Metrics>,
    recent: Recent,
    phase: Phase,
    stopping: bool,
    last_plain: Option<Instant>,
}

impl Progress {
    pub(super) fn new(recipe: &Recipe) -> Self {
        let total_steps = recipe.total_steps();
        let bar =
            terminal::is_watched().then(|| {
                let target = ProgressDrawTarget::stderr_with_hz(8);
                let bar = ProgressBar::with_draw_target(Some(total_steps), target);
                let style = "{prefix:.bold} {bar:24.cyan/8} {pos}/{len} {wide_msg}";
                bar.with_style(ProgressStyle::with_template(style).map_or_else(
                    |_| ProgressStyle::default_bar(),
                    |style| style.progress_chars("━━╌"),
                ))
            });
        Self {
            bar,
            total_steps,
            plan: StagePlan::of(recipe),
            newest: None,
            recent: Recent::default(),
            phase: Phase::Start,
            stopping: false,
            last_plain: None,
        }
    }

    /// Prints a message above the progress line.
    pub(super) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| terminal::note(text)),
            None => terminal::note(text),
        }
    }

    /// Updates the position of rank 0.
    pub(super) fn at(&mut self, step: u64, phase: Phase) {
        let quiet = !is_step(phase) && self.phase != phase;
        self.phase = phase;
        if let Some(bar) = &self.bar {
            bar.set_position(step.min(self.total_steps));
            bar.set_message(self.message());
        } else if quiet && self.newest.is_some() {
            self.plain();
        }
    }

    /// Updates the metrics. Rates are medians of recent intervals.
    pub(super) fn metrics(&mut self, metrics: Metrics) {
        self.recent.add(&LoggedInterval::from(&metrics));
        let step = metrics.step;
        let last = step == self.total_steps;
        if let Some(bar) = &self.bar {
            bar.set_prefix(metrics.stage.clone());
        }
        self.newest = Some(metrics);
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(self.message());
            }
            None if last || self.last_plain.is_none_or(|at| at.elapsed() >= PLAIN_INTERVAL) => {
                self.plain()
            }
            None => {}
        }
    }

    /// Shows that a stop was requested.
    pub(super) fn stopping(&mut self) {
        self.stopping = true;
    }

    /// Resets rates and phase for a new attempt.
    pub(super) fn restart(&mut self) {
        self.recent.restart();
        self.phase = Phase::Start;
        if let Some(bar) = &self.bar {
            bar.set_message(self.message());
        }
    }

    /// Removes the progress line.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Removes the progress line and returns `ending`.
    pub(super) fn end<T>(&self, ending: T) -> T {
        self.finish();
        ending
    }

    fn plain(&mut self) {
        self.last_plain = Some(Instant::now());
        if let Some(metrics) = &self.newest {
            let at = format!("{} {}/{}", metrics.stage, metrics.step, self.total_steps);
            terminal::note(&format!("{at}  {}", self.message()));
        }
    }

    fn message(&self) -> String {
        let mut parts = Vec::new();
        if let Some(metrics) = &self.newest {
            parts.push(format!("loss {:.4}", metrics.loss));
            if let Some(rate) = self.recent.samples_per_s() {
                parts.push(format!("{rate:.0} samples/s"));
                let left = self.plan.left(metrics.step, &metrics.stage, rate);
                parts.extend(left.map(|left| {
                    let about = if left.later_stages > 0 { "about " } else { "" };
                    format!("{about}{} left", terminal::duration(left.total_s().round()))
                }));
            }
            parts.extend(self.recent.tflops().map(|tflops| speed(tflops, self.recent.mfu())));
            let wait = self.recent.data_wait_fraction();
            if let Some(wait) = wait.filter(|wait| *wait > MIN_SHOWN_WAIT) {
                parts.push(waiting_for_data(wait, metrics));
            }
            if metrics.bad_samples > 0 {
                parts.push(format!("{} bad samples", metrics.bad_samples));
            }
        }
        match self.phase {
            Phase::Start => parts.push("starting".to_owned()),
            Phase::Load => parts.push("loading weights".to_owned()),
            Phase::Checkpoint => parts.push("saving".to_owned()),
            Phase::Evaluation => parts.push("evaluating".to_owned()),
            Phase::Data
            | Phase::Forward
            | Phase::Collective
            | Phase::Backward
            | Phase::Optimizer => {}
        }
        if self.stopping {
            parts.push("stopping at the next step boundary (Ctrl-C: at once)".to_owned());
        }
        parts.join(" · ")
    }
}

/// Recent share of the time in which steps waited for data, with what the reader threads did in the
/// newest interval.
fn waiting_for_data(recent: f64, metrics: &Metrics) -> String {
    let share = format!("waiting for data {:.0}%", 100.0 * recent);
    let Some(data) = &metrics.data else { return share };
    let Some((kind, part, of_work)) = data.limit() else { return share };
    format!(
        "{share} ({} of {} batches ready, {:.1} MB/s; {} {}: {:.0}% of the work)",
        data.ready_batches,
        data.prefetch_batches,
        data.bytes_per_s() / 1e6,
        kind.name(),
        part.name(),
        100.0 * of_work
    )
}

/// Model operations per second of a rank, and the MFU if the device's peak is known.
fn speed(tflops: f64, mfu: Option<f64>) -> String {
    let rate = if tflops < 1.0 {
        format!("{:.1} GFLOP/s", 1e3 * tflops)
    } else {
        format!("{tflops:.1} TFLOP/s")
    };
    mfu.map_or_else(|| rate.clone(), |mfu| format!("{rate} ({:.1}% MFU)", 100.0 * mfu))
}

fn is_step(phase: Phase) -> bool {
    match phase {
        Phase::Start | Phase::Load | Phase::Checkpoint | Phase::Evaluation => false,
        Phase::Data | Phase::Forward | Phase::Collective | Phase::Backward | Phase::Optimizer => {
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::{DataPart, DataWork, KindWork, Metrics};
    use vljepa_recipes::schema::Visual;

    use super::waiting_for_data;
    use crate::record::history::tests::line;

    #[test]
    fn a_wait_for_data_is_shown_with_what_takes_longest() {
        let metrics = Metrics { data_wait_fraction: 0.3, ..line(1, 2.0) };
        assert_eq!(waiting_for_data(0.3, &metrics), "waiting for data 30%");
        let clips = KindWork {
            samples: 10,
            bytes: 24_000_000,
            seconds: [(DataPart::Read, 1.0), (DataPart::Decode, 4.0)].into(),
        };
        let data = DataWork {
            seconds: 2.0,
            ready_batches: 0,
            prefetch_batches: 4,
            threads: 3,
            kinds: [(Visual::Video, clips)].into(),
        };
        let metrics = Metrics { data: Some(data), ..metrics };
        assert_eq!(
            waiting_for_data(0.3, &metrics),
            "waiting for data 30% (0 of 4 batches ready, 12.0 MB/s; video decode: 80% of the work)"
        );
    }
}
