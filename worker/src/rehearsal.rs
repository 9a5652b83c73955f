//! A rehearsal of a recipe on a recording GPU: steps of every stage and one evaluation batch at
//! full size, without a GPU.
//!
//! It shows what a run will ask of its device before one is booked: the kernels to compile ahead,
//! the most memory a rank holds, and the launches, copies and synchronisations of a step. Sizes
//! that an operation refuses are refused here.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::compile::Kernel;
use vljepa_kernels::device::cuda::{Cuda, Order, Record, Total};
use vljepa_kernels::device::{Upload, UploadBuffer};
use vljepa_kernels::{Device, Packed, Tensor};
use vljepa_recipes::Recipe;
use vljepa_recipes::cost::{Tokens, longest_sample};
use vljepa_recipes::schema::Stage;

use crate::collectives::{Collectives, StandIn};
use crate::embed;
use crate::engine::{Engine, Training};
use crate::step::{self, Input};

/// Memory of the recording GPU where nothing else is asked for: more than any recipe needs.
const UNLIMITED_BYTES: usize = 1 << 50;

/// A stage of a recipe as rank 0 ran it.
#[derive(Debug)]
pub struct StageRecord {
    /// Name of the stage.
    pub name: String,
    /// Rows of the rank in a step.
    pub rows: usize,
    /// What each step asked for. The first one fills the heap.
    pub steps: Vec<Record>,
}

impl StageRecord {
    /// Most bytes that the heap held in the stage.
    #[must_use]
    pub fn peak_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.peak_bytes).max().unwrap_or(0)
    }

    /// The last step, which stands for all that would follow.
    ///
    /// # Panics
    /// Never: a rehearsal takes at least one step.
    #[must_use]
    pub fn steady(&self) -> &Record {
        self.steps.last().expect("a stage is rehearsed in at least one step")
    }
}

/// What a rehearsal found.
#[derive(Debug)]
pub struct Rehearsal {
    /// Bytes of weights, optimizer state and gradients: allocated before the first step.
    pub state_bytes: usize,
    /// Stages in the recipe's order.
    pub stages: Vec<StageRecord>,
    /// One batch of an evaluation.
    pub evaluation: Record,
}

impl Rehearsal {
    /// All kernels that were launched.
    #[must_use]
    pub fn kernels(&self) -> BTreeSet<Kernel> {
        let steps = self.stages.iter().flat_map(|stage| &stage.steps);
        steps.chain([&self.evaluation]).flat_map(Record::kernels).collect()
    }
}

/// Rehearses `recipe` as its rank with the most rows, on a GPU of `memory_bytes` (`None` for no
/// limit). Every stage takes one step for each of `target_tokens`, the length of its target texts;
/// without any, two steps with the longest texts that the recipe allows.
///
/// # Errors
/// A size that an operation refuses, or a stage that needs more than the memory, with the stage's
/// name.
pub fn rehearse(
    recipe: &Recipe,
    memory_bytes: Option<usize>,
    target_tokens: &[usize],
) -> anyhow::Result<Rehearsal> {
    let mode = if recipe.deterministic { Mode::Deterministic } else { Mode::Fast };
    let cuda = Cuda::recording(memory_bytes.unwrap_or(UNLIMITED_BYTES), mode);
    let record = || cuda.take_record().unwrap_or_default();
    let world_size = recipe.cluster.world_size().max(1);
    let (mut engine, mut training) =
        Engine::for_rehearsal(recipe, Device::Cuda(cuda), [0, world_size])?;
    let state_bytes = record().peak_bytes;
    let longest = [recipe.model.y_encoder.max_target_tokens; 2];
    let target_tokens = if target_tokens.is_empty() { &longest[..] } else { target_tokens };
    let mut stages = Vec::new();
    for stage in &recipe.stages {
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
            let tokens = Tokens { target, ..longest_sample(recipe, stage) };
            let batch = blank_batch(stage, frames, shape, tokens)?;
            one_step(&mut engine, &mut training, stage, batch, world_size)
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

fn one_step(
    engine: &mut Engine,
    training: &mut Training,
    stage: &Stage,
    batch: Batch<Tensor>,
    world_size: usize,
) -> anyhow::Result<()> {
    let collectives = Collectives::StandIn(StandIn { world_size });
    let input = Input {
        batch,
        micro_batch: stage.micro_batch,
        recompute: stage.recompute,
        learning_rate: stage.learning_rate.peak,
        stop: false,
        spoiled: false,
    };
    step::step(engine, training, &collectives, input, &mut |_| Ok(())).map(|_| ())
}

/// Texts of token 0, of the lengths that a step of the stage has.
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
        query: blank_texts(rows, tokens.query)?,
        target: blank_texts(rows, tokens.target)?,
        target_hashes: vec![0; rows],
        query_texts: vec![String::new(); rows],
        target_texts: vec![String::new(); rows],
        samples: Vec::new(),
        skipped: Vec::new(),
    })
}

fn frames_shape(recipe: &Recipe, stage: &Stage, rows: usize) -> [usize; 5] {
    let size = recipe.model.image_size;
    [rows, longest_clip(recipe, stage), size, size, 3]
}

fn longest_clip(recipe: &Recipe, stage: &Stage) -> usize {
    let sources = stage.mixture.keys().filter_map(|name| recipe.data.sources.get(name));
    sources.map(|source| source.frames.unwrap_or(stage.frames)).max().unwrap_or(stage.frames)
}

fn blank_texts(rows: usize, tokens: usize) -> anyhow::Result<Ragged> {
    let ends = (0..=rows).map(|row| i32::try_from(row * tokens)).collect::<Result<_, _>>()?;
    Ok(Ragged { ids: vec![0; rows * tokens], cu_seqlens: ends })
}

/// One batch of clips with their queries and one of texts, as [`embed`] makes them.
fn evaluate(recipe: &Recipe, engine: &Engine) -> anyhow::Result<()> {
    let (rows, size) = (embed::ROWS, recipe.model.image_size);
    let frames = recipe.stages.iter().map(|stage| stage.frames).max().unwrap_or(0);
    let shape = [rows, frames, size, size, 3];
    let packed = |tokens| -> anyhow::Result<Packed> {
        let Ragged { ids, cu_seqlens } = blank_texts(rows, tokens)?;
        Ok(Packed::new(engine.device(), ids, cu_seqlens)?)
    };
    let frames = Tensor::from_u8(vec![0; shape.iter().product()], &shape);
    let queries = packed(recipe.model.predictor.max_query_tokens)?;
    engine.predict(frames, &queries)?;
    engine.target(&packed(recipe.model.y_encoder.max_target_tokens)?)?;
    Ok(())
}

/// Rehearses `recipes` on a GPU of `memory_gib` and prints a line for each stage.
///
/// # Errors
/// As [`rehearse`], and when a recipe does not load.
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

/// A number of bytes in units of 2^`shift`, with one decimal.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn in_unit(bytes: usize, shift: u32) -> String {
    format!("{:.1}", bytes as f64 / (1u64 << shift) as f64)
}
