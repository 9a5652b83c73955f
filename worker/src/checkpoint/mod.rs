//! Checkpoints: their content, how they are published, and how they are verified on load
//! (ARCHITECTURE.md, "Checkpoints").
//!
//! A checkpoint is a folder `step-00000500` with one safetensors file per rank and `manifest.json`.
//! A rank's file holds a slice of the flat buffers (weights, first and second moment). The manifest
//! is written last; it holds the training state and the BLAKE3 hashes of every file and of itself.
//! The folder is written under a temporary name, synced and renamed, so a reader sees either the
//! whole checkpoint or none. Any world size can load a checkpoint, with a sharded optimizer or a
//! whole one, because the slices are assembled by their offsets.

mod load;
mod other_run;
mod part;
mod publish;
mod retain;
mod save;
mod saver;
#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use vljepa_kernels::{Device, Tensor, View};
use vljepa_model::Layout;
use vljepa_recipes::RankId;
use vljepa_recipes::protocol::FileEntry;

use crate::rank::drill::Drills;
use crate::rank::generation::Generation;

pub use self::load::{Loaded, Reads, load_frozen, load_newest, load_step};
pub use self::other_run::OtherRun;
pub use self::part::write_part;
pub use self::publish::clean;
pub use self::retain::Retention;
pub use self::save::{Saved, save, save_frozen};
pub use self::saver::{Save, Saver, Settled};
use crate::sharding::Shards;

/// Version of the checkpoint format. Loading a checkpoint of a later version fails.
pub const FORMAT_VERSION: u32 = 4;
/// Name of the manifest file. A folder without it is not a checkpoint.
pub const MANIFEST: &str = "manifest.json";
/// Name of the file with the parameters that are never trained. It is written once per run, beside
/// the checkpoints.
pub const FROZEN: &str = "frozen.safetensors";
/// Name of the tensor in that file.
const FROZEN_TENSOR: &str = "frozen";
/// Names of the tensors in a rank's file.
const TENSORS: [&str; 3] = ["weights", "first_moment", "second_moment"];

/// Position of a training run: everything that a resumed run needs besides the buffers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Completed steps over all stages.
    pub step: u64,
    /// Index of the stage that the next step belongs to.
    pub stage: usize,
    /// Completed steps of that stage.
    pub stage_step: u64,
    /// Samples that all ranks have trained on.
    pub samples: u64,
    /// Optimizer updates so far. Skipped steps do not count.
    pub optimizer_steps: u64,
    /// Consecutive steps, up to the last one, whose gradient was not finite.
    pub non_finite_in_a_row: u32,
    /// Samples of all ranks that were left out because they were bad.
    pub bad_samples: u64,
}

/// Content of `manifest.json`: the training state and a list of all files and parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version of the checkpoint, see [`FORMAT_VERSION`].
    pub version: u32,
    /// Position of the run when the checkpoint was taken.
    pub state: State,
    /// Number of ranks that wrote the checkpoint.
    pub world_size: usize,
    /// Hash of the resolved recipe that the run was started with.
    pub recipe_hash: String,
    /// Version of the data order. A build with another version would resume on other samples.
    pub order_version: u32,
    /// Hash of the shards' numbers of samples, by the source's name, for the sources of the stage.
    /// With other numbers, the order of the samples would be another. Empty before format 3.
    #[serde(default)]
    pub shard_lengths: BTreeMap<String, String>,
    /// Name, shape and first element of every trained parameter, in the order of the flat buffers.
    pub parameters: Vec<Entry>,
    /// One entry per rank: file name, size, hash and range of elements.
    pub files: Vec<FileEntry>,
    /// BLAKE3 hash of `frozen.safetensors`, or `None` if all parameters are trained.
    pub frozen: Option<String>,
    /// Hexadecimal BLAKE3 hash of this manifest with an empty hash. Empty before format 4.
    #[serde(default)]
    pub hash: String,
}

