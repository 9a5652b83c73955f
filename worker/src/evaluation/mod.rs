//! Measures the recipe's evaluation tasks: every rank asks the model about its chunks of the
//! samples, all ranks gather the results, and rank 0 writes the scores.

mod actions;
mod captioning;
pub mod captions;
mod chunks;
pub mod embed;
mod identity;
pub(crate) mod labels;
pub mod metrics;
mod progress;
pub mod retrieval;
pub mod segments;
pub mod selective;
pub mod shifts;
mod showcase;
mod store;
mod tasks;
pub(crate) mod truth;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use vljepa_recipes::Recipe;
use vljepa_recipes::protocol::{LabelCounts, SelectiveCurves};
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::{Task, TaskKind};

use self::chunks::Shared;
pub use self::metrics::Score;
use self::store::Store;
use self::tasks::TaskResult;
use crate::evaluation::embed::{Embedder, Embeds};
use crate::rank::session::Session;

/// Scores by metric name, in the form of `scores.json`.
pub type Scores = BTreeMap<String, Score>;

/// Samples of a task that are named if they cannot be read; all of them are counted.
const NAMED: usize = 20;

/// Result of an evaluation.
#[derive(Debug, Default)]
pub struct Evaluated {
    /// Scores of all tasks.
    pub scores: Scores,
    /// One line for each task that could not be measured, because a file cannot be read or a sample
    /// lacks a field. Such a task never ends a training run.
    pub failures: Vec<String>,
    /// Samples that cannot be read, with the reasons, for each task that has some.
    unreadable: BTreeMap<String, Vec<String>>,
    /// Right answers by label, of each task that has labels.
    labels: LabelCounts,
    /// Curves of the tasks that decode long videos.
    curves: SelectiveCurves,
}

/// Measures every task of the recipe of `model`, with the same result on every rank, and keeps what
/// the model gives in `run`. Ranks wait for a slow rank without a timeout; the supervisor sees
/// whether it goes on.
///
/// # Errors
/// Fails if a tokenizer cannot be read or the device fails.
pub fn evaluate(
    session: &Session,
    recipe: &Recipe,
    run: &RunDirectory,
    model: Embeds<'_>,
) -> anyhow::Result<Evaluated> {
    session.collectives.patiently(|| measure_tasks(session, recipe, run, model))
}

fn measure_tasks(
    session: &Session,
    recipe: &Recipe,
    run: &RunDirectory,
    model: Embeds<'_>,
) -> anyhow::Result<Evaluated> {
    let collectives = &session.collectives;
    let mut evaluated = Evaluated::default();
    if recipe.evaluation.tasks.is_empty() {
        return Ok(evaluated);
    }
    let embedder = Embedder::new(recipe, model)?;
    let is_leader = collectives.rank() == 0;
    let own = if is_leader { identity::hash(recipe, model)?.as_bytes().to_vec() } else { vec![] };
    let weights = blake3::Hash::from_slice(&collectives.broadcast(own))?;
    let mut of_build = blake3::Hasher::new();
    of_build.update(session.build.as_bytes()).update(weights.as_bytes());
    let store = Store::open(&run.kept_embeddings(), of_build.finalize(), is_leader);
    let shared = Shared { embedder: &embedder, collectives, store, weights };
    for task in &recipe.evaluation.tasks {
        match tasks::measure(task, &shared, recipe.model.embed_dim) {
            Ok(TaskResult { scores, unreadable, labels, curves }) => {
                evaluated.scores.extend(scores);
                evaluated.curves.extend(curves.map(|curves| (task.name.clone(), curves)));
                if !labels.is_empty() {
                    evaluated.labels.insert(task.name.clone(), labels);
                }
                if !unreadable.is_empty() {
                    if is_leader {
                        warn_of_unreadable(&task.name, &unreadable);
                    }
                    evaluated.unreadable.insert(task.name.clone(), unreadable);
                }
            }
            Err(error) => {
                evaluated.failures.push(format!("evaluation task `{}`: {error:#}", task.name));
            }
        }
    }
    Ok(evaluated)
}

fn warn_of_unreadable(task: &str, unreadable: &[String]) {
    for reason in unreadable.iter().take(NAMED) {
        tracing::warn!("task {task}: {reason}; counted as wrong");
    }
    let more = unreadable.len().saturating_sub(NAMED);
    if more > 0 {
        tracing::warn!("task {task}: {more} more samples cannot be read; counted as wrong");
    }
}

/// Writes `scores.json`, and the files of [`write_step`].
///
/// # Errors
/// Fails if a file cannot be written.
pub fn write(run: &RunDirectory, step: u64, evaluated: &Evaluated) -> anyhow::Result<()> {
    write_step(run, step, evaluated)?;
    atomic_write(&run.scores(), &serde_json::to_vec_pretty(&evaluated.scores)?)?;
    Ok(())
}

/// Writes `evaluations/step-N.json`, `evaluations/step-N-unreadable.json` if samples could not be
/// read, `evaluations/step-N-labels.json` if a task has labels, and
/// `evaluations/step-N-selective.json` if a task decodes long videos. The newest scores stay what
/// they are.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn write_step(run: &RunDirectory, step: u64, evaluated: &Evaluated) -> anyhow::Result<()> {
    let listed = |(task, samples): (&String, &Vec<String>)| {
        let named: Vec<&String> = samples.iter().take(NAMED).collect();
        (task.clone(), json!({"count": samples.len(), "samples": named}))
    };
    let listed: BTreeMap<_, _> = evaluated.unreadable.iter().map(listed).collect();
    write_if_any(&run.unreadable(step), &listed)?;
    write_if_any(&run.labels(step), &evaluated.labels)?;
    write_if_any(&run.selective(step), &evaluated.curves)?;
    Ok(atomic_write(&run.evaluation(step), &serde_json::to_vec_pretty(&evaluated.scores)?)?)
}

/// Writes what there is of each task, or removes the file of an earlier evaluation.
fn write_if_any<T: Serialize>(path: &Path, of_tasks: &BTreeMap<String, T>) -> anyhow::Result<()> {
    if !of_tasks.is_empty() {
        return Ok(atomic_write(path, &serde_json::to_vec_pretty(of_tasks)?)?);
    }
    remove(path)
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
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
    // Samples of an earlier evaluation are not those of this model.
    remove(&run.samples())?;
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
        | TaskKind::SelectiveDecoding(_)
        | TaskKind::Triplets
        | TaskKind::WorldPrediction => false,
    }
}
