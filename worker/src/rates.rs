//! Measures the rates of this machine at the shapes of a recipe: the table from which
//! `vljepa-launch plan --rates` computes time.
//!
//! Products, attention and memory-bound kernels run by themselves, with random numbers, in the
//! sizes of a step of the recipe's first stage. Rates of the cluster that no device shows
//! (failures, power, storage) stay those of the table for H200.

mod bench;

use std::path::Path;

use anyhow::Context;
use vljepa_kernels::Device;
use vljepa_recipes::Recipe;
use vljepa_recipes::cost::{
    Layers, Network, NetworkName, Tokens, longest_sample, networks, peak_tflops,
};
use vljepa_recipes::plan::{Curve, Rate, Rates};
use vljepa_recipes::schema::{Stage, XEncoder, YDecoder};

use self::bench::{Bench, Measured};
use crate::collectives::{Collectives, Solo};
use crate::rank::device;
use crate::rank::environment::Environment;

/// Bytes of the largest sum over ranks that is timed.
const SUM_BYTES: usize = 16 << 20;

/// Relative error of a measured rate: two measurements of an idle machine differ by about as much.
const SPREAD: f64 = 0.05;

/// What is measured: a stage of a recipe with the lengths of its samples.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Recipe whose networks are measured.
    pub recipe: &'a Recipe,
    /// Stage whose batch is taken.
    pub stage: &'a Stage,
    /// Numbers of tokens of a sample.
    pub tokens: Tokens,
    /// Number of samples that a rank embeds at once.
    pub rows: usize,
}

