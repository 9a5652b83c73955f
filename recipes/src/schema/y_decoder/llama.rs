//! Keys of `family: llama` of the Y-decoder and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Search;
use crate::schema::{Llama3Scaling, LlamaSize, Predictor};

/// Published sizes of Llama-3.2: values of `model.y_decoder.size`.
pub type LlamaDecoderSize = LlamaSize;

/// Keys of `family: llama`: a causal Llama-3.2 whose first tokens are a learned prefix. A linear
/// map with bias makes the prefix of the embedding, and the layers continue it with the text. The
/// output map is the token table. The defaults are Llama-3.2-1B with all its layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlamaDecoder {
    /// Number of tokens of the prefix. Unstated; default: 8 (ClipCap has 10; a public
    /// re-implementation of VL-JEPA has 1).
    pub prefix_tokens: usize,
    /// Number of elements of a token. Default: 2,048 (Llama-3.2-1B).
    pub hidden_size: usize,
    /// Number of layers, counted from the first of the published weights. Default: 16
    /// (Llama-3.2-1B).
    pub num_layers: usize,
    /// Number of query heads. A multiple of `num_kv_heads`. Default: 32 (Llama-3.2-1B).
    pub num_heads: usize,
    /// Number of key/value heads. Default: 8 (Llama-3.2-1B).
    pub num_kv_heads: usize,
    /// Number of elements of a head; even. Default: 64 (Llama-3.2-1B).
    pub head_dim: usize,
    /// Number of elements of the gated MLP's hidden layer. Default: 8,192 (Llama-3.2-1B).
    pub intermediate_size: usize,
    /// Value added to the mean square in RMS norms. Default: 1e-5 (Llama-3.2-1B).
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies. Default: 500,000 (Llama-3.2-1B).
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies; `null` leaves them unscaled. Default: that of
    /// Llama-3.2-1B.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Number of rows of the token embedding table. Default: 128,256 (Llama-3.2-1B).
    pub vocab_size: usize,
    /// Whether layers, norms and token table are trained. The map to the prefix always is. Default:
    /// true.
    pub train_layers: bool,
    /// Most tokens of a text, its end included. Longer texts are cut, in training and when they are
    /// written. Unstated; default: 128.
    pub max_tokens: usize,
    /// Search for the text of an embedding. Unstated; default: `greedy`.
    pub search: Search,
    /// Token that ends a text. Default: `<|end_of_text|>` (Llama-3.2-1B).
    pub end: String,
    /// `tokenizer.json` of the texts. A run needs it. Its special tokens are not added: a text
    /// follows the prefix.
    pub tokenizer: Option<PathBuf>,
    /// Published `model.safetensors`, or the index of several such files, with the initial weights.
    /// With `kind: vl_jepa` the `y_decoder/model.safetensors` that `vljepa-launch export` wrote of
    /// a trained decoder. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl LlamaDecoder {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: LlamaDecoderSize) -> Self {
        let Predictor {
            hidden_size,
            layers: [_, num_layers],
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            vocab_size,
            ..
        } = Predictor::of_size(size);
        Self {
            prefix_tokens: 8,
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            vocab_size,
            train_layers: true,
            max_tokens: 128,
            search: Search::Greedy,
            end: "<|end_of_text|>".to_owned(),
            tokenizer: None,
            weights: None,
        }
    }
}

impl Default for LlamaDecoder {
    fn default() -> Self {
        Self::of_size(LlamaDecoderSize::default())
    }
}
