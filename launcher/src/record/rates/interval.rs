//! The part of a line of metrics that rates are computed from.

use std::collections::BTreeMap;

use serde::Deserialize;
use vljepa_recipes::clock;
use vljepa_recipes::protocol::{Metrics, Phase};

/// A logging interval. It is read faster than a whole line of metrics.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct LoggedInterval {
    pub step: u64,
    pub stage: String,
    pub samples: u64,
    /// Loss of the last step; `None` if it was not finite.
    pub loss: Option<f64>,
    pub samples_per_s: f64,
    pub data_wait_fraction: f64,
    pub phase_s: BTreeMap<Phase, f64>,
    #[serde(default)]
    pub tflops: Option<f64>,
    #[serde(default)]
    pub mfu: Option<f64>,
    pub time: String,
}

/// Samples per second of an interval without the start-up of the attempt, which the first interval
/// contains.
pub(crate) fn working_rate(samples_per_s: f64, phase_s: &BTreeMap<Phase, f64>) -> f64 {
    let seconds: f64 = phase_s.values().sum();
    let working = seconds - phase_s.get(&Phase::Start).copied().unwrap_or_default();
    if working > 0.0 { samples_per_s * seconds / working } else { samples_per_s }
}

impl LoggedInterval {
    /// Seconds in one phase.
    pub(super) fn in_phase(&self, phase: Phase) -> f64 {
        self.phase_s.get(&phase).copied().unwrap_or_default()
    }

    /// Seconds in all phases.
    pub(super) fn seconds(&self) -> f64 {
        self.phase_s.values().sum()
    }

    /// Samples per second without start-up.
    pub(super) fn rate(&self) -> f64 {
        working_rate(self.samples_per_s, &self.phase_s)
    }

    /// End of the interval in seconds since 1970, or `None` if the time is damaged.
    pub(super) fn end_s(&self) -> Option<f64> {
        clock::seconds_of(&self.time)
    }
}

impl From<&Metrics> for LoggedInterval {
    fn from(metrics: &Metrics) -> Self {
        Self {
            step: metrics.step,
            stage: metrics.stage.clone(),
            samples: metrics.samples,
            loss: Some(metrics.loss).filter(|loss| loss.is_finite()),
            samples_per_s: metrics.samples_per_s,
            data_wait_fraction: metrics.data_wait_fraction,
            phase_s: metrics.phase_s.clone(),
            tflops: metrics.tflops,
            mfu: metrics.mfu,
            time: metrics.time.clone(),
        }
    }
}
