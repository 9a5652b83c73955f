//! One training step of the quickstart's model on the host, the opponent of `torch_step.py`: one line of JSON.
//!
//! `cargo bench -p vljepa-worker --bench host_step -- --threads 2 --frames 4`. The model, its loss and its optimizer are those of
//! `recipes/quickstart.yaml`; the batch is random, and everything a step of a single process does is timed: forward, loss,
//! backward, clipping, AdamW. `--phases` adds the milliseconds of each.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the benchmark's result")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::Device;
use vljepa_kernels::testing::{Random, bytes, indices};
use vljepa_model::Recompute;
use vljepa_recipes::Recipe;
use vljepa_recipes::protocol::Phase;
use vljepa_worker::collectives::{Collectives, Solo};
use vljepa_worker::engine::{Engine, Training};
use vljepa_worker::step::{self, Input, StepReport};

#[derive(Debug, Parser)]
struct Arguments {
    /// The recipe whose model, loss and optimizer are timed.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/quickstart.yaml"))]
    recipe: PathBuf,
    /// Threads of the step.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Rows of the batch.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Frames of a clip.
    #[arg(long, default_value_t = 4)]
    frames: usize,
    /// Tokens of a query.
    #[arg(long, default_value_t = 4)]
    query: usize,
    /// Tokens of a target.
    #[arg(long, default_value_t = 8)]
    text: usize,
    /// Timed steps; the median counts.
    #[arg(long, default_value_t = 100)]
    steps: usize,
    /// Prints the median milliseconds of each phase as well.
    #[arg(long)]
    phases: bool,
    /// Handed over by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Steps before the clock starts: the arena fills, the processor finds its speed.
const WARM_UP: usize = 6;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let recipe = vljepa_recipes::load(&arguments.recipe, &[])?.recipe;
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let (mut engine, mut training) = Engine::for_training(&recipe, Device::Host)?;
    let batch = random_batch(arguments, &recipe)?;
    let learning_rate = recipe.stages.first().map_or(1e-3, |stage| stage.learning_rate.peak);
    for _ in 0..WARM_UP {
        one_step(&mut engine, &mut training, batch.clone(), learning_rate)?;
    }
    let mut times = Vec::with_capacity(arguments.steps);
    let mut phases: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut loss = f64::NAN;
    for _ in 0..arguments.steps.max(1) {
        let (report, ms, of_phases) =
            one_step(&mut engine, &mut training, batch.clone(), learning_rate)?;
        loss = report.loss;
        times.push(ms);
        for (phase, ms) in of_phases {
            phases.entry(phase).or_default().push(ms);
        }
    }
    let ms = median(&mut times);
    let rows = arguments.batch as f64;
    let mut line = json!({
        "peer": "vljepa",
        "version": env!("CARGO_PKG_VERSION"),
        "mode": "host",
        "threads": arguments.threads,
        "frames": arguments.frames,
        "batch": arguments.batch,
        "text": arguments.text,
        "query": arguments.query,
        "ms": rounded(ms, 1e3),
        "ms_min": rounded(times.iter().copied().fold(f64::INFINITY, f64::min), 1e3),
        "samples_per_s": rounded(rows / ms * 1e3, 1e2),
        "loss": rounded(loss, 1e4),
        "trainable": engine.parameters.trainable.shape()[0],
    });
    if arguments.phases {
        let medians =
            phases.into_iter().map(|(name, mut ms)| (name, rounded(median(&mut ms), 1e3)));
        line["phases_ms"] = medians.collect();
    }
    println!("{line}");
    Ok(())
}

/// One step with its milliseconds, and those of each phase (a phase that comes back is added up).
fn one_step(
    engine: &mut Engine,
    training: &mut Training,
    batch: Batch,
    learning_rate: f64,
) -> anyhow::Result<(StepReport, f64, BTreeMap<&'static str, f64>)> {
    let input =
        Input { batch, micro_batch: None, recompute: Recompute::None, learning_rate, stop: false };
    let mut of_phases = BTreeMap::new();
    let start = Instant::now();
    let mut now = ("before", start);
    let mut enter = |phase: Phase| {
        let before = std::mem::replace(&mut now, (phase.name(), Instant::now()));
        *of_phases.entry(before.0).or_default() += milliseconds(before.1);
    };
    let report = step::step(engine, training, &Collectives::Solo(Solo), input, &mut enter)?;
    let last = milliseconds(now.1);
    *of_phases.entry(now.0).or_default() += last;
    Ok((report, milliseconds(start), of_phases))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn random_batch(arguments: &Arguments, recipe: &Recipe) -> anyhow::Result<Batch> {
    let Arguments { batch: rows, frames, query, text, .. } = *arguments;
    let size = recipe.model.image_size;
    let frames_shape = [rows, frames, size, size, 3];
    let mut random = Random::new(7);
    Ok(Batch {
        stage_step: 0,
        first_row: 0,
        global_batch: rows,
        frames: bytes(1, frames_shape.iter().product()),
        frames_shape,
        query: random_tokens(2, rows, query, recipe.model.predictor.vocab_size)?,
        target: random_tokens(3, rows, text, recipe.model.y_encoder.vocab_size)?,
        target_hashes: (0..rows).map(|_| random.bits()).collect(),
        query_texts: vec![String::new(); rows],
        target_texts: vec![String::new(); rows],
        samples: Vec::new(),
        skipped: Vec::new(),
    })
}

fn random_tokens(seed: u64, rows: usize, len: usize, vocabulary: usize) -> anyhow::Result<Ragged> {
    let ends = (0..=rows).map(|row| i32::try_from(row * len)).collect::<Result<_, _>>()?;
    Ok(Ragged { ids: indices(seed, rows * len, vocabulary), cu_seqlens: ends })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Rounded to 1 / `unit`.
fn rounded(x: f64, unit: f64) -> f64 {
    (x * unit).round() / unit
}
