//! Estimates of the parameters, operations and bytes of a recipe. They use only the schema, so
//! planning needs neither the model nor a device.
//!
//! A multiply-add of a matrix product counts as 2 operations. Attention counts 4·N²·width per
//! layer; the savings of causal and sliding masks are ignored. The backward pass counts twice the
//! forward pass. Norms, activations and the loss are left out, because they are less than one
//! percent.

mod layers;
mod memory;
mod networks;
mod operations;
mod parameters;
mod rates;
mod vlm;
mod y_decoder;

pub use layers::{Layers, Pass};
pub use memory::{Memory, Traffic, memory, traffic};
pub(crate) use memory::{element_bytes, pixels, real};
pub use networks::{Network, NetworkName, networks};
pub use operations::{Operations, Tokens, sample};
pub use parameters::{Parameters, parameters};
pub use rates::{peak_tflops, useful_operations};

use crate::schema::{
    EmbeddingSource, LanguageModel, Model, Recipe, Source, Stage, TEXT, TemplateTexts, TextSource,
    YDecoder,
};

/// Length in tokens that planning assumes for a query. Our estimate: the paper states only the
/// limit, 512 tokens (§3.1).
pub const ASSUMED_QUERY_TOKENS: usize = 32;
/// Length in tokens that planning assumes for a target. Our estimate, like
/// [`ASSUMED_QUERY_TOKENS`].
pub const ASSUMED_TARGET_TOKENS: usize = 64;

/// Parameters and costs of a whole recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Number of parameters of each part of the model.
    pub parameters: Parameters,
    /// Costs of the stages, in the order of the recipe.
    pub stages: Vec<StageCost>,
}

/// Operations, memory and traffic of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageCost {
    /// Name of the stage.
    pub name: String,
    /// Number of optimizer steps.
    pub steps: u64,
    /// Number of samples in all steps.
    pub samples: u64,
    /// Operations of an average sample of the stage's mixture.
    pub sample: Operations,
    /// Operations of all samples of the stage on all ranks.
    pub operations: f64,
    /// Memory of the fullest rank if texts have the assumed lengths.
    pub memory: Memory,
    /// Memory of the fullest rank if every text is as long as the recipe allows. No batch needs
    /// more.
    pub most_memory: Memory,
    /// Bytes that a rank sends in one step.
    pub traffic: Traffic,
}

/// Estimates the costs of a recipe, which must have passed [`crate::check::check`].
#[must_use]
pub fn cost(recipe: &Recipe) -> Cost {
    let stages = recipe.stages.iter().map(|stage| stage_cost(recipe, stage)).collect();
    Cost { parameters: parameters(&recipe.model), stages }
}

fn stage_cost(recipe: &Recipe, stage: &Stage) -> StageCost {
    let world_size = recipe.cluster.world_size().max(1);
    let rows = stage.batch.div_ceil(world_size);
    let micro_batch = stage.micro_batch.unwrap_or(rows).min(rows);
    let embeds_twice = micro_batch < rows;
    let of_sample = |tokens| sample(&recipe.model, tokens, embeds_twice, stage.recompute);
    let sample = mixture(recipe, stage).fold(Operations::default(), |sum, (share, tokens)| {
        sum.plus(of_sample(tokens).times(share))
    });
    let tokens = longest_sample(recipe, stage);
    let longest = longest_texts(&recipe.model, tokens);
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

/// Sources of a stage with their shares of its samples.
pub(crate) fn sources<'a>(
    recipe: &'a Recipe,
    stage: &'a Stage,
) -> impl Iterator<Item = (f64, &'a Source)> {
    let used = move || {
        stage.mixture.iter().filter_map(|(name, &weight)| {
            let source = recipe.data.sources.get(name)?;
            (weight > 0).then(|| (f64::from(weight), source))
        })
    };
    let all: f64 = used().map(|(weight, _)| weight).sum();
    used().map(move |(weight, source)| (weight / all, source))
}