impl Manifest {
    /// Content of the file, with the hash filled in.
    ///
    /// # Errors
    /// Fails if the manifest cannot be written as JSON.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let hash = self.hash()?;
        serde_json::to_vec_pretty(&Self { hash, ..self.clone() })
    }

    /// Reads the content of the file.
    ///
    /// # Errors
    /// Fails if it is no manifest, has another format than this build reads, or is damaged.
    pub fn of_json(text: &[u8]) -> anyhow::Result<Self> {
        let manifest: Self =
            serde_json::from_slice(text).context("manifest.json does not parse")?;
        anyhow::ensure!(
            (1..=FORMAT_VERSION).contains(&manifest.version),
            "has format {}, but this build reads formats 1 to {FORMAT_VERSION}",
            manifest.version
        );
        let has_hash = manifest.version >= 4 || !manifest.hash.is_empty();
        let is_whole = !has_hash || manifest.hash == manifest.hash()?;
        anyhow::ensure!(is_whole, "manifest.json is damaged: its hash differs");
        Ok(manifest)
    }

    fn hash(&self) -> serde_json::Result<String> {
        let text = serde_json::to_vec(&Self { hash: String::new(), ..self.clone() })?;
        Ok(blake3::hash(&text).to_hex().to_string())
    }
}

/// Name, shape and offset of one parameter in the flat buffers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name of the parameter in the model.
    pub name: String,
    /// Shape of the parameter; its elements are contiguous.
    pub shape: Vec<usize>,
    /// Index of the first element in the flat buffers.
    pub start: usize,
}

/// What a checkpoint holds besides its buffers.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// Names, shapes and offsets of the parameters.
    pub layout: &'a Layout,
    /// BLAKE3 hash of `frozen.safetensors`, or `None` if all parameters are trained.
    pub frozen_hash: Option<&'a str>,
    /// Position of the run after the step that is saved.
    pub state: State,
    /// [`Manifest::shard_lengths`].
    pub shard_lengths: &'a BTreeMap<String, String>,
}

/// Flat buffers that a checkpoint saves and restores.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// f32 master weights of all trained parameters, identical on every rank, with memory for the
    /// slots of all ranks ([`Shards::room`]).
    pub weights: &'a mut Tensor,
    /// First and second moment of the parameters in `range`, f32; with memory for the slots of all
    /// ranks unless they are sharded.
    pub moments: [&'a mut Tensor; 2],
    /// Elements that this rank's optimizer owns: all of them, or one shard.
    pub range: Range<usize>,
}

impl Buffers<'_> {
    /// Elements that `rank` writes to a checkpoint: its shard, even if its optimizer owns more.
    fn part_of(&self, rank: RankId) -> Range<usize> {
        let part = Shards::new(self.weights.shape()[0], rank.world_size).of(rank.rank);
        let (Range { start, end }, own) = (part.clone(), &self.range);
        assert!(own.start <= start && end <= own.end, "a rank writes what it owns");
        part
    }

    /// Views of the elements `range` of weights, first and second moment.
    fn slices(&self, Range { start, end }: Range<usize>) -> [View<'_>; 3] {
        let [first, second] = &self.moments;
        let (own, len) = (start - self.range.start, [end - start]);
        let weights = self.weights.view().part(start, &len);
        [weights, first.view().part(own, &len), second.view().part(own, &len)]
    }

    fn device(&self) -> Device {
        self.weights.view().device()
    }
}

/// Checkpoint folder of a run, and the properties that a checkpoint in it must match.
#[derive(Debug, Clone)]
pub struct CheckpointFolder {
    /// Folder `checkpoints` in the run directory.
    pub folder: PathBuf,
    /// Hash of the resolved recipe of this run.
    pub recipe_hash: String,
    /// Version of the data order of this build.
    pub order_version: u32,
    /// Faults to inject while a checkpoint is written.
    pub drills: Drills,
    /// Attempt that may publish checkpoints in this folder.
    pub generation: Generation,
}

/// Name of the folder of the checkpoint after `step` steps.
pub(crate) fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn entries(layout: &Layout) -> Vec<Entry> {
    layout
        .parameters
        .iter()
        .filter(|p| p.trainable)
        .map(|p| Entry { name: p.name.clone(), shape: p.shape.clone(), start: p.range.start })
        .collect()
}
