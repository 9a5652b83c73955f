//! Every key of a recipe: its meaning, its unit, its default and the source of the default.
//!
//! "Paper §n" is a section of the VL-JEPA paper, arXiv 2512.10942. "Unstated" means that the paper
//! does not give the value; the text then names the source of our default. A key without a default
//! must be in the recipe.
//!
//! [`Recipe`] holds the values of a YAML file after `extends` and `--set` were applied.
//! [`crate::check`] refuses keys that contradict each other.

mod cluster;
mod data;
mod evaluation;
mod families;
mod init;
mod language_model;
mod model;
mod needs;
mod predictor;
mod set;
mod table;
mod training;
mod x_encoder;
mod y_decoder;
mod y_encoder;

pub use cluster::{Cluster, ControlPlane, RestartPolicy, Scheduler, Slurm};
pub use data::{
    BadSamples, Data, Interpolation, Source, TargetRule, TextSource, Transform, Visual,
};
pub use evaluation::{
    Candidates, CaptionMetric, Control, Evaluation, LABEL, MetricUnit, SHORTEST_STRIDE_S,
    SampleSource, SelectiveDecoding, Task, TaskKind,
};
pub use init::Init;
pub use language_model::{LanguageModel, LanguageModelFamily, TEXT, Template, TemplateTexts};
pub use model::{Initialisation, Loss, LossKind, Model, ModelKind, SigReg, Temperature, VicReg};
pub use predictor::{Attention, Llama3Scaling, LlamaSize, Predictor, PredictorFamily};
pub use set::{
    Count, EvaluationSet, Expected, KnownCount, Labelled, PathTemplate, SetFormat, SetTexts,
};
pub use table::{Row, RowWeights, Table};
pub use training::{
    Checkpoints, Collapse, CollapseAction, Decoding, EmbeddingSource, KeepAt, KeepBest,
    LearningRate, Logging, Mixing, NonFinite, Optimizer, Recompute, Schedule, Stage, Trace,
};
pub use x_encoder::{
    Clip, ClipResnet, ClipResnetSize, ClipSize, Convolution, Pe, PeSize, Preprocessing,
    ResnetBlock, ResnetConvolutions, Siglip2, Siglip2Size, VJepa2, VJepa2_1, VJepa2_1Size,
    VJepa2Size, VisionSizes, XEncoder, XFamily,
};
pub use y_decoder::{
    LlamaDecoder, LlamaDecoderSize, Search, SonarDecoder, SonarDecoderSize, YDecoder,
    YDecoderFamily,
};
pub use y_encoder::{
    ClipText, ClipTextSize, EmbeddingGemma, EmbeddingGemmaSize, PeText, PeTextSize, Projection,
    Qwen3Embedding, Qwen3EmbeddingSize, Siglip2Text, Siglip2TextSize, Sonar, SonarSize, TextLayers,
    TextSizes, Update, YEncoder, YFamily,
};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// All settings of one run: the top-level keys of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run: up to 100 letters, digits, `-` and `_`. It is also the name of the run
    /// directory unless `--run` gives another one. No default.
    pub name: String,
    /// Seed of all random numbers: initial weights, data order, choice of texts, crops. Default: 0.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Folder that holds the run directories: a run is written to `<runs>/<name>`. A relative path
    /// starts at the working directory. Default: `runs`.
    #[serde(default = "defaults::runs")]
    pub runs: PathBuf,
    /// Device that computes the run. Default: `host`.
    #[serde(default)]
    pub device: Device,
    /// Element type of activations and matrix products. Sums, statistics, losses and optimizer
    /// state are always f32. Default: `f32`, the only type on the host; `device: cuda` needs `bf16`
    /// (unstated by the paper).
    #[serde(default)]
    pub precision: Precision,
    /// Whether GPUs sum in a fixed order, so that a run repeats bit for bit. The backward pass of
    /// attention then takes longer. The host always sums in a fixed order. Our default: false.
    #[serde(default)]
    pub deterministic: bool,
    /// X-encoder, predictor and Y-encoder. Default: the paper's sizes.
    #[serde(default)]
    pub model: Model,
    /// Trained weights that the run starts from: `{run: DIR}`, `{export: FOLDER}` or `{weights:
    /// FILE}`. Default: `null`, so that all weights without a file of their own are random.
    #[serde(default)]
    pub init: Option<Init>,
    /// Training objective. Default: bidirectional InfoNCE.
    #[serde(default)]
    pub loss: Loss,
    /// Shard sets, and how their samples become (visual, query, target). No default, but a dual
    /// encoder needs none.
    #[serde(default)]
    pub data: Data,
    /// Training stages, in the order in which they run. No default; a dual encoder and a `table`
    /// have none.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// AdamW, gradient clipping, learning-rate multipliers and the policy for non-finite gradients.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Table or figure of the paper that the run computes. It then has no stages. Default: `null`.
    #[serde(default)]
    pub table: Option<Table>,
    /// Scores measured during and after the run. Default: none.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// Nodes, ranks, scheduler and restarts. Default: one rank on this machine.
    #[serde(default)]
    pub cluster: Cluster,
    /// When checkpoints are written and how many are kept.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// Metrics, TensorBoard files, Prometheus endpoint and traces.
    #[serde(default)]
    pub logging: Logging,
    /// Other readings of what the paper leaves unstated: for each name, changes of keys as `--set`
    /// takes them. Only plans read them: `vljepa-launch plan` says how long each reading takes. A
    /// recipe that `extends` another one does not take over its readings. Default: none.
    #[serde(default)]
    pub readings: BTreeMap<String, Vec<String>>,
}

