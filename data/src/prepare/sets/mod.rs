//! Raw sets: what the command line names, and what is read of them.

mod webdataset;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::item::{Item, LeftOut};
use super::options::OutputArgs;
use crate::error::DataError;

pub use webdataset::{WebDataset, WebDatasetArgs};

/// Set on the command line, with where the result goes.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
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
}

impl SetCommand {
    /// Where the result goes.
    #[must_use]
    pub fn output(&self) -> &OutputArgs {
        match self {
            Self::WebDataset { output, .. } => output,
        }
    }

    /// Opens the set. `work` is a folder for files that the set needs while it is read.
    ///
    /// # Errors
    /// If the set cannot be read.
    pub fn open(&self, work: &Path) -> Result<RawSet, DataError> {
        match self {
            Self::WebDataset { set, .. } => Ok(RawSet::WebDataset(WebDataset::open(set, work)?)),
        }
    }
}

/// Set that is open for reading. Threads may share it.
#[derive(Debug)]
pub enum RawSet {
    /// Tars of samples.
    WebDataset(WebDataset),
}

/// Stretch of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Numbers of the stretch's first unit and of the one after its last. What a unit is depends on
    /// the set: a sample, a row, a line.
    pub units: Range<u64>,
}

impl Part {
    /// Divides `units` units into stretches of equal length, of about `length` units each.
    #[must_use]
    pub fn equal(units: u64, length: usize) -> Vec<Self> {
        let length = u64::try_from(length).unwrap_or(u64::MAX).max(1);
        let count = units.div_ceil(length);
        // The multiplication cannot overflow.
        let start = |nth: u64| {
            let start = u128::from(units) * u128::from(nth) / u128::from(count.max(1));
            u64::try_from(start).unwrap_or(u64::MAX)
        };
        (0..count).map(|nth| Self { units: start(nth)..start(nth + 1) }).collect()
    }
}

impl RawSet {
    /// Stretches of the set in its own order, each of about `items` items. The same set gives the
    /// same parts on every call and machine.
    ///
    /// # Errors
    /// If the set cannot be read.
    pub fn parts(&self, items: usize) -> Result<Vec<Part>, DataError> {
        match self {
            Self::WebDataset(set) => Ok(set.parts(items)),
        }
    }

    /// Gives all items of a part in order. An item that cannot become a sample is given as
    /// [`LeftOut`]; an error ends the whole preparation.
    ///
    /// # Errors
    /// If the set cannot be read, and the errors of `give`.
    pub fn read(
        &self,
        part: &Part,
        give: &mut dyn FnMut(Result<Item, LeftOut>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        match self {
            Self::WebDataset(set) => set.read(part, give),
        }
    }

    /// What tells the set from another one, and from itself after a change: names with values. A
    /// folder that was begun with other values is refused.
    #[must_use]
    pub fn identity(&self) -> BTreeMap<String, String> {
        match self {
            Self::WebDataset(set) => set.identity(),
        }
    }
}
