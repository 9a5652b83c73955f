//! Embeds samples and texts without gradients, for evaluation, `ask` and `search`.

use std::path::Path;

use vljepa_data::DataError;
use vljepa_data::reader::{LoadOptions, LoadedSample, SampleReader};
use vljepa_data::storage::{Storage, StorageOptions};
use vljepa_data::tokenize::Tokenizer;
use vljepa_kernels::{Device, Packed, Tensor};
use vljepa_model::DualEncoder;
use vljepa_recipes::Recipe;
use vljepa_recipes::schema::{self, Control, Preprocessing};

use crate::engine::Engine;

/// Rows embedded at once, which bounds the activation memory.
pub(crate) const ROWS: usize = 64;

/// A model that embeds samples and texts into one space.
#[derive(Debug, Clone, Copy)]
pub enum Embeds<'a> {
    /// Samples with queries are embedded by the predictor, texts by the Y-encoder.
    VlJepa(&'a Engine),
    /// Samples are embedded by the image encoder, without queries, and texts by the text encoder.
    DualEncoder(&'a Engine<DualEncoder>),
}

/// A model with its tokenizers.
#[derive(Debug)]
pub struct Embedder<'a> {
    model: Model<'a>,
    storage: Storage,
    targets: Tokenizer,
    /// The texts that a Y-decoder writes.
    outputs: Option<Outputs>,
    image_size: usize,
    preprocessing: Preprocessing,
    frames: usize,
}

/// Tokenizer of the texts that a Y-decoder writes, with the tokens that end and start them.
#[derive(Debug)]
struct Outputs {
    tokenizer: Tokenizer,
    end: i32,
    start: Vec<i32>,
}

impl Outputs {
    fn of(keys: &schema::Model) -> Result<Self, DataError> {
        let tokenizer = Tokenizer::of_outputs(keys)?;
        let start = keys.decoder().map(|decoder| tokenizer.start_of_outputs(decoder));
        let start = start.transpose()?.unwrap_or_default();
        Ok(Self { end: tokenizer.end().unwrap_or_default(), start, tokenizer })
    }
}

/// A model with the tokenizer of its queries, if it reads queries.
#[derive(Debug)]
enum Model<'a> {
    VlJepa { engine: &'a Engine, queries: Box<Tokenizer> },
    DualEncoder(&'a Engine<DualEncoder>),
}

impl Model<'_> {
    fn device(&self) -> Device {
        match self {
            Self::VlJepa { engine, .. } => engine.device(),
            Self::DualEncoder(engine) => engine.device(),
        }
    }
}

impl<'a> Embedder<'a> {
    /// Creates an embedder for a model of the recipe. Clips have [`Recipe::default_frames`], unless
    /// a task asks for another number.
    ///
    /// # Errors
    /// Fails if the recipe does not name a tokenizer, a tokenizer cannot be read, or the folder of
    /// the shard cache cannot be used.
    pub fn new(recipe: &Recipe, model: Embeds<'a>) -> anyhow::Result<Self> {
        let keys = &recipe.model;
        let model = match model {
            Embeds::VlJepa(engine) => {
                Model::VlJepa { engine, queries: Box::new(Tokenizer::of_queries(keys)?) }
            }
            Embeds::DualEncoder(engine) => Model::DualEncoder(engine),
        };
        Ok(Self {
            model,
            storage: Storage::new(StorageOptions::of(&recipe.data))?,
            targets: Tokenizer::of_targets(keys)?,
            outputs: keys.decoder().map(|_| Outputs::of(keys)).transpose()?,
            image_size: keys.image_size,
            preprocessing: keys.x_encoder.preprocessing(),
            frames: recipe.default_frames(),
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

    /// Returns embeddings (b, e) of samples, each predicted with its query. A dual encoder reads no
    /// queries.
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
            let pixels = Tensor::from_u8(pixels, &shape);
            out.extend(match &self.model {
                Model::VlJepa { engine, queries } => {
                    let queries = self.packed(queries, chunk.iter().map(|(_, query)| *query))?;
                    engine.predict(pixels, &queries)?
                }
                Model::DualEncoder(engine) => engine.clips(pixels)?,
            });
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
            out.extend(match &self.model {
                Model::VlJepa { engine, .. } => engine.target(&packed)?,
                Model::DualEncoder(engine) => engine.texts(&packed)?,
            });
        }
        Ok(out)
    }

    /// Whether the model has a Y-decoder.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.outputs.is_some()
    }

    /// Returns the texts that the Y-decoder writes for embeddings (b, e).
    ///
    /// # Errors
    /// Fails if the model has no Y-decoder or rejects the shapes, or the device fails.
    pub fn captions<E: AsRef<[f32]>>(&self, embeddings: &[E]) -> anyhow::Result<Vec<String>> {
        let (Some(Outputs { tokenizer, end, start }), Model::VlJepa { engine, .. }) =
            (&self.outputs, &self.model)
        else {
            anyhow::bail!("the model has no Y-decoder that could write a text");
        };
        let mut texts = Vec::with_capacity(embeddings.len());
        for chunk in embeddings.chunks(ROWS) {
            for ids in engine.write(chunk, *end, start)? {
                texts.push(tokenizer.decode(&ids)?);
            }
        }
        Ok(texts)
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
        Ok(Packed::new(self.model.device(), ids, ends)?)
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
