//! A model on this rank's device: parameters, arena and, for training, gradients and optimizer
//! state.

mod network;
mod vlm;

use std::path::PathBuf;

use anyhow::Context as _;
use rayon::prelude::*;
use vljepa_kernels::{Arena, Device, Packed, Stream, Tensor, View};
use vljepa_model::language_model::{Options, Search};
use vljepa_model::weights::{self, Imported};
use vljepa_model::{
    AdamW, Context, DualEncoder, Gradients, Keep, Layout, ModelError, Parameters, Visual, VlJepa,
};
use vljepa_recipes::schema::Init;
use vljepa_recipes::{RankId, Recipe};

pub use network::Network;
pub use vlm::Prompt;

use crate::checkpoint::{self, Buffers, CheckpointFolder, Loaded};
use crate::collectives::Collectives;
use crate::error::WorkerError;
use crate::initial::{self, Initial};
use crate::sharding::Shards;

/// A model on a device, with its stream and its arena.
#[derive(Debug)]
pub struct Engine<M = VlJepa> {
    /// The encoders, and for VL-JEPA the predictor and the loss.
    pub model: M,
    /// Trained and frozen parameters of the model.
    pub parameters: Parameters,
    /// Key `init` of the recipe.
    init: Option<Init>,
    /// Seed of the recipe.
    seed: u64,
    stream: Stream,
    arena: Arena,
}

/// State that only training needs.
#[derive(Debug)]
pub struct Training {
    /// Gradients of the current step.
    pub gradients: Gradients,
    /// Moments of the parameters, and hyper-parameters.
    pub optimizer: AdamW,
    /// Gradient norm above which gradients are scaled down; 0 disables clipping.
    pub clip_norm: f32,
    /// Bytes of gradients that are summed over ranks at once.
    pub bucket_bytes: usize,
    /// Whether the optimizer of each rank owns a shard of the flat buffers, and not all of them.
    pub is_sharded: bool,
}

impl Training {
    /// Creates gradients and optimizer state of one rank, all zero.
    fn new<M: Network>(recipe: &Recipe, engine: &Engine<M>, rank: RankId) -> anyhow::Result<Self> {
        let (layout, device) = (engine.model.layout(), engine.device());
        let shards = Shards::new(layout.trainable_len, rank.world_size);
        let is_sharded = recipe.optimizer.shard && rank.world_size > 1;
        let (own, room) = if is_sharded {
            (shards.of(rank.rank), shards.slot())
        } else {
            (0..layout.trainable_len, shards.room())
        };
        Ok(Self {
            gradients: Gradients::padded(layout, device, shards.room())?,
            optimizer: AdamW::of_range(layout, device, &recipe.optimizer, own, room)?,
            clip_norm: recipe.optimizer.clip_norm,
            bucket_bytes: recipe.cluster.bucket_mib << 20,
            is_sharded,
        })
    }
}

impl<M: Network> Engine<M> {
    /// Creates the recipe's model on `device` with all weights zero, for one of `ranks` ranks that
    /// share its parameters.
    pub(crate) fn without_weights(
        recipe: &Recipe,
        device: Device,
        ranks: usize,
    ) -> anyhow::Result<Self> {
        let model = M::build(recipe, device)?;
        let layout = model.layout();
        let room = Shards::new(layout.trainable_len, ranks).room();
        let parameters = Parameters::padded(layout, device, room)?;
        // The arena grows during the first step: the device knows its own memory better than a plan
        // does.
        let arena = Arena::new(device, usize::MAX);
        let init = recipe.init.clone();
        let (stream, seed) = (device.compute_stream(), recipe.seed);
        Ok(Self { model, parameters, init, seed, stream, arena })
    }

    /// Creates the recipe's model on `device` with random weights.
    fn random(recipe: &Recipe, device: Device) -> anyhow::Result<Self> {
        let mut engine = Self::without_weights(recipe, device, 1)?;
        engine.parameters.initialise(engine.model.layout(), recipe.seed)?;
        engine.model.start_from_average(&engine.stream, &mut engine.parameters)?;
        Ok(engine)
    }

