//! Embeds samples and texts, and writes answers, without gradients: for evaluation and for commands
//! on a run.

mod batches;

use std::path::Path;
use std::time::Instant;

use vljepa_data::reader::{LoadOptions, LoadedSample, SampleReader};
use vljepa_data::storage::{Storage, StorageOptions};
use vljepa_data::tokenize::Tokenizer;
use vljepa_data::{Conversation, DataError};
use vljepa_kernels::{Device, Packed, Tensor, View};
use vljepa_model::{DualEncoder, Visual, Vlm};
use vljepa_recipes::Recipe;
use vljepa_recipes::schema::{self, Control, Preprocessing};

use self::batches::{batches, clips_of};
use crate::engine::{Engine, Prompt};

/// Rows embedded at once, which bounds the activation memory.
pub(crate) const ROWS: usize = 64;

/// A model that embeds samples and texts into one space.
#[derive(Debug, Clone, Copy)]
pub enum Embeds<'a> {
    /// Samples with queries are embedded by the predictor, texts by the Y-encoder.
    VlJepa(&'a Engine),
    /// Samples are embedded by the image encoder, without queries, and texts by the text encoder.
    DualEncoder(&'a Engine<DualEncoder>),
    /// Nothing is embedded: the model writes answers, and measures given ones.
    Vlm(&'a Engine<Vlm>),
}

/// A model with its tokenizers.
#[derive(Debug)]
pub struct Embedder<'a> {
    model: Model<'a>,
    storage: Storage,
    image_size: usize,
    preprocessing: Preprocessing,
    frames: usize,
}

/// An answer about one sample, and the seconds that its parts took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// Text that the model writes, or `None` if it writes none.
    pub text: Option<String>,
    /// Tokens and embedding of the query.
    pub query_s: f64,
    /// X-encoder and, in VL-JEPA, predictor.
    pub encoder_s: f64,
    /// Y-decoder, or projector and language model of a VLM. `None` without a text.
    pub decoder_s: Option<f64>,
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

/// A model with the tokenizers of its texts.
#[derive(Debug)]
enum Model<'a> {
    VlJepa {
        engine: &'a Engine,
        queries: Box<Tokenizer>,
        targets: Box<Tokenizer>,
        /// The texts that a Y-decoder writes.
        outputs: Option<Box<Outputs>>,
    },
    DualEncoder {
        engine: &'a Engine<DualEncoder>,
        targets: Box<Tokenizer>,
    },
    Vlm {
        engine: &'a Engine<Vlm>,
        conversation: Box<Conversation>,
    },
}

