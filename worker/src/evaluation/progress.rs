//! Tells how much of a task is done: one line per task and every few seconds.

use std::time::{Duration, Instant};

use crate::collectives::record;

/// Shortest time between two lines of one task.
const INTERVAL: Duration = Duration::from_secs(5);

/// Progress of one task on this rank. Ranks take chunks in turn, so it is that of all ranks.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    task: &'a str,
    samples: usize,
    start: Instant,
    told: Instant,
}

impl<'a> Progress<'a> {
    pub(super) fn start(task: &'a str, samples: usize) -> Self {
        let now = Instant::now();
        Self { task, samples, start: now, told: now }
    }

    /// Counts a chunk for the supervisor, and logs a line if the last one is old enough, or all
    /// samples are done.
    pub(super) fn at(&mut self, done: usize) {
        record::of_process().work_done();
        if done < self.samples && self.told.elapsed() < INTERVAL {
            return;
        }
        self.told = Instant::now();
        tracing::info!("{}", line(self.task, done, self.samples, self.start.elapsed()));
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^52")]
fn line(task: &str, done: usize, samples: usize, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = done as f64 / seconds.max(1e-9);
    let left = (samples - done) as f64 / rate;
    let end = match done == samples {
        true => format!("in {seconds:.1} s"),
        false => format!("{left:.0} s left"),
    };
    format!("{task}: {done} of {samples} samples, {rate:.0}/s, {end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_rate_and_time_left() {
        let line = |done| line("motion", done, 1000, Duration::from_secs(5));
        assert_eq!(line(250), "motion: 250 of 1000 samples, 50/s, 15 s left");
        assert_eq!(line(1000), "motion: 1000 of 1000 samples, 200/s, in 5.0 s");
    }
}