    /// Creates the recipe's model, gradients and optimizer state for one of several ranks. The rank
    /// holds a shard of the optimizer state if the recipe says so. All weights are zero until
    /// [`Self::restore`] or [`Self::initialise`] sets them.
    ///
    /// # Errors
    /// Fails if the recipe's sizes do not make a model, or the device has too little memory.
    pub fn for_rank(
        recipe: &Recipe,
        device: Device,
        rank: RankId,
    ) -> anyhow::Result<(Self, Training)> {
        let engine = Self::without_weights(recipe, device, rank.world_size)?;
        let training = Training::new(recipe, &engine, rank)?;
        Ok((engine, training))
    }

    /// Returns the device that holds the tensors.
    #[must_use]
    pub fn device(&self) -> Device {
        self.arena.device()
    }

    /// Returns the seed of the recipe.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns unused memory to the device. Call it before a stage or an evaluation, which need
    /// other tensor sizes than before.
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn trim(&self) -> vljepa_kernels::Result<()> {
        self.arena.trim()
    }

    /// Returns the stream and the arena that operations of this engine use.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        Context { stream: &self.stream, arena: &self.arena }
    }

    /// Returns clones of the stream and the arena, for work that also changes the engine's
    /// parameters.
    #[must_use]
    pub fn stream_and_arena(&self) -> (Stream, Arena) {
        (self.stream.clone(), self.arena.clone())
    }

    /// Sets all weights as a new run has them: drawn with the recipe's seed, then replaced by the
    /// published ones and those of `init` that the recipe names.
    ///
    /// # Errors
    /// Fails in the same cases as [`initial::load`].
    pub fn initialise(&mut self, collectives: &Collectives) -> anyhow::Result<Initial> {
        self.load(Some(self.seed), collectives)
    }

    /// Sets the weights that files of the recipe or `init` hold, and leaves the others.
    ///
    /// # Errors
    /// Fails in the same cases as [`initial::load`].
    pub fn load_weights(&mut self, collectives: &Collectives) -> anyhow::Result<Initial> {
        self.load(None, collectives)
    }

    fn load(&mut self, seed: Option<u64>, collectives: &Collectives) -> anyhow::Result<Initial> {
        let Self { init, model, parameters, stream, .. } = self;
        let initial = initial::load(init.as_ref(), seed, model.parts(), parameters, collectives)?;
        // Another run brings both encoders, files only the average.
        if initial.run.is_none() {
            model.start_from_average(stream, parameters)?;
        }
        Ok(initial)
    }

    /// Returns the buffers that a checkpoint holds, and the layout that names the parameters in
    /// them.
    pub fn checkpoint_buffers<'a>(
        &'a mut self,
        training: &'a mut Training,
    ) -> (Layout, Buffers<'a>) {
        let layout = self.model.layout().clone();
        let range = training.optimizer.range();
        let AdamW { m, v, .. } = &mut training.optimizer;
        (layout, Buffers { weights: &mut self.parameters.trainable, moments: [m, v], range })
    }

    /// Loads the checkpoint of `step`, or the newest that verifies, the same on every rank. Without
    /// a checkpoint and a step nothing changes. Parameters that are never trained are read from
    /// their file; if that file is damaged, they are made again from the recipe's weights and seed.
    ///
    /// # Errors
    /// Fails if no checkpoint verifies, or that of `step` does not, if it belongs to another run,
    /// or if the frozen parameters cannot be made again.
    pub fn restore(
        &mut self,
        training: &mut Training,
        checkpoints: &CheckpointFolder,
        step: Option<u64>,
        collectives: &Collectives,
    ) -> anyhow::Result<Loaded> {
        let mut loaded = self.load_trained(training, checkpoints, step, collectives)?;
        self.parameters.refresh(&self.stream)?;
        let Some(hash) = loaded.frozen.clone() else { return Ok(loaded) };
        if checkpoint::load_frozen(checkpoints, collectives, &hash, &mut self.parameters.frozen)? {
            self.parameters.refresh(&self.stream)?;
            return Ok(loaded);
        }
        let file = || checkpoints.folder.join(checkpoint::FROZEN).display().to_string();
        self.initialise(collectives)
            .with_context(|| format!("{} is damaged and cannot be made again", file()))?;
        loaded = self.load_trained(training, checkpoints, step, collectives)?;
        self.parameters.refresh(&self.stream)?;
        if collectives.rank() == 0 {
            let made = checkpoint::save_frozen(&checkpoints.folder, &self.parameters.frozen)?;
            anyhow::ensure!(
                made == hash,
                "{} is damaged, and the recipe's weights and seed give other values; restore the \
                 file",
                file()
            );
        }
        let text = "was damaged and was made again from the recipe's weights and seed";
        loaded.passed_over.push(format!("{} {text}", checkpoint::FROZEN));
        Ok(loaded)
    }

    fn load_trained(
        &mut self,
        training: &mut Training,
        checkpoints: &CheckpointFolder,
        step: Option<u64>,
        collectives: &Collectives,
    ) -> anyhow::Result<Loaded> {
        let (layout, mut buffers) = self.checkpoint_buffers(training);
        let buffers = &mut buffers;
        match step {
            None => checkpoint::load_newest(checkpoints, collectives, &layout, buffers),
            Some(step) => checkpoint::load_step(checkpoints, step, collectives, &layout, buffers),
        }
    }

    /// Hash of all parameters, trained and frozen, in f32.
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn weights_hash(&self) -> vljepa_kernels::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        for buffer in [&self.parameters.trainable, &self.parameters.frozen] {
            let len = buffer.shape()[0];
            for start in (0..len).step_by(CHECKED) {
                let part = buffer.view().part(start, &[CHECKED.min(len - start)]);
                hasher.update(bytemuck::cast_slice(&part.to_f32()?));
            }
        }
        Ok(hasher.finalize())
    }

    /// Checks that all ranks hold the same parameters, bit for bit, so that a rank with faulty
    /// memory or a faulty library is named before its parameters are saved. Of a large model only
    /// one part is compared per call, chosen by `round`, so that the step hardly waits.
    ///
    /// # Errors
    /// Returns [`WorkerError::Diverged`] on every rank.
    pub fn check_agreement(
        &self,
        collectives: &Collectives,
        step: u64,
        round: usize,
    ) -> anyhow::Result<()> {
        if collectives.world_size() == 1 {
            return Ok(());
        }
        let len = self.parameters.trainable.shape()[0];
        let start = round % len.div_ceil(CHECKED).max(1) * CHECKED;
        let part = self.parameters.trainable.view().part(start, &[CHECKED.min(len - start)]);
        let values = part.to_f32()?;
        let blocks = values.par_chunks(CHECKED_BLOCK).enumerate();
        let sum = blocks.map(|(block, values)| {
            let sum = values.iter().zip(1u64..).fold(0u64, |sum, (value, position)| {
                sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(position | 1))
            });
            sum.wrapping_mul(2 * block as u64 + 1)
        });
        let sum = sum.reduce(|| 0, u64::wrapping_add);
        let sums = collectives.all_gather_bytes(&sum.to_le_bytes());
        match sums.iter().position(|other| *other != sums[0]) {
            Some(rank) => Err(WorkerError::Diverged { rank, step }.into()),
            None => Ok(()),
        }
    }
}