/// Token counts of the samples of each source of a stage, with the source's share.
pub(crate) fn mixture<'a>(
    recipe: &'a Recipe,
    stage: &'a Stage,
) -> impl Iterator<Item = (f64, Tokens)> {
    sources(recipe, stage).map(|(share, source)| (share, tokens(recipe, stage, source)))
}

/// Whether a stage decodes frames: a Y-decoder may learn from texts alone.
pub(crate) fn sees_frames(recipe: &Recipe, stage: &Stage) -> bool {
    recipe.model.learning_decoder().is_none()
        || stage.decoding.unwrap_or_default().embeddings == EmbeddingSource::Predictions
}

/// Returns the token counts of a sample if its texts are as long as the recipe allows.
#[must_use]
pub fn longest_texts(model: &Model, tokens: Tokens) -> Tokens {
    if let Some(l) = model.vlm() {
        let [question, answer] = [l.max_question_tokens, l.max_answer_tokens];
        return vlm_texts(l, tokens, question, answer);
    }
    let y = &model.y_encoder;
    Tokens {
        query: if tokens.query > 0 { model.predictor.max_query_tokens } else { 0 },
        target: y.padded_length().unwrap_or(y.max_target_tokens()),
        output: model.learning_decoder().map_or(0, YDecoder::max_tokens),
        ..tokens
    }
}

/// Adds the texts of a VLM, in their template, to the visual tokens of a sample.
fn vlm_texts(l: &LanguageModel, tokens: Tokens, question: usize, answer: usize) -> Tokens {
    let TemplateTexts { before, question: around_question, answer: around } = l.template.texts();
    let asks = around_question.contains(TEXT);
    let around_question = vlm::template_tokens(&before) + vlm::template_tokens(&around_question);
    Tokens {
        query: around_question + if asks { question } else { 0 },
        output: vlm::template_tokens(&around) + answer,
        target: 0,
        ..tokens
    }
}

/// Returns the token counts of the longest sample that a stage draws, with the assumed text
/// lengths.
#[must_use]
pub fn longest_sample(recipe: &Recipe, stage: &Stage) -> Tokens {
    let used = stage.mixture.iter().filter(|(_, weight)| **weight > 0);
    let sources = used.filter_map(|(name, _)| recipe.data.sources.get(name));
    let samples = sources.map(|source| tokens(recipe, stage, source));
    samples.max_by_key(|tokens| tokens.visual + tokens.query).unwrap_or_default()
}

/// Returns the token counts of a sample of a source, with the assumed text lengths.
fn tokens(recipe: &Recipe, stage: &Stage, source: &Source) -> Tokens {
    let asks = source.targets.iter().any(|rule| match rule.from {
        TextSource::Caption => !rule.query.is_empty(),
        TextSource::Questions => true,
    });
    let y = &recipe.model.y_encoder;
    let query =
        if asks { ASSUMED_QUERY_TOKENS.min(recipe.model.predictor.max_query_tokens) } else { 0 };
    let frames = source.frames.unwrap_or(stage.frames);
    let target = y.padded_length().unwrap_or(ASSUMED_TARGET_TOKENS.min(y.max_target_tokens()));
    let all = Tokens::of(&recipe.model, frames, query, target);
    if let Some(l) = recipe.model.vlm() {
        let question = if asks { ASSUMED_QUERY_TOKENS.min(l.max_question_tokens) } else { 0 };
        return vlm_texts(l, all, question, ASSUMED_TARGET_TOKENS.min(l.max_answer_tokens));
    }
    let Some(decoder) = recipe.model.learning_decoder() else { return all };
    let output = ASSUMED_TARGET_TOKENS.min(decoder.max_tokens());
    match stage.decoding.unwrap_or_default().embeddings {
        EmbeddingSource::Targets => Tokens { output, target, ..Tokens::default() },
        EmbeddingSource::Predictions => Tokens { output, target: 0, ..all },
    }
}
