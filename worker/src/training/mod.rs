//! Training: the loop over stages and steps, one step, its batches and its optimizer. Read
//! [`train`] first, then [`step`].

pub mod decoder_step;
pub mod feed;
pub mod optimize;
pub(crate) mod record;
pub mod step;
pub mod train;

use vljepa_recipes::Recipe;
use vljepa_recipes::protocol::Phase;

use crate::collectives::Collectives;
use crate::engine::{Engine, Training};
use crate::training::step::{Input, StepReport};

/// Computes one step of stage number `stage` of the recipe: that of VL-JEPA or of its Y-decoder.
/// Calls `enter` at the beginning of each phase.
///
/// # Errors
/// Fails in the same cases as [`step::step`] and [`decoder_step::step`].
pub fn one_step(
    engine: &mut Engine,
    training: &mut Training,
    collectives: &Collectives,
    (recipe, stage): (&Recipe, usize),
    input: Input,
    enter: &mut dyn FnMut(Phase) -> anyhow::Result<()>,
) -> anyhow::Result<StepReport> {
    match recipe.model.decoder() {
        None => step::step(engine, training, collectives, input, enter),
        Some(_) => {
            let decoding = recipe.stages[stage].decoding.unwrap_or_default();
            let of = decoder_step::Embeddings { decoding, seed: recipe.seed, stage };
            decoder_step::step(engine, training, collectives, of, input, enter)
        }
    }
}
