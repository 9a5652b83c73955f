//! Keys of `family: embedding_gemma` and its published size.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Projection, Update};

/// Published sizes of EmbeddingGemma: values of `model.y_encoder.size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum EmbeddingGemmaSize {
    /// `google/embeddinggemma-300m`, 302,863,104 parameters without its Dense layers.
    #[default]
    #[serde(rename = "300m")]
    M300,
}

/// Keys of `family: embedding_gemma`. The defaults are EmbeddingGemma-300M (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddingGemma {
    /// Number of elements of a token. Default: 768 (EmbeddingGemma-300M).
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24 (EmbeddingGemma-300M).
    pub num_layers: usize,
    /// Number of query heads. A multiple of `num_kv_heads`. Default: 3 (EmbeddingGemma-300M).
    pub num_heads: usize,
    /// Number of key/value heads. Default: 1 (EmbeddingGemma-300M).
    pub num_kv_heads: usize,
    /// Number of elements of a head; even. Default: 256 (EmbeddingGemma-300M).
    pub head_dim: usize,
    /// Number of elements of the gated MLP's hidden layer. Default: 1,152 (EmbeddingGemma-300M).
    pub intermediate_size: usize,
    /// Value added to the mean square in RMS norms. Default: 1e-6 (EmbeddingGemma-300M).
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies in full-attention layers. Default: 1,000,000
    /// (EmbeddingGemma-300M).
    pub rope_theta: f64,
    /// Base of the rotary frequencies in sliding-window layers. Default: 10,000
    /// (EmbeddingGemma-300M).
    pub rope_local_theta: f64,
    /// Every n-th layer attends to all tokens; the other layers attend to a sliding window.
    /// Default: 6 (EmbeddingGemma-300M).
    pub full_attention_every: usize,
    /// Window of the sliding-window layers in tokens: token i attends to token j if |i − j| <
    /// window. Default: 257, the effective value of EmbeddingGemma-300M's published
    /// `sliding_window: 512`.
    pub effective_window: usize,
    /// Attention scores are divided by the square root of this value. Default: 256
    /// (EmbeddingGemma-300M).
    pub query_pre_attn_scalar: f64,
    /// Number of rows of the token embedding table. Default: 262,144 (EmbeddingGemma-300M).
    pub vocab_size: usize,
    /// Maximum length of a target in tokens; longer targets are cut. Default: 512 (paper §3.1:
    /// "maximum context length of 512").
    pub max_target_tokens: usize,
    /// Whether the two Dense layers of the sentence-transformers model lie between pooling and
    /// projection. Unstated; default: false, as in open-vljepa.
    pub dense_heads: bool,
    /// Number of elements between the two Dense layers. Default: 3,072 (EmbeddingGemma-300M).
    pub dense_hidden_size: usize,
    /// Text before each target, in training and evaluation. EmbeddingGemma's own prompts end in
    /// `query: ` or `text: `, such as `task: sentence similarity | query: `. Unstated; default:
    /// empty.
    pub prompt: String,
    /// How training changes the encoder. Default: `train` (paper §2: "We train the Predictor and
    /// the Y-Encoder jointly"; §3.1 multiplies its learning rate by 0.05, see
    /// `optimizer.multipliers`).
    pub update: Update,
    /// Map from the pooled tokens, or from the Dense layers, to the shared embedding. Default:
    /// `linear` (paper §3.1).
    pub projection: Projection,
    /// `tokenizer.json` of the targets. A run needs it; the paper uses that of EmbeddingGemma-300M
    /// (§3.1).
    pub tokenizer: Option<PathBuf>,
    /// Published `model.safetensors`, or the index of several such files, with the initial weights.
    /// Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl EmbeddingGemma {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: EmbeddingGemmaSize) -> Self {
        let EmbeddingGemmaSize::M300 = size;
        Self {
            hidden_size: 768,
            num_layers: 24,
            num_heads: 3,
            num_kv_heads: 1,
            head_dim: 256,
            intermediate_size: 1152,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_local_theta: 1e4,
            full_attention_every: 6,
            effective_window: 257,
            query_pre_attn_scalar: 256.0,
            vocab_size: 262_144,
            max_target_tokens: 512,
            dense_heads: false,
            dense_hidden_size: 3072,
            prompt: String::new(),
            update: Update::Train,
            projection: Projection::Linear,
            tokenizer: None,
            weights: None,
        }
    }
}

impl Default for EmbeddingGemma {
    fn default() -> Self {
        Self::of_size(EmbeddingGemmaSize::default())
    }
}
