//! One step of a VLM.

use std::ops::Range;

use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::Tensor;
use vljepa_model::vlm::{Conversations, VlmSaved};
use vljepa_model::{Gradients, Keep, ModelError, OnReady, Vlm};

use super::token_step::Pass;
use crate::engine::Engine;

/// Forward and backward pass of a VLM.
pub(super) struct VlmPass;

impl Pass<Vlm> for VlmPass {
    type Saved = VlmSaved;

    fn forward(
        &self,
        engine: &Engine<Vlm>,
        batch: &Batch<Tensor>,
        rows: &Range<usize>,
        factor: f32,
        keep: Keep,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Option<VlmSaved>), ModelError> {
        let (cx, model, parameters) = (engine.context(), &engine.model, &engine.parameters);
        let frames = batch.frames.view().rows(rows.start, rows.end);
        let visual = model.x_encoder.forward(cx, parameters, frames, keep)?;
        let texts = |ragged| rows.clone().map(|row| Ragged::row(ragged, row)).collect::<Vec<_>>();
        let (questions, answers) = (texts(&batch.query), texts(&batch.output));
        let texts =
            Conversations { before: &batch.before, questions: &questions, answers: &answers };
        model.forward(cx, parameters, visual, texts, factor, keep, Some(gradients))
    }

    fn backward(
        &self,
        engine: &Engine<Vlm>,
        saved: VlmSaved,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<(), ModelError> {
        let (cx, parameters) = (engine.context(), &engine.parameters);
        engine.model.backward(cx, parameters, saved, gradients, on_ready)
    }
}
