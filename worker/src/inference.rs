//! Jobs on a trained model: `evaluate`, `ask`, `caption`, `search` and `export`. Each returns the
//! JSON object that it prints. Each reads the checkpoint of `step`, or the newest that verifies.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use vljepa_data::decode::Media;
use vljepa_data::order::ORDER_VERSION;
use vljepa_data::reader::load_file;
use vljepa_model::{DualEncoder, VlJepa, Vlm, transformers};
use vljepa_recipes::schema::{ModelKind, TaskKind, Visual};

use crate::checkpoint::{CheckpointFolder, State};
use crate::engine::{Engine, Network};
use crate::error::WorkerError;
use crate::evaluation::embed::{Embedder, Embeds};
use crate::evaluation::labels::Labels;
use crate::evaluation::{self, metrics::cosine};
use crate::rank::session::Session;

/// Samples read before they are embedded, which bounds the pixels in memory.
const READ_ROWS: usize = 256;

/// Measures the recipe's tasks and writes the scores of the step. Without `step` they are the run's
/// newest scores too, in `scores.json`, with samples for the report.
///
/// # Errors
/// Fails if there is no checkpoint, or a task cannot be measured.
pub fn evaluate(session: &Session, step: Option<u64>) -> anyhow::Result<String> {
    let (model, state) = Loaded::of(session, step)?;
    let model = model.embeds();
    let evaluated = evaluation::evaluate(session, &session.recipe, &session.run, model)?;
    anyhow::ensure!(evaluated.failures.is_empty(), "{}", evaluated.failures.join("; "));
    if step.is_some() {
        evaluation::write_step(&session.run, state.step, &evaluated)?;
    } else {
        evaluation::write(&session.run, state.step, &evaluated)?;
        evaluation::write_showcase(&session.recipe, model, &session.run)?;
    }
    Ok(json!({"scores": evaluated.scores, "step": state.step}).to_string())
}

/// Ranks candidate answers to a question about one picture or clip.
///
/// # Errors
/// Fails if there is no checkpoint, or the file cannot be decoded.
pub fn ask(
    session: &Session,
    step: Option<u64>,
    file: &Path,
    question: &str,
    answers: &[String],
) -> anyhow::Result<String> {
    anyhow::ensure!(!answers.is_empty(), "the question has no candidate answers");
    let (model, state) = Loaded::of(session, step)?;
    let embedder = Embedder::new(&session.recipe, model.embeds())?;
    let options = embedder.load_options(frames_of(session, file));
    let sample = load_file(file, &options)?;
    let labels = answers.iter().map(|answer| (answer.clone(), vec![answer.clone()])).collect();
    let labels = Labels::of(labels, &embedder, |texts| embedder.texts(texts))?;
    let ranked = labels.order(&labels.rows(&embedder, &[(&sample, question)])?[0]);
    let answer = |&(i, score): &(usize, f64)| json!({"text": labels.names[i], "score": score});
    let answers: Vec<_> = ranked.iter().map(answer).collect();
    Ok(json!({"answers": answers, "step": state.step}).to_string())
}

/// Writes the text of pictures or clips. Without a query, that of the recipe's first captioning
/// task is used, or that of [`search`].
///
/// # Errors
/// Fails if there is no checkpoint, the model writes no texts, or a file cannot be decoded.
pub fn caption(
    session: &Session,
    step: Option<u64>,
    files: &[PathBuf],
    query: Option<&str>,
) -> anyhow::Result<String> {
    let (model, state) = Loaded::of(session, step)?;
    let embedder = Embedder::new(&session.recipe, model.embeds())?;
    let query = query.map_or_else(|| caption_query(session), str::to_owned);
    let mut captions = Vec::new();
    for file in files {
        let sample = load_file(file, &embedder.load_options(frames_of(session, file)))?;
        for text in embedder.answers(&[(&sample, &query)])? {
            captions.push(json!({"file": file, "text": text}));
        }
    }
    Ok(json!({"captions": captions, "step": state.step}).to_string())
}

