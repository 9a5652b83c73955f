//! Answers of a VLM.

use vljepa_kernels::View;
use vljepa_model::language_model::{Options, Search};
use vljepa_model::vlm::Conversations;
use vljepa_model::{Keep, ModelError, Visual, Vlm};

use super::Engine;

/// Texts of a VLM around those of each row, in tokens.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// Tokens before the visual tokens.
    pub before: &'a [i32],
    /// Tokens that begin every answer.
    pub start: &'a [i32],
    /// Token that ends an answer.
    pub end: i32,
}

impl Engine<Vlm> {
    /// Writes the answers to questions about encoded clips, as tokens without those of the
    /// template.
    /// `questions` has as many rows as `visual`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes or the device fails.
    pub fn answer(
        &self,
        visual: &Visual,
        questions: &[&[i32]],
        prompt: Prompt<'_>,
    ) -> anyhow::Result<Vec<Vec<i32>>> {
        let keys = self.model.recipe().vlm().cloned().unwrap_or_default();
        let options = Options {
            search: Search::new(keys.search, self.seed),
            max_tokens: keys.max_answer_tokens,
            stop: vec![prompt.end],
            forbidden: Vec::new(),
        };
        let starts = vec![prompt.start; questions.len()];
        let texts = Conversations { before: prompt.before, questions, answers: &starts };
        let (cx, parameters) = (self.context(), &self.parameters);
        Ok(self.model.generate(cx, parameters, visual, texts, &options)?)
    }

    /// Mean of −log p over the tokens of each candidate as the answer to each question about an
    /// encoded clip, `(b, candidates)`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes or the device fails.
    pub fn mean_losses(
        &self,
        visual: &Visual,
        questions: &[&[i32]],
        prompt: Prompt<'_>,
        candidates: &[Vec<i32>],
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let starts = vec![prompt.start; questions.len()];
        let texts = Conversations { before: prompt.before, questions, answers: &starts };
        let (cx, parameters) = (self.context(), &self.parameters);
        Ok(self.model.mean_losses(cx, parameters, visual, texts, candidates)?)
    }

    /// Encodes clips that are on the device: `frames` is u8 `(b, t, h, w, 3)`.
    ///
    /// # Errors
    /// Fails if the model rejects the shapes or the device fails.
    pub fn encode(&self, frames: View<'_>) -> Result<Visual, ModelError> {
        let x_encoder = &self.model.x_encoder;
        x_encoder.forward(self.context(), &self.parameters, frames, Keep::Nothing)
    }
}
