//! The plan of a training run: time, memory, data and cost, computed from the recipe, the cost
//! model ([`crate::cost`]) and a table of rates ([`Rates`]). Nothing is read or run.

mod advice;
mod chain;
mod communication;
mod comparison;
mod data;
mod evaluation;
mod failures;
mod rates;
mod scaling;
mod step;

pub use advice::{Change, advice};
pub use chain::{Chain, longest_chain, one_after_another};
pub use communication::{Algorithm, Group};
pub use comparison::Comparison;
pub use data::Supply;
pub use evaluation::{EvaluationPlan, evaluation, measurements};
pub use failures::Failures;
pub use rates::{Curve, Form, Forms, Origin, Rate, Rates};
pub use scaling::{Limit, ScalePoint, Scaling, scaling, with_devices};
pub use step::{Budget, Communication, Term};

use serde::Serialize;

use crate::cost::{self, Memory, StageCost, Tokens, longest_sample, real};
use crate::schema::{Recipe, Stage};

const SECONDS_OF_HOUR: f64 = 3600.0;

/// A number with its standard deviation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// Expected value.
    pub value: f64,
    /// Standard deviation.
    pub deviation: f64,
}

impl Estimate {
    pub(crate) fn new(value: f64, deviation: f64) -> Self {
        Self { value, deviation }
    }

    fn exact(value: f64) -> Self {
        Self { value, deviation: 0.0 }
    }

    /// `amount` divided by a rate.
    fn ratio(amount: f64, rate: Self) -> Self {
        let value = amount / rate.value;
        Self { value, deviation: value * rate.deviation / rate.value }
    }

    /// Sum of two independent numbers.
    fn plus(self, other: Self) -> Self {
        Self { value: self.value + other.value, deviation: self.deviation.hypot(other.deviation) }
    }

    /// Sum of two numbers whose errors have the same cause.
    fn plus_alike(self, other: Self) -> Self {
        Self { value: self.value + other.value, deviation: self.deviation + other.deviation }
    }

    /// Product of two independent numbers.
    fn product(self, other: Self) -> Self {
        let [a, b] = [self.deviation * other.value, self.value * other.deviation];
        Self { value: self.value * other.value, deviation: a.hypot(b) }
    }

    /// The number multiplied by an exact one.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, deviation: self.deviation * factor }
    }
}

/// Plan of a run on one kind of device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Nodes and devices of each.
    pub group: Group,
    /// Stages in the order of the recipe.
    pub stages: Vec<StagePlan>,
    /// Hours of all steps.
    pub steps_hours: Estimate,
    /// Hours from the start to the end, with failures.
    pub hours: Estimate,
    /// Hours of all devices together.
    pub device_hours: Estimate,
    /// Energy of all devices with their share of the nodes.
    pub kilowatt_hours: Estimate,
    /// Failures and the time that they cost.
    pub failures: Failures,
    /// Hours if all operations ran at the highest rate of products that was ever measured.
    pub least_hours: f64,
}

/// Plan of one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StagePlan {
    /// Name of the stage.
    pub name: String,
    /// Number of steps.
    pub steps: u64,
    /// Samples of the fullest rank in a step.
    pub rows: usize,
    /// Seconds of a step.
    pub step_s: Estimate,
    /// Seconds of a step by term.
    pub budget: Budget,
    /// Whether frames are uploaded more slowly than they are decoded.
    pub waits_for_upload: bool,
    /// Term that limits the speed.
    pub limit: Option<Term>,
    /// Samples per second and device.
    pub samples_per_s: Estimate,
    /// Model FLOPs utilization: operations that the model needs over the peak of the devices.
    pub mfu: f64,
    /// Hours of all steps.
    pub hours: Estimate,
    /// Hours if all operations ran at the highest rate of products that was ever measured.
    pub least_hours: f64,
    /// Collectives of a step.
    pub communication: Communication,
    /// What the CPUs of a rank deliver.
    pub data: Supply,
    /// Pictures per second that a node must decode to keep its devices busy.
    pub node_pictures_per_s: f64,
    /// Clips per second that a node must decode to keep its devices busy.
    pub node_clips_per_s: f64,
    /// Bytes per second that a node must read from storage for that.
    pub node_bytes_per_s: f64,
    /// Memory of the fullest rank with the longest texts, bytes.
    pub memory_bytes: Memory,
    /// Sum of `memory_bytes`.
    pub peak_bytes: f64,
    /// Whether the device has that memory.
    pub fits: bool,
    /// Host memory of a node, bytes: batches that are prepared ahead, decoded samples that are
    /// kept, and the ranks' parts of the next checkpoint.
    pub node_host_bytes: f64,
}