impl Model<'_> {
    fn device(&self) -> Device {
        match self {
            Self::VlJepa { engine, .. } => engine.device(),
            Self::DualEncoder { engine, .. } => engine.device(),
            Self::Vlm { engine, .. } => engine.device(),
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
                let outputs = keys.decoder().map(|_| Outputs::of(keys)).transpose()?;
                Model::VlJepa {
                    engine,
                    queries: Box::new(Tokenizer::of_queries(keys)?),
                    targets: Box::new(Tokenizer::of_targets(keys)?),
                    outputs: outputs.map(Box::new),
                }
            }
            Embeds::DualEncoder(engine) => {
                Model::DualEncoder { engine, targets: Box::new(Tokenizer::of_targets(keys)?) }
            }
            Embeds::Vlm(engine) => {
                Model::Vlm { engine, conversation: Box::new(Conversation::of(keys)?) }
            }
        };
        Ok(Self {
            model,
            storage: Storage::new(StorageOptions::of(&recipe.data))?,
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

    /// Opens the shards or the set of a task.
    ///
    /// # Errors
    /// Fails in the same cases as [`SampleReader::of_task`].
    pub fn reader_of(&self, task: &schema::Task) -> Result<SampleReader, DataError> {
        SampleReader::of_task(&self.storage, task)
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

    /// Whether the model embeds samples and texts. A VLM does not.
    #[must_use]
    pub fn embeds(&self) -> bool {
        match self.model {
            Model::VlJepa { .. } | Model::DualEncoder { .. } => true,
            Model::Vlm { .. } => false,
        }
    }

    /// Whether embeddings have length one.
    #[must_use]
    pub fn normalises(&self) -> bool {
        match &self.model {
            Model::VlJepa { engine, .. } => engine.model.y_encoder.head.normalise,
            Model::DualEncoder { .. } => true,
            Model::Vlm { .. } => false,
        }
    }

    /// Returns embeddings (b, e) of samples, each predicted with its query. A dual encoder reads no
    /// queries. A sample with several queries that follow each other is encoded once.
    ///
    /// # Errors
    /// Fails if a query cannot be tokenised, the model rejects the shapes, or it embeds nothing.
    pub fn samples(&self, samples: &[(&LoadedSample, &str)]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut out = Vec::with_capacity(samples.len());
        for batch in batches(samples) {
            let pixels = self.pixels(&batch.samples);
            match &self.model {
                Model::VlJepa { engine, queries, .. } => {
                    let visual = engine.encode(pixels.on(engine.device())?.view())?;
                    for rows in batch.rows.chunks(ROWS) {
                        let queries = self.packed(queries, rows.iter().map(|(_, query)| *query))?;
                        let seen = visual.of_clips(engine.context(), &clips_of(rows))?;
                        out.extend(engine.predict_seen(&seen, &queries)?);
                    }
                }
                Model::DualEncoder { engine, .. } => {
                    let clips = engine.clips(pixels)?;
                    out.extend(batch.rows.iter().map(|&(clip, _)| clips[clip].clone()));
                }
                Model::Vlm { .. } => anyhow::bail!(NO_EMBEDDINGS),
            }
        }
        Ok(out)
    }

    /// Pixels of samples with equal numbers of frames, u8 `(b, t, h, w, 3)`.
    fn pixels(&self, samples: &[&LoadedSample]) -> Tensor {
        let pixels: Vec<u8> =
            samples.iter().flat_map(|sample| sample.frames.iter().copied()).collect();
        let per_frame = self.image_size * self.image_size * 3;
        let frames = pixels.len() / per_frame / samples.len();
        Tensor::from_u8(pixels, &[samples.len(), frames, self.image_size, self.image_size, 3])
    }

    /// Returns embeddings (b, e) of target texts.
    ///
    /// # Errors
    /// Fails if a text cannot be tokenised, the model rejects the shapes, or it embeds nothing.
    pub fn texts<S: AsRef<str>>(&self, texts: &[S]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut out = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(ROWS) {
            let texts = chunk.iter().map(AsRef::as_ref);
            out.extend(match &self.model {
                Model::VlJepa { engine, targets, .. } => {
                    engine.target(&self.packed(targets, texts)?)?
                }
                Model::DualEncoder { engine, targets } => {
                    engine.texts(&self.packed(targets, texts)?)?
                }
                Model::Vlm { .. } => anyhow::bail!(NO_EMBEDDINGS),
            });
        }
        Ok(out)
    }

    /// Whether the model writes texts: a VLM, or VL-JEPA with a Y-decoder.
    #[must_use]
    pub fn writes(&self) -> bool {
        match &self.model {
            Model::VlJepa { outputs, .. } => outputs.is_some(),
            Model::DualEncoder { .. } => false,
            Model::Vlm { .. } => true,
        }
    }

    /// Returns the text that the model writes about each sample with its query.
    ///
    /// # Errors
    /// Fails if the model writes no texts or rejects the shapes, or the device fails.
    pub fn answers(&self, samples: &[(&LoadedSample, &str)]) -> anyhow::Result<Vec<String>> {
        let Model::Vlm { engine, conversation } = &self.model else {
            return self.captions(&self.samples(samples)?);
        };
        self.converse(engine, conversation, samples, |visual, questions| {
            let written = engine.answer(visual, questions, prompt(conversation))?;
            let text = |ids: &Vec<i32>| Ok(conversation.answers.decode(ids)?);
            written.iter().map(text).collect()
        })
    }

    /// Results of `each` for the visual tokens and the questions of at most [`ROWS`] rows. A sample
    /// with several questions that follow each other is encoded once.
    fn converse<T>(
        &self,
        engine: &Engine<Vlm>,
        conversation: &Conversation,
        samples: &[(&LoadedSample, &str)],
        each: impl Fn(&Visual, &[&[i32]]) -> anyhow::Result<Vec<T>>,
    ) -> anyhow::Result<Vec<T>> {
        let mut out = Vec::with_capacity(samples.len());
        for batch in batches(samples) {
            let pixels = self.pixels(&batch.samples);
            let visual = engine.encode(pixels.on(engine.device())?.view())?;
            for rows in batch.rows.chunks(ROWS) {
                let questions = rows.iter().map(|(_, query)| conversation.questions.encode(query));
                let questions: Vec<Vec<i32>> = questions.collect::<Result<_, _>>()?;
                let questions: Vec<&[i32]> = questions.iter().map(Vec::as_slice).collect();
                let seen = visual.of_clips(engine.context(), &clips_of(rows))?;
                out.extend(each(&seen, &questions)?);
            }
        }
        Ok(out)
    }

    /// Answers a query about one sample, whose `frames` (1, t, h, w, 3) are on the device, and
    /// measures the seconds of each part.
    ///
    /// # Errors
    /// Fails if the model is a dual encoder or rejects the shapes, or the device fails.
    pub fn timed_answer(&self, frames: View<'_>, query: &str) -> anyhow::Result<Timed> {
        let mut since = Instant::now();
        let mut lap = || std::mem::replace(&mut since, Instant::now()).elapsed().as_secs_f64();
        match &self.model {
            Model::VlJepa { engine, queries, .. } => {
                let query = self.packed(queries, std::iter::once(query))?;
                let text = &engine.model.predictor.text;
                let embedded = text.embed(engine.context(), &engine.parameters, query.ids())?;
                // Reading a result waits for the device.
                embedded.to_f32()?;
                let query_s = lap();
                let predicted = engine.predict_seen(&engine.encode(frames)?, &query)?;
                let encoder_s = lap();
                let text = if self.writes() { self.captions(&predicted)?.pop() } else { None };
                let decoder_s = text.is_some().then(&mut lap);
                Ok(Timed { text, query_s, encoder_s, decoder_s })
            }
            Model::Vlm { engine, conversation } => {
                let question = conversation.questions.encode(query)?;
                let ids = Tensor::from_i32(question.clone(), &[question.len()]);
                let ids = ids.on(engine.device())?;
                let text = &engine.model.language_model.text;
                if !question.is_empty() {
                    text.embed(engine.context(), &engine.parameters, ids.view())?.to_f32()?;
                }
                let query_s = lap();
                let visual = engine.encode(frames)?;
                engine.device().compute_stream().synchronize()?;
                let encoder_s = lap();
                let written = engine.answer(&visual, &[&question], prompt(conversation))?;
                let ids = written.first().map(Vec::as_slice).unwrap_or_default();
                let text = Some(conversation.answers.decode(ids)?);
                Ok(Timed { text, query_s, encoder_s, decoder_s: Some(lap()) })
            }
            Model::DualEncoder { .. } => {
                anyhow::bail!("a dual encoder has no query and no decoder")
            }
        }
    }

    /// Returns the mean of −log p over the tokens of each candidate as the answer to each sample's
    /// query, (samples, candidates).
    ///
    /// # Errors
    /// Fails if the model is no VLM or rejects the shapes, or the device fails.
    pub fn mean_losses(
        &self,
        samples: &[(&LoadedSample, &str)],
        candidates: &[Vec<i32>],
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let Model::Vlm { engine, conversation } = &self.model else {
            anyhow::bail!("the model predicts embeddings, not tokens");
        };
        self.converse(engine, conversation, samples, |visual, questions| {
            engine.mean_losses(visual, questions, prompt(conversation), candidates)
        })
    }

    /// Returns the tokens of texts as candidates of [`Self::mean_losses`].
    ///
    /// # Errors
    /// Fails if the model is no VLM, or a text cannot be tokenised.
    pub fn candidates<S: AsRef<str>>(&self, texts: &[S]) -> anyhow::Result<Vec<Vec<i32>>> {
        let Model::Vlm { conversation, .. } = &self.model else {
            anyhow::bail!("the model predicts embeddings, not tokens");
        };
        Ok(texts
            .iter()
            .map(|text| conversation.candidate(text.as_ref()))
            .collect::<Result<_, _>>()?)
    }

    /// Returns the texts that the Y-decoder writes for embeddings (b, e).
    ///
    /// # Errors
    /// Fails if the model has no Y-decoder or rejects the shapes, or the device fails.
    pub fn captions<E: AsRef<[f32]>>(&self, embeddings: &[E]) -> anyhow::Result<Vec<String>> {
        let Model::VlJepa { engine, outputs: Some(outputs), .. } = &self.model else {
            anyhow::bail!("the model has no Y-decoder that could write a text");
        };
        let Outputs { tokenizer, end, start } = &**outputs;
        let mut texts = Vec::with_capacity(embeddings.len());
        for chunk in embeddings.chunks(ROWS) {
            for ids in engine.write(chunk, *end, start)? {
                texts.push(tokenizer.decode(&ids)?);
            }
        }
        Ok(texts)
    }

    /// Checks that a query has tokens that the embedding has rows for.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the query.
    pub fn check_query(&self, query: &str) -> anyhow::Result<()> {
        match &self.model {
            Model::VlJepa { queries, .. } => queries.encode(query)?,
            Model::Vlm { conversation, .. } => conversation.questions.encode(query)?,
            Model::DualEncoder { .. } => Vec::new(),
        };
        Ok(())
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

/// Why a VLM embeds nothing.
const NO_EMBEDDINGS: &str = "the model is a VLM, which predicts tokens and has no embeddings";

/// Texts of a VLM's template around those of a sample.
fn prompt(conversation: &Conversation) -> Prompt<'_> {
    Prompt {
        before: &conversation.before,
        start: conversation.start(),
        end: conversation.end().first().copied().unwrap_or(-1),
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
