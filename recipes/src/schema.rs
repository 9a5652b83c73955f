//! Every key of a recipe, its default, and where the default comes from.
//!
//! "paper §n" is arXiv 2512.10942; what the paper leaves unstated names another source. A key without a default must be given.
//! [`Recipe`] is what a YAML file says after `extends` and `--set`; [`crate::check`] refuses what contradicts itself.

mod cluster;
mod data;
mod evaluation;
mod model;
mod training;

pub use cluster::{Cluster, ControlPlane, RestartPolicy, Scheduler, Slurm};
pub use data::{BadSamples, Data, Source, TargetRule, TextSource, Transform, Visual};
pub use evaluation::{Candidates, Control, Evaluation, Task, TaskKind};
pub use model::{
    Attention, Initialisation, Llama3Scaling, Loss, LossKind, Model, Predictor, Temperature,
    XEncoder, YEncoder,
};
pub use training::{
    Checkpoints, LearningRate, Logging, Mixing, NonFinite, Optimizer, Recompute, Schedule, Stage,
    Trace,
};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run: letters, digits, `-` and `_`. Names the run directory when none is given.
    pub name: String,
    /// Seed of every random draw: initial weights, data order, choice of texts, crops.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Where runs are written: `<runs>/<name>`. Relative to the working directory.
    #[serde(default = "defaults::runs")]
    pub runs: PathBuf,
    /// What computes.
    #[serde(default)]
    pub device: Device,
    /// Element type of activations and matrix products; sums, statistics, losses and optimizer state are always f32.
    #[serde(default)]
    pub precision: Precision,
    /// Whether GPUs add up in a fixed order, so that a run repeats bit for bit; attention's backward pass then takes longer. The host
    /// always does.
    #[serde(default)]
    pub deterministic: bool,
    /// The three encoders; the paper's sizes by default.
    #[serde(default)]
    pub model: Model,
    /// The training objective.
    #[serde(default)]
    pub loss: Loss,
    /// Shard sets and how their samples become (visual, query, target).
    pub data: Data,
    /// Stages of the curriculum, in order.
    pub stages: Vec<Stage>,
    /// AdamW and its policies.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Scores measured during and after the run.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// Machines and processes.
    #[serde(default)]
    pub cluster: Cluster,
    /// When the run is saved and what is kept.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// What is written down while training.
    #[serde(default)]
    pub logging: Logging,
}

impl Recipe {
    /// The recipe without what may change between two starts of one run: nothing that is left out changes what a step computes,
    /// beyond the rounding of sums that are split otherwise.
    #[must_use]
    pub fn computed(&self) -> Self {
        let mut recipe = self.clone();
        recipe.runs = PathBuf::new();
        recipe.evaluation = Evaluation::default();
        recipe.cluster = Cluster::default();
        recipe.checkpoints = Checkpoints::default();
        recipe.logging = Logging::default();
        (recipe.data.threads, recipe.data.prefetch_batches, recipe.data.cache_mib) = (0, 0, 0);
        recipe.data.bad_samples = BadSamples::default();
        recipe.optimizer.shard = false;
        for stage in &mut recipe.stages {
            stage.micro_batch = None;
            stage.recompute = Recompute::None;
        }
        recipe
    }
}

/// What computes. A run never falls back to another device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The CPU, in f32.
    #[default]
    Host,
    /// NVIDIA GPUs, one per rank.
    Cuda,
}

/// Element type of activations and matrix products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floating point: the only one on the host.
    #[default]
    F32,
    /// bfloat16 with f32 accumulation.
    Bf16,
}

mod defaults {
    use std::path::PathBuf;

    pub(super) fn seed() -> u64 {
        0
    }

    pub(super) fn runs() -> PathBuf {
        PathBuf::from("runs")
    }
}
