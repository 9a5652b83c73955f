//! Y-decoder: writes the text of an embedding.
//!
//! `llama` is a causal Llama behind a prefix of k vectors, which a linear map makes of the
//! embedding (`ClipCap`, arXiv 2111.09734, §3). It is trained to write the target text. `sonar` is
//! SONAR's text decoder, whose layers attend to the embedding (arXiv 2308.11466, §3). It is not
//! trained.

use std::sync::Arc;

use vljepa_kernels::{
    Device, KernelError, Lengths, Packed, Result, Tensor, View, Write, copy, rows,
};
use vljepa_recipes::schema;

use crate::language_model::{LanguageModelSaved, Options, Prompts};
use crate::layers::Linear;
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
    input: PrefixedRows,
    /// Token ids, if the token embeddings are trained.
    ids: Option<Arc<[i32]>>,
    layers: Option<LanguageModelSaved>,
    /// Gradient of the hidden states, (n, d).
    d_hidden: Tensor,
}

/// Rows of the prefixes and of the tokens in packed sequences [prefix ; tokens].
#[derive(Debug)]
struct PrefixedRows {
    /// Row of each vector of a prefix, i32 (b·k).
    prefix: Tensor,
    /// Row of each token, i32 (tokens).
    tokens: Tensor,
}

impl YDecoder {
    /// Registers the decoder's parameters.
    #[must_use]
    pub fn new(layout: &mut LayoutBuilder, model: &schema::Model, device: Device) -> Self {
        let (name, group) = ("y_decoder", Group::YDecoder);
        match &model.y_decoder.clone().unwrap_or_default() {
            schema::YDecoder::Llama(keys) => {
                let trained = [keys.train_layers; 2];
                let language_model =
                    LanguageModel::llama(layout, name, group, &keys.into(), trained, device);
                layout.scope(group, true);
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
        let (read, targets) = read_and_targets(device, texts, prefix.tokens)?;
        let embeddings = activations(cx, embeddings)?;
        let (x, lengths, input) = self.prefixed(cx, parameters, prefix, &embeddings, &read)?;
        let model = &self.language_model;
        let keep = keep.only_if(gradients.is_some());
        let (hidden, layers) = model.forward(cx, parameters, x, lengths, keep)?;
        let hidden = hidden.view();
        let Some(gradients) = gradients else {
            return Ok((model.losses(cx, parameters, hidden, &targets)?, None));
        };
        let (losses, d_hidden) =
            model.losses_with_gradient(cx, parameters, hidden, &targets, factor, gradients)?;
        let ids = model.table().trainable().then(|| Arc::clone(read.host_ids()));
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
        let part = |index: &Tensor| {
            let mut part = cx.take(&[index.shape()[0], d.shape()[1]])?;
            rows::gather(cx.stream, d.view(), index.view(), Write::Set, part.view_mut())?;
            Ok::<_, KernelError>(part)
        };
        if let Some(ids) = ids {
            let d_tokens = part(&input.tokens)?;
            model.text.embed_backward(cx, &ids, d_tokens.view(), gradients)?;
        }
        let d_prefix =
            part(&input.prefix)?.reshaped(&[embeddings.shape()[0], prefix.map.outputs()]);
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
                let (x, lengths, _) = self.prefixed(cx, parameters, prefix, &embeddings, &start)?;
                Prompts { x, lengths, memory: None }
            }
            None => {
                let x = model.input(cx, parameters, &start)?;
                Prompts { x, lengths, memory: Some(embeddings.view()) }
            }
        };
        Ok(model.generate(cx, parameters, prompts, &options)?)
    }

