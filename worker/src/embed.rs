//! Embeddings of samples and texts without gradients: what evaluation, `ask` and `search` stand on.

use anyhow::Context;
use vljepa_data::reader::{LoadOptions, LoadedSample};
use vljepa_data::tokenize::Tokenizer;
use vljepa_kernels::{Packed, Tensor};
use vljepa_recipes::Recipe;
use vljepa_recipes::schema::{Control, Transform};

use crate::engine::Engine;

/// Rows embedded at once.
pub(crate) const ROWS: usize = 64;

/// The model with the tokenizers of its two texts.
#[derive(Debug)]
pub struct Embedder<'a> {
    engine: &'a Engine,
    queries: Tokenizer,
    targets: Tokenizer,
    image_size: usize,
    frames: usize,
}

impl<'a> Embedder<'a> {
    /// For the model in `engine`; clips have the frames of the recipe's last stage unless a task says otherwise.
    ///
    /// # Errors
    /// When a tokenizer is not named or cannot be read.
    pub fn new(recipe: &Recipe, engine: &'a Engine) -> anyhow::Result<Self> {
        let model = &recipe.model;
        let queries = model.predictor.tokenizer.as_deref();
        let targets = model.y_encoder.tokenizer.as_deref();
        let queries = queries.context("model.predictor.tokenizer is not set")?;
        let targets = targets.context("model.y_encoder.tokenizer is not set")?;
        Ok(Self {
            engine,
            queries: Tokenizer::load(queries, model.predictor.max_query_tokens)?,
            targets: Tokenizer::load(targets, model.y_encoder.max_target_tokens)?,
            image_size: model.image_size,
            frames: recipe.stages.last().map_or(model.x_encoder.tubelet_size, |s| s.frames),
        })
    }

    /// How a sample is read for this model.
    #[must_use]
    pub fn load_options(&self, frames: Option<usize>) -> LoadOptions {
        LoadOptions {
            frames: frames.unwrap_or(self.frames),
            image_size: self.image_size,
            transform: Transform::ResizeCenterCrop,
        }
    }

    /// Predicted embeddings (b, e) of samples, each with its query.
    ///
    /// # Errors
    /// When a query cannot be tokenised or the model refuses the shapes.
    pub fn samples(&self, samples: &[(&LoadedSample, &str)]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut out = Vec::with_capacity(samples.len());
        for chunk in samples.chunks(ROWS) {
            let pixels: Vec<u8> =
                chunk.iter().flat_map(|(s, _)| s.frames.iter().copied()).collect();
            let per_frame = self.image_size * self.image_size * 3;
            let frames = pixels.len() / per_frame / chunk.len();
            let shape = [chunk.len(), frames, self.image_size, self.image_size, 3];
            let queries = self.packed(&self.queries, chunk.iter().map(|(_, query)| *query))?;
            out.extend(self.engine.predict(Tensor::from_u8(pixels, &shape), &queries)?);
        }
        Ok(out)
    }

    /// Embeddings (b, e) of target texts.
    ///
    /// # Errors
    /// When a text cannot be tokenised or the model refuses the shapes.
    pub fn texts<S: AsRef<str>>(&self, texts: &[S]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut out = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(ROWS) {
            let packed = self.packed(&self.targets, chunk.iter().map(AsRef::as_ref))?;
            out.extend(self.engine.target(&packed)?);
        }
        Ok(out)
    }

    fn packed<'t>(
        &self,
        tokenizer: &Tokenizer,
        texts: impl Iterator<Item = &'t str>,
    ) -> anyhow::Result<Packed> {
        let (mut ids, mut ends) = (Vec::new(), vec![0i32]);
        for text in texts {
            ids.extend(tokenizer.encode(text)?);
            ends.push(i32::try_from(ids.len())?);
        }
        Ok(Packed::new(self.engine.device(), ids, ends)?)
    }
}

/// Applies a control to the frames of a sample.
pub fn apply_control(control: Control, sample: &mut LoadedSample, frames: usize) {
    let frame_len = sample.frames.len() / frames.max(1);
    match control {
        Control::None | Control::Collapsed => {}
        Control::SingleFrame => {
            let middle = frames / 2 * frame_len..(frames / 2 + 1) * frame_len;
            sample.frames = sample.frames[middle].repeat(frames);
        }
        Control::Reversed => {
            sample.frames =
                sample.frames.chunks(frame_len).rev().flatten().copied().collect::<Vec<u8>>();
        }
    }
}
