//! Publishing a checkpoint from its durable parts: manifest, rename, deletion of old checkpoints.
//! Only rank 0 publishes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use vljepa_recipes::protocol::FileEntry;
use vljepa_recipes::run_directory::atomic_write;

use super::{CheckpointFolder, Contents, FORMAT_VERSION, MANIFEST, Manifest, checkpoint_name};
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
    keep: usize,
    generation: Generation,
}

impl Draft {
    pub(super) fn new(
        checkpoints: &CheckpointFolder,
        contents: Contents<'_>,
        world_size: usize,
        keep: usize,
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
        Self { name, temporary, folder, manifest, keep, generation }
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
        if let Err(error) = retain(&self.folder, self.step(), self.keep) {
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

fn half_written(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
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

/// Deletes all but the newest `keep` checkpoints up to `step`. The checkpoint of `step`, which was
/// just published, always stays. Checkpoints of later steps are deleted as well: they did not
/// verify when this run resumed from an earlier one, and their steps will be computed again.
/// Temporary folders that a killed run left behind are deleted too.
fn retain(folder: &Path, step: u64, keep: usize) -> anyhow::Result<()> {
    let (later, kept): (Vec<_>, Vec<_>) =
        super::load::folders(folder)?.into_iter().partition(|(of, _)| *of > step);
    let old = kept.into_iter().skip(keep.max(1)).chain(later).map(|(_, path)| path);
    for path in old.chain(half_written(folder)?) {
        fs::remove_dir_all(&path)
            .with_context(|| format!("cannot delete the old checkpoint {}", path.display()))?;
    }
    Ok(())
}
