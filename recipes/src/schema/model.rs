//! Recipe keys under `model` and `loss`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{LanguageModel, Predictor, XEncoder, YDecoder, YEncoder};

/// The model: X-encoder, predictor, Y-encoder and the embedding space that predictor and Y-encoder
/// share. The defaults are the paper's model (§3.1); sizes that the paper does not give are those
/// of the published weights that it names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// What the model computes. Default: `vl_jepa`.
    pub kind: ModelKind,
    /// Height and width, in pixels, of the frames that the X-encoder reads. A multiple of
    /// `x_encoder.patch_size`. Default: those that the X-encoder was trained with; 256 for V-JEPA 2
    /// (paper §3.1).
    pub image_size: usize,
    /// Encoder that maps frames to visual tokens.
    pub x_encoder: XEncoder,
    /// Transformer that maps visual tokens and a query to the predicted embedding.
    pub predictor: Predictor,
    /// Encoder that maps a target text to its embedding.
    pub y_encoder: YEncoder,
    /// Decoder that writes the text of an embedding. `kind: y_decoder` trains it. With `kind:
    /// vl_jepa` it is frozen and writes the texts of predictions in evaluations, `caption` and
    /// `ask`, as SONAR's decoder in the paper's comparison with a VLM (§4.4). Default: `null`, and
    /// with `kind: y_decoder` `{family: llama}`.
    pub y_decoder: Option<YDecoder>,
    /// Language model that writes answers. Only `kind: vlm` has it. Default: `null`, and with that
    /// kind `{family: llama}`.
    pub language_model: Option<LanguageModel>,
    /// Number of elements of the shared embedding. Default: 1,536 (paper §3.1), or, with
    /// `y_encoder.projection: none`, the width of the Y-encoder's own embedding.
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
            kind: ModelKind::VlJepa,
            image_size: 256,
            x_encoder: XEncoder::default(),
            predictor: Predictor::default(),
            y_encoder: YEncoder::default(),
            y_decoder: None,
            language_model: None,
            embed_dim: 1536,
            projection_bias: true,
            initialisation: Initialisation::Normal,
        }
    }
}

impl Model {
    /// The Y-decoder, in a model that has one.
    #[must_use]
    pub fn decoder(&self) -> Option<&YDecoder> {
        match self.kind {
            ModelKind::VlJepa | ModelKind::YDecoder => self.y_decoder.as_ref(),
            ModelKind::DualEncoder | ModelKind::Vlm => None,
        }
    }

    /// The Y-decoder of a model of `kind: y_decoder`, in which only the decoder learns.
    #[must_use]
    pub fn learning_decoder(&self) -> Option<&YDecoder> {
        match self.kind {
            ModelKind::YDecoder => self.y_decoder.as_ref(),
            ModelKind::VlJepa | ModelKind::DualEncoder | ModelKind::Vlm => None,
        }
    }

    /// The language model of a model of `kind: vlm`.
    #[must_use]
    pub fn vlm(&self) -> Option<&LanguageModel> {
        match self.kind {
            ModelKind::Vlm => self.language_model.as_ref(),
            ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::DualEncoder => None,
        }
    }

    /// Whether the model is trained to predict embeddings, so that its loss compares samples of all
    /// ranks.
    #[must_use]
    pub fn predicts_embeddings(&self) -> bool {
        match self.kind {
            ModelKind::VlJepa => true,
            ModelKind::YDecoder | ModelKind::DualEncoder | ModelKind::Vlm => false,
        }
    }

    /// Files that the parts of a model of this kind name, with their keys.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let Self { kind, x_encoder: x, predictor, y_encoder, .. } = self;
        let (p, y) = match kind {
            ModelKind::VlJepa | ModelKind::YDecoder => (Some(predictor), Some(y_encoder)),
            ModelKind::DualEncoder => (None, Some(y_encoder)),
            ModelKind::Vlm => (None, None),
        };
        let (d, l) = (self.decoder(), self.vlm());
        [
            ("model.x_encoder.weights", x.weights()),
            ("model.predictor.weights", p.and_then(|p| p.weights.as_deref())),
            ("model.predictor.tokenizer", p.and_then(|p| p.tokenizer.as_deref())),
            ("model.y_encoder.weights", y.and_then(YEncoder::weights)),
            ("model.y_encoder.tokenizer", y.and_then(YEncoder::tokenizer)),
            ("model.y_decoder.weights", d.and_then(YDecoder::weights)),
            ("model.y_decoder.tokenizer", d.and_then(YDecoder::tokenizer)),
            ("model.language_model.weights", l.and_then(|l| l.weights.as_deref())),
            ("model.language_model.tokenizer", l.and_then(|l| l.tokenizer.as_deref())),
        ]
        .into_iter()
        .filter_map(|(key, path)| Some((key, path?)))
    }
}

