//! Times one training step of a recipe's model and prints one line of JSON. `torch_step.py` is the
//! PyTorch program that it is compared with.
//!
//! `cargo bench -p vljepa-worker --bench step -- --threads 2 --frames 4` times the quickstart's
//! step on the host. With feature `cuda`, `… -- --recipe recipes/pretrain.yaml --ranks 192 --frames
//! 8 --recompute mlp` times one rank's share of a step of 24,576 rows on a GPU. Model, loss,
//! optimizer and device are the recipe's; weights and batch are random. All work of that rank's
//! step is timed, except for the network: upload of the next batch, forward, loss, backward,
//! clipping, AdamW. `--phases` adds the milliseconds of each phase on the host clock. `--trace
//! FILE` writes a Chrome trace of the GPU during one more step to FILE, and prints its time budget
//! as another line.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the benchmark's result")]

mod join;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};
use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::device::{Upload, UploadBuffer};
use vljepa_kernels::testing::{Random, bytes, indices};
use vljepa_kernels::{Device, Tensor};
use vljepa_model::Recompute;
use vljepa_recipes::Recipe;
use vljepa_recipes::cost::{Tokens, memory};
use vljepa_recipes::plan::step_budget;
use vljepa_recipes::protocol::Phase;
use vljepa_worker::collectives::{Collectives, Solo, StandIn};
use vljepa_worker::engine::{Engine, Training};
use vljepa_worker::observe::trace::ChromeTrace;
use vljepa_worker::rank::device;
use vljepa_worker::rank::environment::Environment;
use vljepa_worker::rates::{self, Subject};
use vljepa_worker::training::step::{self, Input, StepReport};

/// File to which a process writes `5` to let its largest memory be that of now.
const CLEAR_REFS: &str = "/proc/self/clear_refs";

