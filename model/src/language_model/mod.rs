//! Causal language model: predicts the next token of each sequence. Its output map is the table of
//! token embeddings.
//!
//! [`LanguageModel::forward`] and [`LanguageModel::backward`] train it on whole sequences of
//! vectors, so that tokens may follow a prefix that is no token. [`LanguageModel::losses`] is the
//! cross-entropy of the next tokens, in chunks of bounded memory. [`LanguageModel::extend`] reads
//! new tokens of sequences whose earlier tokens lie in a [`Cache`], and [`LanguageModel::generate`]
//! writes text with it.
//!
//! Letters in shapes: n packed tokens, d width, v size of the vocabulary.

mod cache;
mod generate;
mod joined;
mod loss;
mod perplexity;
mod search;
#[cfg(test)]
mod tests;

use vljepa_kernels::attention::Mask;
use vljepa_kernels::{Device, Lengths, Packed, Result, Tensor, View, Write, linear};

pub use cache::Cache;
pub use generate::{Options, Prompts, Search};
pub use joined::{Joined, read_and_targets};

use crate::layers::{Linear, LlamaSizes, Sequence, SonarSizes, StackSaved, TextModel, Trained};
use crate::{
    Context, Gradients, Group, Keep, LayoutBuilder, ModelError, OnReady, Parameters, Weight,
};

/// Most bytes of logits that are in memory at a time: those of 1,000 tokens in bf16 for Llama's
/// vocabulary of 128,256. Products of so many rows reach the GPU's full rate.
const LOGITS_BYTES: usize = 256 << 20;

/// Causal text transformer whose output map is the table of token embeddings.
#[derive(Debug)]
pub struct LanguageModel {
    /// Token embeddings and causal layers.
    pub text: TextModel,
    /// Attention to a memory of one vector in each layer (SONAR), as two maps: that of the value,
    /// then that of the result. Softmax over one key is 1 whatever query and key are, so queries,
    /// keys and the norm before them have no effect, and the model has none. Empty if the layers
    /// have no memory.
    pub memory: Vec<[Linear; 2]>,
    /// Most bytes of logits that are in memory at a time.
    pub logits_bytes: usize,
}

/// State that [`LanguageModel::backward`] consumes.
#[derive(Debug)]
pub struct LanguageModelSaved {
    sequence: Sequence,
    stack: StackSaved,
}

impl LanguageModel {
    /// Registers causal Llama-3.2 layers. `trained` says what of them is trained.
    #[must_use]
    pub fn llama(
        layout: &mut LayoutBuilder,
        name: &str,
        group: Group,
        sizes: &LlamaSizes,
        trained: Trained,
        device: Device,
    ) -> Self {
        let text = TextModel::llama(layout, name, group, sizes, Mask::Causal, trained, device);
        Self { text, memory: Vec::new(), logits_bytes: LOGITS_BYTES }
    }

    /// Registers the layers of SONAR's text decoder, frozen. Its memory is the embedding of the
    /// text, which is as wide as a token.
    ///
    /// Source: SONAR (arXiv 2308.11466) §3; `sonar_text/model.py` of facebookresearch/SONAR.
    #[must_use]
    pub fn sonar(
        layout: &mut LayoutBuilder,
        name: &str,
        group: Group,
        sizes: SonarSizes,
        device: Device,
    ) -> Self {
        layout.scope(group, false);
        let text = TextModel::sonar(layout, name, sizes, Mask::Causal, device);
        let shape = [sizes.hidden, sizes.hidden];
        let memory = (0..sizes.layers).map(|i| {
            ["value", "output"].map(|map| {
                Linear::new(layout, &format!("{name}.layers.{i}.memory.{map}"), shape, true)
            })
        });
        let memory = memory.collect();
        Self { text, memory, logits_bytes: LOGITS_BYTES }
    }

    /// Table of token embeddings (v, d), which is also the output map.
    #[must_use]
    pub fn table(&self) -> &Weight {
        &self.text.embedding
    }

    /// Hidden states (n, d) after the final norm, for the vectors x (n, d) of sequences with the
    /// given lengths. The model must have no memory.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: Tensor,
        lengths: Lengths,
        keep: Keep,
    ) -> Result<(Tensor, Option<LanguageModelSaved>)> {
        debug_assert!(self.memory.is_empty(), "a decoder with a memory reads it through its cache");
        let sequence = self.text.sequence(lengths)?;
        let (hidden, stack) = self.text.stack.forward(cx, parameters, x, &sequence, keep)?;
        Ok((hidden, stack.map(|stack| LanguageModelSaved { sequence, stack })))
    }

    /// Gradient of x (n, d), given `d_hidden` (n, d), the gradient of the hidden states. Adds to
    /// the gradients of all trained layers, and calls `on_ready` after each.
    ///
    /// # Errors
    /// If the forward pass kept nothing, shapes disagree, or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: Option<LanguageModelSaved>,
        d_hidden: Tensor,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<Tensor, ModelError> {
        let LanguageModelSaved { sequence, stack } =
            saved.ok_or(ModelError::NothingSaved { part: "language_model" })?;
        let text = &self.text.stack;
        Ok(text.backward(cx, parameters, stack, d_hidden, &sequence, gradients, on_ready)?)
    }

    /// Input (n, d) of the first layer for tokens at the start of sequences.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, or memory runs out.
    pub fn input(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        tokens: &Packed,
    ) -> Result<Tensor> {
        let lengths = Lengths::new(cx.arena.device(), tokens.lengths.host().to_vec())?;
        let sequence = self.text.sequence(lengths)?;
        self.text.input(cx, parameters, tokens.ids(), &sequence)
    }

    /// Logits (n, v) of the next tokens, for hidden states (n, d).
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn logits(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        hidden: View<'_>,
    ) -> Result<Tensor> {
        let mut logits = cx.take(&[hidden.shape()[0], self.table().shape()[0]])?;
        let table = parameters.of(self.table());
        linear::forward(cx.stream, hidden, table, None, Write::Set, logits.view_mut())?;
        Ok(logits)
    }

    /// Rows of logits that are computed at a time.
    fn rows_of_logits(&self, cx: Context<'_>) -> usize {
        let row_bytes = self.table().shape()[0] * cx.arena.device().activations().bytes();
        (self.logits_bytes / row_bytes.max(1)).max(1)
    }
}
