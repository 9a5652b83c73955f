//! Measures the recipe's evaluation tasks: every rank embeds its share of the samples, all ranks
//! gather the embeddings, and rank 0 writes the scores.

pub mod embed;
pub(crate) mod labels;
pub mod metrics;
mod showcase;
mod tasks;
pub(crate) mod truth;

use std::collections::BTreeMap;

use vljepa_recipes::Recipe;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::{Task, TaskKind};

pub use self::metrics::Score;
use crate::collectives::Collectives;
use crate::evaluation::embed::{Embedder, Embeds};

/// Scores by metric name, in the form of `scores.json`.
pub type Scores = BTreeMap<String, Score>;

/// Measures every task of the recipe, with the same result on every rank. The second value has one
/// line for each task that could not be measured, because a file cannot be read or a sample lacks a
/// field. Such a task never ends a training run.
///
/// # Errors
/// Fails if a tokenizer cannot be read.
pub fn evaluate(
    recipe: &Recipe,
    model: Embeds<'_>,
    collectives: &Collectives,
) -> anyhow::Result<(Scores, Vec<String>)> {
    let mut failures = Vec::new();
    if recipe.evaluation.tasks.is_empty() {
        return Ok((Scores::new(), failures));
    }
    let embedder = Embedder::new(recipe, model)?;
    let mut scores = Scores::new();
    for task in &recipe.evaluation.tasks {
        match tasks::measure(task, &embedder, collectives, recipe.model.embed_dim) {
            Ok(measured) => scores.extend(measured),
            Err(error) => failures.push(format!("evaluation task `{}`: {error:#}", task.name)),
        }
    }
    Ok((scores, failures))
}

/// Writes `scores.json` and `evaluations/step-N.json`.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn write(run: &RunDirectory, step: u64, scores: &Scores) -> anyhow::Result<()> {
    write_step(run, step, scores)?;
    atomic_write(&run.scores(), &serde_json::to_vec_pretty(scores)?)?;
    Ok(())
}

/// Writes `evaluations/step-N.json` alone, so that the newest scores stay what they are.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_step(run: &RunDirectory, step: u64, scores: &Scores) -> anyhow::Result<()> {
    Ok(atomic_write(&run.evaluation(step), &serde_json::to_vec_pretty(scores)?)?)
}

/// Writes `samples.json` for the report: samples with the texts that the model finds nearest.
///
/// # Errors
/// Fails if samples cannot be read or the file cannot be written.
pub fn write_showcase(
    recipe: &Recipe,
    model: Embeds<'_>,
    run: &RunDirectory,
) -> anyhow::Result<()> {
    let Some(task) = recipe.evaluation.tasks.iter().find(|task| has_captions(task)) else {
        return Ok(());
    };
    let embedder = Embedder::new(recipe, model)?;
    let samples = showcase::samples(task, &recipe.evaluation.tasks, &embedder)?;
    atomic_write(&run.samples(), &serde_json::to_vec(&samples)?)?;
    Ok(())
}

fn has_captions(task: &Task) -> bool {
    match task.kind {
        TaskKind::Retrieval | TaskKind::Captioning { .. } => true,
        TaskKind::Classification { .. }
        | TaskKind::QuestionAnswering { .. }
        | TaskKind::Triplets => false,
    }
}