#[derive(Debug, Parser)]
struct Arguments {
    /// Recipe whose model, loss and optimizer are timed.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/quickstart.yaml"))]
    recipe: PathBuf,
    /// Override a key of the recipe: KEY=VALUE.
    #[arg(long = "set")]
    sets: Vec<String>,
    /// World size; rank 0 is timed, and the other ranks' rows are copies of its rows.
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// Run all ranks for real: GPUs that find each other through this file (`multi_gpu.sh`).
    #[arg(long)]
    meet: Option<PathBuf>,
    /// Rows embedded at once [default: all rows].
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Activations that the backward pass computes again: none, mlp or block.
    #[arg(long, default_value = "none", value_parser = recompute)]
    recompute: Recompute,
    /// File for a Chrome trace of one more step; GPUs only.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Number of compute threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Rows of this rank.
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
    /// Timed steps, of which the median counts.
    #[arg(long, default_value_t = 100)]
    steps: usize,
    /// Seconds after which no further step is timed; the first step is always timed.
    #[arg(long, default_value_t = f64::INFINITY)]
    seconds: f64,
    /// Steps before the timed ones: the arena fills, and the processor reaches its final clock
    /// rate.
    #[arg(long, default_value_t = 6)]
    warm_up: usize,
    /// Run on an emulated GPU, which only shows that the program works (feature `emulator`).
    #[arg(long)]
    emulated: bool,
    /// Measure this machine's rates first, and print the step that the plan predicts from them.
    #[arg(long)]
    planned: bool,
    /// Also print the median milliseconds of each phase.
    #[arg(long)]
    phases: bool,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn input(&self, batch: Batch<Tensor>, learning_rate: f64) -> Input {
        Input {
            batch,
            micro_batch: self.micro_batch,
            recompute: self.recompute,
            learning_rate,
            stop: false,
            spoiled: false,
            gauged: false,
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let recipe = vljepa_recipes::load(&arguments.recipe, &arguments.sets)?.recipe;
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let (device, device_name) = open(&recipe, arguments)?;
    let collectives = world(arguments, device)?;
    let before_mib = start_of_peak(device)?;
    let (mut engine, mut training) = Engine::for_training(&recipe, device)?;
    let batch = random_batch(arguments, &recipe)?;
    let learning_rate = recipe.stages.first().map_or(1e-3, |stage| stage.learning_rate.peak);
    let mut batches = Batches::new(device, batch)?;
    let mut step = |engine: &mut Engine, training: &mut Training| {
        let input = arguments.input(batches.next()?, learning_rate);
        one_step(engine, training, &collectives, input)
    };
    for _ in 0..arguments.warm_up {
        step(&mut engine, &mut training)?;
    }
    // Measuring rates takes memory of its own.
    let memory_mib = memory_mib(before_mib, &engine, &training)?;
    let planned = planned(arguments, &recipe, device, &collectives)?;
    let mut times = Vec::with_capacity(arguments.steps);
    let mut phases: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut loss = f64::NAN;
    let clock = Instant::now();
    for number in 0..arguments.steps.max(1) {
        if number > 0 && clock.elapsed().as_secs_f64() > arguments.seconds {
            break;
        }
        let (report, ms, of_phases) = step(&mut engine, &mut training)?;
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
        "mode": device.name().to_lowercase(),
        "device": device_name,
        "ranks": arguments.ranks,
        "micro_batch": arguments.micro_batch,
        "recompute": format!("{:?}", arguments.recompute).to_lowercase(),
        "threads": arguments.threads,
        "frames": arguments.frames,
        "batch": arguments.batch,
        "text": arguments.text,
        "query": arguments.query,
        "steps": times.len(),
        "ms": rounded(ms, 1e3),
        "ms_min": rounded(times.iter().copied().fold(f64::INFINITY, f64::min), 1e3),
        "samples_per_s": rounded(rows / ms * 1e3, 1e2),
        "loss": rounded(loss, 1e4),
        "peak_gib": peak_gib(device)?,
        "memory_mib": memory_mib,
        "trainable": engine.parameters.trainable.shape()[0],
    });
    if arguments.phases {
        line["phases_ms"] = medians(phases);
    }
    line["planned"] = json!(planned);
    line["joined"] =
        (!matches!(collectives, Collectives::Solo(_) | Collectives::StandIn(_))).into();
    if collectives.rank() == 0 {
        println!("{line}");
    }
    if let Some(path) = &arguments.trace {
        traced(device, path, || step(&mut engine, &mut training).map(|_| ()))?;
    }
    Ok(())
}

/// Yields the same batch for every step. Its frames are uploaded during the previous step, as a
/// worker's feed does it.
struct Batches {
    batch: Batch<()>,
    ahead: Option<Upload>,
}

impl Batches {
    fn new(device: Device, batch: Batch) -> anyhow::Result<Self> {
        let mut buffer = UploadBuffer::new(device, batch.frames.len())?;
        buffer.bytes_mut()?.copy_from_slice(&batch.frames);
        let ahead = Some(Upload::begin(buffer, &batch.frames_shape)?);
        Ok(Self { batch: batch.moved(|_, _| anyhow::Ok(()))?, ahead })
    }

