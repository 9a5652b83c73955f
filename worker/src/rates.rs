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
    let bench = Bench::new(device);
    let mut rates = Rates::h200().clone();
    let mut products = Measured::default();
    let mut moved = Measured::default();
    let [mut forward, mut backward] = [Measured::default(), Measured::default()];
    let mut losses = Measured::default();
    for Subject { recipe, stage, tokens, rows } in subjects {
        for network in networks(&recipe.model, *tokens, false, stage.recompute) {
            let Some(layers) = layers(recipe, network.name) else { continue };
            if network.tokens == 0 || layers.count == 0 {
                continue;
            }
            let n = network.tokens * rows;
            let trained = network.backward.products > 0.0;
            bench.products(&layers, n, trained, weight(&network), &mut products)?;
            bench.memory_bound(&layers, n, trained, &mut moved)?;
            for (length, operations) in &network.forward.attention {
                let sequences = (n / length.max(&1)).max(1);
                let times = bench.attention(&layers, sequences, *length, trained)?;
                let operations = *operations * as_f64(*rows);
                forward.add(*length, operations, times[0]);
                backward.add(*length, 2.5 * operations, times[1]);
            }
        }
        if recipe.model.predicts_embeddings() {
            bench.info_nce(recipe, *rows, stage.batch, &mut losses)?;
        }
    }
    let curve = |values: Vec<(usize, f64)>| Curve {
        values: values.into_iter().map(|(size, rate)| (size, rate / 1e12)).collect(),
        spread: 0.05,
        measured: Some(origin.to_owned()),
        predicted: None,
    };
    let rate = |value: f64| Rate {
        value,
        spread: 0.05,
        measured: Some(origin.to_owned()),
        predicted: None,
    };
    rates.device = device.name().to_owned();
    rates.products_tflops = curve(products.rates());
    rates.half_rate_rows = rate(0.0);
    rates.attention_forward_tflops = curve(forward.rates());
    rates.attention_backward_tflops = curve(backward.rates());
    rates.memory_bound_tb_per_s = rate(moved.rate() / 1e12);
    rates.optimizer_tb_per_s = rate(bench.optimizer()? / 1e12);
    if losses.rate() > 0.0 {
        rates.loss_tflops = rate(losses.rate() / 1e12);
    }
    rates.launch_us = rate(1e6 * bench.launch()?);
    rates.waits_ms = rate(1e3 * bench.wait()?);
    let fastest = rates.products_tflops.values.iter().map(|(_, rate)| *rate);
    rates.ceiling_tflops = fastest.fold(0.0, f64::max);
    let attention = rates.attention_forward_tflops.values.iter();
    let attention = attention.chain(&rates.attention_backward_tflops.values);
    rates.ceiling_tflops = attention.map(|(_, rate)| *rate).fold(rates.ceiling_tflops, f64::max);
    rates.peak_tflops = match device {
        Device::Host => rates.ceiling_tflops,
        Device::Cuda(cuda) => peak_tflops(&cuda.description()?)
            .map_or(rates.ceiling_tflops, |peak| peak.max(rates.ceiling_tflops)),
    };
    (rates.memory_mib, rates.reserved_mib.value) = memory_mib(device, collectives)?;
    rates.cpus_per_rank = as_f64(rayon::current_num_threads());
    let unknown = [
        &mut rates.device_hours_per_failure,
        &mut rates.kilowatts_per_device,
        &mut rates.restart_s,
        &mut rates.checkpoint_gb_per_s,
    ];
    for rate in unknown {
        rate.predicted = Some("not measured: the value of a cluster of H200".to_owned());
    }
    if collectives.world_size() > 1 {
        let [bandwidth, latency] = bench.sums(collectives, SUM_BYTES)?;
        rates.within_node_gb_per_s = rate(bandwidth / 1e9);
        rates.within_node_us = rate(1e6 * latency);
    }
    Ok(rates)
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
