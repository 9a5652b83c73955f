//! Reading a checkpoint: the newest one that verifies, the same on every rank.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use vljepa_kernels::Tensor;
use vljepa_model::Layout;

use super::{Buffers, FORMAT_VERSION, FROZEN, MANIFEST, Manifest, Place, State, TENSORS};
use crate::collectives::Collectives;
use crate::environment::hash_file;
use crate::error::WorkerError;

/// A checkpoint that was loaded, and what was passed over on the way to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// Folder name; none when there was no checkpoint at all.
    pub name: Option<String>,
    /// Newer checkpoints that did not verify, each with the reason.
    pub passed_over: Vec<String>,
    /// Where training stands.
    pub state: State,
    /// BLAKE3 of the frozen parameters' file.
    pub frozen: Option<String>,
}

/// Fills `buffers` from the newest checkpoint that verifies; rank 0 chooses, all ranks load the same one. Without any checkpoint
/// the buffers stay as they are.
///
/// # Errors
/// When every checkpoint there is fails to verify (the run would silently start again otherwise), or the newest good one belongs
/// to another recipe, model or data order.
pub fn load_newest(
    place: &Place,
    collectives: &Collectives,
    layout: &Layout,
    buffers: &mut Buffers<'_>,
) -> anyhow::Result<Loaded> {
    let chosen = if collectives.rank() == 0 { choose(place, layout) } else { Ok(nothing()) };
    let chosen = chosen.map_err(|error| format!("{error:#}"));
    let chosen: Result<Loaded, String> =
        serde_json::from_slice(&collectives.broadcast(serde_json::to_vec(&chosen)?))?;
    let loaded = chosen.map_err(|error| anyhow::anyhow!(error))?;
    if let Some(name) = &loaded.name {
        fill(&place.folder.join(name), buffers)
            .with_context(|| format!("checkpoint {name} changed while it was read"))?;
    }
    Ok(loaded)
}

/// Checkpoint folders, newest first.
pub(super) fn folders(folder: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

fn nothing() -> Loaded {
    Loaded { name: None, passed_over: Vec::new(), state: State::default(), frozen: None }
}

fn choose(place: &Place, layout: &Layout) -> anyhow::Result<Loaded> {
    let mut loaded = nothing();
    for (_, path) in folders(&place.folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match verify(&path) {
            Ok(manifest) => {
                fits(&name, &manifest, place, layout)?;
                loaded.name = Some(name);
                loaded.state = manifest.state;
                loaded.frozen = manifest.frozen;
                return Ok(loaded);
            }
            Err(error) => loaded.passed_over.push(format!("{name}: {error:#}")),
        }
    }
    anyhow::ensure!(
        loaded.passed_over.is_empty(),
        "no checkpoint verifies ({}); restore one, or delete {} to start again",
        loaded.passed_over.join("; "),
        place.folder.display()
    );
    Ok(loaded)
}

/// Checks every file's size and hash.
fn verify(folder: &Path) -> anyhow::Result<Manifest> {
    let text = fs::read(folder.join(MANIFEST)).context("no manifest.json")?;
    let manifest: Manifest = serde_json::from_slice(&text).context("manifest.json")?;
    anyhow::ensure!(
        manifest.version == FORMAT_VERSION,
        "is of format {}, this build reads {FORMAT_VERSION}",
        manifest.version
    );
    let mut end = 0;
    for file in &manifest.files {
        let path = folder.join(&file.name);
        let bytes = fs::metadata(&path).with_context(|| format!("{} is missing", file.name))?.len();
        anyhow::ensure!(
            bytes == file.bytes,
            "{} has {bytes} bytes instead of {}",
            file.name,
            file.bytes
        );
        let hash = hash_file(&path)?.to_hex().to_string();
        anyhow::ensure!(hash == file.blake3, "{} is damaged: its hash differs", file.name);
        anyhow::ensure!(file.range.start == end, "{} leaves a gap", file.name);
        end = file.range.end;
    }
    Ok(manifest)
}

/// A checkpoint that is whole but belongs to another run is not passed over: something was mixed up.
fn fits(
    name: &str,
    manifest: &Manifest,
    place: &Place,
    layout: &Layout,
) -> Result<(), WorkerError> {
    let refuse = |what: String| Err(WorkerError::Checkpoint { name: name.to_owned(), what });
    if manifest.recipe_hash != place.recipe_hash {
        return refuse(format!(
            "was written by recipe {}, this run's is {}",
            manifest.recipe_hash, place.recipe_hash
        ));
    }
    if manifest.order_version != place.order_version {
        return refuse(format!(
            "was trained in data order {}, this build has order {}; resume with the build that wrote it",
            manifest.order_version, place.order_version
        ));
    }
    let expected = super::entries(layout);
    if let Some((found, wanted)) =
        manifest.parameters.iter().zip(&expected).find(|(found, wanted)| found != wanted)
    {
        return refuse(format!(
            "holds {} {:?} where this model has {} {:?}",
            found.name, found.shape, wanted.name, wanted.shape
        ));
    }
    let end = manifest.files.last().map_or(0, |file| file.range.end);
    if manifest.parameters.len() != expected.len() || end != layout.trainable_len {
        return refuse(format!(
            "holds {} parameters in {end} elements, this model has {} in {}",
            manifest.parameters.len(),
            expected.len(),
            layout.trainable_len
        ));
    }
    Ok(())
}

fn fill(folder: &Path, buffers: &mut Buffers<'_>) -> anyhow::Result<()> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(MANIFEST))?)?;
    for file in manifest.files {
        let bytes = fs::read(folder.join(&file.name))?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        for (name, target) in TENSORS.into_iter().zip(&mut buffers.0) {
            let (start, end) = (file.range.start, file.range.end);
            anyhow::ensure!(start <= end && end <= target.shape()[0], "range {start}..{end}");
            let target = target.view_mut().part(start, &[end - start]);
            let data = tensors.tensor(name)?;
            target.write_f32(|target| copy(data.data(), target))?;
        }
    }
    Ok(())
}

/// Fills `frozen` from its file beside the checkpoints, if the file has the hash that the manifest names; otherwise leaves it as it
/// is. Returns which, the same on every rank.
///
/// # Errors
/// When the file changes while it is read.
pub fn load_frozen(
    place: &Place,
    collectives: &Collectives,
    hash: &str,
    frozen: &mut Tensor,
) -> anyhow::Result<bool> {
    let path = place.folder.join(FROZEN);
    let good = || hash_file(&path).is_ok_and(|found| found.to_hex().as_str() == hash);
    let verdict = if collectives.rank() == 0 { vec![u8::from(good())] } else { vec![0] };
    if collectives.broadcast(verdict) != [1] {
        return Ok(false);
    }
    let bytes = fs::read(&path)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let target = frozen.view_mut().host_f32_mut("checkpoint", "frozen")?;
    copy(tensors.tensor("frozen")?.data(), target)?;
    Ok(true)
}

/// Copies little-endian f32 bytes, whatever their alignment in the file.
fn copy(bytes: &[u8], target: &mut [f32]) -> anyhow::Result<()> {
    let target: &mut [u8] = bytemuck::cast_slice_mut(target);
    anyhow::ensure!(bytes.len() == target.len(), "{} bytes for {}", bytes.len(), target.len());
    target.copy_from_slice(bytes);
    Ok(())
}