impl Recipe {
    /// Number of optimizer steps in all stages.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.stages.iter().fold(0, |sum, stage| sum.saturating_add(stage.steps))
    }

    /// Whether a stage draws samples from the source `name` of `data.sources`.
    #[must_use]
    pub fn draws_from(&self, name: &str) -> bool {
        self.stages.iter().any(|stage| stage.mixture.get(name).is_some_and(|weight| *weight > 0))
    }

    /// Number of frames per sample where neither a task nor a source says it: those of the last
    /// stage. A recipe without stages takes 8, as Perception Encoder's evaluations of videos do.
    #[must_use]
    pub fn default_frames(&self) -> usize {
        const WITHOUT_STAGES: usize = 8;
        self.stages.last().map_or(WITHOUT_STAGES, |stage| stage.frames)
    }

    /// Returns a copy in which the keys that may change between two starts of one run are reset.
    /// None of these keys changes the result of a step, except for rounding where sums are split
    /// differently.
    #[must_use]
    pub fn computed(&self) -> Self {
        let mut recipe = self.clone();
        recipe.runs = PathBuf::new();
        recipe.evaluation = Evaluation::default();
        if let Some(table) = &mut recipe.table {
            table.rows.clear();
            table.columns.clear();
            table.skip_absent_sets = false;
        }
        recipe.cluster = Cluster::default();
        recipe.checkpoints = Checkpoints::default();
        recipe.logging = Logging::default();
        (recipe.data.threads, recipe.data.prefetch_batches, recipe.data.cache_mib) = (0, 0, 0);
        recipe.data.bad_samples = BadSamples::default();
        recipe.optimizer.shard = false;
        recipe.readings.clear();
        recipe.data.sources.values_mut().for_each(|source| source.prepared = false);
        for stage in &mut recipe.stages {
            stage.micro_batch = None;
            stage.recompute = Recompute::None;
        }
        recipe
    }
}

/// Device that computes a run. A run never falls back to another device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// CPU cores, in f32. For tests, laptops and the quickstart.
    #[default]
    Host,
    /// NVIDIA GPUs, one per rank, in bf16.
    Cuda,
}

/// Element type of activations and matrix products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floating point. `device: host` needs it.
    #[default]
    F32,
    /// bfloat16 with f32 accumulation. `device: cuda` needs it.
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
