//! Recipe keys under `stages`, `optimizer`, `checkpoints` and `logging`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One stage of the training. Stages run one after the other; each has its own data, batch and
/// learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name of the stage in logs and reports: up to 100 letters, digits, `-` and `_`, different for
    /// each stage. No default.
    pub name: String,
    /// Number of optimizer steps. No default (paper §3.2: 100k, 60k and 10k for images, 8 frames
    /// and 32 frames; 83k for finetuning).
    pub steps: u64,
    /// Global batch: number of samples of one step over all ranks. With InfoNCE each sample has all
    /// others as negatives. No default (paper §3.2: 24k for images, 3,072 for finetuning; unstated
    /// for video).
    pub batch: usize,
    /// Number of frames per sample, a multiple of the tubelet size, or 1 for images that V-JEPA 2.1
    /// encodes as such; images are repeated to it. Default of a stage that has images only: the
    /// fewest that the X-encoder takes, 2 for V-JEPA 2 and 1 for the other families (paper §3.2: 1
    /// for images, which §3.1 duplicates to the input shape). No default for clips (§3.2: 8 and
    /// 32).
    pub frames: usize,
    /// Relative weight of each source, by its name in `data.sources`: an integer of at least 0. No
    /// default; unstated by the paper.
    pub mixture: BTreeMap<String, u32>,
    /// Unit that is drawn from the mixture. Unstated; our default: `sample`.
    #[serde(default)]
    pub mixing: Mixing,
    /// Number of samples that a rank embeds at once. A value below the rank's share of the batch
    /// saves memory and costs a second forward pass (GradCache); the step computes the same result.
    /// Default: the rank's whole share.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Activations of each layer that the backward pass computes again instead of keeping them. Our
    /// default: `none`.
    #[serde(default)]
    pub recompute: Recompute,
    /// Learning rate over the steps of the stage. No default.
    pub learning_rate: LearningRate,
    /// Embeddings from which a Y-decoder learns to write the target texts. Only `model.kind:
    /// y_decoder` has it. Default: `null`, and with that kind `{embeddings: targets, noise: 0.5}`.
    #[serde(default)]
    pub decoding: Option<Decoding>,
}

/// Embeddings from which a Y-decoder learns to write the target texts. The paper states neither.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Encoder that makes the embeddings. Our default: `targets`.
    pub embeddings: EmbeddingSource,
    /// Length of the random vector that is added to each embedding, as a fraction of the
    /// embedding's own length. Its elements are Gaussian. Embeddings of length one are scaled to
    /// length one again. It stands for the distance of predictions from targets, as in CapDec
    /// (arXiv 2211.00575). Our default: 0.5.
    pub noise: f32,
}

impl Default for Decoding {
    fn default() -> Self {
        Self { embeddings: EmbeddingSource::Targets, noise: 0.5 }
    }
}

/// Encoder that makes the embeddings from which a Y-decoder learns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingSource {
    /// The Y-encoder, from the target texts themselves. No picture or clip is decoded.
    #[default]
    Targets,
    /// The predictor, from pictures or clips with their queries.
    Predictions,
}

/// Activations of each layer that the backward pass computes again instead of keeping them. It
/// saves memory, costs time, and changes no bit of the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Keeps all activations that the backward pass needs.
    #[default]
    None,
    /// Computes the hidden activations of MLPs again: saves two thirds of a layer's memory for a
    /// third of its forward pass.
    Mlp,
    /// Computes whole layers again and keeps only their inputs.
    Block,
}

/// Unit that is drawn from a stage's mixture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixing {
    /// Each sample has its own source, so a batch mixes the sources.
    #[default]
    Sample,
    /// All samples of a global batch come from one source. Its negatives are then of one kind, and
    /// the number of frames may differ between sources.
    Batch,
}

