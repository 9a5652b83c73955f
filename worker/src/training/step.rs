//! One optimizer step (ARCHITECTURE.md, "One step"). Every rank issues the same collectives in the
//! same order: the collectives of the loss (`loss.rs`), sums of gradients bucket by bucket, sum of
//! the report's numbers, gather of rows for gauges.
//!
//! Shape suffixes: b = rows of this rank, e = width of the shared embedding.

use std::ops::Range;

use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::{Device, Packed, Stream, Tensor, View, copy};
use vljepa_model::predictor::PredictorSaved;
use vljepa_model::y_encoder::YEncoderSaved;
use vljepa_model::{Embedded, Gradients, Keep, ModelError, Objective, OnReady, Recompute, Visual};
use vljepa_recipes::protocol::{Gauges, Phase};

use crate::collectives::{Collectives, Shares};
use crate::engine::{Engine, Training};
use crate::observe::gauges;
use crate::training::loss::{OwnRows, loss_and_gradients};
use crate::training::optimize;

/// Input of one step on this rank.
#[derive(Debug)]
pub struct Input {
    /// This rank's rows, with their frames on the device.
    pub batch: Batch<Tensor>,
    /// Rows embedded at once, or `None` for all rows of the batch.
    pub micro_batch: Option<usize>,
    /// Activations that the backward pass computes again.
    pub recompute: Recompute,
    /// Learning rate of parameter groups with multiplier 1.
    pub learning_rate: f64,
    /// Whether this rank was asked to stop.
    pub stop: bool,
    /// Whether a drill puts a NaN into this rank's gradient.
    pub spoiled: bool,
    /// Whether the gauges of collapse are computed.
    pub gauged: bool,
}

/// Result of one step, the same on every rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Loss of the global batch before the update.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// InfoNCE's scale α in this step. `None` with another objective, and for a Y-decoder.
    pub scale: Option<f64>,
    /// Gauges of collapse, if they were wanted and all embeddings were finite.
    pub gauges: Option<Gauges>,
    /// Whether every gradient was finite. Otherwise no parameter was updated.
    pub finite: bool,
    /// Samples of all ranks that were left out because they were bad.
    pub bad_samples: u64,
    /// Whether any rank was asked to stop. Then all ranks stop after this step.
    pub stop: bool,
}

