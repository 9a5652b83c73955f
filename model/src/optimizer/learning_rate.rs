//! Learning rate over the steps of a stage.

use std::f64::consts::PI;

use vljepa_recipes::schema::{LearningRate, Schedule};

/// Learning rate of step `stage_step` (from 0) in a stage of `stage_steps` steps.
///
/// During warm-up the rate is peak·(step + 1)/warmup_steps. After warm-up it is the peak, or half a
/// cosine that falls from the peak at the first step after warm-up to `final_fraction`·peak at the
/// last step of the stage.
#[must_use]
pub fn learning_rate_at(rate: &LearningRate, stage_step: u64, stage_steps: u64) -> f64 {
    let LearningRate { peak, warmup_steps, schedule, final_fraction } = *rate;
    if stage_step < warmup_steps {
        return peak * to_f64(stage_step + 1) / to_f64(warmup_steps);
    }
    match schedule {
        Schedule::Constant => peak,
        Schedule::Cosine => {
            let last = stage_steps.saturating_sub(1).saturating_sub(warmup_steps).max(1);
            let done = (to_f64(stage_step - warmup_steps) / to_f64(last)).min(1.0);
            let remaining = 0.5 * (1.0 + (PI * done).cos());
            peak * (final_fraction + (1.0 - final_fraction) * remaining)
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "steps are below 2^52")]
fn to_f64(steps: u64) -> f64 {
    steps as f64
}

#[cfg(test)]
mod tests {
    use super::learning_rate_at;
    use vljepa_recipes::schema::{LearningRate, Schedule};

    fn near(got: f64, want: f64) -> bool {
        // A few sums and products of f64 numbers near 1 round by much less than 1e-12.
        (got - want).abs() < 1e-12
    }

    #[test]
    fn warm_up_is_linear_and_reaches_the_peak() {
        let rate = LearningRate {
            peak: 2.0,
            warmup_steps: 4,
            schedule: Schedule::Constant,
            final_fraction: 0.01,
        };
        for (step, want) in [(0, 0.5), (1, 1.0), (3, 2.0), (4, 2.0), (1000, 2.0)] {
            assert!(near(learning_rate_at(&rate, step, 10), want), "step {step}");
        }
    }

    #[test]
    fn a_cosine_ends_at_its_final_fraction() {
        let rate = LearningRate {
            peak: 2.0,
            warmup_steps: 10,
            schedule: Schedule::Cosine,
            final_fraction: 0.1,
        };
        for (step, want) in [(10, 2.0), (15, 1.1), (20, 0.2), (50, 0.2)] {
            assert!(near(learning_rate_at(&rate, step, 21), want), "step {step}");
        }
        assert!(!near(learning_rate_at(&rate, 15, 31), 1.1), "another length, another rate");
    }

    #[test]
    fn stages_of_no_or_one_step_have_a_rate() {
        let rate = LearningRate {
            peak: 1.0,
            warmup_steps: 0,
            schedule: Schedule::Cosine,
            final_fraction: 0.5,
        };
        assert!(near(learning_rate_at(&rate, 0, 1), 1.0));
        assert!(learning_rate_at(&rate, 0, 0).is_finite());
    }
}
