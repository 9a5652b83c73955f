//! One optimizer step of a model that learns to write texts: a Y-decoder or a VLM. Every rank
//! issues the same collectives in the same order: sum of the numbers of tokens, sums of gradients
//! bucket by bucket, sum of the report's numbers.

use std::ops::Range;

use vljepa_data::batch::Batch;
use vljepa_kernels::Tensor;
use vljepa_model::{Gradients, Keep, ModelError, OnReady};
use vljepa_recipes::protocol::Phase;

use crate::collectives::Collectives;
use crate::engine::{Engine, Network, Training};
use crate::training::optimize;
use crate::training::step::{Input, StepReport, begin_gradients};

/// Forward and backward pass over the rows of a micro-batch.
pub(super) trait Pass<M> {
    /// State between the two.
    type Saved;

    /// Losses −log p of all tokens of the rows' texts. The backward pass is that of `factor` · Σ
    /// losses.
    fn forward(
        &self,
        engine: &Engine<M>,
        batch: &Batch<Tensor>,
        rows: &Range<usize>,
        factor: f32,
        keep: Keep,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Option<Self::Saved>), ModelError>;

    /// Adds to the gradients, and calls `on_ready` whenever more of them are complete.
    fn backward(
        &self,
        engine: &Engine<M>,
        saved: Self::Saved,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<(), ModelError>;
}

/// Computes the gradient of the mean cross-entropy over all tokens of the global batch, and updates
/// the parameters. Calls `enter` at the beginning of each phase.
///
/// # Errors
/// Fails if the model rejects the batch's shapes or ids, the device fails, or `enter` returns an
/// error.
pub(super) fn step<M: Network, P: Pass<M>>(
    engine: &mut Engine<M>,
    training: &mut Training,
    collectives: &Collectives,
    pass: &P,
    input: Input,
    enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
) -> anyhow::Result<StepReport> {
    let Input { batch, micro_batch, recompute, learning_rate, stop, spoiled, gauged: _ } = input;
    begin_gradients(&mut training.gradients, &engine.device().compute_stream(), spoiled)?;
    enter(Phase::Collective)?;
    #[expect(clippy::cast_precision_loss, reason = "a batch holds far fewer than 2^52 tokens")]
    let [tokens] = collectives.sum([batch.output.ids.len() as f64]);
    #[expect(clippy::cast_possible_truncation, reason = "the loss is f32")]
    let factor = tokens.max(1.0).recip() as f32;

    let rows = batch.rows();
    let size = micro_batch.unwrap_or(rows).clamp(1, rows.max(1));
    let micros: Vec<_> =
        (0..rows.div_ceil(size)).map(|i| i * size..((i + 1) * size).min(rows)).collect();
    let mut sums = optimize::travelling_sums(training, collectives);
    let (mut losses, last) = (Vec::new(), micros.len().saturating_sub(1));
    for (i, micro) in micros.into_iter().enumerate() {
        enter(Phase::Forward)?;
        let (keep, gradients) = (Keep::Needed(recompute), &mut training.gradients);
        let (loss, saved) = pass.forward(engine, &batch, &micro, factor, keep, gradients)?;
        losses.push(loss);
        enter(Phase::Backward)?;
        let saved = saved.ok_or(ModelError::NothingSaved { part: "language_model" })?;
        let stream = engine.device().compute_stream();
        let mut on_ready = |gradients: &mut Gradients, complete| {
            if let Some(sums) = sums.as_mut().filter(|_| i == last) {
                sums.ready(&stream, gradients.flat.view_mut(), complete);
            }
        };
        pass.backward(engine, saved, &mut training.gradients, &mut on_ready)?;
    }

    enter(Phase::Collective)?;
    optimize::sum_gradients(engine.context(), training, collectives, sums)?;
    enter(Phase::Optimizer)?;
    let (gradient_norm, finite) = optimize::update(engine, training, collectives, learning_rate)?;
    let mut loss = 0.0;
    for share in losses {
        loss += share.to_f32()?.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    #[expect(clippy::cast_precision_loss, reason = "a batch holds far fewer than 2^52 samples")]
    let own = [loss, batch.skipped.len() as f64, f64::from(u8::from(stop))];
    let [loss, bad_samples, stops] = collectives.sum(own);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let bad_samples = bad_samples as u64;
    let loss = loss / tokens.max(1.0);
    let (scale, gauges, stop) = (None, None, stops > 0.0);
    Ok(StepReport { loss, gradient_norm, scale, gauges, finite, bad_samples, stop })
}
