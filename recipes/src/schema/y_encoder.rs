//! Recipe keys under `model.y_encoder`.

mod pe_text;
mod sonar;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::families::{self, Role};
pub use pe_text::{PeText, PeTextSize};
pub use sonar::{Sonar, SonarSize};

/// Encoder that maps a target text to its embedding. The key `family` chooses one. Default:
/// EmbeddingGemma-300M (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum YEncoder {
    /// EmbeddingGemma (arXiv 2509.20354): bidirectional, mean over the tokens.
    EmbeddingGemma(EmbeddingGemma),
    /// Qwen3-Embedding (arXiv 2506.05176): causal, last token (paper §4.7, Table 5e).
    Qwen3Embedding(Qwen3Embedding),
    /// SONAR's text encoder (arXiv 2308.11466): bidirectional, mean over the tokens (paper §4.4).
    Sonar(Sonar),
    /// Perception Encoder's text tower (PE-core): causal, last token (paper §4.7, Table 5e).
    PeText(PeText),
}

/// Values of `model.y_encoder.family`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YFamily {
    /// EmbeddingGemma, with the keys of [`EmbeddingGemma`].
    #[default]
    EmbeddingGemma,
    /// Qwen3-Embedding, with the keys of [`Qwen3Embedding`].
    Qwen3Embedding,
    /// SONAR, with the keys of [`Sonar`].
    Sonar,
    /// Perception Encoder, with the keys of [`PeText`].
    PeText,
}

/// Sizes that text transformers of all families have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSizes {
    /// Number of elements of a token.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key/value heads.
    pub num_kv_heads: usize,
    /// Number of elements of a head.
    pub head_dim: usize,
    /// Number of elements of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of rows of the token embedding table.
    pub vocab_size: usize,
    /// Number of learned positions; 0 without.
    pub positions: usize,
    /// Kind of transformer layers.
    pub layers: TextLayers,
    /// Number of weights of the encoder's own maps after pooling; 0 without.
    pub own_maps: usize,
    /// Number of elements of a text's embedding before the projection.
    pub output_size: usize,
}

/// Kinds of transformer layers of text encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextLayers {
    /// Gated MLPs, RMS norms also on queries and keys, no biases.
    Gated {
        /// Number of norms per layer on the results of attention and MLP.
        result_norms: usize,
    },
    /// MLPs without a gate, layer norms before both branches, biases.
    Plain,
}

/// How training changes the encoder: values of `model.y_encoder.update`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// The gradient of the loss trains it, jointly with the predictor (paper §2).
    #[default]
    Train,
    /// It keeps its initial weights (paper §4.7, Tables 5c and 5e).
    Frozen,
    /// The targets come from a moving average of it and of its projection (paper §2: an
    /// "exponential moving average (EMA) for the Y-Encoder"), which also embeds the texts of
    /// evaluations. What trains the encoder itself is unstated; here it is the same loss between
    /// its own embedding of a target and the prediction, through which no gradient flows. A run
    /// reports only the loss between prediction and average.
    Ema {
        /// Part of the average that a step keeps: average = `decay`·average + (1 −
        /// `decay`)·encoder, after each update, from 0 to 1. Unstated; no default (I-JEPA: 0.996
        /// to 1; V-JEPA 2: 0.99925).
        decay: f32,
    },
}

impl Update {
    /// Whether training changes the encoder's weights.
    #[must_use]
    pub fn changes_weights(self) -> bool {
        match self {
            Self::Train | Self::Ema { .. } => true,
            Self::Frozen => false,
        }
    }

    /// Whether the targets come from a moving average of the encoder.
    #[must_use]
    pub fn averages(self) -> bool {
        match self {
            Self::Ema { .. } => true,
            Self::Train | Self::Frozen => false,
        }
    }
}

/// Last map of the encoder: values of `model.y_encoder.projection`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// A trained linear map to the shared embedding (paper §3.1; Table 5e trains it on top of a
    /// frozen encoder). It is the parameter group `y_projection`.
    #[default]
    Linear,
    /// No map: the shared embedding is that of the encoder, and `model.embed_dim` is its width
    /// (paper §4.7, Table 5c: "no projection head on top frozen text encoder").
    None,
}