impl Engine<DualEncoder> {
    /// Creates the recipe's pair of encoders on `device` with the published weights that the recipe
    /// names. Also returns the files, each with what was read of it, on rank 0.
    ///
    /// # Errors
    /// Fails if the recipe's sizes do not make a model, a file does not hold its weights, or the
    /// device has too little memory.
    pub fn published(
        recipe: &Recipe,
        device: Device,
        collectives: &Collectives,
    ) -> anyhow::Result<(Self, Vec<(PathBuf, Imported)>)> {
        let mut engine = Self::without_weights(recipe, device, 1)?;
        let Self { model, parameters, .. } = &mut engine;
        let files = initial::read_once(parameters, collectives, |parameters| {
            Ok(weights::load_published(&*model, parameters)?)
        })?;
        Ok((engine, files))
    }

    /// Embeds clips: `frames` is u8 `(b, t, h, w, 3)` in host memory; the result is `(b, e)`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes or the device fails.
    pub fn clips(&self, frames: Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let rows = frames.shape()[0];
        let frames = frames.on(self.device())?;
        let embedded = self.model.embed_frames(self.context(), &self.parameters, frames.view())?;
        Ok(rows_of(&embedded.to_f32()?, rows))
    }

    /// Embeds texts; the result is `(b, e)`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes.
    pub fn texts(&self, texts: &Packed) -> Result<Vec<Vec<f32>>, ModelError> {
        let embedded = self.model.embed_texts(self.context(), &self.parameters, texts)?;
        Ok(rows_of(&embedded.to_f32()?, texts.lengths.rows()))
    }
}

