//! Keys under `data`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Shard sets and how their samples are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Shard sets by name; a stage's mixture refers to the names.
    pub sources: BTreeMap<String, Source>,
    /// What happens to samples that cannot be read.
    #[serde(default)]
    pub bad_samples: BadSamples,
    /// Threads that read and decode, per rank; 0 takes the rank's share of the machine's cores.
    #[serde(default)]
    pub threads: usize,
    /// Batches prepared ahead of the step, per rank: 4.
    #[serde(default = "defaults::prefetch")]
    pub prefetch_batches: usize,
    /// Decoded samples kept in memory, MiB per rank, so that a small set is decoded once: 0 keeps none. Order and pixels are the
    /// same with and without.
    #[serde(default)]
    pub cache_mib: usize,
    /// Samples that are shuffled together behind the shuffle of shards: 4,096 (webdataset's customary buffer).
    #[serde(default = "defaults::window")]
    pub shuffle_window: usize,
}

/// A set of WebDataset shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A folder (all its `*.tar`), one tar, or a brace range such as `clips-{000000..000127}.tar`. Relative to the recipe's
    /// working directory.
    pub shards: String,
    /// What the pixels are.
    pub visual: Visual,
    /// Which text becomes query and target: one rule is drawn per sample by weight, among those the sample can serve.
    pub targets: Vec<TargetRule>,
    /// Frames of this source when they differ from the stage's (images among clips); needs `mixing: batch`.
    #[serde(default)]
    pub frames: Option<usize>,
    /// How pixels are brought to `image_size`.
    #[serde(default)]
    pub transform: Transform,
}

/// What the pixels of a sample are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visual {
    /// One picture (`jpg`, `jpeg`, `png`), repeated to the number of frames (paper §3.3: "duplicated").
    Image,
    /// A clip (`mp4`, `mkv`, `webm`, `avi`, `mov`), sampled uniformly over its length.
    Video,
}

/// How pixels are brought to `image_size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// Shortest side to 256/224 of the size, bilinear with antialiasing, then the centre (V-JEPA 2's preprocessing). Pictures that
    /// already are of the size are taken as they are.
    #[default]
    ResizeCenterCrop,
    /// A random crop of 90–100 % of the area (CLIP), drawn from the run's seed and the sample's index.
    RandomResizedCrop,
    /// Both sides to the size, whatever the aspect.
    Squash,
}

/// One way to make (query, target) from a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRule {
    /// Where the texts come from.
    pub from: TextSource,
    /// The query of a caption; empty for query-free training. Questions bring their own.
    #[serde(default)]
    pub query: String,
    /// Only questions of this kind (`kind` in the sample's json); none takes all.
    #[serde(default)]
    pub kind: Option<String>,
    /// Share of the draws.
    #[serde(default = "defaults::weight")]
    pub weight: u32,
}

/// Where a target text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextSource {
    /// The `txt` member, or `caption` in the json.
    Caption,
    /// `questions` in the json: a list of `{question, answer, kind}`, one drawn.
    Questions,
}

/// What happens to samples that cannot be read or decoded. Each is counted and named in the log; its place in the batch is taken by
/// another sample of the same source, chosen by a pure function of (seed, stage, index, attempt), the same on every rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BadSamples {
    /// Bad samples are skipped up to this number in a row, then the run stops: 100 (Megatron-Energon). 0 stops at the first.
    pub max_consecutive: u32,
    /// … and up to this share of all samples read so far (after the first thousand): 0.01.
    pub max_fraction: f64,
}

impl Default for BadSamples {
    fn default() -> Self {
        Self { max_consecutive: 100, max_fraction: 0.01 }
    }
}

mod defaults {
    pub(super) fn prefetch() -> usize {
        4
    }

    pub(super) fn window() -> usize {
        4096
    }

    pub(super) fn weight() -> u32 {
        1
    }
}
