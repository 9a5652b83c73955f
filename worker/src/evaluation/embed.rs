//! Embeds samples and texts without gradients, for evaluation, `ask` and `search`.

use std::path::Path;

use vljepa_data::DataError;
use vljepa_data::reader::{LoadOptions, LoadedSample, SampleReader};
use vljepa_data::storage::{Storage, StorageOptions};
use vljepa_data::tokenize::Tokenizer;
use vljepa_kernels::{Packed, Tensor};
use vljepa_recipes::Recipe;
use vljepa_recipes::schema::{Control, Preprocessing};

use crate::engine::Engine;

/// Rows embedded at once, which bounds the activation memory.
pub(crate) const ROWS: usize = 64;

/// A model with the tokenizers for queries and targets.
#[derive(Debug)]
pub struct Embedder<'a> {
    engine: &'a Engine,
    storage: Storage,
    queries: Tokenizer,
    targets: Tokenizer,
    image_size: usize,
    preprocessing: Preprocessing,
    frames: usize,
}

impl<'a> Embedder<'a> {
    /// Creates an embedder for the model in `engine`. Clips have as many frames as in the recipe's
    /// last stage, unless a task asks for another number.
    ///
    /// # Errors
    /// Fails if the recipe does not name a tokenizer, a tokenizer cannot be read, or the folder of
    /// the shard cache cannot be used.
    pub fn new(recipe: &Recipe, engine: &'a Engine) -> anyhow::Result<Self> {
        let model = &recipe.model;
        Ok(Self {
            engine,
            storage: Storage::new(StorageOptions::of(&recipe.data))?,
            queries: Tokenizer::of_queries(model)?,
            targets: Tokenizer::of_targets(model)?,
            image_size: model.image_size,
            preprocessing: model.x_encoder.preprocessing(),
            frames: recipe.stages.last().map_or(model.x_encoder.sizes().tubelet_size, |s| s.frames),
        })
    }

    /// Opens shards whose samples are to be embedded.
    ///
    /// # Errors
    /// Fails in the same cases as [`SampleReader::open`].
    pub fn reader(
        &self,
        shards: &str,
        catalogue: Option<&Path>,
    ) -> Result<SampleReader, DataError> {
        SampleReader::open(&self.storage, shards, catalogue)
    }

    /// Returns the options for reading a sample for this model; `frames` overrides the number of
    /// frames.
    #[must_use]
    pub fn load_options(&self, frames: Option<usize>) -> LoadOptions {
        LoadOptions {
            frames: frames.unwrap_or(self.frames),
            image_size: self.image_size,
            preprocessing: self.preprocessing,
        }
    }

    /// Returns predicted embeddings (b, e) of samples, each with its query.
    ///
    /// # Errors
    /// Fails if a query cannot be tokenised or the model rejects the shapes.
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

    /// Returns embeddings (b, e) of target texts.
    ///
    /// # Errors
    /// Fails if a text cannot be tokenised or the model rejects the shapes.
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

/// Applies an evaluation control to the frames of a sample: repeats the middle frame, or reverses
/// the order of the frames.
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
