//! A model on this rank's device: its parameters, its arena, and (for training) gradients and optimizer state.

use std::ops::Range;

use rayon::prelude::*;
use vljepa_kernels::{Arena, Device, Packed, Stream, Tensor};
use vljepa_model::{
    AdamW, Context, Gradients, Keep, Layout, ModelError, Parameters, VlJepa, weights,
};
use vljepa_recipes::Recipe;

use crate::checkpoint::{self, Buffers, Loaded, Place};
use crate::collectives::Collectives;
use crate::error::WorkerError;
use crate::optimize::shard;

/// The model, ready to embed.
#[derive(Debug)]
pub struct Engine {
    /// The composition.
    pub model: VlJepa,
    /// Weights.
    pub parameters: Parameters,
    stream: Stream,
    arena: Arena,
}

/// What training holds beside the weights.
#[derive(Debug)]
pub struct Training {
    /// Gradients of this step.
    pub gradients: Gradients,
    /// Moments and hyper-parameters.
    pub optimizer: AdamW,
    /// Largest gradient norm; 0 for no clipping.
    pub clip_norm: f32,
    /// Bytes of gradients that are summed over ranks at once.
    pub bucket_bytes: usize,
}

impl Training {
    /// Gradients and optimizer state of one rank, all zero.
    fn new(
        recipe: &Recipe,
        engine: &Engine,
        [rank, world_size]: [usize; 2],
    ) -> anyhow::Result<Self> {
        let (layout, device) = (engine.model.layout(), engine.device());
        let all = 0..layout.trainable_len;
        let own = if recipe.optimizer.shard { shard(all.len(), rank, world_size) } else { all };
        Ok(Self {
            gradients: Gradients::new(layout, device)?,
            optimizer: AdamW::of_range(layout, device, &recipe.optimizer, own)?,
            clip_norm: recipe.optimizer.clip_norm,
            bucket_bytes: recipe.cluster.bucket_mib << 20,
        })
    }

    /// The elements of the flat buffers that this rank's optimizer owns; none where it owns all of them.
    #[must_use]
    pub fn shard(&self) -> Option<Range<usize>> {
        let own = self.optimizer.range();
        (own.len() < self.gradients.flat.shape()[0]).then_some(own)
    }
}

impl Engine {
    /// The recipe's model with freshly drawn weights on `device`, to embed with.
    ///
    /// # Errors
    /// When the recipe's sizes do not make a model, or the device has too little memory.
    pub fn for_inference(recipe: &Recipe, device: Device) -> anyhow::Result<Self> {
        let mut engine = Self::without_weights(recipe, device)?;
        engine.parameters.initialise(engine.model.layout(), recipe.seed)?;
        Ok(engine)
    }

    /// The recipe's model with all weights zero: for devices that compute nothing.
    fn without_weights(recipe: &Recipe, device: Device) -> anyhow::Result<Self> {
        let model = VlJepa::new(&recipe.model, &recipe.loss, device)?;
        let parameters = Parameters::new(model.layout(), device)?;
        // The arena grows in the first step as it needs: the device knows its own memory better than a plan does.
        let arena = Arena::new(device, usize::MAX);
        Ok(Self { model, parameters, stream: device.compute_stream(), arena })
    }

    /// The same with gradients and optimizer state.
    ///
    /// # Errors
    /// As [`Self::for_inference`].
    pub fn for_training(recipe: &Recipe, device: Device) -> anyhow::Result<(Self, Training)> {
        Self::for_rank(recipe, device, [0, 1])
    }

    /// The same for one of several ranks, which holds a shard of the optimizer's state where the recipe says so.
    ///
    /// # Errors
    /// As [`Self::for_inference`].
    pub fn for_rank(
        recipe: &Recipe,
        device: Device,
        [rank, world_size]: [usize; 2],
    ) -> anyhow::Result<(Self, Training)> {
        let engine = Self::for_inference(recipe, device)?;
        let training = Training::new(recipe, &engine, [rank, world_size])?;
        Ok((engine, training))
    }

    /// As [`Self::for_rank`], but all weights are zero: for rehearsals on a device that computes
    /// nothing.
    ///
    /// # Errors
    /// As [`Self::for_inference`].
    #[cfg(feature = "cuda")]
    pub fn for_rehearsal(
        recipe: &Recipe,
        device: Device,
        [rank, world_size]: [usize; 2],
    ) -> anyhow::Result<(Self, Training)> {
        let engine = Self::without_weights(recipe, device)?;
        let training = Training::new(recipe, &engine, [rank, world_size])?;
        Ok((engine, training))
    }

    /// Replaces drawn weights by the published ones that the recipe names; returns the tensors in those files that the model has
    /// no place for.
    ///
    /// # Errors
    /// A file that is missing, or lacks a tensor of the right shape.
    pub fn load_published_weights(&mut self) -> Result<Vec<String>, ModelError> {
        weights::load_published(&self.model, &mut self.parameters)
    }

    /// Where the tensors live.
    #[must_use]
    pub fn device(&self) -> Device {
        self.arena.device()
    }

