//! One step of a Y-decoder, behind the frozen VL-JEPA whose embeddings it decodes.
//!
//! Shape suffixes: b = rows of a micro-batch, e = width of the shared embedding.

use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use vljepa_data::batch::Batch;
use vljepa_data::order::mix;
use vljepa_kernels::{Tensor, copy};
use vljepa_model::y_decoder::YDecoderSaved;
use vljepa_model::{Gradients, Keep, ModelError, OnReady, VlJepa, YDecoder};
use vljepa_recipes::schema::{Decoding, EmbeddingSource};

use super::token_step::Pass;
use crate::engine::Engine;
use crate::training::step::packed;

/// First word of the key of the noise that is added to an embedding.
const NOISE: u64 = 0x006e_6f69_7365;

/// Source and noise of the embeddings of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Embeddings {
    /// Keys of the stage.
    pub(super) decoding: Decoding,
    /// Seed of the recipe.
    pub(super) seed: u64,
    /// Index of the stage.
    pub(super) stage: usize,
}

impl Pass<VlJepa> for Embeddings {
    type Saved = YDecoderSaved;

    fn forward(
        &self,
        engine: &Engine,
        batch: &Batch<Tensor>,
        rows: &Range<usize>,
        factor: f32,
        keep: Keep,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Option<YDecoderSaved>), ModelError> {
        let (cx, parameters, decoder) = (engine.context(), &engine.parameters, decoder(engine)?);
        let embedding_be = embed(engine, batch, rows, *self)?;
        let texts = packed(engine.device(), &batch.output, rows)?;
        let x = embedding_be.view();
        decoder.forward(cx, parameters, x, &texts, factor, keep, Some(gradients))
    }

    fn backward(
        &self,
        engine: &Engine,
        saved: YDecoderSaved,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<(), ModelError> {
        let (cx, parameters) = (engine.context(), &engine.parameters);
        decoder(engine)?.backward(cx, parameters, saved, gradients, on_ready)
    }
}

fn decoder(engine: &Engine) -> Result<&YDecoder, ModelError> {
    engine.model.y_decoder.as_ref().ok_or_else(|| ModelError::Config {
        key: "model.kind".to_owned(),
        what: "has no Y-decoder".to_owned(),
    })
}

/// Embeddings (b, e) of a micro-batch's rows, with the stage's noise.
fn embed(
    engine: &Engine,
    batch: &Batch<Tensor>,
    rows: &Range<usize>,
    of: Embeddings,
) -> Result<Tensor, ModelError> {
    let (cx, model, parameters) = (engine.context(), &engine.model, &engine.parameters);
    let nothing = Keep::Nothing;
    let embedding_be = match of.decoding.embeddings {
        EmbeddingSource::Targets => {
            let texts = packed(engine.device(), &batch.target, rows)?;
            model.y_encoder.forward(cx, parameters, &texts, nothing)?.embedding
        }
        EmbeddingSource::Predictions => {
            let frames = batch.frames.view().rows(rows.start, rows.end);
            let visual = model.x_encoder.forward(cx, parameters, frames, nothing)?;
            let query = packed(engine.device(), &batch.query, rows)?;
            model.predictor.forward(cx, parameters, &visual, &query, nothing)?.embedding
        }
    };
    if of.decoding.noise == 0.0 {
        return Ok(embedding_be);
    }
    let e = model.recipe().embed_dim;
    let mut values = embedding_be.to_f32()?.into_owned();
    for (row, values) in rows.clone().zip(values.chunks_exact_mut(e)) {
        let global = batch.first_row + row;
        let key = mix(&[NOISE, of.seed, of.stage as u64, batch.stage_step, global as u64]);
        add_noise(values, of.decoding.noise, key, model.y_encoder.head.normalise);
    }
    let noisy = Tensor::from_f32(values, &[rows.len(), e]);
    let mut embedding_be = embedding_be;
    copy::cast(cx.stream, noisy.view(), embedding_be.view_mut())?;
    Ok(embedding_be)
}

/// Adds a Gaussian vector to an embedding, with an expected square length of `noise`² times that of
/// the embedding. With `normalise` the result has length one.
#[expect(clippy::cast_possible_truncation, reason = "an embedding is f32")]
#[expect(clippy::cast_precision_loss, reason = "widths are below 2^24")]
fn add_noise(embedding: &mut [f32], noise: f32, key: u64, normalise: bool) {
    let length = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let scale = f64::from(noise) * length(embedding) / (embedding.len() as f64).sqrt();
    let mut random = ChaCha8Rng::seed_from_u64(key);
    for x in &mut *embedding {
        let drawn: f64 = StandardNormal.sample(&mut random);
        *x = (f64::from(*x) + scale * drawn) as f32;
    }
    if normalise {
        let length = length(embedding).max(f64::MIN_POSITIVE);
        for x in embedding {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::add_noise;

    #[test]
    fn noise_has_the_stated_length_and_comes_from_its_key_alone() {
        let clean = vec![0.25_f32; 4096];
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        let noisy = |key| {
            let mut x = clean.clone();
            add_noise(&mut x, 0.5, key, false);
            x
        };
        let added: Vec<f32> = noisy(7).iter().zip(&clean).map(|(a, b)| a - b).collect();
        // The length of 4,096 Gaussian elements has a standard deviation of 1/√(2·4096) = 1.1 %.
        assert!((length(&added) / (0.5 * length(&clean)) - 1.0).abs() < 0.05);
        assert_eq!(noisy(7), noisy(7));
        assert_ne!(noisy(7), noisy(8));
        let mut normalised = clean.clone();
        add_noise(&mut normalised, 0.5, 7, true);
        assert!((length(&normalised) - 1.0).abs() < 1e-5);
    }
}
