//! Checks of a node before workers start on it: the expected state, and the results that a checking
//! worker prints as one JSON line per check.

use serde::{Deserialize, Serialize};

/// How long the worker waits for the memory of GPUs, in seconds: the driver tears down the memory
/// of killed processes one after the other. The other checks usually take a second or two.
pub const RELEASE_LIMIT_S: u16 = 30;

/// How long a node may take to answer its checks, in seconds. A cold start also loads the programs
/// and NVIDIA's libraries from a network file system.
pub const CHECK_LIMIT_S: u16 = RELEASE_LIMIT_S + 60;

/// How long a node may take to answer checks that are repeated, in seconds.
pub const REPEATED_CHECK_LIMIT_S: u16 = RELEASE_LIMIT_S + 10;

/// Allowed difference between the clocks of a node and of the supervisor, in seconds. Time stamps
/// of logs stay comparable.
pub const CLOCK_LIMIT_S: i64 = 60;

/// Expected state of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Hexadecimal BLAKE3 hash of the worker's binary.
    pub binary: String,
    /// Hash of the resolved recipe ([`crate::Loaded::hash`]).
    pub recipe_hash: String,
    /// Number of ranks that will run on the node.
    pub ranks: usize,
    /// Size of one checkpoint of all ranks, in bytes.
    pub checkpoint_bytes: u64,
    /// Address of the supervisor, `host:port`.
    pub control: String,
}

/// Name of a check. The variants are in the order in which the checks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckName {
    /// The worker's binary is the supervisor's.
    Binary,
    /// The resolved recipe is the supervisor's.
    Recipe,
    /// The clock agrees with the supervisor's, which compares them.
    Clock,
    /// The devices of the node's ranks exist and are free.
    Device,
    /// A rank may use the CPUs that the recipe asks for.
    Cpus,
    /// The run directory is writable.
    RunDirectory,
    /// The run directory has room for a checkpoint.
    Room,
    /// `/dev/shm` has room for messages between the node's ranks.
    SharedMemory,
    /// The first and last shard of every source are readable.
    Shards,
    /// The supervisor accepts connections from the node.
    Control,
}

impl CheckName {
    /// All checks, in the order in which they are made.
    pub const ALL: [Self; 10] = [
        Self::Binary,
        Self::Recipe,
        Self::Clock,
        Self::Device,
        Self::Cpus,
        Self::RunDirectory,
        Self::Room,
        Self::SharedMemory,
        Self::Shards,
        Self::Control,
    ];

    /// Returns the check's name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Recipe => "recipe",
            Self::Clock => "clock",
            Self::Device => "device",
            Self::Cpus => "CPUs",
            Self::RunDirectory => "run directory",
            Self::Room => "room",
            Self::SharedMemory => "shared memory",
            Self::Shards => "shards",
            Self::Control => "control",
        }
    }
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checked {
    /// Host name that the node reports.
    pub host: String,
    /// Check that was made.
    pub check: CheckName,
    /// Whether the check passed.
    pub passed: bool,
    /// Observed state; for a failed check, the reason.
    pub detail: String,
    /// Clock of the node after the check, in seconds since 1970.
    pub time_s: i64,
}
