//! What ranks and the supervisor say about a checkpoint while it is written.
//!
//! Every rank writes its part beside the steps and reports [`Part`]. When the supervisor has all parts of a step, it tells rank 0 to
//! publish them or, when one failed, to drop them; rank 0 answers with `Saved` or `NotSaved`, and the other ranks hear how it went.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the folder.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// BLAKE3 of the content, hex.
    pub blake3: String,
    /// Elements of the flat buffers it holds.
    pub range: Range<usize>,
}

/// A rank's part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    /// It is durable.
    Written {
        /// Its file.
        file: FileEntry,
    },
    /// It is not.
    Failed {
        /// Which rank, and why.
        error: String,
    },
}

/// What the supervisor tells a rank about a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum CheckpointOrder {
    /// To rank 0: all parts are durable.
    Publish {
        /// The checkpoint's step.
        step: u64,
        /// The parts, in rank order.
        files: Vec<FileEntry>,
    },
    /// To rank 0: a part failed.
    Drop {
        /// The checkpoint's step.
        step: u64,
        /// The first failure.
        error: String,
    },
    /// To the other ranks: rank 0 is done with it.
    Settled {
        /// The checkpoint's step.
        step: u64,
        /// Why there is none.
        error: Option<String>,
    },
}

impl CheckpointOrder {
    /// The checkpoint's step.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Publish { step, .. } | Self::Drop { step, .. } | Self::Settled { step, .. } => {
                *step
            }
        }
    }
}