/// Learning rate over the steps of a stage: a linear warm-up, then a schedule. A parameter group's
/// rate is this rate times `optimizer.multipliers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// Highest learning rate. No default (paper §3.2: 5e-5 in pretraining; unstated for
    /// finetuning).
    pub peak: f64,
    /// Number of steps over which the rate grows linearly from 0 to `peak`. At most the stage's
    /// `steps`. Unstated; our default: 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Course of the rate after the warm-up. Default: `constant` (paper §3.2: pretraining).
    #[serde(default)]
    pub schedule: Schedule,
    /// Rate at the last step of a cosine schedule as a fraction of `peak`, 0 to 1. Unstated;
    /// default: 0.01 (PLM).
    #[serde(default = "defaults::final_fraction")]
    pub final_fraction: f64,
}

/// Course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the peak (paper §3.2: pretraining).
    #[default]
    Constant,
    /// Falls along half a cosine from the peak to `final_fraction` × peak at the stage's last step
    /// (paper §3.2: finetuning).
    Cosine,
}

/// AdamW, gradient clipping and learning-rate multipliers. The paper names no optimizer; the
/// defaults are AdamW as PLM and lingua use it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Decay rates of the first and second moment, each at least 0 and below 1. Unstated; default:
    /// 0.9 and 0.95 (PLM, lingua, DataComp-XL).
    pub betas: [f32; 2],
    /// Value added to the square root of the second moment. Unstated; default: 1e-8 (PLM).
    pub eps: f32,
    /// Decoupled weight decay of matrices, as a fraction per unit of learning rate. Vectors, norms
    /// and the temperature have none (open_clip). Unstated; default: 0.05, between PLM's 0.01 and
    /// CLIP's 0.2.
    pub weight_decay: f32,
    /// Largest global norm of the gradient; a larger gradient is scaled down to it. 0 disables
    /// clipping. Unstated; default: 1.0 (PLM, lingua).
    pub clip_norm: f32,
    /// Factor on the learning rate of each parameter group: `x_encoder`, `predictor`, `y_encoder`,
    /// `y_projection`, `projections`, `logit_scale`, `y_decoder` or `language_model`. Default: 0.05
    /// for `y_encoder` (paper §3.1: "a learning rate multiplier of ×0.05 to all text encoder
    /// parameters", and Table 5b), 1 for the others. Whether the text encoder's parameters include
    /// its projection is unstated: `y_projection` takes the factor of `projections` unless the
    /// recipe gives it its own.
    #[serde(deserialize_with = "over_default_multipliers")]
    pub multipliers: BTreeMap<String, f64>,
    /// Whether each rank keeps the moments of only its own shard of the parameters (ZeRO-1). It may
    /// change between two starts of a run. Our default: false, because the paper's GPUs have room
    /// for all 6.4 GB of moments, and because sharding needs an all-gather of the updated weights
    /// that cannot overlap with a backward pass, as the second half of a gradient all-reduce does.
    pub shard: bool,
    /// Policy for steps whose gradient is not finite on some rank.
    pub non_finite: NonFinite,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.05,
            clip_norm: 1.0,
            multipliers: default_multipliers(),
            shard: false,
            non_finite: NonFinite::default(),
        }
    }
}

fn default_multipliers() -> BTreeMap<String, f64> {
    BTreeMap::from([("y_encoder".to_owned(), 0.05)])
}

/// Reads multipliers; groups that the recipe does not name keep their defaults.
fn over_default_multipliers<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let mut multipliers = default_multipliers();
    multipliers.extend(BTreeMap::<String, f64>::deserialize(deserializer)?);
    Ok(multipliers)
}

/// Policy for steps whose gradient holds a NaN or an infinity. All ranks decide alike, because the
/// flag is part of the reduced gradient's norm. The paper does not mention it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NonFinite {
    /// Number of such steps in a row that are skipped, without any change of a parameter, before
    /// one more stops the run. Our default: 10.
    pub max_consecutive: u32,
}

impl Default for NonFinite {
    fn default() -> Self {
        Self { max_consecutive: 10 }
    }
}

