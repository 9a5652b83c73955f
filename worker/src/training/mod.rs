//! Training: the loop over stages and steps, one step, its batches and its optimizer. Read
//! [`train`] first, then [`step`].

mod decoder_step;
pub mod feed;
mod loss;
pub mod optimize;
pub(crate) mod record;
mod start;
pub mod step;
mod token_step;
pub mod train;
mod vlm_step;

use vljepa_model::{VlJepa, Vlm};
use vljepa_recipes::Recipe;
use vljepa_recipes::protocol::Phase;

use crate::collectives::Collectives;
use crate::engine::{Engine, Network, Training};
use crate::evaluation::embed::Embeds;
use crate::training::step::{Input, StepReport};

/// A model that stages train.
pub trait Learns: Network {
    /// Computes one step of stage number `stage` of the recipe. Calls `enter` at the beginning of
    /// each phase.
    ///
    /// # Errors
    /// Fails if the model rejects the batch's shapes or ids, the device fails, or `enter` returns
    /// an error.
    fn step(
        engine: &mut Engine<Self>,
        training: &mut Training,
        collectives: &Collectives,
        of: (&Recipe, usize),
        input: Input,
        enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
    ) -> anyhow::Result<StepReport>;

    /// The model as evaluations use it.
    fn evaluated(engine: &Engine<Self>) -> Embeds<'_>;
}

impl Learns for VlJepa {
    fn step(
        engine: &mut Engine<Self>,
        training: &mut Training,
        collectives: &Collectives,
        (recipe, stage): (&Recipe, usize),
        input: Input,
        enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
    ) -> anyhow::Result<StepReport> {
        if recipe.model.learning_decoder().is_none() {
            return step::step(engine, training, collectives, input, enter);
        }
        let decoding = recipe.stages[stage].decoding.unwrap_or_default();
        let of = decoder_step::Embeddings { decoding, seed: recipe.seed, stage };
        token_step::step(engine, training, collectives, &of, input, enter)
    }

    fn evaluated(engine: &Engine<Self>) -> Embeds<'_> {
        Embeds::VlJepa(engine)
    }
}

impl Learns for Vlm {
    fn step(
        engine: &mut Engine<Self>,
        training: &mut Training,
        collectives: &Collectives,
        _: (&Recipe, usize),
        input: Input,
        enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
    ) -> anyhow::Result<StepReport> {
        token_step::step(engine, training, collectives, &vlm_step::VlmPass, input, enter)
    }

    fn evaluated(engine: &Engine<Self>) -> Embeds<'_> {
        Embeds::Vlm(engine)
    }
}
