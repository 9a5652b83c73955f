//! The state that every part of a job needs.

use vljepa_data::storage::Storage;
use vljepa_kernels::Device;
use vljepa_recipes::{Recipe, RunDirectory};

use super::control::Control;
use super::drill::Drills;
use super::generation::Generation;
use crate::collectives::Collectives;

/// State that every part of a job needs.
#[derive(Debug)]
pub struct Session {
    /// Run directory of the job.
    pub run: RunDirectory,
    /// Resolved recipe, with `data.threads` filled in for this rank.
    pub recipe: Recipe,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// Access to the shards, local and remote.
    pub storage: Storage,
    /// Communication with the other ranks.
    pub collectives: Collectives,
    /// Connection to the supervisor.
    pub control: Control,
    /// Device that this rank computes on.
    pub device: Device,
    /// Faults that this rank injects into itself.
    pub drills: Drills,
    /// Attempt that this worker belongs to; it tells whether a later one was started.
    pub generation: Generation,
    /// Version and hash of this program's binary.
    pub build: String,
    /// Name of the device for logs and metrics, such as `NVIDIA H200, GPU 0`.
    pub device_name: String,
}
