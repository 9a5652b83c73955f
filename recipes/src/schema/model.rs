//! Keys under `model` and `loss`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The three encoders and the space they meet in. The defaults are the paper's model (paper §3, facts of the published weights).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Side of the square frames the X-encoder sees, pixels: 256 (V-JEPA 2 ViT-L/16 at 256²).
    pub image_size: usize,
    /// Frames to visual tokens.
    pub x_encoder: XEncoder,
    /// Visual tokens and a query to a predicted embedding.
    pub predictor: Predictor,
    /// A target text to its embedding.
    pub y_encoder: YEncoder,
    /// Width of the shared embedding: 1,536 (paper §3.1).
    pub embed_dim: usize,
    /// Whether the projections (vision, predictor head, Y head) have biases. Unstated: true, as `nn.Linear`'s default; the
    /// parameter counts of the paper are met with it.
    pub projection_bias: bool,
    /// Weights that no file brings.
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

/// How weights start that no file brings. Norms start as the identity and biases at zero in either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initialisation {
    /// Normal(0, 0.02) everywhere (`initializer_range` of Llama, Gemma and V-JEPA 2).
    #[default]
    Normal,
    /// Normal(0, 1/√fan_in) for matrices; queries' token embeddings Normal(0, 1), targets' Normal(0, 1/√width) because the
    /// Y-encoder multiplies them by √width. Small models trained from scratch learn far faster from it.
    FanIn,
}

/// V-JEPA 2's encoder. The defaults are ViT-L/16 (`facebook/vjepa2-vitl-fpc64-256`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XEncoder {
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Frames of a tubelet.
    pub tubelet_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Hidden width of the MLP.
    pub intermediate_size: usize,
    /// Layer norm's epsilon.
    pub layer_norm_eps: f32,
    /// Base of the rotary frequencies of each axis.
    pub rope_theta: f64,
    /// Whether it is trained. False in the paper (§3.1: frozen).
    pub trainable: bool,
    /// A published `model.safetensors` to start from; none starts from random weights.
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

/// Which keys a query may attend to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// All of its sequence (paper §3.1).
    #[default]
    Bidirectional,
    /// Its past only (ablation, paper Table 5).
    Causal,
}

/// Rotary frequencies stretched as in Llama 3.1 and later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// Divisor of the low frequencies: 32 in Llama-3.2.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context the frequencies were made for.
    pub original_max_position_embeddings: f64,
}

/// Llama-3.2 layers as predictor. The defaults are the last 8 of 16 layers of Llama-3.2-1B (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Predictor {
    /// Width.
    pub hidden_size: usize,
    /// Layers: 8 (paper §3.1).
    pub num_layers: usize,
    /// Index of the first layer in the published weights: 8, so layers 8 to 15 (paper §3.1: "last 8").
    pub first_layer: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden width of the gated MLP.
    pub intermediate_size: usize,
    /// RMS norm's epsilon.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies; none for plain ones.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Rows of the token embedding table.
    pub vocab_size: usize,
    /// Which keys a token may attend to.
    pub attention: Attention,
    /// Whether the token embeddings are trained. Unstated: false, because the paper's 490M trainable parameters leave no room
    /// for them (facts of the parameter count).
    pub train_embeddings: bool,
    /// A linear projection of the query embeddings beside the one of the visual tokens. The paper's wording allows it; off, as in
    /// open-vljepa.
    pub text_projection: bool,
    /// Longest query, tokens: 512 (paper §3.1). Longer ones are cut.
    pub max_query_tokens: usize,
    /// `tokenizer.json` of the queries.
    pub tokenizer: Option<PathBuf>,
    /// A published `model.safetensors` to start from; none starts from Normal(0, 0.02) (the paper's ablation without Llama).
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

/// EmbeddingGemma as Y-encoder. The defaults are EmbeddingGemma-300M (paper §3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct YEncoder {
    /// Width.
    pub hidden_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden width of the gated MLP.
    pub intermediate_size: usize,
    /// RMS norm's epsilon.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies in full-attention layers.
    pub rope_theta: f64,
    /// Base of the rotary frequencies in sliding-window layers.
    pub rope_local_theta: f64,
    /// Every n-th layer attends to everything, the others to a window: 6.
    pub full_attention_every: usize,
    /// A token sees keys nearer than this (|i − j| < window): 257, the effective value of the published `sliding_window: 512`.
    pub effective_window: usize,
    /// Attention scores are scaled by its inverse square root.
    pub query_pre_attn_scalar: f64,
    /// Rows of the token embedding table.
    pub vocab_size: usize,
    /// Longest target, tokens: 512 (paper §3.1: context length). Longer ones are cut.
    pub max_target_tokens: usize,
    /// The two Dense layers of the sentence-transformers model between pooling and projection. Unstated: off, as open-vljepa.
    pub dense_heads: bool,
    /// Width between the two Dense layers.
    pub dense_hidden_size: usize,
    /// Whether it is trained. True in the paper (§3.1, at a twentieth of the learning rate).
    pub trainable: bool,
    /// `tokenizer.json` of the targets.
    pub tokenizer: Option<PathBuf>,
    /// A published `model.safetensors` to start from; none starts from random weights.
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

/// The training objective (paper §3.2, Table 5c).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Which one: bidirectional InfoNCE (paper §3.2).
    pub kind: LossKind,
    /// InfoNCE's temperature.
    pub temperature: Temperature,
    /// Do not count a sample of the same target text as a negative. The paper is silent: off.
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

/// Objectives of paper Table 5c.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Bidirectional InfoNCE over the global batch.
    #[default]
    InfoNce,
    /// 1 − cosine similarity.
    Cosine,
    /// Mean absolute difference.
    L1,
    /// Mean squared difference.
    L2,
}

/// InfoNCE's scale α = exp(logit_scale) on the similarities. Unstated in the paper: CLIP's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Temperature {
    /// logit_scale at the start: ln(1/0.07) (CLIP, open_clip).
    pub initial_logit_scale: f32,
    /// Largest α: 100 (CLIP).
    pub max_scale: f32,
    /// Whether it is learned: true (CLIP), in a parameter group of its own without decay.
    pub learnable: bool,
}

impl Default for Temperature {
    fn default() -> Self {
        Self { initial_logit_scale: 2.659_26, max_scale: 100.0, learnable: true }
    }
}
