//! Results of the worker's look at a machine: NVIDIA's libraries, and how fast shards are read.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Library that the worker loads at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LibraryName {
    /// The driver, `libcuda`.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Collectives between GPUs.
    Nccl,
}

/// A library, as an entry of the list that `vljepa-worker libraries` prints in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibraryReport {
    /// Name of the library.
    pub name: LibraryName,
    /// The loaded library, or why it does not load: what was tried and how to install it.
    pub found: Result<LoadedLibrary, String>,
}

/// A library that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadedLibrary {
    /// Version, such as `2.27.7`; of the driver, the newest CUDA that it supports.
    pub version: String,
    /// File of the library, or `None` for the driver.
    pub path: Option<PathBuf>,
}

/// How fast a source is read, as a line of JSON that `vljepa-worker feed` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceReport {
    /// Name of the source in the recipe.
    pub source: String,
    /// What was read, or why the source cannot be read.
    pub read: Result<SourceRate, String>,
}

/// What was read of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRate {
    /// Number of shards of the source.
    pub shards: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Duration of the reading in seconds.
    pub seconds: f64,
    /// Number of threads that read, each a shard.
    pub threads: usize,
}
