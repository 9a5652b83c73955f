//! Recipe keys under `model.y_encoder`.

mod clip_text;
mod embedding_gemma;
mod pe_text;
mod qwen3_embedding;
mod siglip2_text;
mod sonar;

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::families::{self, Role};
pub use clip_text::{ClipText, ClipTextSize};
pub use embedding_gemma::{EmbeddingGemma, EmbeddingGemmaSize};
pub use pe_text::{PeText, PeTextSize};
pub use qwen3_embedding::{Qwen3Embedding, Qwen3EmbeddingSize};
pub use siglip2_text::{Siglip2Text, Siglip2TextSize};
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
    /// CLIP's text tower (arXiv 2103.00020): causal, last token.
    ClipText(ClipText),
    /// SigLIP 2's text tower (arXiv 2502.14786): bidirectional, padded, last position.
    Siglip2Text(Siglip2Text),
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
    /// CLIP's text tower, with the keys of [`ClipText`].
    ClipText,
    /// SigLIP 2's text tower, with the keys of [`Siglip2Text`].
    Siglip2Text,
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
            Self::Sonar(keys) => keys.sizes(),
            Self::PeText(keys) => keys.sizes(),
            Self::ClipText(keys) => keys.sizes(),
            Self::Siglip2Text(keys) => keys.sizes(),
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
            Self::ClipText(keys) => keys.update,
            Self::Siglip2Text(keys) => keys.update,
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
            Self::ClipText(keys) => keys.projection,
            Self::Siglip2Text(keys) => keys.projection,
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
            Self::ClipText(keys) => keys.max_target_tokens,
            Self::Siglip2Text(keys) => keys.max_target_tokens,
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
            Self::ClipText(keys) => &keys.prompt,
            Self::Siglip2Text(keys) => &keys.prompt,
        }
    }

    /// Whether the encoder was trained on texts in lower case, so that its texts are lower-cased.
    #[must_use]
    pub fn is_lower_case(&self) -> bool {
        match self {
            Self::PeText(_) | Self::ClipText(_) | Self::Siglip2Text(_) => true,
            Self::EmbeddingGemma(_) | Self::Qwen3Embedding(_) | Self::Sonar(_) => false,
        }
    }

    /// Number of tokens to which every text is padded on the right with token 0, or `None` if texts
    /// keep their own lengths.
    #[must_use]
    pub fn padded_length(&self) -> Option<usize> {
        match self {
            Self::Siglip2Text(keys) => Some(keys.context_length),
            Self::EmbeddingGemma(_)
            | Self::Qwen3Embedding(_)
            | Self::Sonar(_)
            | Self::PeText(_)
            | Self::ClipText(_) => None,
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
            Self::ClipText(keys) => keys.tokenizer.as_deref(),
            Self::Siglip2Text(keys) => keys.tokenizer.as_deref(),
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
            Self::ClipText(keys) => keys.weights.as_deref(),
            Self::Siglip2Text(keys) => keys.weights.as_deref(),
        }
    }
}

/// Sizes of a transformer of plain layers with its width, layers, heads, width of the MLP and
/// vocabulary, without learned positions and own maps.
fn plain(sizes: [usize; 5]) -> TextSizes {
    let [hidden_size, num_layers, num_heads, intermediate_size, vocab_size] = sizes;
    TextSizes {
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: hidden_size / num_heads.max(1),
        intermediate_size,
        vocab_size,
        positions: 0,
        layers: TextLayers::Plain,
        own_maps: 0,
        output_size: hidden_size,
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
            YFamily::ClipText => ClipText::deserialize(keys).map(Self::ClipText),
            YFamily::Siglip2Text => Siglip2Text::deserialize(keys).map(Self::Siglip2Text),
        }
    }
}

impl<'de> Deserialize<'de> for YEncoder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        families::deserialize(deserializer)
    }
}
