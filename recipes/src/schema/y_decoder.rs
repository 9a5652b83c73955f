//! Recipe keys under `model.y_decoder`.

mod llama;
mod sonar;

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::families::{self, Role};
pub use llama::{LlamaDecoder, LlamaDecoderSize};
pub use sonar::{SonarDecoder, SonarDecoderSize};

/// Decoder that writes the text of an embedding. It exists in a model of `kind: y_decoder` only.
/// The key `family` chooses one. The paper describes a "lightweight text decoder" (§2) and states
/// neither its architecture nor its training. Default: Llama-3.2-1B behind a learned prefix, as in
/// ClipCap (arXiv 2111.09734).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "family", rename_all = "snake_case")]
pub enum YDecoder {
    /// Llama-3.2 behind a learned prefix, which a linear map makes of the embedding.
    Llama(LlamaDecoder),
    /// SONAR's text decoder (arXiv 2308.11466), which decodes SONAR's own embeddings (paper §4.4).
    /// It is not trained.
    Sonar(SonarDecoder),
}

/// Values of `model.y_decoder.family`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YDecoderFamily {
    /// Llama-3.2, with the keys of [`LlamaDecoder`].
    #[default]
    Llama,
    /// SONAR, with the keys of [`SonarDecoder`].
    Sonar,
}

/// Search for the text of an embedding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Search {
    /// The most probable token at each position.
    Greedy,
    /// Beam search: the `width` most probable texts are continued.
    Beam {
        /// Number of texts that are continued, at least 2.
        width: usize,
        /// Exponent p of the length by which the log-probability of a text is divided: 0 prefers
        /// short texts, and 1 compares the mean of the tokens.
        length_penalty: f32,
    },
    /// A random token by its probability.
    Sample {
        /// Divisor of the logits, above 0. Values below 1 prefer probable tokens.
        temperature: f32,
    },
}

impl YDecoder {
    /// Most tokens of a text, its end included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::Llama(keys) => keys.max_tokens,
            Self::Sonar(keys) => keys.max_tokens,
        }
    }

    /// Number of rows of the token embedding table.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Llama(keys) => keys.vocab_size,
            Self::Sonar(keys) => keys.vocab_size,
        }
    }

    /// Search for the text of an embedding.
    #[must_use]
    pub fn search(&self) -> Search {
        match self {
            Self::Llama(keys) => keys.search,
            Self::Sonar(keys) => keys.search,
        }
    }

    /// Token that ends a text.
    #[must_use]
    pub fn end(&self) -> &str {
        match self {
            Self::Llama(keys) => &keys.end,
            Self::Sonar(keys) => &keys.end,
        }
    }

    /// Token of the language that follows the start of every text, or `None` if a text starts with
    /// its first word.
    #[must_use]
    pub fn language(&self) -> Option<&str> {
        match self {
            Self::Llama(_) => None,
            Self::Sonar(keys) => Some(&keys.language),
        }
    }

    /// Whether stages train the decoder.
    #[must_use]
    pub fn trainable(&self) -> bool {
        match self {
            Self::Llama(_) => true,
            Self::Sonar(_) => false,
        }
    }

    /// Tokenizer of the texts, or `None` if the recipe does not name it yet.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Path> {
        match self {
            Self::Llama(keys) => keys.tokenizer.as_deref(),
            Self::Sonar(keys) => keys.tokenizer.as_deref(),
        }
    }

    /// Published file with the initial weights, or `None` if they are random.
    #[must_use]
    pub fn weights(&self) -> Option<&Path> {
        match self {
            Self::Llama(keys) => keys.weights.as_deref(),
            Self::Sonar(keys) => keys.weights.as_deref(),
        }
    }
}

impl Default for YDecoder {
    fn default() -> Self {
        Self::Llama(LlamaDecoder::default())
    }
}

impl Role for YDecoder {
    type Family = YDecoderFamily;

    fn keys<'de, D: Deserializer<'de>>(family: YDecoderFamily, keys: D) -> Result<Self, D::Error> {
        match family {
            YDecoderFamily::Llama => LlamaDecoder::deserialize(keys).map(Self::Llama),
            YDecoderFamily::Sonar => SonarDecoder::deserialize(keys).map(Self::Sonar),
        }
    }
}

impl<'de> Deserialize<'de> for YDecoder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        families::deserialize(deserializer)
    }
}
