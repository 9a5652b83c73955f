//! Recipe keys under `data`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Shard sets and how their samples are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Shard sets by name. A stage's `mixture` refers to these names. A source whose value is
    /// `null` is left out. No default, but a dual encoder needs none; the paper trains on DataComp,
    /// YFCC-100M and Action100M (§3.2).
    #[serde(default)]
    pub sources: BTreeMap<String, Source>,
    /// Limits for samples that cannot be read.
    #[serde(default)]
    pub bad_samples: BadSamples,
    /// Threads per rank that read and decode samples. 0 takes the CPUs of the rank: on Slurm
    /// `cluster.slurm.cpus_per_rank`, elsewhere an even share of the machine's. Our default: 0.
    #[serde(default)]
    pub threads: usize,
    /// Number of batches that each rank prepares ahead of the step. Our default: 4.
    #[serde(default = "defaults::prefetch")]
    pub prefetch_batches: usize,
    /// Memory per rank, in MiB, for decoded samples, so that a small set is decoded only once; 0
    /// keeps none. The cache changes neither the order nor the pixels. Our default: 0.
    #[serde(default)]
    pub cache_mib: usize,
    /// Folder of each node for blocks of remote shards, so that they are fetched only once.
    /// Default: `null`, no cache.
    #[serde(default)]
    pub shard_cache: Option<ShardCache>,
    /// Largest number of lanes: stretches of the shuffled shards that are read side by side, each
    /// for the same rows of every batch. Their number is the largest divisor of the batch that is
    /// not above it. More lanes mix more shards in a batch, fewer let a rank read fewer files.
    /// Unstated; our default: 1,536, which is 8 for each of the paper's 192 GPUs.
    #[serde(default = "defaults::lanes")]
    pub lanes: usize,
    /// Number of consecutive samples of a lane that are shuffled together after the shards were
    /// shuffled. A source with fewer samples per lane is read in fewer lanes. Unstated; our
    /// default: 1,024, so that the windows of all lanes together hold 1.6 million samples.
    #[serde(default = "defaults::window")]
    pub shuffle_window: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            sources: BTreeMap::new(),
            bad_samples: BadSamples::default(),
            threads: 0,
            prefetch_batches: defaults::prefetch(),
            cache_mib: 0,
            shard_cache: None,
            lanes: defaults::lanes(),
            shuffle_window: defaults::window(),
        }
    }
}

/// Cache of remote shards on a disk of each node. All ranks of a node share it, and it stays for
/// the next run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardCache {
    /// Folder on a local disk of the nodes. It is created if it does not exist. No default.
    pub folder: PathBuf,
    /// Largest size of the cache in GiB; the blocks that were used least recently are deleted. No
    /// default.
    pub gib: u64,
}

/// A set of WebDataset shards, and how a training sample is made from each of their samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A folder (all its `*.tar` files), one tar file, a brace range such as
    /// `clips-{000000..000127}.tar`, or a `.txt` file that lists one shard per line. Shards may be
    /// on this machine or have a URL with `s3://`, `gs://`, `http://` or `https://`; a folder's URL
    /// ends in `/`, and web servers list no folders. A relative path starts at the working
    /// directory. No default.
    pub shards: String,
    /// Folder of the catalogue of the shards, which `vljepa-shards index` writes and a run updates.
    /// Remote shards need one, on a disk that all nodes share. Default: `null`, the folder
    /// `vljepa-catalogue` beside the shards.
    #[serde(default)]
    pub catalogue: Option<PathBuf>,
    /// Whether the samples hold images or videos. No default.
    pub visual: Visual,
    /// Rules that choose query and target from a sample's texts. For each sample, one of the rules
    /// that it has the texts for is drawn by weight. No default.
    pub targets: Vec<TargetRule>,
    /// Frames per sample of this source, if they differ from the stage's `frames` (images in a
    /// stage of clips). A multiple of the tubelet size, or 1 with V-JEPA 2.1. It needs
    /// `mixing: batch`. Default: the stage's `frames`.
    #[serde(default)]
    pub frames: Option<usize>,
    /// How frames are brought to `model.image_size` in training. Unstated; default:
    /// `model.x_encoder.transform`.
    #[serde(default)]
    pub transform: Transform,
    /// Whether `vljepa-shards prepare` made the shards. Only plans read it: prepared samples are
    /// decoded many times as fast. Default: false.
    #[serde(default)]
    pub prepared: bool,
}

