//! The progress line: stage, step, loss, samples/s, time left. Without a terminal, a plain line
//! every few seconds.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vljepa_recipes::protocol::{Metrics, Phase};
use vljepa_recipes::schema::Recipe;

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
    total_samples: u64,
    newest: Option<Metrics>,
    samples_per_s: f64,
    phase: Phase,
    stopping: bool,
    last_plain: Option<Instant>,
}

impl Progress {
    pub(super) fn new(recipe: &Recipe) -> Self {
        let total_steps = recipe.total_steps();
        let total_samples =
            recipe.stages.iter().map(|stage| stage.steps * stage.batch as u64).sum();
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
            total_samples,
            newest: None,
            samples_per_s: 0.0,
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

    /// Updates the metrics; the rate is a moving average.
    pub(super) fn metrics(&mut self, metrics: Metrics) {
        let rate = metrics.samples_per_s;
        if rate.is_finite() && rate > 0.0 {
            let known = self.samples_per_s;
            self.samples_per_s = if known > 0.0 { 0.8 * known + 0.2 * rate } else { rate };
        }
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

    /// Resets rate and phase for a new attempt.
    pub(super) fn restart(&mut self) {
        self.samples_per_s = 0.0;
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
            parts.push(format!("{:.0} samples/s", self.samples_per_s));
            if self.samples_per_s > 0.0 {
                #[expect(clippy::cast_precision_loss, reason = "an estimate")]
                let left = self.total_samples.saturating_sub(metrics.samples) as f64;
                parts.push(format!(
                    "{} left",
                    terminal::duration((left / self.samples_per_s).round())
                ));
            }
            parts.extend(speed(metrics));
            if metrics.data_wait_fraction > MIN_SHOWN_WAIT {
                parts.push(waiting_for_data(metrics));
            }
            if metrics.bad_samples > 0 {
                parts.push(format!("{} bad samples", metrics.bad_samples));
            }
        }
        match self.phase {
            Phase::Start => parts.push("starting".to_owned()),
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

/// Share of the time in which steps waited for data, with what the reader threads did meanwhile.
fn waiting_for_data(metrics: &Metrics) -> String {
    let share = format!("waiting for data {:.0}%", 100.0 * metrics.data_wait_fraction);
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
fn speed(metrics: &Metrics) -> Option<String> {
    let tflops = metrics.tflops?;
    let rate = if tflops < 1.0 {
        format!("{:.1} GFLOP/s", 1e3 * tflops)
    } else {
        format!("{tflops:.1} TFLOP/s")
    };
    Some(
        metrics.mfu.map_or_else(|| rate.clone(), |mfu| format!("{rate} ({:.1}% MFU)", 100.0 * mfu)),
    )
}

fn is_step(phase: Phase) -> bool {
    match phase {
        Phase::Start | Phase::Checkpoint | Phase::Evaluation => false,
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
        assert_eq!(waiting_for_data(&metrics), "waiting for data 30%");
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
            waiting_for_data(&metrics),
            "waiting for data 30% (0 of 4 batches ready, 12.0 MB/s; video decode: 80% of the work)"
        );
    }
}
