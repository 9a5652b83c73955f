//! Messages about a checkpoint while it is written.
//!
//! Every rank writes its part while training continues and reports it as a [`Part`]. When the
//! supervisor has the parts of all ranks, it orders rank 0 to publish the checkpoint or, if a part
//! failed, to drop it. Rank 0 answers with `Saved` or `NotSaved`, and the supervisor passes the
//! result on to the other ranks.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name of the file in the checkpoint's folder.
    pub name: String,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Hexadecimal BLAKE3 hash of the content.
    pub blake3: String,
    /// Range of elements of the flat buffers (weights and both moments) that the file holds.
    pub range: Range<usize>,
}

/// Result of writing a rank's part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    /// The part is durable on disk.
    Written {
        /// File that holds the part.
        file: FileEntry,
    },
    /// The part could not be written.
    Failed {
        /// Number of the rank and the reason.
        error: String,
    },
}

/// Order or news about a checkpoint from the supervisor to a rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum CheckpointOrder {
    /// Orders rank 0 to publish the checkpoint, because all parts are durable.
    Publish {
        /// Step of the checkpoint.
        step: u64,
        /// Files of all parts, in the order of the ranks.
        files: Vec<FileEntry>,
    },
    /// Orders rank 0 to drop the checkpoint, because a part failed.
    Drop {
        /// Step of the checkpoint.
        step: u64,
        /// Error of the first part that failed.
        error: String,
    },
    /// Tells the other ranks that rank 0 has published or dropped the checkpoint.
    Settled {
        /// Step of the checkpoint.
        step: u64,
        /// Reason why the checkpoint was dropped; `None` if it was published.
        error: Option<String>,
    },
}

impl CheckpointOrder {
    /// Returns the step of the checkpoint.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Publish { step, .. } | Self::Drop { step, .. } | Self::Settled { step, .. } => {
                *step
            }
        }
    }
}
