//! Publishing a checkpoint from its durable parts: manifest and rename, then deletion of old ones.
//! Only rank 0 publishes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use vljepa_recipes::protocol::FileEntry;
use vljepa_recipes::run_directory::atomic_write;

use super::{
    CheckpointFolder, Contents, FORMAT_VERSION, MANIFEST, Manifest, Retention, checkpoint_name,
};
use crate::rank::generation::Generation;

/// A checkpoint whose parts are being written.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// Name of the folder after publication.
    pub(super) name: String,
    /// Path of the folder until publication.
    pub(super) temporary: PathBuf,
    folder: PathBuf,
    manifest: Manifest,
    retention: Retention,
    generation: Generation,
}

impl Draft {
    pub(super) fn new(
        checkpoints: &CheckpointFolder,
        contents: Contents<'_>,
        world_size: usize,
        retention: &Retention,
    ) -> Self {
        let Contents { layout, frozen_hash, state, shard_lengths } = contents;
        let name = checkpoint_name(state.step);
        let manifest = Manifest {
            version: FORMAT_VERSION,
            state,
            world_size,
            recipe_hash: checkpoints.recipe_hash.clone(),
            order_version: checkpoints.order_version,
            shard_lengths: shard_lengths.clone(),
            parameters: super::entries(layout),
            files: Vec::new(),
            frozen: frozen_hash.map(str::to_owned),
            hash: String::new(),
        };
        let temporary = checkpoints.folder.join(format!(".{name}{WRITING}"));
        let (folder, generation) = (checkpoints.folder.clone(), checkpoints.generation.clone());
        let retention = retention.clone();
        Self { name, temporary, folder, manifest, retention, generation }
    }

    pub(super) fn step(&self) -> u64 {
        self.manifest.state.step
    }

    /// Creates the temporary folder. Any rank may be the first to do so.
    pub(super) fn make_folder(&self) -> anyhow::Result<()> {
        self.generation.check()?;
        let temporary = &self.temporary;
        fs::create_dir_all(temporary)
            .with_context(|| format!("cannot create {}", temporary.display()))
    }

    /// Publishes the checkpoint from durable parts, then deletes old checkpoints. If publishing
    /// fails, all files of this checkpoint are deleted.
    pub(super) fn publish(&self, files: Vec<FileEntry>) -> anyhow::Result<()> {
        let manifest = Manifest { files, ..self.manifest.clone() };
        let publish = || -> anyhow::Result<()> {
            atomic_write(&self.temporary.join(MANIFEST), &manifest.to_json()?)?;
            sync_folder(&self.temporary)?;
            self.generation.check()?;
            let target = self.folder.join(&self.name);
            if target.exists() {
                // A checkpoint of the same step exists: it did not verify on load, or this run has
                // computed the step again.
                fs::remove_dir_all(&target)?;
            }
            fs::rename(&self.temporary, &target)?;
            sync_folder(&self.folder)
        };
        if let Err(error) = publish() {
            self.discard();
            return Err(error);
        }
        if let Err(error) = self.retention.apply(&self.folder, self.step()) {
            tracing::warn!("{error:#}");
        }
        Ok(())
    }

    /// Deletes the temporary folder, and ignores errors.
    pub(super) fn discard(&self) {
        fs::remove_dir_all(&self.temporary).unwrap_or_default();
    }
}

/// Suffix of the names of temporary folders.
const WRITING: &str = ".writing";

/// Deletes the temporary folders that a killed run left behind. Call it at the start of a run,
/// before anything is written.
///
/// # Errors
/// Fails if a folder cannot be deleted.
pub fn clean(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for path in half_written(folder)? {
        fs::remove_dir_all(&path)
            .with_context(|| format!("cannot delete the half-written {}", path.display()))?;
    }
    Ok(())
}

pub(super) fn half_written(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(".step-") && name.ends_with(WRITING)
    });
    Ok(entries.map(|entry| entry.path()).collect())
}

pub(super) fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    Ok(File::open(folder)?.sync_all()?)
}
