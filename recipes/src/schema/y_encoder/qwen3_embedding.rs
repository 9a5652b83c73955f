//! Keys of `family: qwen3_embedding` and its published sizes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Projection, Update};

/// Published sizes of Qwen3-Embedding: values of `model.y_encoder.size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Qwen3EmbeddingSize {
    /// `Qwen/Qwen3-Embedding-0.6B`, 595,776,512 parameters.
    #[default]
    #[serde(rename = "0.6b")]
    B0_6,
    /// `Qwen/Qwen3-Embedding-4B`, 4,021,774,336 parameters.
    #[serde(rename = "4b")]
    B4,
    /// `Qwen/Qwen3-Embedding-8B`, 7,567,295,488 parameters.
    #[serde(rename = "8b")]
    B8,
}

/// Keys of `family: qwen3_embedding`: causal layers of Qwen3 with norms on queries and keys. The
/// embedding of a text is the hidden state of its last token, which the published tokenizer makes
/// `<|endoftext|>`. The defaults are Qwen3-Embedding-0.6B; `size` chooses the sizes of another
/// published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Qwen3Embedding {
    /// Number of elements of a token. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 28.
    pub num_layers: usize,
    /// Number of query heads. A multiple of `num_kv_heads`. Default: 16.
    pub num_heads: usize,
    /// Number of key/value heads. Default: 8.
    pub num_kv_heads: usize,
    /// Number of elements of a head; even. Default: 128.
    pub head_dim: usize,
    /// Number of elements of the gated MLP's hidden layer. Default: 3,072.
    pub intermediate_size: usize,
    /// Value added to the mean square in RMS norms. Default: 1e-6.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies. Default: 1,000,000.
    pub rope_theta: f64,
    /// Number of rows of the token embedding table. Default: 151,669.
    pub vocab_size: usize,
    /// Maximum length of a target in tokens; longer targets are cut. Default: 512 (paper §3.1:
    /// "maximum context length of 512").
    pub max_target_tokens: usize,
    /// Text before each target, in training and evaluation. Qwen3-Embedding's own prompts are
    /// `Instruct: …\nQuery:` for queries, and nothing for documents. Unstated; default: empty.
    pub prompt: String,
    /// How training changes the encoder. Default: `train` (paper §2: "We train the Predictor and
    /// the Y-Encoder jointly").
    pub update: Update,
    /// Map from the last token to the shared embedding. Default: `linear` (paper §3.1).
    pub projection: Projection,
    /// `tokenizer.json` of the targets. A run needs it.
    pub tokenizer: Option<PathBuf>,
    /// Published `model.safetensors`, or the index of several such files, with the initial weights.
    /// Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Qwen3Embedding {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: Qwen3EmbeddingSize) -> Self {
        let (hidden_size, num_layers, num_heads, intermediate_size, vocab_size) = match size {
            Qwen3EmbeddingSize::B0_6 => (1024, 28, 16, 3072, 151_669),
            Qwen3EmbeddingSize::B4 => (2560, 36, 32, 9728, 151_665),
            Qwen3EmbeddingSize::B8 => (4096, 36, 32, 12_288, 151_665),
        };
        Self {
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads: 8,
            head_dim: 128,
            intermediate_size,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            vocab_size,
            max_target_tokens: 512,
            prompt: String::new(),
            update: Update::Train,
            projection: Projection::Linear,
            tokenizer: None,
            weights: None,
        }
    }
}

impl Default for Qwen3Embedding {
    fn default() -> Self {
        Self::of_size(Qwen3EmbeddingSize::default())
    }
}
