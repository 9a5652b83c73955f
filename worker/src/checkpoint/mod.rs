//! Checkpoints: what is saved, how it is published, what is trusted on load (DESIGN §7).
//!
//! A checkpoint is a folder `step-00000500` of one safetensors file per rank, each a slice of the flat buffers (weights, first
//! and second moment), and `manifest.json`, written last, which holds the training state and a BLAKE3 of every file. The folder
//! is written under a temporary name, synced, and renamed: a reader sees all of it or nothing. Any world size can load it,
//! with its optimizer sharded or whole, because slices of flat buffers are put together by their offsets.

mod load;
mod part;
mod publish;
mod save;
mod saver;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vljepa_kernels::{Device, Tensor, View};
use vljepa_model::Layout;
use vljepa_recipes::protocol::FileEntry;

use crate::drill::Drills;
use crate::generation::Generation;

pub use self::load::{Loaded, load_frozen, load_newest};
pub use self::part::write_part;
pub use self::publish::clean;
pub use self::save::{Saved, save, save_frozen};
pub use self::saver::{Save, Saver, Settled};
use crate::optimize::shard;

/// Version of the folder's form; another one is refused.
pub const FORMAT_VERSION: u32 = 1;
/// The file that makes a folder a checkpoint.
pub const MANIFEST: &str = "manifest.json";
/// Parameters that are never trained, written once per run beside the checkpoints.
pub const FROZEN: &str = "frozen.safetensors";
/// Names of the tensors in a rank's file.
const TENSORS: [&str; 3] = ["weights", "first_moment", "second_moment"];

/// Where training stands: all that a resumed run needs beside the buffers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done over all stages.
    pub step: u64,
    /// Stage of the next step.
    pub stage: usize,
    /// Steps done in that stage.
    pub stage_step: u64,
    /// Samples seen by all ranks.
    pub samples: u64,
    /// Updates the optimizer made (steps that were not skipped).
    pub optimizer_steps: u64,
    /// Steps in a row whose gradient was not finite.
    pub non_finite_in_a_row: u32,
    /// Samples left out as bad.
    pub bad_samples: u64,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub version: u32,
    /// Where training stands.
    pub state: State,
    /// Ranks that wrote it.
    pub world_size: usize,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// Version of the data order: another one would train on other samples.
    pub order_version: u32,
    /// Every trained parameter: name, shape, first element in the flat buffers.
    pub parameters: Vec<Entry>,
    /// The ranks' files.
    pub files: Vec<FileEntry>,
    /// BLAKE3 of `frozen.safetensors`, when the model has parameters that are never trained.
    pub frozen: Option<String>,
}

/// One parameter in the flat buffers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// First element.
    pub start: usize,
}

/// The buffers a checkpoint saves and restores.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// The f32 masters of all trained parameters, the same on every rank.
    pub weights: &'a mut Tensor,
    /// First and second moment of the parameters in `range`.
    pub moments: [&'a mut Tensor; 2],
    /// What this rank's optimizer owns: everything, or its shard.
    pub range: Range<usize>,
}

impl Buffers<'_> {
    /// The elements that `rank` writes: its shard, whether or not its optimizer owns more.
    fn part_of(&self, rank: usize, world_size: usize) -> Range<usize> {
        let part = shard(self.weights.shape()[0], rank, world_size);
        let (Range { start, end }, own) = (part.clone(), &self.range);
        assert!(own.start <= start && end <= own.end, "a rank writes what it owns");
        part
    }

    /// Elements `range` of the three buffers.
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

/// Where checkpoints of a run stand, and what they must agree with.
#[derive(Debug, Clone)]
pub struct Place {
    /// `RUN/checkpoints`.
    pub folder: PathBuf,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// Version of the data order.
    pub order_version: u32,
    /// Faults to be made while a checkpoint is written.
    pub drills: Drills,
    /// Who may publish here.
    pub generation: Generation,
}

impl Place {
    fn name(step: u64) -> String {
        format!("step-{step:08}")
    }
}

fn entries(layout: &Layout) -> Vec<Entry> {
    layout
        .parameters
        .iter()
        .filter(|p| p.trainable)
        .map(|p| Entry { name: p.name.clone(), shape: p.shape.clone(), start: p.range.start })
        .collect()
}
