//! Keys of `family: sonar` of the Y-decoder and its published size.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Search;

/// Published sizes of SONAR's text decoder: values of `model.y_decoder.size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SonarDecoderSize {
    /// `text_sonar_basic_decoder`.
    #[default]
    Basic,
}

/// Keys of `family: sonar`, the text decoder of SONAR (arXiv 2308.11466): causal layers that also
/// attend to one vector, the embedding. It needs `y_encoder: {family: sonar, projection: none}`,
/// whose embeddings it was trained to decode, and `loss: {kind: l2}` or `l1`, which leave them
/// their length. It is not trained. The defaults are the published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SonarDecoder {
    /// Number of elements of a token, and of an embedding. Even, and at least 4. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24.
    pub num_layers: usize,
    /// Number of attention heads, a divisor of `hidden_size`. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 8,192.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-5.
    pub layer_norm_eps: f32,
    /// Number of rows of the token embedding table. Default: 256,206.
    pub vocab_size: usize,
    /// Most tokens of a text, its start and end included. Default: 129 (SONAR's own limit).
    pub max_tokens: usize,
    /// Search for the text of an embedding. Default: 5 beams that are compared by the mean of their
    /// tokens (SONAR).
    pub search: Search,
    /// Token that ends a text, and that starts it. Default: `</s>` (SONAR).
    pub end: String,
    /// Token of the language of the texts, which follows the start. Default: `eng_Latn`.
    pub language: String,
    /// `tokenizer.json` of the texts. A run needs it. That of NLLB-200 fits, see
    /// `y_encoder.tokenizer`.
    pub tokenizer: Option<PathBuf>,
    /// Published file with the weights: `sonar_text_decoder.pt`, or safetensors with the names of
    /// `M2M100Decoder` of transformers. Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl SonarDecoder {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: SonarDecoderSize) -> Self {
        let SonarDecoderSize::Basic = size;
        Self {
            hidden_size: 1024,
            num_layers: 24,
            num_heads: 16,
            intermediate_size: 8192,
            layer_norm_eps: 1e-5,
            vocab_size: 256_206,
            max_tokens: 129,
            search: Search::Beam { width: 5, length_penalty: 1.0 },
            end: "</s>".to_owned(),
            language: "eng_Latn".to_owned(),
            tokenizer: None,
            weights: None,
        }
    }
}

impl Default for SonarDecoder {
    fn default() -> Self {
        Self::of_size(SonarDecoderSize::default())
    }
}