impl Engine {
    /// Creates the recipe's model on `device` with random weights, for embedding.
    ///
    /// # Errors
    /// Fails if the recipe's sizes do not make a model, or the device has too little memory.
    pub fn for_inference(recipe: &Recipe, device: Device) -> anyhow::Result<Self> {
        Self::random(recipe, device)
    }

    /// Creates the recipe's model with random weights, gradients and optimizer state, for a single
    /// rank.
    ///
    /// # Errors
    /// Fails in the same cases as [`Self::for_inference`].
    pub fn for_training(recipe: &Recipe, device: Device) -> anyhow::Result<(Self, Training)> {
        let engine = Self::random(recipe, device)?;
        let training = Training::new(recipe, &engine, RankId::SINGLE)?;
        Ok((engine, training))
    }

    /// Predicts the embeddings of clips with their queries. `frames` is u8 `(b, t, h, w, 3)` in
    /// host memory; the result is `(b, e)`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes or the device fails.
    pub fn predict(&self, frames: Tensor, queries: &Packed) -> Result<Vec<Vec<f32>>, ModelError> {
        self.predict_seen(&self.encode(frames.on(self.device())?.view())?, queries)
    }

    /// Encodes clips that are on the device: `frames` is u8 `(b, t, h, w, 3)`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes or the device fails.
    pub fn encode(&self, frames: View<'_>) -> Result<Visual, ModelError> {
        let x_encoder = &self.model.x_encoder;
        x_encoder.forward(self.context(), &self.parameters, frames, Keep::Nothing)
    }

    /// Like [`Self::predict`], of clips that are encoded.
    ///
    /// # Errors
    /// Fails in the same cases as [`Self::predict`].
    pub fn predict_seen(
        &self,
        visual: &Visual,
        queries: &Packed,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let (predictor, cx) = (&self.model.predictor, self.context());
        let predicted = predictor.forward(cx, &self.parameters, visual, queries, Keep::Nothing)?;
        Ok(rows_of(&predicted.embedding.to_f32()?, queries.lengths.rows()))
    }

    /// Embeds target texts; the result is `(b, e)`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes.
    pub fn target(&self, texts: &Packed) -> Result<Vec<Vec<f32>>, ModelError> {
        let target =
            self.model.y_encoder.forward(self.context(), &self.parameters, texts, Keep::Nothing)?;
        Ok(rows_of(&target.embedding.to_f32()?, texts.lengths.rows()))
    }

    /// Writes the texts of embeddings (b, e) with the Y-decoder, as tokens without `end`. Every
    /// text starts with the tokens `start`, which are left out of the result.
    ///
    /// # Errors
    /// Fails if the model has no Y-decoder, the embeddings have another width, or the device fails.
    pub fn write<E: AsRef<[f32]>>(
        &self,
        embeddings: &[E],
        end: i32,
        start: &[i32],
    ) -> Result<Vec<Vec<i32>>, ModelError> {
        let decoder = self.model.y_decoder.as_ref().zip(self.model.recipe().decoder());
        let (decoder, keys) = decoder.ok_or_else(|| ModelError::Config {
            key: "model.kind".to_owned(),
            what: "has no Y-decoder".to_owned(),
        })?;
        let options = Options {
            search: Search::new(keys.search(), self.seed),
            max_tokens: keys.max_tokens(),
            stop: vec![end],
            forbidden: Vec::new(),
        };
        let shape = [embeddings.len(), self.model.recipe().embed_dim];
        let values = embeddings.iter().flat_map(|row| row.as_ref().iter().copied()).collect();
        let rows = Tensor::from_f32(values, &shape).on(self.device())?;
        decoder.generate(self.context(), &self.parameters, rows.view(), start, &options)
    }
}

fn rows_of(flat: &[f32], rows: usize) -> Vec<Vec<f32>> {
    flat.chunks_exact(flat.len() / rows.max(1)).map(<[f32]>::to_vec).collect()
}

/// Parameters that ranks compare per save, or that are hashed at once: 256 MB, about 50 ms.
const CHECKED: usize = 1 << 26;
/// Parameters that a thread adds up at once.
const CHECKED_BLOCK: usize = 1 << 16;