/// Plans a recipe that trains. A recipe without stages has an empty plan.
#[must_use]
pub fn plan(recipe: &Recipe, rates: &Rates) -> Plan {
    let group = group(recipe);
    let costs = cost::cost(recipe);
    let stages: Vec<StagePlan> = recipe
        .stages
        .iter()
        .zip(&costs.stages)
        .map(|(stage, cost)| stage_plan(recipe, stage, cost, group, rates))
        .collect();
    // The same rates are wrong for all stages alike.
    let steps_hours =
        stages.iter().fold(Estimate::default(), |sum, stage| sum.plus_alike(stage.hours));
    let failures = failures::failures(recipe, &stages, &costs.parameters, group, rates);
    let start = rates.restart_s.estimate().times(1.0 / SECONDS_OF_HOUR);
    let hours = steps_hours.times(1.0 + failures.lost_fraction).plus(start);
    let device_hours = hours.times(real(group.ranks()));
    let least_hours = stages.iter().map(|stage| stage.least_hours).sum();
    Plan {
        group,
        steps_hours,
        hours,
        device_hours,
        kilowatt_hours: device_hours.product(rates.kilowatts_per_device.estimate()),
        failures,
        least_hours,
        stages,
    }
}

/// Budget of a step of a stage whose samples all have the given tokens and are always there.
#[must_use]
pub fn step_budget(recipe: &Recipe, stage: &Stage, tokens: Tokens, rates: &Rates) -> Budget {
    let group = group(recipe);
    step::without_data(recipe, stage, &[(1.0, tokens)], group, rates).budget
}

fn group(recipe: &Recipe) -> Group {
    let (nodes, per_node) = (recipe.cluster.nodes, recipe.cluster.ranks_per_node);
    Group { nodes: nodes.max(1), per_node: per_node.max(1) }
}

fn stage_plan(
    recipe: &Recipe,
    stage: &Stage,
    cost: &StageCost,
    group: Group,
    rates: &Rates,
) -> StagePlan {
    let step::Step { budget, communication, data, useful, waits_for_upload } =
        step::step(recipe, stage, group, rates);
    let step_s = budget.total();
    let ranks = real(group.ranks());
    let rows = stage.batch.div_ceil(group.ranks().max(1));
    let samples_per_s = Estimate::ratio(real(stage.batch) / ranks, step_s);
    let own_s = step_s.value - budget.of(Term::Data).value;
    let node_samples_per_s = real(stage.batch) / real(group.nodes) / own_s.max(f64::MIN_POSITIVE);
    let frames_per_s = if data.rank_samples_per_s.is_some() { node_samples_per_s } else { 0.0 };
    let peak_bytes = cost.most_memory.total();
    let room = (rates.memory_mib - rates.reserved_mib.value) * f64::from(1 << 20);
    let of_batches = real(rows * (recipe.data.prefetch_batches + 1)) * pixels(recipe, stage);
    let of_checkpoint = real(cost::parameters(&recipe.model).checkpoint_bytes()) / ranks;
    let of_cache = real(recipe.data.cache_mib) * f64::from(1 << 20);
    StagePlan {
        name: stage.name.clone(),
        steps: stage.steps,
        rows,
        step_s,
        waits_for_upload,
        limit: budget.limit(),
        mfu: useful * samples_per_s.value / (1e12 * rates.peak_tflops),
        hours: step_s.times(real(stage.steps) / SECONDS_OF_HOUR),
        least_hours: cost.operations / (ranks * 1e12 * rates.ceiling_tflops) / SECONDS_OF_HOUR,
        budget,
        samples_per_s,
        communication,
        node_pictures_per_s: frames_per_s * (1.0 - data.clip_share),
        node_clips_per_s: frames_per_s * data.clip_share,
        node_bytes_per_s: node_samples_per_s * data.bytes_per_sample,
        data,
        memory_bytes: cost.most_memory,
        peak_bytes,
        fits: peak_bytes <= room,
        node_host_bytes: real(group.per_node) * (of_batches + of_checkpoint + of_cache),
    }
}

/// Bytes of the frames of a stage's longest sample.
fn pixels(recipe: &Recipe, stage: &Stage) -> f64 {
    real(cost::pixels(recipe, longest_sample(recipe, stage)))
}

#[cfg(test)]
mod tests;