/// Values of `model.kind`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// VL-JEPA: a predictor maps visual tokens and a query to an embedding in the space of the
    /// Y-encoder (paper §2).
    #[default]
    VlJepa,
    /// VL-JEPA with a Y-decoder, which writes the text of an embedding (paper §2). VL-JEPA itself
    /// is frozen; `init` brings its weights. Stages train the decoder, a `sonar` decoder has none.
    YDecoder,
    /// A published pair of encoders that embed frames and texts into one space, such as CLIP: the
    /// baselines of the paper's Tables 1 and 4. The embedding of a video is the mean of those of
    /// its frames. There is no predictor and no training: a run measures `evaluation.tasks`. The
    /// pairs are `clip` with `clip_text`, `siglip2` with `siglip2_text`, and `pe` with `pe_text`.
    DualEncoder,
    /// A token-predicting baseline (paper §4.4), as PerceptionLM (arXiv 2504.13180): a language
    /// model reads visual tokens and a question and writes the answer. It has no predictor and no
    /// Y-encoder; its loss is the cross-entropy of the answer's tokens.
    Vlm,
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
    /// Normal(0, 1/√fan_in) for matrices. Token embeddings are Normal(0, 1); those of
    /// EmbeddingGemma are Normal(0, 1/√width), because it multiplies them by √width. Small models
    /// that are trained from scratch learn much faster with it.
    FanIn,
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
    /// Factors of VICReg; the other losses ignore them.
    pub vic_reg: VicReg,
    /// Weight and directions of SIGReg; the other losses ignore them.
    pub sig_reg: SigReg,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            kind: LossKind::InfoNce,
            temperature: Temperature::default(),
            mask_equal_targets: false,
            vic_reg: VicReg::default(),
            sig_reg: SigReg::default(),
        }
    }
}

/// Loss functions that the paper compares (§4.7, Table 5c), and two that prevent collapse without
/// negatives (§2 leaves them to future work). `cosine`, `l1` and `l2` need
/// `model.y_encoder.update: frozen` and `model.y_encoder.projection: none`, or a moving average as
/// Y-encoder: without negatives or a regulariser, what is trained of the Y-encoder collapses.
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
    /// Variance-invariance-covariance regularisation (arXiv 2105.04906) of predictions and targets
    /// over the global batch. Embeddings are not normalised.
    VicReg,
    /// LeJEPA's loss (arXiv 2511.08544): squared difference of prediction and target, and SIGReg,
    /// the distance of predictions and targets from a standard normal distribution along random
    /// directions, over the global batch. Embeddings are not normalised.
    SigReg,
}

/// Factors of VICReg: `invariance` · mean square of (p − t) + `variance` · mean over both branches
/// and all e dimensions of max(0, 1 − √(variance + 1e-4)) + `covariance` · sum over both branches
/// of Σ_{i≠j} C_ij² / e, where C has the denominator batch − 1. The defaults are those of the paper
/// and of `main_vicreg.py`; the branches there are two views of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VicReg {
    /// Factor of the squared difference. Default: 25.
    pub invariance: f32,
    /// Factor of the variance term. Default: 25.
    pub variance: f32,
    /// Factor of the covariance term. Default: 1.
    pub covariance: f32,
}

impl Default for VicReg {
    fn default() -> Self {
        Self { invariance: 25.0, variance: 25.0, covariance: 1.0 }
    }
}

/// LeJEPA's loss: (1 − `weight`) · mean square of (p − t) + `weight` · SIGReg, the mean over both
/// branches and all directions of the statistic of Epps and Pulley with the paper's trapezoid rule,
/// 17 points of [−5, 5]. The views of the paper are crops of an image. New directions are drawn in
/// each step, from the recipe's seed and the number of updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SigReg {
    /// Weight λ of SIGReg. Default: 0.05 (the paper's recommendation).
    pub weight: f32,
    /// Random directions of a step, a multiple of 8. Default: 1,024 (README of
    /// rbalestr-lab/lejepa; Algorithm 1 of the paper has 256).
    pub directions: usize,
}

impl Default for SigReg {
    fn default() -> Self {
        Self { weight: 0.05, directions: 1024 }
    }
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