/// Measures the rates of `device` for all `subjects`. All ranks of `collectives` measure at once,
/// and rank 0's rates count.
///
/// # Errors
/// Fails if the device rejects a shape or fails.
pub fn measure(
    device: Device,
    collectives: &Collectives,
    subjects: &[Subject<'_>],
    origin: &str,
) -> anyhow::Result<Rates> {
    // Before the measurements take memory themselves.
    let (memory_mib, reserved_mib) = memory_mib(device, collectives)?;
    let bench = Bench::new(device);
    let mut timed = Timed::default();
    for subject in subjects {
        timed.time(&bench, *subject)?;
    }
    let rate = |value: f64| Rate {
        value,
        spread: SPREAD,
        measured: Some(origin.to_owned()),
        predicted: None,
    };
    let mut rates = Rates::h200().clone();
    device.name().clone_into(&mut rates.device);
    (rates.memory_mib, rates.reserved_mib.value) = (memory_mib, reserved_mib);
    rates.cpus_per_rank = as_f64(rayon::current_num_threads());
    timed.write(&mut rates, origin);
    rates.half_rate_rows = rate(0.0);
    rates.optimizer_tb_per_s = rate(bench.optimizer()? / 1e12);
    rates.launch_us = rate(1e6 * bench.launch()?);
    rates.waits_ms = rate(1e3 * bench.wait()?);
    rates.peak_tflops = match device {
        Device::Host => rates.ceiling_tflops,
        Device::Cuda(cuda) => peak_tflops(&cuda.description()?)
            .map_or(rates.ceiling_tflops, |peak| peak.max(rates.ceiling_tflops)),
    };
    if collectives.world_size() > 1 {
        let [bandwidth, latency] = bench.sums(collectives, SUM_BYTES)?;
        rates.within_node_gb_per_s = rate(bandwidth / 1e9);
        rates.within_node_us = rate(1e6 * latency);
    }
    let unknown = [
        &mut rates.device_hours_per_failure,
        &mut rates.kilowatts_per_device,
        &mut rates.restart_s,
        &mut rates.checkpoint_gb_per_s,
    ];
    for rate in unknown {
        rate.predicted = Some("not measured: the value of a cluster of H200".to_owned());
    }
    Ok(rates)
}

/// Work that was timed, by kind.
#[derive(Debug, Default)]
struct Timed {
    products: Measured,
    attention_forward: Measured,
    attention_backward: Measured,
    memory_bound: Measured,
    loss: Measured,
}

impl Timed {
    /// Times the networks and the loss of a subject.
    fn time(&mut self, bench: &Bench, subject: Subject<'_>) -> anyhow::Result<()> {
        let Subject { recipe, stage, tokens, rows } = subject;
        for network in networks(&recipe.model, tokens, false, stage.recompute) {
            let Some(layers) = layers(recipe, network.name) else { continue };
            if network.tokens == 0 || layers.count == 0 {
                continue;
            }
            let n = network.tokens * rows;
            let trained = network.backward.products > 0.0;
            bench.products(&layers, n, trained, weight(&network), &mut self.products)?;
            bench.memory_bound(&layers, n, trained, &mut self.memory_bound)?;
            for (length, operations) in &network.forward.attention {
                let sequences = (n / length.max(&1)).max(1);
                let times = bench.attention(&layers, sequences, *length, trained)?;
                let operations = *operations * as_f64(rows);
                self.attention_forward.add(*length, operations, times[0]);
                self.attention_backward.add(*length, 2.5 * operations, times[1]);
            }
        }
        if recipe.model.predicts_embeddings() {
            bench.info_nce(recipe, rows, stage.batch, &mut self.loss)?;
        }
        Ok(())
    }

    /// Writes the rates of what was timed. Others keep their values.
    fn write(&self, rates: &mut Rates, origin: &str) {
        let curves = [
            (&self.products, &mut rates.products_tflops),
            (&self.attention_forward, &mut rates.attention_forward_tflops),
            (&self.attention_backward, &mut rates.attention_backward_tflops),
        ];
        let mut ceiling = 0.0_f64;
        for (timed, curve) in curves {
            let values = timed.rates().into_iter().map(|(size, rate)| (size, rate / 1e12));
            let values: Vec<(usize, f64)> = values.collect();
            if !values.is_empty() {
                let measured = Some(origin.to_owned());
                *curve = Curve { values, spread: SPREAD, measured, predicted: None };
            }
            ceiling = curve.values.iter().map(|(_, rate)| *rate).fold(ceiling, f64::max);
        }
        rates.ceiling_tflops = ceiling;
        let single = [
            (&self.memory_bound, &mut rates.memory_bound_tb_per_s),
            (&self.loss, &mut rates.loss_tflops),
        ];
        for (timed, rate) in single {
            if timed.rate() > 0.0 {
                let measured = Some(origin.to_owned());
                let value = timed.rate() / 1e12;
                *rate = Rate { value, spread: SPREAD, measured, predicted: None };
            }
        }
    }
}

/// Memory of the device, and what of it a run cannot use, MiB. Ranks on a host share its memory.
fn memory_mib(device: Device, collectives: &Collectives) -> anyhow::Result<(f64, f64)> {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    match device {
        Device::Host => {
            let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
            let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
            let total = total.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
            let total = total.context("/proc/meminfo has no MemTotal")?;
            Ok((mib(1024.0 * total) / as_f64(collectives.world_size()), 0.0))
        }
        Device::Cuda(cuda) => {
            let [free, all] = cuda.memory()?;
            Ok((mib(as_f64(all)), mib(as_f64(all - free))))
        }
    }
}

/// Measures the rates of this machine for a recipe, and returns them as YAML.
///
/// # Errors
/// Fails if the recipe does not load or does not train, or the device fails.
pub fn run(path: &Path, changes: &[String], threads: usize) -> anyhow::Result<String> {
    let recipe = vljepa_recipes::load(path, changes)?.recipe;
    anyhow::ensure!(!recipe.stages.is_empty(), "{} trains nothing", path.display());
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let (device, name) = device::open(&recipe, &Environment::read(), threads)?;
    let subjects: Vec<Subject<'_>> = recipe
        .stages
        .iter()
        .map(|stage| {
            let share = stage.batch.div_ceil(recipe.cluster.world_size().max(1));
            let rows = stage.micro_batch.unwrap_or(share).min(share);
            Subject { recipe: &recipe, stage, tokens: longest_sample(&recipe, stage), rows }
        })
        .collect();
    let origin = format!("{}, {name}, vljepa-worker rates", vljepa_recipes::clock::now_text());
    let alone = Collectives::Solo(Solo);
    Ok(measure(device, &alone, &subjects, &origin)?.to_yaml()?)
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

/// Operations of all passes of a network: its share of a step's products.
fn weight(network: &Network) -> f64 {
    [&network.forward, &network.again, &network.backward].map(|pass| pass.products).iter().sum()
}

/// The layers of a network, or `None` for a ResNet, whose convolutions are not measured.
fn layers(recipe: &Recipe, name: NetworkName) -> Option<Layers> {
    let model = &recipe.model;
    match name {
        NetworkName::XEncoder if matches!(model.x_encoder, XEncoder::ClipResnet(_)) => None,
        NetworkName::XEncoder => Some(Layers::x_encoder(&model.x_encoder)),
        NetworkName::Predictor => Some(Layers::predictor(model)),
        NetworkName::YEncoder => Some(Layers::y_encoder(model)),
        NetworkName::YDecoder => match model.learning_decoder() {
            Some(YDecoder::Llama(decoder)) => Some(Layers::llama_decoder(decoder)),
            Some(YDecoder::Sonar(_)) | None => None,
        },
        NetworkName::LanguageModel => model.vlm().map(Layers::language_model),
    }
}