/// When checkpoints are written and how many are kept. Checkpoints are written while training
/// continues; training waits for one only when the next is due and at the end of a stage. The paper
/// does not mention checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// Number of steps between checkpoints. One is always written at the end of a stage. Our
    /// default: 500.
    pub every_steps: u64,
    /// Number of checkpoints kept, newest first. The newest that verified is never deleted. Our
    /// default: 3.
    pub keep: usize,
    /// Checkpoints that are kept besides for their scores. A checkpoint is then also written at
    /// each evaluation. Default: `null`, none.
    pub keep_best: Option<KeepBest>,
    /// Points of the run whose checkpoints are written and never deleted. Default: none.
    pub keep_at: KeepAt,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { every_steps: 500, keep: 3, keep_best: None, keep_at: KeepAt::default() }
    }
}

/// Checkpoints with the highest scores. A loss can fall while the scores fall too, so the loss does
/// not choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepBest {
    /// Metric of an evaluation task, as `scores.json` names it, such as `text_to_video_r1`. No
    /// default.
    pub metric: String,
    /// Number of checkpoints kept. Of equal scores the earlier step stays. Default: 1.
    #[serde(default = "defaults::one_checkpoint")]
    pub count: usize,
}

/// Points of a run whose checkpoints are kept. If the checkpoint of a point could not be written,
/// the next one is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepAt {
    /// Whether the last step of each stage is such a point. Default: false.
    pub stage_ends: bool,
    /// Increasing numbers of samples over all stages. For each, the point is the first step after
    /// which the run has trained on at least so many. Default: none.
    pub samples_seen: Vec<u64>,
}

/// Records of a run while it trains. All defaults are ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    /// Number of steps between two lines of `metrics.jsonl`. Default: 10.
    pub every_steps: u64,
    /// Whether TensorBoard event files are written in addition to `metrics.jsonl`. Default: true.
    pub tensorboard: bool,
    /// IP address and port at which the supervisor serves Prometheus metrics under `/metrics`, for
    /// example `0.0.0.0:9401`. Default: empty, which disables it.
    pub prometheus: String,
    /// Rule for embeddings that collapse, which the gauges of each line of `metrics.jsonl` show.
    pub collapse: Collapse,
    /// Steps of which every phase and kernel is traced. Default: none, because recording each
    /// kernel costs time.
    pub trace: Option<Trace>,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            every_steps: 10,
            tensorboard: true,
            prometheus: String::new(),
            collapse: Collapse::default(),
            trace: None,
        }
    }
}

/// Rule for embeddings that collapse: the effective rank of predictions or of targets stays low. By
/// default a run warns and goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collapse {
    /// Effective rank below which a line of metrics counts. Equal embeddings have rank 1. Default:
    /// 1.2, that of embeddings with a mean cosine similarity of 0.98.
    pub effective_rank_below: f64,
    /// Lines in a row that must count. Default: 10, because predictions can be nearly equal before
    /// they have learned anything.
    pub lines: u64,
    /// What follows. Default: `warn`.
    pub action: CollapseAction,
}

impl Default for Collapse {
    fn default() -> Self {
        Self { effective_rank_below: 1.2, lines: 10, action: CollapseAction::Warn }
    }
}

/// What follows when embeddings collapse.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollapseAction {
    /// A warning; training goes on.
    #[default]
    Warn,
    /// The run ends with an error and is not restarted.
    Stop,
}

/// Steps and ranks for which Chrome traces are written, one file per step and rank in the run's
/// `traces` folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// First traced step, counted from 0 over all stages. No default.
    pub first_step: u64,
    /// Number of traced steps, 1 to 100. Default: 1.
    #[serde(default = "defaults::one")]
    pub steps: u64,
    /// Traced ranks. Default: rank 0.
    #[serde(default = "defaults::rank_0")]
    pub ranks: Vec<usize>,
}

mod defaults {
    pub(super) fn final_fraction() -> f64 {
        0.01
    }

    pub(super) fn one() -> u64 {
        1
    }

    pub(super) fn one_checkpoint() -> usize {
        1
    }

    pub(super) fn rank_0() -> Vec<usize> {
        vec![0]
    }
}
