//! Recipe keys under `model.predictor`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Tokens that a token of the predictor may attend to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// All tokens of its sequence (paper §3.1).
    #[default]
    Bidirectional,
    /// Itself and the tokens before it (ablation of paper §4.7, Table 5d).
    Causal,
}

/// Scaling of the rotary frequencies as in Llama 3.1 and later. No key has a default: a recipe that
/// sets `rope_scaling` must set all four.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// Divisor of the low frequencies. Llama-3.2: 32.
    pub factor: f64,
    /// Frequencies whose wavelength, in tokens, exceeds
    /// `original_max_position_embeddings / low_freq_factor` are divided by `factor`. Llama-3.2: 1.
    pub low_freq_factor: f64,
    /// Frequencies whose wavelength, in tokens, is below
    /// `original_max_position_embeddings / high_freq_factor` stay unchanged; those in between are
    /// interpolated. It must exceed `low_freq_factor`. Llama-3.2: 4.
    pub high_freq_factor: f64,
    /// Context length, in tokens, for which the unscaled frequencies were trained. Llama-3.2:
    /// 8,192.
    pub original_max_position_embeddings: f64,
}

/// Values of `model.predictor.family`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictorFamily {
    /// Llama-3.2: grouped-query attention, RMS norms, SiLU, scaled rotary frequencies.
    #[default]
    Llama,
}

/// Published sizes of Llama-3.2: values of `model.predictor.size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum LlamaSize {
    /// `meta-llama/Llama-3.2-1B`, 16 layers.
    #[default]
    #[serde(rename = "1b")]
    B1,
    /// `meta-llama/Llama-3.2-3B`, 28 layers, of which the last 14 are taken.
    #[serde(rename = "3b")]
    B3,
}

/// Transformer that maps visual tokens and a query to the predicted embedding. The defaults are the
/// last 8 of the 16 layers of Llama-3.2-1B (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Predictor {
    /// Family of the layers. Default: `llama`.
    pub family: PredictorFamily,
    /// Number of elements of a token. Default: 2,048 (Llama-3.2-1B).
    pub hidden_size: usize,
    /// Layers of the published weights, counted from 0: the first, and the one after the last.
    /// Default: [8, 16] (paper §3.1: "the last 8 Transformer layers"). Table 5d also has [0, 2],
    /// [0, 4], [0, 8] and [0, 16]. Recipes may write `first_layer` and `num_layers` instead.
    pub layers: [usize; 2],
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
    /// Tokens that a token may attend to. Default: `bidirectional` (paper §3.1).
    pub attention: Attention,
    /// Whether the token embeddings are trained. Unstated; default: false, because the paper's 490M
    /// trainable parameters (§3.1) leave no room for the table's 263M.
    pub train_embeddings: bool,
    /// Whether the query embeddings pass a linear projection of their own, as the visual tokens do.
    /// The paper names projections of "the vision and text embeddings" (§3.1), which leaves it
    /// open. Default: false, as in open-vljepa, a public re-implementation.
    pub text_projection: bool,
    /// Maximum length of a query in tokens; longer queries are cut. Default: 512 (paper §3.1).
    pub max_query_tokens: usize,
    /// `tokenizer.json` of the queries. A run needs it; the paper uses that of Llama-3.2-1B (§3.1).
    pub tokenizer: Option<PathBuf>,
    /// Published `model.safetensors`, or the index of several such files, with the initial weights.
    /// Default: none, which starts from random weights, as in the paper's ablation "w/o Llama-3
    /// Initialization" (Table 5d).
    pub weights: Option<PathBuf>,
}

impl Predictor {
    /// Keys of a published model, without its files.
    #[must_use]
    pub fn of_size(size: LlamaSize) -> Self {
        let (hidden_size, layers, num_heads, head_dim) = match size {
            LlamaSize::B1 => (2048, [8, 16], 32, 64),
            LlamaSize::B3 => (3072, [14, 28], 24, 128),
        };
        Self {
            family: PredictorFamily::Llama,
            hidden_size,
            layers,
            num_heads,
            num_kv_heads: 8,
            head_dim,
            intermediate_size: 8192,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: Some(Llama3Scaling {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192.0,
            }),
            vocab_size: 128_256,
            attention: Attention::Bidirectional,
            train_embeddings: false,
            text_projection: false,
            max_query_tokens: 512,
            tokenizer: None,
            weights: None,
        }
    }

    /// Number of layers; 0 if `layers` is not a range, which [`crate::check`] refuses.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.layers[1].saturating_sub(self.layers[0])
    }
}

impl Default for Predictor {
    fn default() -> Self {
        Self::of_size(LlamaSize::default())
    }
}
