//! Health of a node before workers start there: what is expected, and what a worker that only looks reports, one JSON line per check.

use serde::{Deserialize, Serialize};

/// What a node must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// BLAKE3 of the worker's binary, hexadecimal.
    pub binary: String,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// The supervisor's clock, seconds since 1970, when this was written.
    pub time_s: i64,
    /// Ranks that would run on the node.
    pub ranks: usize,
    /// Bytes of one checkpoint of all ranks.
    pub checkpoint_bytes: u64,
    /// Where the supervisor listens.
    pub control: String,
}

/// The checks, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckName {
    /// The same worker as the supervisor's.
    Binary,
    /// The same recipe.
    Recipe,
    /// A clock that agrees with the supervisor's.
    Clock,
    /// The devices of the node's ranks are there and free.
    Device,
    /// The run directory can be written.
    RunDirectory,
    /// It has room for a checkpoint.
    Room,
    /// `/dev/shm` has room for messages between the node's ranks.
    SharedMemory,
    /// The first and last shard of every source can be read.
    Shards,
    /// The supervisor can be reached.
    Control,
}

impl CheckName {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Binary,
        Self::Recipe,
        Self::Clock,
        Self::Device,
        Self::RunDirectory,
        Self::Room,
        Self::SharedMemory,
        Self::Shards,
        Self::Control,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Recipe => "recipe",
            Self::Clock => "clock",
            Self::Device => "device",
            Self::RunDirectory => "run directory",
            Self::Room => "room",
            Self::SharedMemory => "shared memory",
            Self::Shards => "shards",
            Self::Control => "control",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checked {
    /// The node's name for itself.
    pub host: String,
    /// Which check.
    pub check: CheckName,
    /// Whether it passed.
    pub passed: bool,
    /// What was found; for a failed check what is wrong.
    pub detail: String,
}
