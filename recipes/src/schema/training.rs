//! Keys under `stages`, `optimizer`, `checkpoints` and `logging`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One stage of the curriculum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name in logs and reports.
    pub name: String,
    /// Optimizer steps.
    pub steps: u64,
    /// Samples of one step over all ranks: all of them are each other's negatives.
    pub batch: usize,
    /// Frames of a clip (images are repeated to them).
    pub frames: usize,
    /// Integer weight of each source.
    pub mixture: BTreeMap<String, u32>,
    /// What is drawn from the mixture.
    #[serde(default)]
    pub mixing: Mixing,
    /// Rows a rank embeds at once; none embeds its whole share. Smaller values cost a second forward pass (GradCache) and save
    /// memory; the step they compute is the same.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// What a backward pass computes again instead of keeping it, in every layer.
    #[serde(default)]
    pub recompute: Recompute,
    /// Learning rate over this stage's steps.
    pub learning_rate: LearningRate,
}

/// What a backward pass computes again instead of keeping it: memory for time. The step it computes is the same, bit for bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// The inside of MLPs: two thirds of a layer's memory for a third of its forward pass.
    Mlp,
    /// Whole layers: only their inputs are kept.
    Block,
}

/// What is drawn from the mixture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixing {
    /// Each sample.
    #[default]
    Sample,
    /// Each global batch: all of its samples come from one source, so negatives are of a kind and frames may differ by source.
    Batch,
}

/// Learning rate over the steps of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// Highest value.
    pub peak: f64,
    /// Steps of linear warm-up from zero.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What follows the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// A cosine's last value as a share of the peak: 0.01 (PLM).
    #[serde(default = "defaults::final_fraction")]
    pub final_fraction: f64,
}

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// The peak (paper §3.3: pretraining).
    #[default]
    Constant,
    /// Half a cosine down to `final_fraction` at the stage's last step (paper §3.3: finetuning).
    Cosine,
}

/// AdamW. The paper names no optimizer; the defaults are AdamW as PLM and lingua use it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Decay rates of the moments: 0.9, 0.95 (PLM, lingua, DataComp-XL).
    pub betas: [f32; 2],
    /// Added to the root of the second moment: 1e-8 (PLM).
    pub eps: f32,
    /// Decoupled decay of matrices; vectors, norms and the temperature have none (open_clip): 0.05 (between PLM and CLIP).
    pub weight_decay: f32,
    /// Largest global norm of the gradient; larger ones are scaled down: 1.0 (PLM, lingua). 0 switches clipping off.
    pub clip_norm: f32,
    /// Learning-rate multipliers of parameter groups (`x_encoder`, `predictor`, `y_encoder`, `projections`, `logit_scale`): 0.05 for
    /// the Y-encoder (paper §3.3, ×0.05 for all text-encoder parameters), 1 for the others.
    #[serde(deserialize_with = "over_the_papers_multipliers")]
    pub multipliers: BTreeMap<String, f64>,
    /// Whether each rank keeps the moments of its own shard of the parameters alone (ZeRO-1): off, because the paper's GPUs have room
    /// for all 6.4 GB of them, and the gather of updated weights that sharding needs cannot hide behind a backward pass as the
    /// second half of a sum of gradients does. A run may change it between two starts.
    pub shard: bool,
    /// What happens to a step whose gradient is not finite on any rank.
    pub non_finite: NonFinite,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.05,
            clip_norm: 1.0,
            multipliers: papers_multipliers(),
            shard: false,
            non_finite: NonFinite::default(),
        }
    }
}

fn papers_multipliers() -> BTreeMap<String, f64> {
    BTreeMap::from([("y_encoder".to_owned(), 0.05)])
}

/// Naming one group leaves the others at their defaults.
fn over_the_papers_multipliers<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let mut multipliers = papers_multipliers();
    multipliers.extend(BTreeMap::<String, f64>::deserialize(deserializer)?);
    Ok(multipliers)
}

/// All ranks agree on it: the flag is part of the reduced gradient's norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NonFinite {
    /// Such steps are skipped (no parameter changes) up to this number in a row, then the run stops: 10.
    pub max_consecutive: u32,
}

impl Default for NonFinite {
    fn default() -> Self {
        Self { max_consecutive: 10 }
    }
}

/// When the run is saved and what is kept. Checkpoints are written beside the steps; training waits for one only when the next is due,
/// and at the end of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// Steps between checkpoints: 500. One is always written at the end of a stage.
    pub every_steps: u64,
    /// Newest checkpoints kept: 3. The last one that verified is never deleted.
    pub keep: usize,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { every_steps: 500, keep: 3 }
    }
}

/// What is written down while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    /// Steps between lines of metrics: 10.
    pub every_steps: u64,
    /// TensorBoard event files beside `metrics.jsonl`.
    pub tensorboard: bool,
    /// Where the supervisor answers Prometheus, such as `0.0.0.0:9401`: `http://…/metrics`. Nowhere when empty, the default.
    pub prometheus: String,
    /// Steps whose every phase and kernel is written down. None by default: noting each kernel costs time.
    pub trace: Option<Trace>,
}

impl Default for Logging {
    fn default() -> Self {
        Self { every_steps: 10, tensorboard: true, prometheus: String::new(), trace: None }
    }
}

/// Steps of which Chrome traces are written, one file per step and rank in the run's `traces` folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// The first one, counted from 0 as errors and logs count.
    pub first_step: u64,
    /// How many: 1.
    #[serde(default = "defaults::one")]
    pub steps: u64,
    /// Which ranks: rank 0.
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

    pub(super) fn rank_0() -> Vec<usize> {
        vec![0]
    }
}