/// Ranks the samples of shards by their similarity to a text, and returns the best `limit`.
///
/// # Errors
/// Fails if there is no checkpoint, or the pattern `shards` matches no shard.
pub fn search(
    session: &Session,
    step: Option<u64>,
    shards: &str,
    text: &str,
    limit: usize,
) -> anyhow::Result<String> {
    let (model, state) = Loaded::of(session, step)?;
    let embedder = Embedder::new(&session.recipe, model.embeds())?;
    let options = embedder.load_options(None);
    let query = retrieval_query(session);
    let wanted = embedder.texts(&[text])?;
    let reader = embedder.reader(shards, None)?;
    let (mut found, mut unreadable) = (Vec::new(), 0u64);
    let indices: Vec<usize> = (0..reader.len()).collect();
    for chunk in indices.chunks(READ_ROWS) {
        let mut samples = Vec::new();
        for &index in chunk {
            match reader.load(index, &options) {
                Ok(sample) => samples.push(sample),
                Err(error) => {
                    tracing::warn!("left out: {error}");
                    unreadable += 1;
                }
            }
        }
        let inputs: Vec<_> = samples.iter().map(|sample| (sample, query.as_str())).collect();
        let embeddings = embedder.samples(&inputs)?;
        for (sample, embedding) in samples.into_iter().zip(embeddings) {
            let score = cosine(&embedding, &wanted[0]);
            let caption = sample.texts.caption().ok().flatten().map(str::to_owned);
            found.push((score, sample.shard, sample.key, caption));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(limit);
    let results: Vec<_> = found
        .into_iter()
        .map(|(score, shard, key, caption)| {
            json!({"shard": shard, "key": key, "caption": caption, "score": score})
        })
        .collect();
    Ok(json!({"results": results, "unreadable": unreadable, "step": state.step}).to_string())
}

/// Writes the model to `folder`, for Python and for the key `init.export`; of a model whose
/// Y-decoder is trained only the decoder, for the key `model.y_decoder.weights`.
///
/// # Errors
/// Fails if there is no checkpoint, the folder cannot be written, or a tokenizer cannot be read.
pub fn export(session: &Session, step: Option<u64>, folder: &Path) -> anyhow::Result<String> {
    let (engine, state) = trained::<VlJepa>(session, step)?;
    let (recipe, model) = (&session.recipe, &engine.model);
    if recipe.model.learning_decoder().is_some() {
        let files = transformers::export_decoder(model, &engine.parameters, folder)?;
        let unsupported = "it is a decoder, which needs the embeddings of its VL-JEPA";
        let exported = json!({"files": files, "step": state.step, "unsupported": unsupported});
        return Ok(exported.to_string());
    }
    let files = transformers::export(model, &engine.parameters, recipe.default_frames(), folder)?;
    let unsupported = transformers::unsupported(&recipe.model);
    Ok(json!({"files": files, "step": state.step, "unsupported": unsupported}).to_string())
}

/// Returns the number of frames of a file of this kind: that of the recipe's sources of pictures or
/// clips, and 1 for a picture that a dual encoder embeds. Returns `None` if it is the recipe's
/// default number.
fn frames_of(session: &Session, file: &Path) -> Option<usize> {
    let extension = file.extension()?.to_ascii_lowercase();
    let visual = match Media::of_extension(extension.to_str()?)? {
        Media::Image => Visual::Image,
        Media::Video => Visual::Video,
    };
    match session.recipe.model.kind {
        ModelKind::DualEncoder => (visual == Visual::Image).then_some(1),
        ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::Vlm => {
            session.recipe.data.sources.values().find(|source| source.visual == visual)?.frames
        }
    }
}

fn checkpoints(session: &Session) -> CheckpointFolder {
    CheckpointFolder {
        folder: session.run.checkpoints(),
        recipe_hash: session.recipe_hash.clone(),
        order_version: ORDER_VERSION,
        drills: session.drills.clone(),
        generation: session.generation.clone(),
    }
}

/// The model of a run, with its weights.
pub(crate) enum Loaded {
    VlJepa(Box<Engine>),
    DualEncoder(Box<Engine<DualEncoder>>),
    Vlm(Box<Engine<Vlm>>),
}

impl Loaded {
    /// Loads a checkpoint of VL-JEPA, or the published weights of a dual encoder.
    pub(crate) fn of(session: &Session, step: Option<u64>) -> anyhow::Result<(Self, State)> {
        match session.recipe.model.kind {
            ModelKind::VlJepa | ModelKind::YDecoder => {
                let (engine, state) = trained(session, step)?;
                Ok((Self::VlJepa(Box::new(engine)), state))
            }
            ModelKind::DualEncoder => {
                let (engine, _) =
                    Engine::published(&session.recipe, session.device, &session.collectives)?;
                Ok((Self::DualEncoder(Box::new(engine)), State::default()))
            }
            ModelKind::Vlm => {
                let (engine, state) = trained(session, step)?;
                Ok((Self::Vlm(Box::new(engine)), state))
            }
        }
    }

    /// Returns unused memory to the device.
    pub(crate) fn trim(&self) -> vljepa_kernels::Result<()> {
        match self {
            Self::VlJepa(engine) => engine.trim(),
            Self::DualEncoder(engine) => engine.trim(),
            Self::Vlm(engine) => engine.trim(),
        }
    }

    pub(crate) fn embeds(&self) -> Embeds<'_> {
        match self {
            Self::VlJepa(engine) => Embeds::VlJepa(engine),
            Self::DualEncoder(engine) => Embeds::DualEncoder(engine),
            Self::Vlm(engine) => Embeds::Vlm(engine),
        }
    }
}

/// Loads the model from a checkpoint.
fn trained<M: Network>(session: &Session, step: Option<u64>) -> anyhow::Result<(Engine<M>, State)> {
    let (mut engine, mut training) =
        Engine::<M>::for_rank(&session.recipe, session.device, session.collectives.rank_id())?;
    let loaded = engine
        .restore(&mut training, &checkpoints(session), step, &session.collectives)
        .context("no checkpoint could be loaded")?;
    for passed in &loaded.passed_over {
        tracing::warn!("a checkpoint does not verify: {passed}");
    }
    if loaded.name.is_none() {
        let run = session.run.path().display().to_string();
        return Err(WorkerError::NoCheckpoint { run }.into());
    }
    Ok((engine, loaded.state))
}

/// Returns the query of the recipe's first captioning task, or that of searches.
pub(crate) fn caption_query(session: &Session) -> String {
    let mut tasks = session.recipe.evaluation.tasks.iter();
    let captioning = tasks.find(|task| matches!(task.kind, TaskKind::Captioning { .. }));
    captioning.map_or_else(|| retrieval_query(session), |task| task.query.clone())
}

/// Returns the query that samples are embedded with for a search by text: the query of the recipe's
/// retrieval task, or an empty text if there is no such task.
fn retrieval_query(session: &Session) -> String {
    let mut tasks = session.recipe.evaluation.tasks.iter();
    tasks
        .find(|task| task.kind == TaskKind::Retrieval)
        .map_or_else(String::new, |t| t.query.clone())
}