    /// Input (n, d) of the first layer for the sequences [prefix ; tokens], their lengths, and the
    /// rows of both parts.
    fn prefixed(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        prefix: &Prefix,
        embeddings: &Tensor,
        tokens: &Packed,
    ) -> Result<(Tensor, Lengths, PrefixedRows)> {
        let b = embeddings.shape()[0];
        if tokens.lengths.rows() != b {
            return Err(KernelError::Shape {
                operation: "y_decoder",
                what: "texts",
                found: tokens.lengths.rows().to_string(),
                needed: format!("{b}, one per embedding"),
            });
        }
        let (lengths, input) = prefixed_rows(cx.arena.device(), &tokens.lengths, prefix.tokens)?;
        let d = prefix.map.outputs() / prefix.tokens.max(1);
        let mut x = cx.take(&[lengths.tokens(), d])?;
        let mut vectors = cx.take(&[b, prefix.map.outputs()])?;
        let out = vectors.view_mut();
        prefix.map.forward(cx, parameters, embeddings.view(), Write::Set, out)?;
        let vectors = vectors.reshaped(&[b * prefix.tokens, d]);
        rows::scatter(cx.stream, vectors.view(), input.prefix.view(), x.view_mut())?;
        let embedded = self.language_model.text.embed(cx, parameters, tokens.ids())?;
        rows::scatter(cx.stream, embedded.view(), input.tokens.view(), x.view_mut())?;
        Ok((x, lengths, input))
    }
}

/// Embeddings in the element type of activations.
fn activations(cx: Context<'_>, embeddings: View<'_>) -> Result<Tensor> {
    let mut out = cx.take(embeddings.shape())?;
    copy::cast(cx.stream, embeddings, out.view_mut())?;
    Ok(out)
}

/// Tokens that the decoder reads, all but the last of each text, and the target of each vector of
/// the sequences [prefix ; tokens]: the last vector of the prefix predicts the first token.
fn read_and_targets(
    device: Device,
    texts: &Packed,
    prefix: usize,
) -> Result<(Packed, Vec<i32>), ModelError> {
    let (mut ids, mut ends, mut targets) = (Vec::new(), vec![0], Vec::new());
    for row in 0..texts.lengths.rows() {
        let text = &texts.host_ids()[texts.lengths.range(row)];
        let Some((_, read)) = text.split_last() else {
            return Err(ModelError::Kernel(KernelError::Value {
                operation: "y_decoder::forward",
                what: "texts",
                found: format!("empty at {row}"),
                needed: "every text needs a token, such as its end".to_owned(),
            }));
        };
        ids.extend(read);
        ends.push(texts.lengths.host()[row + 1] - texts.lengths.host()[0] - count(row + 1)?);
        targets.resize(targets.len() + prefix.saturating_sub(1), -1);
        targets.extend(text);
    }
    Ok((Packed::new(device, ids, ends)?, targets))
}

/// Lengths of the sequences [prefix ; tokens], and the rows of both parts.
fn prefixed_rows(
    device: Device,
    tokens: &Lengths,
    prefix: usize,
) -> Result<(Lengths, PrefixedRows)> {
    let prefix = count(prefix)?;
    let total = count(tokens.rows())?
        .checked_mul(prefix)
        .and_then(|n| n.checked_add(tokens.host().last().copied().unwrap_or(0)));
    total.ok_or_else(too_many)?;
    let (mut ends, mut end) = (vec![0], 0);
    let (mut prefix_rows, mut token_rows) = (Vec::new(), Vec::new());
    for ends_of_row in tokens.host().windows(2) {
        let start = end + prefix;
        prefix_rows.extend(end..start);
        end = start + ends_of_row[1] - ends_of_row[0];
        token_rows.extend(start..end);
        ends.push(end);
    }
    let index = |values: Vec<i32>| {
        let len = values.len();
        Tensor::from_i32(values, &[len]).on(device)
    };
    let rows = PrefixedRows { prefix: index(prefix_rows)?, tokens: index(token_rows)? };
    Ok((Lengths::new(device, ends)?, rows))
}

fn count(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| too_many())
}

fn too_many() -> KernelError {
    KernelError::Value {
        operation: "y_decoder",
        what: "tokens",
        found: "2^31 or more".to_owned(),
        needed: "fewer than 2^31".to_owned(),
    }
}