    /// Gives memory that no tensor uses back to the device: a stage and an evaluation need other
    /// sizes than what came before.
    ///
    /// # Errors
    /// When the device fails.
    pub fn trim(&self) -> vljepa_kernels::Result<()> {
        self.arena.trim()
    }

    /// The stream and the arena that operations of this engine use.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        Context { stream: &self.stream, arena: &self.arena }
    }

    /// The same as handles of their own, for work that also changes the engine's parameters.
    #[must_use]
    pub fn stream_and_arena(&self) -> (Stream, Arena) {
        (self.stream.clone(), self.arena.clone())
    }

    /// Predicted embeddings of frames u8 `(b, t, h, w, 3)` in host memory with their queries.
    ///
    /// # Errors
    /// When the model refuses the shapes, or the device fails.
    pub fn predict(&self, frames: Tensor, queries: &Packed) -> Result<Vec<Vec<f32>>, ModelError> {
        let (cx, parameters) = (self.context(), &self.parameters);
        let frames = frames.on(self.device())?;
        let visual = self.model.x_encoder.forward(cx, parameters, frames.view(), Keep::Nothing)?;
        drop(frames);
        let predicted =
            self.model.predictor.forward(cx, parameters, &visual, queries, Keep::Nothing)?;
        Ok(self.rows_of(&predicted.embedding.to_f32()?, queries.lengths.rows()))
    }

    /// Embeddings of target texts.
    ///
    /// # Errors
    /// When the model refuses the shapes.
    pub fn target(&self, texts: &Packed) -> Result<Vec<Vec<f32>>, ModelError> {
        let target =
            self.model.y_encoder.forward(self.context(), &self.parameters, texts, Keep::Nothing)?;
        Ok(self.rows_of(&target.embedding.to_f32()?, texts.lengths.rows()))
    }

    fn rows_of(&self, flat: &[f32], rows: usize) -> Vec<Vec<f32>> {
        flat.chunks_exact(flat.len() / rows.max(1)).map(<[f32]>::to_vec).collect()
    }

    /// The buffers a checkpoint holds, with the layout that names what is in them.
    pub fn checkpoint_buffers<'a>(
        &'a mut self,
        training: &'a mut Training,
    ) -> (Layout, Buffers<'a>) {
        let layout = self.model.layout().clone();
        let range = training.optimizer.range();
        let AdamW { m, v, .. } = &mut training.optimizer;
        (layout, Buffers { weights: &mut self.parameters.trainable, moments: [m, v], range })
    }

    /// Takes up the newest checkpoint that verifies, on every rank the same; without any, everything stays as it is. Parameters that
    /// are never trained come from their file, or, if that was damaged, again from the recipe's weights and seed.
    ///
    /// # Errors
    /// When no checkpoint verifies, the newest good one belongs to another run, or frozen parameters are lost for good.
    pub fn restore(
        &mut self,
        training: &mut Training,
        place: &Place,
        collectives: &Collectives,
    ) -> anyhow::Result<Loaded> {
        let mut loaded = self.load_trained(training, place, collectives)?;
        self.parameters.refresh(&self.stream)?;
        let Some(hash) = loaded.frozen.clone() else { return Ok(loaded) };
        if checkpoint::load_frozen(place, collectives, &hash, &mut self.parameters.frozen)? {
            self.parameters.refresh(&self.stream)?;
            return Ok(loaded);
        }
        self.load_published_weights()?;
        loaded = self.load_trained(training, place, collectives)?;
        self.parameters.refresh(&self.stream)?;
        if collectives.rank() == 0 {
            let made = checkpoint::save_frozen(&place.folder, &self.parameters.frozen)?;
            anyhow::ensure!(
                made == hash,
                "{} in {} is damaged, and the recipe's weights and seed give other numbers; restore the file",
                checkpoint::FROZEN,
                place.folder.display()
            );
        }
        let text = "was damaged and is made again from the recipe's weights and seed";
        loaded.passed_over.push(format!("{} {text}", checkpoint::FROZEN));
        Ok(loaded)
    }

    fn load_trained(
        &mut self,
        training: &mut Training,
        place: &Place,
        collectives: &Collectives,
    ) -> anyhow::Result<Loaded> {
        let (layout, mut buffers) = self.checkpoint_buffers(training);
        checkpoint::load_newest(place, collectives, &layout, &mut buffers)
    }

    /// Makes sure that all ranks hold the same parameters, bit for bit: a rank whose memory or library is at fault is named
    /// before its parameters are saved. A large model is looked at in parts, another one each `round`, so that the step hardly waits.
    ///
    /// # Errors
    /// [`WorkerError::Diverged`] on every rank.
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
            let sum = values.iter().zip(1u64..).fold(0u64, |sum, (value, place)| {
                sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(place | 1))
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

/// Parameters that ranks compare at a save: 256 MB, some 50 ms.
const CHECKED: usize = 1 << 26;
/// Parameters that a thread adds up at once.
const CHECKED_BLOCK: usize = 1 << 16;
