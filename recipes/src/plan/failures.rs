//! Failures of devices, the time that they cost, and the best interval between checkpoints.

use serde::Serialize;

use super::communication::Group;
use super::rates::Rates;
use super::{SECONDS_OF_HOUR, StagePlan};
use crate::cost::{Parameters, real};
use crate::schema::Recipe;

/// Failures of a run, and what they cost with its interval between checkpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Failures {
    /// Expected number of failures.
    pub expected: f64,
    /// Hours between two failures.
    pub hours_between: f64,
    /// Seconds of a step's time between two checkpoints, as the recipe asks for them.
    pub interval_s: f64,
    /// Interval with the smallest loss (Daly 2006, doi 10.1016/j.future.2004.11.016), seconds.
    pub best_interval_s: f64,
    /// Seconds for which saving stops training.
    pub stall_s: f64,
    /// Seconds until a checkpoint is written, while training goes on.
    pub write_s: f64,
    /// Time lost to saving, repeated steps and restarts, as a fraction of the time of all steps.
    pub lost_fraction: f64,
}

/// Plans the failures of a run with these stages.
pub(super) fn failures(
    recipe: &Recipe,
    stages: &[StagePlan],
    parameters: &Parameters,
    group: Group,
    rates: &Rates,
) -> Failures {
    let seconds: f64 = stages.iter().map(|stage| stage.hours.value * SECONDS_OF_HOUR).sum();
    if seconds <= 0.0 {
        return Failures::default();
    }
    let (ranks, nodes) = (real(group.ranks()), real(group.nodes));
    let hours_between = rates.device_hours_per_failure.value / ranks;
    let between_s = hours_between * SECONDS_OF_HOUR;
    let bytes = real(parameters.checkpoint_bytes());
    // Each rank copies its part to the host, and the nodes write together.
    let stall_s = bytes / ranks / (1e9 * rates.upload_gb_per_s.value);
    let write_s = bytes / nodes / (1e9 * rates.checkpoint_gb_per_s.value);
    let steps: f64 = stages.iter().map(|stage| real(stage.steps)).sum();
    let of_step = seconds / steps.max(1.0);
    let interval_s = match recipe.checkpoints.every_steps {
        0 => seconds,
        every => (real(every) * of_step).min(seconds),
    };
    // A checkpoint is written before the next one begins.
    let best_interval_s = daly(stall_s, between_s).max(write_s).min(seconds);
    let lost_fraction =
        stall_s / interval_s + (interval_s / 2.0 + write_s + rates.restart_s.value) / between_s;
    Failures {
        expected: seconds / between_s,
        hours_between,
        interval_s,
        best_interval_s,
        stall_s,
        write_s,
        lost_fraction,
    }
}

/// Daly's interval between checkpoints that stop training for `stall_s`, with `between_s` between
/// failures. Young's is its first term, √(2·stall·between).
fn daly(stall_s: f64, between_s: f64) -> f64 {
    if stall_s >= 2.0 * between_s {
        return between_s;
    }
    let ratio = stall_s / (2.0 * between_s);
    (2.0 * stall_s * between_s).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - stall_s
}

#[cfg(test)]
mod tests {
    use super::daly;

    #[test]
    fn daly_s_interval_loses_less_than_any_other() {
        // Expected time of one unit of work (Daly's equation 13), without a restart.
        let lost = |interval: f64, stall: f64, between: f64| {
            between * (((interval + stall) / between).exp() - 1.0) / interval
        };
        for (stall, between) in [(1.0, 3600.0), (60.0, 3600.0), (300.0, 7200.0)] {
            let best = daly(stall, between);
            let least = lost(best, stall, between);
            for factor in [0.5, 0.8, 1.25, 2.0] {
                let other = lost(factor * best, stall, between);
                assert!(other > least, "{stall} {between} {factor}: {other} {least}");
            }
        }
        assert!((daly(1.0, 3600.0) - (2.0_f64 * 3600.0).sqrt()).abs() < 2.0);
    }
}
