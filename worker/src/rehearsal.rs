//! Rehearses a recipe at full size without a GPU: runs steps of every stage and one evaluation
//! batch on a recording GPU, which computes nothing.
//!
//! A rehearsal shows the demands of a run before a GPU is booked: the kernels to compile ahead, the
//! peak memory of a rank, and the launches, copies and synchronisations of a step. It fails on
//! sizes that an operation rejects.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::compile::Kernel;
use vljepa_kernels::device::cuda::{Cuda, Order, Record, Total};
use vljepa_kernels::device::{Upload, UploadBuffer};
use vljepa_kernels::{Device, Packed, Tensor};
use vljepa_model::{DualEncoder, Vlm};
use vljepa_recipes::cost::{ASSUMED_TARGET_TOKENS, Tokens, longest_sample, longest_texts};
use vljepa_recipes::schema::{Decoding, EmbeddingSource, ModelKind, Stage};
use vljepa_recipes::{RankId, Recipe};

use crate::collectives::{Collectives, StandIn};
use crate::engine::{Engine, Prompt, Training};
use crate::evaluation::embed;
use crate::training::Learns;
use crate::training::step::Input;

/// Memory of the recording GPU if no limit is given: more than any recipe needs.
const UNLIMITED_BYTES: usize = 1 << 50;

/// A token that no tokenizer has.
const NO_TOKEN: i32 = -1;

/// Record of one stage, as rank 0 ran it.
#[derive(Debug)]
pub struct StageRecord {
    /// Name of the stage in the recipe.
    pub name: String,
    /// Rows of this rank in a step.
    pub rows: usize,
    /// Requests to the device in each step. The first step also fills the heap.
    pub steps: Vec<Record>,
}

impl StageRecord {
    /// Returns the peak size of the heap in the stage, in bytes.
    #[must_use]
    pub fn peak_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.peak_bytes).max().unwrap_or(0)
    }

    /// Returns the last step, which represents all later steps.
    ///
    /// # Panics
    /// Never panics: a rehearsal runs at least one step.
    #[must_use]
    pub fn steady(&self) -> &Record {
        self.steps.last().expect("a stage is rehearsed in at least one step")
    }
}

/// Result of a rehearsal.
#[derive(Debug)]
pub struct Rehearsal {
    /// Bytes of weights, gradients and optimizer state, which are allocated before the first step.
    pub state_bytes: usize,
    /// Records of the stages, in the recipe's order.
    pub stages: Vec<StageRecord>,
    /// Record of one evaluation batch.
    pub evaluation: Record,
}

impl Rehearsal {
    /// Returns all kernels that were launched.
    #[must_use]
    pub fn kernels(&self) -> BTreeSet<Kernel> {
        let steps = self.stages.iter().flat_map(|stage| &stage.steps);
        steps.chain([&self.evaluation]).flat_map(Record::kernels).collect()
    }
}

/// Rehearses `recipe` as the rank with the most rows, on a GPU with `memory_bytes` (`None` for no
/// limit). Every stage runs one step for each entry of `target_tokens`, which is the length of the
/// target texts. If `target_tokens` is empty, every stage runs two steps with the longest texts
/// that the recipe allows. A dual encoder has no stages and is only evaluated.
///
/// # Errors
/// Fails if an operation rejects a size, or a stage needs more memory than there is. The error
/// names the stage. Also fails for a table, which has no model of its own.
pub fn rehearse(
    recipe: &Recipe,
    memory_bytes: Option<usize>,
    target_tokens: &[usize],
) -> anyhow::Result<Rehearsal> {
    anyhow::ensure!(
        recipe.table.is_none(),
        "a table has no model of its own; name the recipes of the runs in its rows"
    );
    let mode = if recipe.deterministic { Mode::Deterministic } else { Mode::Fast };
    let cuda = Cuda::recording(memory_bytes.unwrap_or(UNLIMITED_BYTES), mode);
    match recipe.model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder => {
            training(recipe, cuda, target_tokens, embed_batches)
        }
        ModelKind::Vlm => training(recipe, cuda, target_tokens, answer_batch),
        ModelKind::DualEncoder => dual_encoder(recipe, cuda),
    }
}

fn dual_encoder(recipe: &Recipe, cuda: &'static Cuda) -> anyhow::Result<Rehearsal> {
    let record = || cuda.take_record().unwrap_or_default();
    let engine = Engine::<DualEncoder>::without_weights(recipe, Device::Cuda(cuda), 1)?;
    let state_bytes = record().peak_bytes;
    let frames = most_frames(recipe, recipe.default_frames());
    let y_encoder = &recipe.model.y_encoder;
    let tokens = y_encoder.padded_length().unwrap_or(y_encoder.max_target_tokens());
    engine.clips(blank_frames(recipe, frames)).context("evaluation")?;
    engine.texts(&blank_packed(engine.device(), tokens)?).context("evaluation")?;
    Ok(Rehearsal { state_bytes, stages: Vec::new(), evaluation: record() })
}

