//! Y-decoder: writes the text of an embedding.
//!
//! `llama` is a causal Llama behind a prefix of k vectors, which a linear map makes of the
//! embedding (`ClipCap`, arXiv 2111.09734, §3). It is trained to write the target text. `sonar` is
//! SONAR's text decoder, whose layers attend to the embedding (arXiv 2308.11466, §3). It is not
//! trained. Behind a VL-JEPA that learns, both are frozen.

use std::sync::Arc;

use vljepa_kernels::{Device, KernelError, Lengths, Packed, Result, Tensor, View, Write, copy};
use vljepa_recipes::schema;

use crate::language_model::{Joined, LanguageModelSaved, Options, Prompts, read_and_targets};
use crate::layers::{Linear, Trained};
use crate::{
    Context, Gradients, Group, Keep, LanguageModel, LayoutBuilder, ModelError, OnReady, Parameters,
};

/// Decoder that writes the texts of embeddings.
#[derive(Debug)]
pub struct YDecoder {
    /// Token embeddings and layers of the recipe's family.
    pub language_model: LanguageModel,
    /// Prefix of every text, or `None` if the layers attend to the embedding instead.
    pub prefix: Option<Prefix>,
    gradients_end: usize,
}

/// Learned prefix of the texts.
#[derive(Debug, Clone, Copy)]
pub struct Prefix {
    /// Map of the embedding to all vectors of the prefix, (k·d, e).
    pub map: Linear,
    /// Number of vectors of the prefix, k.
    pub tokens: usize,
}

/// State that [`YDecoder::backward`] consumes.
#[derive(Debug)]
pub struct YDecoderSaved {
    /// Embeddings, (b, e).
    embeddings: Tensor,
    input: Joined,
    /// Token ids.
    ids: Arc<[i32]>,
    layers: Option<LanguageModelSaved>,
    /// Gradient of the hidden states, (n, d).
    d_hidden: Tensor,
}

impl YDecoder {
    /// Registers the decoder's parameters.
    #[must_use]
    pub fn new(layout: &mut LayoutBuilder, model: &schema::Model, device: Device) -> Self {
        let (name, group) = ("y_decoder", Group::YDecoder);
        match &model.y_decoder.clone().unwrap_or_default() {
            schema::YDecoder::Llama(keys) => {
                let learns = model.learning_decoder().is_some();
                let table = learns && keys.train_layers;
                let trained = Trained { layers: if table { keys.num_layers } else { 0 }, table };
                let language_model =
                    LanguageModel::llama(layout, name, group, &keys.into(), trained, device);
                layout.scope(group, learns);
                let shape = [keys.prefix_tokens * keys.hidden_size, model.embed_dim];
                let map = Linear::new(layout, &format!("{name}.prefix"), shape, true);
                let prefix = Some(Prefix { map, tokens: keys.prefix_tokens });
                Self { language_model, prefix, gradients_end: layout.trainable_end() }
            }
            schema::YDecoder::Sonar(keys) => {
                let language_model = LanguageModel::sonar(layout, name, group, keys.into(), device);
                Self { language_model, prefix: None, gradients_end: layout.trainable_end() }
            }
        }
    }

