//! Medians of the newest logging intervals. One interval alone can be an outlier: another program
//! was busy for a moment, or the interval contains an evaluation.

use std::collections::VecDeque;

use super::LoggedInterval;
use crate::statistics::median;

/// The newest intervals of the current stage and attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent {
    stage: String,
    window: VecDeque<Rate>,
}

/// Rates of one interval.
#[derive(Debug, Clone, Copy)]
struct Rate {
    samples_per_s: f64,
    data_wait_fraction: f64,
    tflops: Option<f64>,
    mfu: Option<f64>,
}

impl Recent {
    /// Largest number of intervals whose median is taken. An outlier needs more than half of them
    /// to move the median, and a lasting change of speed is shown after half of them.
    pub(crate) const WINDOW: usize = 20;

    /// Adds an interval. The first interval of another stage replaces all earlier ones.
    pub(crate) fn add(&mut self, interval: &LoggedInterval) {
        if self.stage != interval.stage {
            self.window.clear();
            self.stage.clone_from(&interval.stage);
        }
        if self.window.len() == Self::WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(Rate {
            samples_per_s: interval.rate(),
            data_wait_fraction: interval.data_wait_fraction,
            tflops: interval.tflops,
            mfu: interval.mfu,
        });
    }

    /// Forgets all intervals: another attempt can have other ranks.
    pub(crate) fn restart(&mut self) {
        self.window.clear();
    }

    /// Number of intervals in the window.
    pub(crate) fn intervals(&self) -> usize {
        self.window.len()
    }

    /// Median of the samples of all ranks per second, without the start-up of an attempt.
    pub(crate) fn samples_per_s(&self) -> Option<f64> {
        median(self.window.iter().map(|rate| rate.samples_per_s)).filter(|rate| *rate > 0.0)
    }

    /// Median of the fraction of time that steps waited for data.
    pub(crate) fn data_wait_fraction(&self) -> Option<f64> {
        median(self.window.iter().map(|rate| rate.data_wait_fraction))
    }

    /// Median of the model's operations per second on rank 0, in units of 10¹².
    pub(crate) fn tflops(&self) -> Option<f64> {
        median(self.window.iter().filter_map(|rate| rate.tflops))
    }

    /// Median of the fraction of the device's peak.
    pub(crate) fn mfu(&self) -> Option<f64> {
        median(self.window.iter().filter_map(|rate| rate.mfu))
    }
}