/// Kind of visual input of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visual {
    /// One image (`jpg`, `jpeg`, `png`, `webp`, `avif`), repeated for every frame (paper §3.1: "the
    /// same image is duplicated to match the input shape").
    Image,
    /// One clip (`mp4`, `mkv`, `webm`, `avi`, `mov`). Its frames are sampled uniformly over its
    /// length (paper §3.1).
    Video,
}

impl Visual {
    /// Name of the kind in recipes, messages and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
        }
    }
}

/// How a frame is brought to a square of `model.image_size` pixels. The paper states the size
/// (§3.1) but not the method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// Resizes the shortest side to 256/224 of the size and takes the centre (V-JEPA 2's
    /// preprocessing). Images that already have the size are used unchanged.
    #[default]
    ResizeCenterCrop,
    /// Resizes the shortest side to the size and takes the centre (CLIP's preprocessing).
    CenterCrop,
    /// Takes a random crop of 90–100 % of the area and resizes it (CLIP's augmentation). The crop
    /// depends only on the run's seed, the stage and the index of the sample. For sources only.
    RandomResizedCrop,
    /// Resizes both sides to the size and ignores the aspect ratio (PE's and SigLIP 2's
    /// preprocessing).
    Squash,
}

/// Filter that resizes frames. Both widen with the scale when they make a frame smaller, as in
/// Pillow and in torchvision with `antialias=True`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Triangle of two pixels.
    #[default]
    Bilinear,
    /// Cubic of four pixels with a = −0.5.
    Bicubic,
}

/// One way to make (query, target) from a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRule {
    /// Texts of the sample that the rule uses. No default.
    pub from: TextSource,
    /// Query of a caption. Empty means query-free training, as in the paper's pretraining (§3.2).
    /// It must be empty with `from: questions`, because each question is its own query. Default:
    /// empty.
    #[serde(default)]
    pub query: String,
    /// Field of the sample's json that holds the caption, such as an action description beside a
    /// longer caption. Dots lead through nested objects, at most 8 levels deep:
    /// `gpt.action.brief` is `brief` in `action` in `gpt`. A key that holds the dots itself comes
    /// first. Default: `None`, the `txt` member, or else `caption` in the json.
    #[serde(default)]
    pub field: Option<String>,
    /// Takes only questions of this kind (`kind` in the sample's json). Default: all questions.
    #[serde(default)]
    pub kind: Option<String>,
    /// Relative probability with which the rule is drawn. Unstated; default: 1.
    #[serde(default = "defaults::weight")]
    pub weight: u32,
}

/// Member of a sample that holds the target text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextSource {
    /// The `txt` file, or `caption` in the json.
    Caption,
    /// `questions` in the json, a list of `{question, answer, kind}`. One is drawn: the question is
    /// the query, the answer is the target.
    Questions,
}

/// Limits for samples that cannot be read or decoded.
///
/// Each bad sample is counted, named in the log and replaced by another sample of the same source.
/// A pure function of (seed, stage, index, number of replacements) chooses the replacement, so
/// every rank and every restart chooses the same one. The paper does not mention bad samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BadSamples {
    /// Number of bad samples that may follow each other when one row of a batch is filled; one more
    /// stops the run, so 0 stops at the first bad sample. Default: 100 (Megatron-Energon).
    pub max_consecutive: u32,
    /// Largest fraction of bad samples among all samples read so far, 0 to 1. A larger fraction
    /// stops the run. It is checked after the first 1,000 samples. Our default: 0.01.
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

    pub(super) fn lanes() -> usize {
        1536
    }

    pub(super) fn window() -> usize {
        1024
    }

    pub(super) fn weight() -> u32 {
        1
    }
}
