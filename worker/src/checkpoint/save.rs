//! Writing a checkpoint.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use vljepa_kernels::Tensor;
use vljepa_model::Layout;
use vljepa_recipes::run_directory::atomic_write;

use super::{
    Buffers, FORMAT_VERSION, FROZEN, FileEntry, MANIFEST, Manifest, Place, State, TENSORS,
};
use crate::collectives::{Collectives, Shares};
use crate::environment::hash_file;

/// A checkpoint that is complete and durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Folder name.
    pub name: String,
    /// Seconds the step waited for it.
    pub stall_s: f64,
}

/// What a rank tells the others about its file.
#[derive(Debug, Serialize, Deserialize)]
enum Part {
    Written(FileEntry),
    Failed(String),
}

/// Saves `buffers` and `state`, every rank its slice, and publishes the checkpoint when all parts are durable; then deletes all
/// but the newest `keep`. Every rank calls it at the same step.
///
/// # Errors
/// The same on every rank: which rank could not write its part, or that publishing failed (a full disk, say). Nothing is left
/// behind and older checkpoints are untouched, so the caller may go on and try again later.
pub fn save(
    place: &Place,
    collectives: &Collectives,
    layout: &Layout,
    buffers: &Buffers<'_>,
    frozen_hash: Option<&str>,
    state: State,
    keep: usize,
) -> anyhow::Result<Saved> {
    let started = Instant::now();
    let name = Place::name(state.step);
    let temporary = place.folder.join(format!(".{name}.writing"));
    agree(
        collectives,
        on_rank_0(collectives, || {
            place.generation.check()?;
            fresh_folder(&temporary)
        }),
    )?;
    let written = write_part(&temporary, collectives, layout, buffers)
        .and_then(|entry| place.drills.at_write(state.step).map(|()| entry));
    let part = match written {
        Ok(entry) => Part::Written(entry),
        Err(error) => Part::Failed(format!("rank {}: {error:#}", collectives.rank())),
    };
    let parts = collectives.all_gather_bytes(&serde_json::to_vec(&part)?);
    let published = on_rank_0(collectives, || {
        let mut files = Vec::new();
        for part in &parts {
            match serde_json::from_slice(part)? {
                Part::Written(entry) => files.push(entry),
                Part::Failed(error) => anyhow::bail!(error),
            }
        }
        let manifest = Manifest {
            version: FORMAT_VERSION,
            state,
            world_size: collectives.world_size(),
            recipe_hash: place.recipe_hash.clone(),
            order_version: place.order_version,
            parameters: super::entries(layout),
            files,
            frozen: frozen_hash.map(str::to_owned),
        };
        atomic_write(&temporary.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
        place.generation.check()?;
        publish(&temporary, &place.folder, &name)
    });
    if let Err(error) = agree(collectives, published) {
        on_rank_0(collectives, || Ok(fs::remove_dir_all(&temporary)?)).unwrap_or_default();
        return Err(error.context(format!("checkpoint {name} could not be written")));
    }
    if collectives.rank() == 0
        && let Err(error) = retain(&place.folder, state.step, keep)
    {
        tracing::warn!("{error:#}");
    }
    Ok(Saved { name, stall_s: started.elapsed().as_secs_f64() })
}

/// Writes the parameters that are never trained once for all checkpoints of a run, and returns the file's hash.
///
/// # Errors
/// When the file cannot be written.
pub fn save_frozen(folder: &Path, frozen: &Tensor) -> anyhow::Result<String> {
    let path = folder.join(FROZEN);
    let temporary = folder.join(format!(".{FROZEN}.writing"));
    let values = frozen.view().host_f32("save_frozen", "frozen")?;
    write_tensors(&temporary, &[("frozen", values)])?;
    fs::rename(&temporary, &path)?;
    sync_folder(folder)?;
    Ok(hash_file(&path)?.to_hex().to_string())
}

fn on_rank_0<T: Default>(
    collectives: &Collectives,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if collectives.rank() == 0 { work() } else { Ok(T::default()) }
}

/// Rank 0's result, on every rank.
fn agree(collectives: &Collectives, result: anyhow::Result<()>) -> anyhow::Result<()> {
    let text = result.err().map(|error| format!("{error:#}")).unwrap_or_default();
    let text = String::from_utf8(collectives.broadcast(text.into_bytes()))?;
    if text.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(text)) }
}

fn fresh_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn write_part(
    folder: &Path,
    collectives: &Collectives,
    layout: &Layout,
    buffers: &Buffers<'_>,
) -> anyhow::Result<FileEntry> {
    let shares = Shares { global: layout.trainable_len, world_size: collectives.world_size() };
    let range = shares.rows(collectives.rank());
    let name = format!("rank-{:04}.safetensors", collectives.rank());
    let path = folder.join(&name);
    let mut slices = Vec::new();
    for (tensor_name, tensor) in TENSORS.into_iter().zip(&buffers.0) {
        slices.push((tensor_name, tensor.view().part(range.start, &[range.len()]).to_f32()?));
    }
    let slices: Vec<_> = slices.iter().map(|(name, values)| (*name, &values[..])).collect();
    write_tensors(&path, &slices).with_context(|| format!("cannot write {}", path.display()))?;
    let bytes = fs::metadata(&path)?.len();
    Ok(FileEntry { name, bytes, blake3: hash_file(&path)?.to_hex().to_string(), range })
}

fn write_tensors(path: &Path, slices: &[(&str, &[f32])]) -> anyhow::Result<()> {
    let views = slices
        .iter()
        .map(|(name, values)| {
            let bytes = bytemuck::cast_slice(values);
            Ok((*name, TensorView::new(Dtype::F32, vec![values.len()], bytes)?))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, path)?;
    // The crate writes through a private temporary file; a run is for its group to read.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    Ok(File::open(path)?.sync_all()?)
}

fn publish(temporary: &Path, folder: &Path, name: &str) -> anyhow::Result<()> {
    sync_folder(temporary)?;
    let target = folder.join(name);
    if target.exists() {
        // A checkpoint of this very step that did not verify on load, or that this run has computed again.
        fs::remove_dir_all(&target)?;
    }
    fs::rename(temporary, &target)?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    Ok(File::open(folder)?.sync_all()?)
}

/// Deletes all but the newest `keep` checkpoints up to `step`, the one just written and synced, which always stays. One of a later
/// step did not verify when this run was resumed from an earlier one, and its step will be computed again: it goes too, and so
/// does what a kill left half written.
fn retain(folder: &Path, step: u64, keep: usize) -> anyhow::Result<()> {
    let (later, kept): (Vec<_>, Vec<_>) =
        super::load::folders(folder)?.into_iter().partition(|(of, _)| *of > step);
    let old = kept.into_iter().skip(keep.max(1)).chain(later).map(|(_, path)| path);
    let half_written = fs::read_dir(folder)?.flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(".step-") && name.ends_with(".writing")
    });
    for path in old.chain(half_written.map(|entry| entry.path())) {
        fs::remove_dir_all(&path)
            .with_context(|| format!("cannot delete the old checkpoint {}", path.display()))?;
    }
    Ok(())
}