fn training<M: Learns>(
    recipe: &Recipe,
    cuda: &'static Cuda,
    target_tokens: &[usize],
    evaluate: fn(&Recipe, &Engine<M>) -> anyhow::Result<()>,
) -> anyhow::Result<Rehearsal> {
    let record = || cuda.take_record().unwrap_or_default();
    let world_size = recipe.cluster.world_size().max(1);
    let (mut engine, mut training) =
        Engine::<M>::for_rank(recipe, Device::Cuda(cuda), RankId { rank: 0, world_size })?;
    let state_bytes = record().peak_bytes;
    let longest = [longest_texts(&recipe.model, Tokens::default()).target.max(1); 2];
    let target_tokens = if target_tokens.is_empty() { &longest[..] } else { target_tokens };
    let mut stages = Vec::new();
    for (index, stage) in recipe.stages.iter().enumerate() {
        let rows = stage.batch.div_ceil(world_size);
        engine.trim()?;
        record();
        let mut steps = Vec::new();
        let shape = frames_shape(recipe, stage, rows);
        let upload = || {
            Upload::begin(UploadBuffer::new(Device::Cuda(cuda), shape.iter().product())?, &shape)
        };
        let mut ahead = upload()?;
        for &target in target_tokens {
            let (frames, _) = ahead.arrive()?;
            ahead = upload()?;
            let sample = longest_sample(recipe, stage);
            let Tokens { output, query, .. } = longest_texts(&recipe.model, sample);
            // The question of a VLM lies in its template.
            let query = if recipe.model.vlm().is_some() { query } else { sample.query };
            let tokens = Tokens { target, output, query, ..sample };
            let batch = blank_batch(stage, frames, shape, tokens)?;
            rehearse_step(&mut engine, &mut training, (recipe, index), batch)
                .with_context(|| format!("stage {}", stage.name))?;
            steps.push(record());
        }
        stages.push(StageRecord { name: stage.name.clone(), rows, steps });
    }
    engine.trim()?;
    record();
    evaluate(recipe, &engine).context("evaluation")?;
    Ok(Rehearsal { state_bytes, stages, evaluation: record() })
}

fn rehearse_step<M: Learns>(
    engine: &mut Engine<M>,
    training: &mut Training,
    (recipe, index): (&Recipe, usize),
    batch: Batch<Tensor>,
) -> anyhow::Result<()> {
    let (stage, world_size) = (&recipe.stages[index], recipe.cluster.world_size().max(1));
    let collectives = Collectives::StandIn(StandIn { world_size });
    let input = Input {
        batch,
        micro_batch: stage.micro_batch,
        recompute: stage.recompute,
        learning_rate: stage.learning_rate.peak,
        stop: false,
        spoiled: false,
        gauged: true,
    };
    let of = (recipe, index);
    M::step(engine, training, &collectives, of, input, &mut |_| Ok(())).map(|_| ())
}

/// Makes a batch whose texts consist of token 0 and have the given lengths.
fn blank_batch(
    stage: &Stage,
    frames: Tensor,
    frames_shape: [usize; 5],
    tokens: Tokens,
) -> anyhow::Result<Batch<Tensor>> {
    let [rows, ..] = frames_shape;
    Ok(Batch {
        stage_step: 0,
        first_row: 0,
        global_batch: stage.batch,
        frames,
        frames_shape,
        before: Arc::from([]),
        query: blank_texts(rows, tokens.query)?,
        target: blank_texts(rows, tokens.target.max(1))?,
        output: blank_texts(rows, tokens.output)?,
        target_hashes: vec![0; rows],
        query_texts: vec![String::new(); rows],
        target_texts: vec![String::new(); rows],
        samples: Vec::new(),
        skipped: Vec::new(),
    })
}

fn frames_shape(recipe: &Recipe, stage: &Stage, rows: usize) -> [usize; 5] {
    let size = recipe.model.image_size;
    let frames = match recipe.model.learning_decoder().map(|_| stage.decoding.unwrap_or_default()) {
        Some(Decoding { embeddings: EmbeddingSource::Targets, .. }) => 0,
        Some(_) | None => longest_clip(recipe, stage),
    };
    [rows, frames, size, size, 3]
}

fn longest_clip(recipe: &Recipe, stage: &Stage) -> usize {
    let sources = stage.mixture.keys().filter_map(|name| recipe.data.sources.get(name));
    sources.map(|source| source.frames.unwrap_or(stage.frames)).max().unwrap_or(stage.frames)
}

fn blank_texts(rows: usize, tokens: usize) -> anyhow::Result<Ragged> {
    let ends = (0..=rows).map(|row| i32::try_from(row * tokens)).collect::<Result<_, _>>()?;
    Ok(Ragged { ids: vec![0; rows * tokens], cu_seqlens: ends })
}

/// Embeds one batch of clips with queries and one batch of texts, of the sizes that [`embed`] uses.
fn embed_batches(recipe: &Recipe, engine: &Engine) -> anyhow::Result<()> {
    let (model, device) = (&recipe.model, engine.device());
    let trained = recipe.stages.iter().map(|stage| stage.frames).max().unwrap_or(0);
    let frames = most_frames(recipe, trained);
    let queries = blank_packed(device, model.predictor.max_query_tokens)?;
    engine.predict(blank_frames(recipe, frames), &queries)?;
    engine.target(&blank_packed(device, model.y_encoder.max_target_tokens())?)?;
    if let Some(decoder) = model.decoder() {
        // Texts that no token ends are as long as the recipe allows.
        let start = vec![0; 2 * usize::from(decoder.language().is_some())];
        engine.write(&vec![vec![0.0; model.embed_dim]; embed::ROWS], NO_TOKEN, &start)?;
    }
    Ok(())
}

