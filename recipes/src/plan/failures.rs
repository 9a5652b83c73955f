//! Failures of devices, the time that they cost, and the best interval between checkpoints.

use serde::Serialize;

use super::communication::Group;
use super::rates::Rates;
use super::{SECONDS_OF_HOUR, StagePlan};
use crate::cost::{Parameters, real};
use crate::schema::Recipe;

/// Failures of a run, and what they cost with its interval between checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Failures {
    /// Expected number of failures, those in repeated steps included.
    pub expected_failures: f64,
    /// Hours between two failures.
    pub hours_between: f64,
    /// Seconds between two checkpoints in each stage, as the recipe asks for them.
    pub interval_s: Vec<f64>,
    /// Interval with the smallest loss (Daly 2006, doi 10.1016/j.future.2004.11.016), seconds.
    pub best_interval_s: f64,
    /// Seconds for which saving stops training.
    pub stall_s: f64,
    /// Seconds until a checkpoint is written, while training goes on.
    pub write_s: f64,
    /// Time lost to saving, repeated steps and restarts, as a fraction of the time of all steps.
    pub lost_fraction: f64,
    /// Hours lost to saving, repeated steps and restarts.
    pub lost_hours: f64,
}

/// Largest fraction of time that a plan counts as lost: a run that loses more does not end.
const MOST_LOST: f64 = 1e6;

/// Plans the failures of a run with these stages.
pub(super) fn failures(
    recipe: &Recipe,
    stages: &[StagePlan],
    parameters: &Parameters,
    group: Group,
    rates: &Rates,
) -> Failures {
    let hours: f64 = stages.iter().map(|stage| stage.hours.value).sum();
    if hours <= 0.0 {
        return Failures::default();
    }
    let (ranks, nodes) = (real(group.ranks()), real(group.nodes));
    let hours_between = rates.device_hours_per_failure.value / ranks;
    let between_s = hours_between * SECONDS_OF_HOUR;
    let bytes = real(parameters.checkpoint_bytes());
    // Each rank copies its part to the host, and the nodes write together.
    let stall_s = bytes / ranks / (1e9 * rates.upload_gb_per_s.value);
    let write_s = bytes / nodes / (1e9 * rates.checkpoint_gb_per_s.value);
    let interval_s: Vec<f64> = stages
        .iter()
        .map(|stage| {
            let steps = match recipe.checkpoints.every_steps {
                0 => stage.steps,
                every => every.min(stage.steps),
            };
            real(steps) * stage.step_s.value
        })
        .collect();
    let again_s = write_s + rates.restart_s.value;
    let lost = stages.iter().zip(&interval_s).map(|(stage, interval)| {
        stage.hours.value * lost_fraction(*interval, stall_s, again_s, between_s)
    });
    let lost_hours = lost.sum::<f64>().min(MOST_LOST * hours);
    Failures {
        expected_failures: (hours + lost_hours) / hours_between,
        hours_between,
        interval_s,
        // A checkpoint is written before the next one begins.
        best_interval_s: daly(stall_s, between_s).max(write_s).min(hours * SECONDS_OF_HOUR),
        stall_s,
        write_s,
        lost_fraction: lost_hours / hours,
        lost_hours,
    }
}

/// Time lost for a second of training: Daly's equation 13, with failures that are exponentially
/// distributed and cost `again_s` besides the repeated steps.
fn lost_fraction(interval_s: f64, stall_s: f64, again_s: f64, between_s: f64) -> f64 {
    if interval_s <= 0.0 {
        return 0.0;
    }
    let took =
        between_s * (again_s / between_s).exp() * ((interval_s + stall_s) / between_s).exp_m1();
    (took / interval_s - 1.0).min(MOST_LOST)
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
    use super::{daly, lost_fraction};

    #[test]
    fn daly_s_interval_loses_less_than_any_other() {
        let lost =
            |interval: f64, stall: f64, between: f64| lost_fraction(interval, stall, 0.0, between);
        for (stall, between) in [(1.0, 3600.0), (60.0, 3600.0), (300.0, 7200.0)] {
            let best = daly(stall, between);
            let least = lost(best, stall, between);
            for factor in [0.5, 0.8, 1.25, 2.0] {
                let other = lost(factor * best, stall, between);
                assert!(other > least, "{stall} {between} {factor}: {other} {least}");
            }
        }
        // Rare failures cost half an interval and the restart, to the first order.
        let rare = lost_fraction(600.0, 0.0, 60.0, 1e6);
        assert!((rare / 360e-6 - 1.0).abs() < 1e-3, "{rare}");
        assert!(lost_fraction(600.0, 1.0, 60.0, 0.1) >= 1e6);
        assert!((daly(1.0, 3600.0) - (2.0_f64 * 3600.0).sqrt()).abs() < 2.0);
    }
}