    fn next(&mut self) -> anyhow::Result<Batch<Tensor>> {
        let upload = self.ahead.take().context("an upload failed before")?;
        let (frames, buffer) = upload.arrive()?;
        self.ahead = Some(Upload::begin(buffer, &self.batch.frames_shape)?);
        self.batch.clone().moved(|(), _| Ok(frames))
    }
}

/// With `--planned`: rates of this machine, and the step that a plan predicts from them.
fn planned(
    arguments: &Arguments,
    recipe: &Recipe,
    device: Device,
    collectives: &Collectives,
) -> anyhow::Result<Option<Value>> {
    if !arguments.planned {
        return Ok(None);
    }
    let mut recipe = recipe.clone();
    (recipe.cluster.nodes, recipe.cluster.ranks_per_node) = (1, collectives.world_size());
    let stage = recipe.stages.first_mut().context("the recipe has no stage")?;
    stage.batch = arguments.batch * collectives.world_size();
    stage.micro_batch = arguments.micro_batch;
    stage.recompute = arguments.recompute;
    let stage = stage.clone();
    let tokens = Tokens::of(&recipe.model, arguments.frames, arguments.query, arguments.text);
    let rows = arguments.micro_batch.unwrap_or(arguments.batch).min(arguments.batch);
    let subject = Subject { recipe: &recipe, stage: &stage, tokens, rows };
    let rates = rates::measure(device, collectives, &[subject], "in this run")?;
    let budget = step_budget(&recipe, &stage, tokens, &rates);
    let ms = |seconds: f64| rounded(1e3 * seconds, 1e3);
    let terms = budget.terms_s.iter().map(|(term, time)| (term.name().to_owned(), ms(time.value)));
    let terms: BTreeMap<String, f64> = terms.collect();
    let all = budget.total();
    let (ms, deviation_ms) = (ms(all.value), ms(all.deviation));
    let bytes = memory(&recipe, tokens, rows, arguments.batch, arguments.recompute).total();
    let mib = rounded(bytes / f64::from(1 << 20), 1e1);
    Ok(Some(json!({
        "ms": ms,
        "deviation_ms": deviation_ms,
        "terms_ms": terms,
        "memory_mib": mib,
        "rates": rates,
    })))
}

/// Joins the real ranks, or lets this process stand in for one of them.
fn world(arguments: &Arguments, device: Device) -> anyhow::Result<Collectives> {
    let world_size = arguments.ranks;
    if arguments.meet.is_none() && !Environment::read().started_by_mpi {
        return Ok(match world_size {
            1 => Collectives::Solo(Solo),
            _ => Collectives::StandIn(StandIn { world_size }),
        });
    }
    let joined = join::join(arguments.meet.as_deref(), device)?;
    let found = joined.world_size();
    anyhow::ensure!(
        found == world_size,
        "{found} ranks have joined, but --ranks says {world_size}"
    );
    Ok(joined)
}

fn recompute(name: &str) -> Result<Recompute, String> {
    match name {
        "none" => Ok(Recompute::None),
        "mlp" => Ok(Recompute::Mlp),
        "block" => Ok(Recompute::Block),
        other => Err(format!("{other} is not none, mlp or block")),
    }
}

/// Opens the recipe's device, or an emulated GPU, which only shows that the benchmark works.
fn open(recipe: &Recipe, arguments: &Arguments) -> anyhow::Result<(Device, String)> {
    if arguments.emulated {
        #[cfg(feature = "emulator")]
        {
            use vljepa_kernels::attention::launch::Mode;
            use vljepa_kernels::device::cuda::Cuda;
            return Ok((Device::Cuda(Cuda::for_tests(Mode::Fast)), "emulated".to_owned()));
        }
        #[cfg(not(feature = "emulator"))]
        anyhow::bail!("--emulated needs feature `emulator`");
    }
    device::open(recipe, &Environment::read(), arguments.threads)
}

/// Median of each phase, milliseconds.
fn medians(phases: BTreeMap<&str, Vec<f64>>) -> Value {
    phases.into_iter().map(|(name, mut ms)| (name, rounded(median(&mut ms), 1e3))).collect()
}

/// By how much this process has grown at most since it had `before_mib`, and the largest memory of
/// weights, gradients, moments and the tensors of a step, which is not known on a GPU. In MiB.
fn memory_mib(
    before_mib: Option<f64>,
    engine: &Engine,
    training: &Training,
) -> anyhow::Result<Value> {
    let (_, arena) = engine.stream_and_arena();
    let parameters = [&engine.parameters.trainable, &engine.parameters.frozen];
    let optimizer = [&training.gradients.flat, &training.optimizer.m, &training.optimizer.v];
    let state: usize = parameters.iter().chain(&optimizer).map(|tensor| tensor.shape()[0]).sum();
    let used = arena.most_used_bytes().map(|bytes| {
        let bytes = bytes + state * size_of::<f32>();
        rounded(bytes as f64 / f64::from(1 << 20), 1e1)
    });
    let process = match before_mib {
        Some(before) => Some(rounded(host_mib("VmHWM:")? - before, 1e1)),
        None => None,
    };
    Ok(json!({"process": process, "used": used}))
}

/// Memory of this process in MiB: `VmRSS:` now, or `VmHWM:` at most since [`start_of_peak`].
fn host_mib(key: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("/proc/self/status has no {key}"))? / 1024.0)
}

