//! Recipe keys under `model` and `loss`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The model: X-encoder, predictor, Y-encoder and the embedding space that predictor and Y-encoder
/// share. The defaults are the paper's model (§3.1); sizes that the paper does not give are those
/// of the published weights that it names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Height and width, in pixels, of the frames that the X-encoder reads. A multiple of
    /// `x_encoder.patch_size`. Default: 256 (paper §3.1).
    pub image_size: usize,
    /// Encoder that maps frames to visual tokens.
    pub x_encoder: XEncoder,
    /// Transformer that maps visual tokens and a query to the predicted embedding.
    pub predictor: Predictor,
    /// Encoder that maps a target text to its embedding.
    pub y_encoder: YEncoder,
    /// Number of elements of the shared embedding. Default: 1,536 (paper §3.1).
    pub embed_dim: usize,
    /// Whether the linear projections (vision, predictor head, Y-encoder head) have biases.
    /// Unstated; default: true, as in PyTorch's `nn.Linear`. With biases the predictor has 491.8M
    /// trainable parameters; the paper says 490M (§3.1).
    pub projection_bias: bool,
    /// Distribution of the initial weights that are not loaded from a file. Default: `normal`.
    pub initialisation: Initialisation,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            image_size: 256,
            x_encoder: XEncoder::default(),
            predictor: Predictor::default(),
            y_encoder: YEncoder::default(),
            embed_dim: 1536,
            projection_bias: true,
            initialisation: Initialisation::Normal,
        }
    }
}

/// Distribution of initial weights that are not loaded from a file. Norms start as the identity and
/// biases at zero with either. The paper does not state it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initialisation {
    /// Normal(0, 0.02) for all matrices and embeddings (`initializer_range` of Llama, Gemma and
    /// V-JEPA 2).
    #[default]
    Normal,
    /// Normal(0, 1/√fan_in) for matrices. Token embeddings of queries are Normal(0, 1); those of
    /// targets are Normal(0, 1/√width), because the Y-encoder multiplies them by √width. Small
    /// models that are trained from scratch learn much faster with it.
    FanIn,
}

/// Encoder of V-JEPA 2. The defaults are ViT-L/16 (paper §3.1), with the sizes of
/// `facebook/vjepa2-vitl-fpc64-256`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XEncoder {
    /// Height and width of a patch in pixels. Default: 16.
    pub patch_size: usize,
    /// Number of frames that a visual token covers. Default: 2.
    pub tubelet_size: usize,
    /// Number of elements of a visual token. Default: 1,024.
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 24.
    pub num_layers: usize,
    /// Number of attention heads. A head, `hidden_size` / `num_heads` wide, must be even and at
    /// least 6 wide, to hold three rotary axes. Default: 16.
    pub num_heads: usize,
    /// Number of elements of the MLP's hidden layer. Default: 4,096.
    pub intermediate_size: usize,
    /// Value added to the variance in layer norms. Default: 1e-6.
    pub layer_norm_eps: f32,
    /// Base of the rotary frequencies of each axis (time, row, column). Default: 10,000.
    pub rope_theta: f64,
    /// Whether the X-encoder is trained. Default: false (paper §3.1: frozen).
    pub trainable: bool,
    /// Published file with the initial weights: `model.safetensors` of transformers, the index of
    /// several such files (`model.safetensors.index.json`), or Meta's own `vitl.pt`. Default: none,
    /// which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Default for XEncoder {
    fn default() -> Self {
        Self {
            patch_size: 16,
            tubelet_size: 2,
            hidden_size: 1024,
            num_layers: 24,
            num_heads: 16,
            intermediate_size: 4096,
            layer_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            trainable: false,
            weights: None,
        }
    }
}

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

/// The predictor: layers of Llama-3.2. The defaults are the last 8 of the 16 layers of Llama-3.2-1B
/// (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Predictor {
    /// Number of elements of a token. Default: 2,048 (Llama-3.2-1B).
    pub hidden_size: usize,
    /// Number of transformer layers. Default: 8 (paper §3.1).
    pub num_layers: usize,
    /// Index of the first layer in the published weights, counted from 0. Default: 8, which with
    /// `num_layers: 8` takes layers 8 to 15 (paper §3.1: "the last 8 Transformer layers").
    pub first_layer: usize,
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
    /// `tokenizer.json` of the queries. It must be set; the paper uses that of Llama-3.2-1B (§3.1).
    pub tokenizer: Option<PathBuf>,
    /// Published `model.safetensors`, or the index of several such files, with the initial weights.
    /// Default: none, which starts from random weights, as in the paper's ablation "w/o Llama-3
    /// Initialization" (Table 5d).
    pub weights: Option<PathBuf>,
}

impl Default for Predictor {
    fn default() -> Self {
        Self {
            hidden_size: 2048,
            num_layers: 8,
            first_layer: 8,
            num_heads: 32,
            num_kv_heads: 8,
            head_dim: 64,
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
}

/// The Y-encoder: EmbeddingGemma. The defaults are EmbeddingGemma-300M (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct YEncoder {
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
    /// Whether the Y-encoder is trained. Default: true (paper §2: "We train the Predictor and the
    /// Y-Encoder jointly"; §3.1 multiplies its learning rate by 0.05, see `optimizer.multipliers`).
    pub trainable: bool,
    /// `tokenizer.json` of the targets. It must be set; the paper uses EmbeddingGemma-300M (§3.1).
    pub tokenizer: Option<PathBuf>,
    /// Published `model.safetensors`, or the index of several such files, with the initial weights.
    /// Default: none, which starts from random weights.
    pub weights: Option<PathBuf>,
}

impl Default for YEncoder {
    fn default() -> Self {
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
            trainable: true,
            tokenizer: None,
            weights: None,
        }
    }
}

/// Training objective, computed between predicted and target embeddings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Loss function. Default: `info_nce` (paper §2: "bi-directional InfoNCE loss").
    pub kind: LossKind,
    /// Temperature of InfoNCE; the other losses ignore it.
    pub temperature: Temperature,
    /// Whether samples with the same target text are left out as negatives of each other. Only
    /// InfoNCE has negatives. Unstated; our default: false.
    pub mask_equal_targets: bool,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            kind: LossKind::InfoNce,
            temperature: Temperature::default(),
            mask_equal_targets: false,
        }
    }
}

/// Loss functions that the paper compares (§4.7, Table 5c). All except InfoNCE need
/// `model.y_encoder.trainable: false`: without negatives a trained Y-encoder collapses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Bidirectional InfoNCE over the global batch: every other sample is a negative.
    #[default]
    InfoNce,
    /// 1 − cosine similarity of prediction and target.
    Cosine,
    /// Mean absolute difference of prediction and target.
    L1,
    /// Mean squared difference of prediction and target.
    L2,
}

/// Scale α = exp(logit_scale) that multiplies the similarities in InfoNCE; 1/α is the temperature.
/// Unstated; the defaults are those of CLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Temperature {
    /// Initial value of logit_scale. Default: ln(1/0.07) = 2.65926 (CLIP, open_clip).
    pub initial_logit_scale: f32,
    /// Upper limit of α; larger values are clamped. Default: 100 (CLIP).
    pub max_scale: f32,
    /// Whether logit_scale is learned. It is the parameter group `logit_scale` and has no weight
    /// decay. Default: true (CLIP).
    pub learnable: bool,
}

impl Default for Temperature {
    fn default() -> Self {
        Self { initial_logit_scale: 2.659_26, max_scale: 100.0, learnable: true }
    }
}
