//! Raw sets: what the command line names, and what is read of them. Each adapter reads the
//! published layout of a data set and gives its items.
//!
//! A set is split into parts, which are the same on every call and machine. An item that cannot
//! become a sample is given as a [`LeftOut`] with its reason. An annotation file that cannot be
//! read, or that changes while it is read, is an error.

mod action100m;
mod ego4d;
mod plm;
mod webdataset;

mod files;
mod left_out;
mod lines;
#[cfg(test)]
mod testing;

pub use action100m::{Action100m, Action100mOptions, Action100mPart};
pub use ego4d::{Ego4d, Ego4dOptions, Ego4dPart};
pub use plm::{Plm, PlmOptions, PlmPart};
pub use webdataset::{UnitRange, WebDataset, WebDatasetArgs};

use std::collections::BTreeMap;
use std::path::Path;

use super::item::{Item, LeftOut};
use super::options::OutputArgs;
use crate::error::DataError;
use crate::storage::Storage;

/// Takes the items of a part one after the other. An error ends the reading.
pub type Give<'a> = dyn FnMut(Result<Item, LeftOut>) -> Result<(), DataError> + 'a;

/// Set on the command line, with where the result goes.
#[derive(Debug, Clone, PartialEq, clap::Subcommand)]
pub enum SetCommand {
    /// Tars of samples, as img2dataset, video2dataset and webdataset write them (DataComp,
    /// YFCC-100M): a picture or clip, a caption (txt) and other fields (json) with the same key.
    #[command(name = "webdataset")]
    WebDataset {
        /// The tars.
        #[command(flatten)]
        set: WebDatasetArgs,
        /// Where the result goes.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Action100M: a sample per node of the tree of segments, with its texts under their published
    /// names (`gpt.action.brief`).
    #[command(name = "action100m")]
    Action100m {
        /// Annotations and videos.
        #[command(flatten)]
        set: Action100mOptions,
        /// Where the result goes.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Ego4D: a sample per narration, with the clip around its time.
    #[command(name = "ego4d")]
    Ego4d {
        /// Narrations and videos.
        #[command(flatten)]
        set: Ego4dOptions,
        /// Where the result goes.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// PLM's finetuning data: a sample per answer, with its question.
    #[command(name = "plm")]
    Plm {
        /// Registry of the data sets.
        #[command(flatten)]
        set: PlmOptions,
        /// Where the result goes.
        #[command(flatten)]
        output: OutputArgs,
    },
}

impl SetCommand {
    /// Where the result goes.
    #[must_use]
    pub fn output(&self) -> &OutputArgs {
        match self {
            Self::WebDataset { output, .. }
            | Self::Action100m { output, .. }
            | Self::Ego4d { output, .. }
            | Self::Plm { output, .. } => output,
        }
    }

    /// Opens the set. `work` is a folder for files that the set needs while it is read.
    ///
    /// # Errors
    /// If the set cannot be read.
    pub fn open(&self, work: &Path) -> Result<RawSet, DataError> {
        let storage = Storage::default();
        Ok(match self {
            Self::WebDataset { set, .. } => RawSet::WebDataset(WebDataset::open(set, work)?),
            Self::Action100m { set, .. } => RawSet::Action100m(Action100m::open(&storage, set)?),
            Self::Ego4d { set, .. } => RawSet::Ego4d(Ego4d::open(&storage, set)?),
            Self::Plm { set, .. } => RawSet::Plm(Plm::open(&storage, set)?),
        })
    }
}

/// Set that is open for reading. Threads may share it.
#[derive(Debug)]
pub enum RawSet {
    /// Tars as img2dataset, video2dataset and webdataset write them.
    WebDataset(WebDataset),
    /// Segments of Action100M's videos.
    Action100m(Action100m),
    /// Narrations of Ego4D, with the clips around them.
    Ego4d(Ego4d),
    /// Answers of PLM's finetuning data, with their questions.
    Plm(Plm),
}

/// Stretch of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Stretch of the samples in tars.
    WebDataset(UnitRange),
    /// Stretch of the videos in an annotation file.
    Action100m(Action100mPart),
    /// Stretch of the videos in the file of narrations.
    Ego4d(Ego4dPart),
    /// Stretch of the lines of a data set.
    Plm(PlmPart),
}

impl RawSet {
    /// Stretches of the set in its own order, each of about `items` items. The same set gives the
    /// same parts on every call and machine.
    ///
    /// # Errors
    /// If the set cannot be read.
    pub fn parts(&self, items: usize) -> Result<Vec<Part>, DataError> {
        fn all<T>(parts: Vec<T>, part: impl Fn(T) -> Part) -> Vec<Part> {
            parts.into_iter().map(part).collect()
        }
        Ok(match self {
            Self::WebDataset(set) => all(set.parts(items), Part::WebDataset),
            Self::Action100m(set) => all(set.parts(items)?, Part::Action100m),
            Self::Ego4d(set) => all(set.parts(items)?, Part::Ego4d),
            Self::Plm(set) => all(set.parts(items)?, Part::Plm),
        })
    }

    /// Gives all items of a part in order. An item that cannot become a sample is given as
    /// [`LeftOut`]; an error ends the whole preparation.
    ///
    /// # Errors
    /// If the set cannot be read, the part is one of another set, and the errors of `give`.
    pub fn read(&self, part: &Part, give: &mut Give<'_>) -> Result<(), DataError> {
        match (self, part) {
            (Self::WebDataset(set), Part::WebDataset(part)) => set.read(part, give),
            (Self::Action100m(set), Part::Action100m(part)) => set.read(part, give),
            (Self::Ego4d(set), Part::Ego4d(part)) => set.read(part, give),
            (Self::Plm(set), Part::Plm(part)) => set.read(part, give),
            _ => Err(DataError::Ended("the part belongs to another set".to_owned())),
        }
    }

    /// What tells the set from another one, and from itself after a change: names with values. A
    /// folder that was begun with other values is refused.
    #[must_use]
    pub fn identity(&self) -> BTreeMap<String, String> {
        match self {
            Self::WebDataset(set) => set.identity(),
            Self::Action100m(set) => set.identity(),
            Self::Ego4d(set) => set.identity(),
            Self::Plm(set) => set.identity(),
        }
    }
}
