//! Measuring the recipe's tasks: every rank embeds its share of the samples, all ranks gather, rank 0 writes.

pub mod metrics;
mod showcase;
mod tasks;

use std::collections::BTreeMap;

use vljepa_recipes::Recipe;
use vljepa_recipes::run_directory::RunDirectory;
use vljepa_recipes::schema::Task;

pub use self::metrics::Score;
use crate::collectives::Collectives;
use crate::embed::Embedder;
use crate::engine::Engine;

/// Metric name to score, as `scores.json` holds them.
pub type Scores = BTreeMap<String, Score>;

/// Measures every task of the recipe; the same on every rank. Beside the scores stand the tasks that could not be measured (files
/// that cannot be read, samples that lack what is asked for), a line each: they never end a training run.
///
/// # Errors
/// When a tokenizer cannot be read.
pub fn evaluate(
    recipe: &Recipe,
    engine: &Engine,
    collectives: &Collectives,
) -> anyhow::Result<(Scores, Vec<String>)> {
    let mut failures = Vec::new();
    if recipe.evaluation.tasks.is_empty() {
        return Ok((Scores::new(), failures));
    }
    let embedder = Embedder::new(recipe, engine)?;
    let mut scores = Scores::new();
    for task in &recipe.evaluation.tasks {
        match tasks::measure(task, &embedder, collectives, recipe.model.embed_dim) {
            Ok(measured) => scores.extend(measured),
            Err(error) => failures.push(format!("evaluation task `{}`: {error:#}", task.name)),
        }
    }
    Ok((scores, failures))
}

/// Writes `scores.json`, `evaluations/step-N.json` and, at the end of the run, the samples that the report shows.
///
/// # Errors
/// When a file cannot be written.
pub fn write(run: &RunDirectory, step: u64, scores: &Scores) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(scores)?;
    vljepa_recipes::run_directory::atomic_write(&run.evaluation(step), &text)?;
    vljepa_recipes::run_directory::atomic_write(&run.scores(), &text)?;
    Ok(())
}

/// Writes `samples.json`: real samples with the texts the model finds nearest, for the report.
///
/// # Errors
/// When samples cannot be read or the file not be written.
pub fn write_showcase(recipe: &Recipe, engine: &Engine, run: &RunDirectory) -> anyhow::Result<()> {
    let Some(task) = recipe.evaluation.tasks.iter().find(|task| is_retrieval(task)) else {
        return Ok(());
    };
    let embedder = Embedder::new(recipe, engine)?;
    let samples = showcase::samples(task, &recipe.evaluation.tasks, &embedder)?;
    vljepa_recipes::run_directory::atomic_write(&run.samples(), &serde_json::to_vec(&samples)?)?;
    Ok(())
}

fn is_retrieval(task: &Task) -> bool {
    matches!(task.kind, vljepa_recipes::schema::TaskKind::Retrieval)
}