    /// Losses −log p of all tokens of the texts, f32 (tokens), in their order. Each text, which the
    /// caller ends with the token that ends it, follows the prefix of its embedding.
    ///
    /// `embeddings` (b, e), f32 or activations, and `texts` of b rows, of which none is empty. With
    /// `gradients`, the backward pass is that of `factor` · Σ losses; its part behind the hidden
    /// states runs at once and adds to `gradients`. Then `keep` says what is kept for the rest.
    ///
    /// # Errors
    /// If the decoder is not trained (`sonar`), a text is empty, an id is not in the vocabulary,
    /// shapes disagree, or memory runs out.
    #[expect(clippy::too_many_arguments, reason = "one argument per operand of the formula")]
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        embeddings: View<'_>,
        texts: &Packed,
        factor: f32,
        keep: Keep,
        gradients: Option<&mut Gradients>,
    ) -> Result<(Tensor, Option<YDecoderSaved>), ModelError> {
        let Some(prefix) = &self.prefix else {
            let what = "SONAR's decoder has no losses: it is not trained".to_owned();
            return Err(ModelError::Config { key: "model.y_decoder.family".to_owned(), what });
        };
        let device = cx.arena.device();
        let rows = 0..texts.lengths.rows();
        let texts: Vec<_> = rows.map(|row| &texts.host_ids()[texts.lengths.range(row)]).collect();
        let contexts = vec![Vec::new(); texts.len()];
        let (read, targets) = read_and_targets(device, &contexts, &texts, prefix.tokens)?;
        let embeddings = activations(cx, embeddings)?;
        let (x, input) = self.prefixed(cx, parameters, prefix, &embeddings, &read)?;
        let model = &self.language_model;
        let keep = keep.only_if(gradients.is_some());
        let lengths = Lengths::new(device, input.lengths.host().to_vec())?;
        let (hidden, layers) = model.forward(cx, parameters, x, lengths, keep)?;
        let hidden = hidden.view();
        let Some(gradients) = gradients else {
            return Ok((model.losses(cx, parameters, hidden, &targets)?, None));
        };
        let (losses, d_hidden) =
            model.losses_with_gradient(cx, parameters, hidden, &targets, factor, gradients)?;
        let ids = Arc::clone(read.host_ids());
        Ok((losses, Some(YDecoderSaved { embeddings, input, ids, layers, d_hidden })))
    }

    /// Adds to the gradients of the layers, the token embeddings and the map to the prefix. Calls
    /// `on_ready` whenever more gradients are complete. The embeddings get no gradient.
    ///
    /// # Errors
    /// If the forward pass kept nothing, or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: YDecoderSaved,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<(), ModelError> {
        const NOTHING: ModelError = ModelError::NothingSaved { part: "y_decoder" };
        let YDecoderSaved { embeddings, input, ids, layers, d_hidden } = saved;
        let prefix = self.prefix.as_ref().ok_or(NOTHING)?;
        let model = &self.language_model;
        let d = model.backward(cx, parameters, layers, d_hidden, gradients, on_ready)?;
        let d_prefix = model.joined_backward(cx, &input, &ids, d.view(), gradients)?;
        let d_prefix = d_prefix.reshaped(&[embeddings.shape()[0], prefix.map.outputs()]);
        prefix.map.backward_weight(cx, embeddings.view(), d_prefix.view(), gradients)?;
        on_ready(gradients, self.gradients_end);
        Ok(())
    }

    /// Writes the text of each of the `embeddings` (b, e), f32 or activations: its tokens, without
    /// the one that ends it. `start` holds the tokens that begin every text and are no part of the
    /// result: for `sonar` the end of a text and the language, for `llama` usually none.
    /// [`Options::max_tokens`] counts them.
    ///
    /// # Errors
    /// If `start` is empty for `sonar`, shapes disagree, or memory runs out.
    pub fn generate(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        embeddings: View<'_>,
        start: &[i32],
        options: &Options,
    ) -> Result<Vec<Vec<i32>>, ModelError> {
        let max_tokens = options.max_tokens.saturating_sub(start.len());
        let options = Options { max_tokens, ..options.clone() };
        let (device, rows) = (cx.arena.device(), embeddings.shape()[0]);
        let lengths = Lengths::uniform(device, rows, start.len())?;
        let start = Packed::new(device, start.repeat(rows), lengths.host().to_vec())?;
        let embeddings = activations(cx, embeddings)?;
        let model = &self.language_model;
        let prompts = match &self.prefix {
            Some(prefix) => {
                let (x, input) = self.prefixed(cx, parameters, prefix, &embeddings, &start)?;
                Prompts { x, lengths: input.lengths, memory: None }
            }
            None => {
                let x = model.input(cx, parameters, &start)?;
                Prompts { x, lengths, memory: Some(embeddings.view()) }
            }
        };
        Ok(model.generate(cx, parameters, prompts, &options)?)
    }

    /// Input (n, d) of the first layer for the sequences [prefix ; tokens], and their rows.
    fn prefixed(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        prefix: &Prefix,
        embeddings: &Tensor,
        tokens: &Packed,
    ) -> Result<(Tensor, Joined)> {
        let b = embeddings.shape()[0];
        if tokens.lengths.rows() != b {
            return Err(KernelError::Shape {
                operation: "y_decoder",
                what: "texts",
                found: tokens.lengths.rows().to_string(),
                needed: format!("{b}, one per embedding"),
            });
        }
        let input = Joined::new(cx.arena.device(), &tokens.lengths, 0, prefix.tokens)?;
        let d = prefix.map.outputs() / prefix.tokens.max(1);
        let mut vectors = cx.take(&[b, prefix.map.outputs()])?;
        let out = vectors.view_mut();
        prefix.map.forward(cx, parameters, embeddings.view(), Write::Set, out)?;
        let vectors = vectors.reshaped(&[b * prefix.tokens, d]);
        let model = &self.language_model;
        let x = model.joined_input(cx, parameters, &input, tokens, vectors.view())?;
        Ok((x, input))
    }
}

/// Embeddings in the element type of activations.
fn activations(cx: Context<'_>, embeddings: View<'_>) -> Result<Tensor> {
    let mut out = cx.take(embeddings.shape())?;
    copy::cast(cx.stream, embeddings, out.view_mut())?;
    Ok(out)
}
