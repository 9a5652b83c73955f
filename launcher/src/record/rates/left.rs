//! Time to the end of training, from the recent rate and the recipe's stages.

use serde::Serialize;
use vljepa_recipes::cost::cost;
use vljepa_recipes::schema::Recipe;

use crate::statistics::to_f64;

/// Estimate of the time to the last step. It contains no evaluations or saves except those within
/// the recent intervals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Left {
    /// Seconds to the end of the current stage, at the recent rate.
    pub stage_s: f64,
    /// Number of later stages.
    pub later_stages: usize,
    /// Seconds of the later stages. Their rates are unknown, so the recent rate is scaled by the
    /// operations per sample of the stages.
    pub later_stages_s: f64,
}

impl Left {
    /// Seconds to the end of the last stage.
    pub(crate) fn total_s(&self) -> f64 {
        self.stage_s + self.later_stages_s
    }
}

/// Sizes and costs of the recipe's stages.
#[derive(Debug, Clone)]
pub(crate) struct StagePlan {
    stages: Vec<Planned>,
}

#[derive(Debug, Clone)]
struct Planned {
    name: String,
    /// Number of steps of the run at the end of the stage.
    end: u64,
    batch: u64,
    /// Operations of an average sample.
    operations: f64,
}

impl StagePlan {
    pub(crate) fn of(recipe: &Recipe) -> Self {
        let costs = cost(recipe).stages.into_iter().map(|stage| stage.sample.total());
        let stages = recipe.stages.iter().zip(recipe.stage_ends()).zip(costs);
        let planned = |((stage, end), operations): ((&vljepa_recipes::schema::Stage, u64), f64)| {
            Planned { name: stage.name.clone(), end, batch: stage.batch as u64, operations }
        };
        Self { stages: stages.map(planned).collect() }
    }

    /// Time left after `step` steps if the stage `measured` trains `samples_per_s`. `None` if no
    /// step is left.
    pub(crate) fn left(&self, step: u64, measured: &str, samples_per_s: f64) -> Option<Left> {
        let operations_of = |name: &str| {
            let found = self.stages.iter().find(|stage| stage.name == name);
            found.map(|stage| stage.operations).filter(|operations| *operations > 0.0)
        };
        let seconds = |stage: &Planned, steps: u64| {
            let scale = operations_of(measured).map_or(1.0, |known| stage.operations / known);
            let scale = if scale.is_finite() && scale > 0.0 { scale } else { 1.0 };
            to_f64(steps.saturating_mul(stage.batch)) * scale / samples_per_s
        };
        let current = self.stages.iter().position(|stage| step < stage.end)?;
        let (stage, later) = (&self.stages[current], &self.stages[current + 1..]);
        let starts = self.stages[current..].iter().map(|stage| stage.end);
        let left = Left {
            stage_s: seconds(stage, stage.end - step),
            later_stages: later.len(),
            later_stages_s: later
                .iter()
                .zip(starts)
                .map(|(s, start)| seconds(s, s.end - start))
                .sum(),
        };
        left.total_s().is_finite().then_some(left)
    }
}