/// Writes the answers to one batch of questions about clips, and measures given ones.
fn answer_batch(recipe: &Recipe, engine: &Engine<Vlm>) -> anyhow::Result<()> {
    let trained = recipe.stages.iter().map(|stage| stage.frames).max().unwrap_or(0);
    let frames = most_frames(recipe, trained);
    let tokens = longest_texts(&recipe.model, Tokens::default());
    let question = vec![0; tokens.query];
    let questions = vec![&*question; embed::ROWS];
    // Texts that no token ends are as long as the recipe allows.
    let prompt = Prompt { before: &[], start: &[], end: NO_TOKEN };
    let visual = engine.encode(blank_frames(recipe, frames).on(engine.device())?.view())?;
    engine.answer(&visual, &questions, prompt)?;
    let candidates = [vec![0; ASSUMED_TARGET_TOKENS], vec![0; ASSUMED_TARGET_TOKENS]];
    engine.mean_losses(&visual, &questions, prompt, &candidates)?;
    Ok(())
}

/// The most frames of a clip that an evaluation embeds: `usual` or those of a task.
fn most_frames(recipe: &Recipe, usual: usize) -> usize {
    recipe.evaluation.tasks.iter().filter_map(|task| task.frames).fold(usual, usize::max)
}

/// Black clips of so many frames, as many as are embedded at once.
fn blank_frames(recipe: &Recipe, frames: usize) -> Tensor {
    let size = recipe.model.image_size;
    let shape = [embed::ROWS, frames, size, size, 3];
    Tensor::from_u8(vec![0; shape.iter().product()], &shape)
}

/// Texts of so many tokens, as many as are embedded at once.
fn blank_packed(device: Device, tokens: usize) -> anyhow::Result<Packed> {
    let Ragged { ids, cu_seqlens } = blank_texts(embed::ROWS, tokens)?;
    Ok(Packed::new(device, ids, cu_seqlens)?)
}

/// Rehearses `recipes` on a GPU with `memory_gib` and returns a table with a line for each stage.
///
/// # Errors
/// Fails in the same cases as [`rehearse`], or if a recipe does not load.
pub fn run(
    recipes: &[PathBuf],
    changes: &[String],
    memory_gib: Option<usize>,
    target_tokens: &[usize],
) -> anyhow::Result<String> {
    let mut text = String::from(
        "| recipe, stage | rows | GiB | launches | products | uploads | MiB | copies | MiB | zeros | downloads | waits |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|",
    );
    for path in recipes {
        let recipe = vljepa_recipes::load(path, changes)?.recipe;
        let found = rehearse(&recipe, memory_gib.map(|gib| gib << 30), target_tokens)
            .with_context(|| path.display().to_string())?;
        let state = in_unit(found.state_bytes, 30);
        write!(text, "\n| {}, state | | {state} | | | | | | | | | |", recipe.name)?;
        for stage in &found.stages {
            let name = format!("{}, {}", recipe.name, stage.name);
            line(&mut text, &name, stage.rows, stage.peak_bytes(), stage.steady())?;
        }
        let name = format!("{}, evaluation", recipe.name);
        line(&mut text, &name, embed::ROWS, found.evaluation.peak_bytes, &found.evaluation)?;
    }
    Ok(text)
}

fn line(
    text: &mut String,
    name: &str,
    rows: usize,
    peak_bytes: usize,
    record: &Record,
) -> std::fmt::Result {
    let of = |which: fn(&Order) -> Option<usize>| record.total(which);
    let count = |which: fn(&Order) -> bool| record.orders.iter().filter(|(_, o)| which(o)).count();
    let Total { count: uploads, bytes: up } = of(|order| match order {
        Order::Upload(to) => Some(to.bytes),
        _ => None,
    });
    let Total { count: copies, bytes: copied } = of(|order| match order {
        Order::Copy { to, .. } => Some(to.bytes),
        _ => None,
    });
    write!(
        text,
        "\n| {name} | {rows} | {} | {} | {} | {uploads} | {} | {copies} | {} | {} | {} | {} |",
        in_unit(peak_bytes, 30),
        count(|order| matches!(order, Order::Launch(_))),
        count(|order| matches!(order, Order::Multiply(_))),
        in_unit(up, 20),
        in_unit(copied, 20),
        count(|order| matches!(order, Order::FillZero(_))),
        count(|order| matches!(order, Order::Download(_))),
        count(|order| matches!(order, Order::Synchronize)),
    )
}

/// Formats `bytes` in units of 2^`shift`, with one decimal.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn in_unit(bytes: usize, shift: u32) -> String {
    format!("{:.1}", bytes as f64 / (1u64 << shift) as f64)
}