impl YEncoder {
    /// Sizes of the text transformer.
    #[must_use]
    pub fn sizes(&self) -> TextSizes {
        match self {
            Self::EmbeddingGemma(keys) => TextSizes {
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                num_kv_heads: keys.num_kv_heads,
                head_dim: keys.head_dim,
                intermediate_size: keys.intermediate_size,
                vocab_size: keys.vocab_size,
                positions: 0,
                layers: TextLayers::Gated { result_norms: 2 },
                own_maps: if keys.dense_heads {
                    2 * keys.hidden_size * keys.dense_hidden_size
                } else {
                    0
                },
                output_size: keys.hidden_size,
            },
            Self::Qwen3Embedding(keys) => TextSizes {
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                num_kv_heads: keys.num_kv_heads,
                head_dim: keys.head_dim,
                intermediate_size: keys.intermediate_size,
                vocab_size: keys.vocab_size,
                positions: 0,
                layers: TextLayers::Gated { result_norms: 0 },
                own_maps: 0,
                output_size: keys.hidden_size,
            },
            Self::Sonar(keys) => TextSizes {
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                num_kv_heads: keys.num_heads,
                head_dim: keys.hidden_size / keys.num_heads.max(1),
                intermediate_size: keys.intermediate_size,
                vocab_size: keys.vocab_size,
                positions: 0,
                layers: TextLayers::Plain,
                own_maps: 0,
                output_size: keys.hidden_size,
            },
            Self::PeText(keys) => TextSizes {
                hidden_size: keys.hidden_size,
                num_layers: keys.num_layers,
                num_heads: keys.num_heads,
                num_kv_heads: keys.num_heads,
                head_dim: keys.hidden_size / keys.num_heads.max(1),
                intermediate_size: keys.intermediate_size,
                vocab_size: keys.vocab_size,
                positions: keys.context_length,
                layers: TextLayers::Plain,
                own_maps: keys.hidden_size * keys.output_size,
                output_size: keys.output_size,
            },
        }
    }

    /// How training changes the encoder.
    #[must_use]
    pub fn update(&self) -> Update {
        match self {
            Self::EmbeddingGemma(keys) => keys.update,
            Self::Qwen3Embedding(keys) => keys.update,
            Self::Sonar(keys) => keys.update,
            Self::PeText(keys) => keys.update,
        }
    }

    /// Whether the gradient of the loss trains the encoder.
    #[must_use]
    pub fn trainable(&self) -> bool {
        self.update().changes_weights()
    }

    /// Last map of the encoder.
    #[must_use]
    pub fn projection(&self) -> Projection {
        match self {
            Self::EmbeddingGemma(keys) => keys.projection,
            Self::Qwen3Embedding(keys) => keys.projection,
            Self::Sonar(keys) => keys.projection,
            Self::PeText(keys) => keys.projection,
        }
    }

    /// Maximum length of a target in tokens.
    #[must_use]
    pub fn max_target_tokens(&self) -> usize {
        match self {
            Self::EmbeddingGemma(keys) => keys.max_target_tokens,
            Self::Qwen3Embedding(keys) => keys.max_target_tokens,
            Self::Sonar(keys) => keys.max_target_tokens,
            Self::PeText(keys) => keys.max_target_tokens,
        }
    }

    /// Text before each target.
    #[must_use]
    pub fn prompt(&self) -> &str {
        match self {
            Self::EmbeddingGemma(keys) => &keys.prompt,
            Self::Qwen3Embedding(keys) => &keys.prompt,
            Self::Sonar(keys) => &keys.prompt,
            Self::PeText(keys) => &keys.prompt,
        }
    }

    /// Whether the encoder was trained on texts in lower case.
    #[must_use]
    pub fn is_lower_case(&self) -> bool {
        match self {
            Self::PeText(_) => true,
            Self::EmbeddingGemma(_) | Self::Qwen3Embedding(_) | Self::Sonar(_) => false,
        }
    }

    /// Tokenizer of the targets, or `None` if the recipe does not name it yet.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Path> {
        match self {
            Self::EmbeddingGemma(keys) => keys.tokenizer.as_deref(),
            Self::Qwen3Embedding(keys) => keys.tokenizer.as_deref(),
            Self::Sonar(keys) => keys.tokenizer.as_deref(),
            Self::PeText(keys) => keys.tokenizer.as_deref(),
        }
    }

    /// Published file with the initial weights, or `None` if they are random.
    #[must_use]
    pub fn weights(&self) -> Option<&Path> {
        match self {
            Self::EmbeddingGemma(keys) => keys.weights.as_deref(),
            Self::Qwen3Embedding(keys) => keys.weights.as_deref(),
            Self::Sonar(keys) => keys.weights.as_deref(),
            Self::PeText(keys) => keys.weights.as_deref(),
        }
    }
}

impl Default for YEncoder {
    fn default() -> Self {
        Self::EmbeddingGemma(EmbeddingGemma::default())
    }
}

impl Role for YEncoder {
    type Family = YFamily;

    fn keys<'de, D: Deserializer<'de>>(family: YFamily, keys: D) -> Result<Self, D::Error> {
        match family {
            YFamily::EmbeddingGemma => EmbeddingGemma::deserialize(keys).map(Self::EmbeddingGemma),
            YFamily::Qwen3Embedding => Qwen3Embedding::deserialize(keys).map(Self::Qwen3Embedding),
            YFamily::Sonar => Sonar::deserialize(keys).map(Self::Sonar),
            YFamily::PeText => PeText::deserialize(keys).map(Self::PeText),
        }
    }
}

impl<'de> Deserialize<'de> for YEncoder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        families::deserialize(deserializer)
    }
}

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