/// Computes the gradient of the global batch's loss and updates the parameters. Calls `enter` at
/// the beginning of each phase.
///
/// # Errors
/// Fails if the model rejects the batch's shapes or ids, the device fails, or `enter` returns an
/// error.
pub fn step(
    engine: &mut Engine,
    training: &mut Training,
    collectives: &Collectives,
    input: Input,
    enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
) -> anyhow::Result<StepReport> {
    let Input { batch, micro_batch, recompute, learning_rate, stop, spoiled, gauged } = input;
    let shares = Shares { global: batch.global_batch, world_size: collectives.world_size() };
    let rows = shares.rows(collectives.rank());
    let bad_samples = batch.skipped.len();
    let hashes = batch.target_hashes.clone();
    let micros = micro_batches(engine, &batch, micro_batch)?;
    let frames = batch.frames;
    // Read α before the device has work: a later read would make the host wait for all work issued
    // until then.
    let alpha = engine.model.alpha(&engine.parameters)?;
    begin_gradients(&mut training.gradients, &engine.device().compute_stream(), spoiled)?;

    enter(Phase::Forward)?;
    let needed = Keep::Needed(recompute);
    let alone = micros.len() == 1;
    let Embeddings { predicted_be, target_be, average_be, mut kept, visuals } =
        embed_all(engine, &frames, &micros, rows.len(), needed)?;
    let cx = engine.context();
    let mut loss_to = |target: &Tensor| {
        let (predicted, hashes, rows) = (&predicted_be, &hashes[..], rows.clone());
        let own = OwnRows { predicted, target, hashes, rows };
        loss_and_gradients(engine, training, alpha, collectives, shares, &own, enter)
    };
    let (mut share, mut d) = loss_to(&target_be)?;
    // The predictor learns from the average, and the trained Y-encoder from the prediction.
    if let Some(average_be) = &average_be {
        (share, d.predicted) = loss_to(average_be).map(|(share, d)| (share, d.predicted))?;
    }

    // Sum and not mean: the loss is already divided by g. Full buckets are summed over ranks while
    // the backward pass of the last micro-batch goes on.
    let mut sums = optimize::travelling_sums(training, collectives);
    for (i, (micro, visual)) in micros.iter().zip(visuals).enumerate() {
        enter(if alone { Phase::Backward } else { Phase::Forward })?;
        let (visual, embedded) =
            saved_or_recomputed(engine, (&frames, micro), (visual, kept.take()), needed)?;
        enter(Phase::Backward)?;
        let Range { start, end } = micro.rows;
        let d = [&d.predicted, &d.target].map(|d| d.view().rows(start, end));
        let last = i + 1 == micros.len();
        let mut on_ready = |gradients: &mut Gradients, complete| {
            if let Some(sums) = sums.as_mut().filter(|_| last) {
                sums.ready(cx.stream, gradients.flat.view_mut(), complete);
            }
        };
        backward(engine, &mut training.gradients, visual, embedded, d, &mut on_ready)?;
    }

    enter(Phase::Collective)?;
    optimize::sum_gradients(cx, training, collectives, sums)?;
    if let Objective::InfoNce(loss) = engine.model.objective {
        loss.hold_at_clamp(cx, alpha, &mut training.gradients)?;
    }

    enter(Phase::Optimizer)?;
    let (gradient_norm, finite) = optimize::update(engine, training, collectives, learning_rate)?;
    // Read the loss only here: the device has had the whole step to compute it.
    let loss = share.read(shares.global)?;
    #[expect(clippy::cast_precision_loss, reason = "a batch holds far fewer than 2^52 samples")]
    let own = [loss, bad_samples as f64, f64::from(u8::from(stop))];
    let [loss, bad_samples, stops] = collectives.sum(own);
    let info_nce = matches!(engine.model.objective, Objective::InfoNce(_));
    let scale = info_nce.then(|| f64::from(alpha.value));
    let gauges = if gauged {
        let learned_be = average_be.as_ref().unwrap_or(&target_be);
        gauges::gauges(collectives, shares, &predicted_be, learned_be)?
    } else {
        None
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let bad_samples = bad_samples as u64;
    let stop = stops > 0.0;
    Ok(StepReport { loss, gradient_norm, scale, gauges, finite, bad_samples, stop })
}

/// Sets the gradients to zero and, for a drill, one of them to NaN. The backward pass adds to the
/// gradients, so the NaN stays until its bucket is summed.
pub(super) fn begin_gradients(
    gradients: &mut Gradients,
    stream: &Stream,
    spoiled: bool,
) -> vljepa_kernels::Result<()> {
    gradients.zero(stream)?;
    if spoiled {
        let first = gradients.flat.view_mut().part(0, &[1]);
        copy::copy(stream, View::from_f32(&[f32::NAN], &[1]), first)?;
    }
    Ok(())
}

/// A micro-batch: some of this rank's rows, with their texts on the device.
struct Micro {
    rows: Range<usize>,
    query: Packed,
    target: Packed,
}

struct EmbeddedMicro {
    predicted: Embedded<PredictorSaved>,
    /// Embeddings of the Y-encoder that is trained.
    target: Embedded<YEncoderSaved>,
}

fn micro_batches(
    engine: &Engine,
    batch: &Batch<Tensor>,
    size: Option<usize>,
) -> vljepa_kernels::Result<Vec<Micro>> {
    let b = batch.rows();
    let size = size.unwrap_or(b).clamp(1, b.max(1));
    let packed = |ragged: &Ragged, rows: &Range<usize>| packed(engine.device(), ragged, rows);
    let starts = (0..b.div_ceil(size)).map(|i| i * size);
    let micro = |start: usize| {
        let rows = start..(start + size).min(b);
        let (query, target) = (packed(&batch.query, &rows)?, packed(&batch.target, &rows)?);
        Ok(Micro { rows, query, target })
    };
    starts.map(micro).collect()
}

/// Some of the rows of `ragged` on the device.
pub(super) fn packed(
    device: Device,
    ragged: &Ragged,
    rows: &Range<usize>,
) -> vljepa_kernels::Result<Packed> {
    let ends = &ragged.cu_seqlens[rows.start..=rows.end];
    let (first, last) = (ends[0], ends[rows.len()]);
    let ids = ragged.ids[index(first)..index(last)].to_vec();
    Packed::new(device, ids, ends.iter().map(|end| end - first).collect())
}

fn index(position: i32) -> usize {
    usize::try_from(position).expect("cumulative lengths are not negative")
}

/// Embeddings of this rank's rows before the backward pass.
struct Embeddings {
    predicted_be: Tensor,
    /// Of the Y-encoder that is trained.
    target_be: Tensor,
    /// Of its moving average, if the model has one.
    average_be: Option<Tensor>,
    /// Activations of a single micro-batch.
    kept: Option<EmbeddedMicro>,
    /// Visual tokens of each micro-batch, if they need not be encoded again.
    visuals: Vec<Option<Visual>>,
}

/// Embeds all micro-batches. A single one keeps its activations. Several are embedded twice: here
/// without keeping activations, for the loss over the whole batch, and once more for the backward
/// pass. The output of a frozen X-encoder is kept in both cases.
fn embed_all(
    engine: &Engine,
    frames: &Tensor,
    micros: &[Micro],
    rows: usize,
    needed: Keep,
) -> anyhow::Result<Embeddings> {
    let (cx, model) = (engine.context(), &engine.model);
    let alone = micros.len() == 1;
    let shape_be = [rows, model.recipe().embed_dim];
    let (mut predicted_be, mut target_be) = (cx.take(&shape_be)?, cx.take(&shape_be)?);
    let mut average_be = model.averages().then(|| cx.take(&shape_be)).transpose()?;
    let (mut kept, mut visuals) = (None, Vec::new());
    for micro in micros {
        let keep = needed.only_if(alone);
        let visual = encode_frames(engine, frames, micro, keep)?;
        let embedded = embed(engine, micro, &visual, keep)?;
        let Range { start, end } = micro.rows;
        let (p, t) = (&embedded.predicted.embedding, &embedded.target.embedding);
        copy::copy(cx.stream, p.view(), predicted_be.view_mut().rows(start, end))?;
        copy::copy(cx.stream, t.view(), target_be.view_mut().rows(start, end))?;
        if let Some(average_be) = &mut average_be {
            let (parameters, nothing) = (&engine.parameters, Keep::Nothing);
            let average = model.y_encoder.forward(cx, parameters, &micro.target, nothing)?;
            let rows = average_be.view_mut().rows(start, end);
            copy::copy(cx.stream, average.embedding.view(), rows)?;
        }
        kept = alone.then_some(embedded);
        visuals.push((alone || !model.x_encoder.trainable).then_some(visual));
    }
    Ok(Embeddings { predicted_be, target_be, average_be, kept, visuals })
}

/// Encodes a micro-batch's rows of `frames`, u8 (b, t, h, w, 3), into visual tokens.
fn encode_frames(
    engine: &Engine,
    frames: &Tensor,
    micro: &Micro,
    keep: Keep,
) -> Result<Visual, ModelError> {
    let Range { start, end } = micro.rows;
    let frames = frames.view().rows(start, end);
    engine.model.x_encoder.forward(engine.context(), &engine.parameters, frames, keep)
}

fn embed(
    engine: &Engine,
    micro: &Micro,
    visual: &Visual,
    keep: Keep,
) -> Result<EmbeddedMicro, ModelError> {
    let (cx, model, parameters) = (engine.context(), &engine.model, &engine.parameters);
    let predicted = model.predictor.forward(cx, parameters, visual, &micro.query, keep)?;
    let trained = model.trained_y_encoder();
    let target = trained.forward(cx, parameters, &micro.target, keep)?;
    Ok(EmbeddedMicro { predicted, target })
}

/// Returns the activations of a micro-batch. Activations that were not saved are computed again.
fn saved_or_recomputed(
    engine: &Engine,
    (frames, micro): (&Tensor, &Micro),
    (visual, embedded): (Option<Visual>, Option<EmbeddedMicro>),
    keep: Keep,
) -> Result<(Visual, EmbeddedMicro), ModelError> {
    let visual = match visual {
        Some(visual) => visual,
        None => encode_frames(engine, frames, micro, keep)?,
    };
    let embedded = match embedded {
        Some(embedded) => embedded,
        None => embed(engine, micro, &visual, keep)?,
    };
    Ok((visual, embedded))
}

/// Runs the backward passes of a micro-batch. The Y-encoder goes first, so its gradients are summed
/// over ranks while the predictor works.
fn backward(
    engine: &Engine,
    gradients: &mut Gradients,
    visual: Visual,
    embedded: EmbeddedMicro,
    [d_predicted, d_target]: [View<'_>; 2],
    on_ready: &mut OnReady<'_>,
) -> anyhow::Result<()> {
    let (cx, model, parameters) = (engine.context(), &engine.model, &engine.parameters);
    let EmbeddedMicro { predicted, target } = embedded;
    let y_encoder = model.trained_y_encoder();
    y_encoder.backward(cx, parameters, target.saved, d_target, gradients, on_ready)?;
    let saved = predicted.saved;
    if let Some(d_visual) =
        model.predictor.backward(cx, parameters, saved, d_predicted, gradients, on_ready)?
    {
        let saved = visual.saved;
        model.x_encoder.backward(cx, parameters, saved, d_visual, gradients, on_ready)?;
    }
    Ok(())
}
