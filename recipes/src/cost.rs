//! Parameters, operations and bytes of a recipe, from the schema alone, so that planning needs neither model nor device.
//!
//! Operations are 2 per multiply-add of matrix products; attention counts 4·N²·width per layer, without what causal or sliding masks
//! save. Backward is twice forward. Norms, activations and the loss are left out: below one percent.

mod memory;
mod operations;
mod parameters;
mod rates;

pub use memory::{Memory, Traffic, memory, traffic};
pub use operations::{Operations, Tokens, sample};
pub use parameters::{Parameters, parameters};
pub use rates::{peak_tflops, useful_operations};

use crate::schema::{Recipe, Source, Stage, TextSource};

/// Tokens that planning assumes for a query and for a target (facts of the paper's captions: 32 to 64).
pub const ASSUMED_QUERY_TOKENS: usize = 32;
/// See [`ASSUMED_QUERY_TOKENS`].
pub const ASSUMED_TARGET_TOKENS: usize = 64;

/// What a whole recipe costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Parameters by part.
    pub parameters: Parameters,
    /// In the order of the recipe.
    pub stages: Vec<StageCost>,
}

/// What a stage costs.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCost {
    /// The stage's name.
    pub name: String,
    /// Optimizer steps.
    pub steps: u64,
    /// Samples of the whole stage.
    pub samples: u64,
    /// Operations of an average sample of its mixture.
    pub sample: Operations,
    /// Operations of the whole stage, all ranks.
    pub operations: f64,
    /// Bytes of the fullest rank, with the assumed lengths of texts.
    pub memory: Memory,
    /// The same where every text is as long as the recipe allows: no batch needs more.
    pub most_memory: Memory,
    /// Bytes that a step moves between ranks.
    pub traffic: Traffic,
}

/// Computes all of it.
///
/// The recipe must have passed [`crate::check::check`].
#[must_use]
pub fn cost(recipe: &Recipe) -> Cost {
    let stages = recipe.stages.iter().map(|stage| stage_cost(recipe, stage)).collect();
    Cost { parameters: parameters(&recipe.model), stages }
}

fn stage_cost(recipe: &Recipe, stage: &Stage) -> StageCost {
    let world_size = recipe.cluster.world_size().max(1);
    let rows = stage.batch.div_ceil(world_size);
    let micro_batch = stage.micro_batch.unwrap_or(rows).min(rows);
    let used = || {
        stage.mixture.iter().filter_map(|(name, &weight)| {
            let source = recipe.data.sources.get(name)?;
            (weight > 0).then(|| (f64::from(weight), tokens(recipe, stage, source)))
        })
    };
    let weights: f64 = used().map(|(weight, _)| weight).sum();
    let embeds_twice = micro_batch < rows;
    let sample = used().fold(Operations::default(), |sum, (weight, tokens)| {
        sum.plus(
            sample(&recipe.model, tokens, embeds_twice, stage.recompute).times(weight / weights),
        )
    });
    let tokens = longest_sample(recipe, stage);
    let longest = Tokens {
        query: if tokens.query > 0 { recipe.model.predictor.max_query_tokens } else { 0 },
        target: recipe.model.y_encoder.max_target_tokens,
        ..tokens
    };
    let memory = |tokens| memory(recipe, tokens, micro_batch, rows, stage.recompute);
    let samples = stage.steps.saturating_mul(u64::try_from(stage.batch).unwrap_or(u64::MAX));
    StageCost {
        name: stage.name.clone(),
        steps: stage.steps,
        samples,
        sample,
        operations: sample.total() * memory::real(stage.steps) * memory::real(stage.batch),
        memory: memory(tokens),
        most_memory: memory(longest),
        traffic: traffic(recipe, stage.batch, world_size),
    }
}

/// Tokens of the longest sample that a stage draws, with the assumed lengths of texts.
#[must_use]
pub fn longest_sample(recipe: &Recipe, stage: &Stage) -> Tokens {
    let used = stage.mixture.iter().filter(|(_, weight)| **weight > 0);
    let sources = used.filter_map(|(name, _)| recipe.data.sources.get(name));
    let samples = sources.map(|source| tokens(recipe, stage, source));
    samples.max_by_key(|tokens| tokens.visual + tokens.query).unwrap_or_default()
}

/// Tokens of a sample of a source, with the assumed lengths of texts.
fn tokens(recipe: &Recipe, stage: &Stage, source: &Source) -> Tokens {
    let asks = source.targets.iter().any(|rule| match rule.from {
        TextSource::Caption => !rule.query.is_empty(),
        TextSource::Questions => true,
    });
    let query =
        if asks { ASSUMED_QUERY_TOKENS.min(recipe.model.predictor.max_query_tokens) } else { 0 };
    Tokens {
        visual: operations::visual_tokens(&recipe.model, source.frames.unwrap_or(stage.frames)),
        query,
        target: ASSUMED_TARGET_TOKENS.min(recipe.model.y_encoder.max_target_tokens),
    }
}