/// Lets the largest memory of this process be that of now, and returns it in MiB. `None` on a GPU,
/// or if the kernel has no `/proc/self/clear_refs`, such as gVisor's.
fn start_of_peak(device: Device) -> anyhow::Result<Option<f64>> {
    if device != Device::Host || !Path::new(CLEAR_REFS).exists() {
        return Ok(None);
    }
    std::fs::write(CLEAR_REFS, "5").context(CLEAR_REFS)?;
    host_mib("VmRSS:").map(Some)
}

/// Returns the memory in use on a GPU in GiB, which only grows, or `None` on the host.
fn peak_gib(device: Device) -> anyhow::Result<Option<f64>> {
    match device {
        Device::Host => Ok(None),
        Device::Cuda(cuda) => {
            let [free, all] = cuda.memory()?;
            Ok(Some(rounded((all - free) as f64 / f64::from(1 << 30), 1e2)))
        }
    }
}

/// Writes the trace of `step` and prints its time budget: milliseconds and launches by kind, the
/// longest first.
fn traced(
    device: Device,
    path: &Path,
    step: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Device::Cuda(cuda) = device else { anyhow::bail!("only GPUs are traced") };
    cuda.trace()?;
    step()?;
    let spans = cuda.traced()?;
    let mut trace = ChromeTrace::new(0);
    trace.kernels(&spans);
    trace.write(path)?;
    let mut budget: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    let mut end = 0.0_f64;
    for span in &spans {
        let (ms, count) = budget.entry(&span.name).or_default();
        *ms += span.duration_ms;
        *count += 1;
        end = end.max(span.start_ms + span.duration_ms);
    }
    let busy: f64 = budget.values().map(|(ms, _)| ms).sum();
    let mut rows: Vec<_> = budget.into_iter().collect();
    rows.sort_by(|(_, (a, _)), (_, (b, _))| b.total_cmp(a));
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, (ms, count))| json!({"name": name, "ms": rounded(ms, 1e3), "count": count}))
        .collect();
    let (end, busy) = (rounded(end, 1e3), rounded(busy, 1e3));
    println!(
        "{}",
        json!({"peer": "vljepa", "what": "budget", "ms": end, "busy_ms": busy, "rows": rows})
    );
    Ok(())
}

/// Runs one step and returns its milliseconds, and those of each phase. If a phase is entered
/// several times, its times are added.
fn one_step(
    engine: &mut Engine,
    training: &mut Training,
    collectives: &Collectives,
    input: Input,
) -> anyhow::Result<(StepReport, f64, BTreeMap<&'static str, f64>)> {
    let mut of_phases = BTreeMap::new();
    let start = Instant::now();
    let mut now = ("before", start);
    let mut enter = |phase: Phase| {
        let before = std::mem::replace(&mut now, (phase.name(), Instant::now()));
        *of_phases.entry(before.0).or_default() += milliseconds(before.1);
        Ok(())
    };
    let report = step::step(engine, training, collectives, input, &mut enter)?;
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
        global_batch: rows * arguments.ranks,
        frames: bytes(1, frames_shape.iter().product()),
        frames_shape,
        before: std::sync::Arc::from([]),
        query: random_tokens(2, rows, query, recipe.model.predictor.vocab_size)?,
        target: random_tokens(3, rows, text, recipe.model.y_encoder.sizes().vocab_size)?,
        output: Ragged::new(),
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

/// Rounds `x` to a multiple of 1 / `unit`.
fn rounded(x: f64, unit: f64) -> f64 {
    (x * unit).round() / unit
}
