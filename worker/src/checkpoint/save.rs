//! Saving a checkpoint while training waits. All ranks agree on the result through collectives.
//! Used by ranks without a supervisor that could collect the parts.

use std::fs;
use std::path::Path;
use std::time::Instant;

use vljepa_kernels::Tensor;
use vljepa_recipes::protocol::{FileEntry, Part};

use super::part::{write_part, write_tensors};
use super::publish::{Draft, sync_folder};
use super::{Buffers, CheckpointFolder, Contents, FROZEN, FROZEN_TENSOR, Retention};
use crate::collectives::Collectives;

/// A checkpoint that is complete and durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Folder name of the checkpoint.
    pub name: String,
    /// Seconds for which training waited for this save.
    pub stall_s: f64,
    /// Seconds from the end of the step until the checkpoint was durable.
    pub durable_s: f64,
}

/// Saves `buffers` and `contents`: every rank writes its slice, and rank 0 publishes the checkpoint
/// when all parts are durable. Then deletes the checkpoints that `retention` does not keep. Every
/// rank must call this function at the same step.
///
/// # Errors
/// Fails on every rank, with the same text, if a rank could not write its part or publishing failed
/// (for example on a full disk). All files of this checkpoint are deleted and older checkpoints
/// stay untouched, so the caller may continue and try again later.
pub fn save(
    checkpoints: &CheckpointFolder,
    collectives: &Collectives,
    contents: Contents<'_>,
    buffers: &Buffers<'_>,
    retention: &Retention,
) -> anyhow::Result<Saved> {
    let started = Instant::now();
    let rank = collectives.rank();
    let draft = Draft::new(checkpoints, contents, collectives.world_size(), retention);
    let written = || -> anyhow::Result<FileEntry> {
        draft.make_folder()?;
        let range = buffers.part_of(collectives.rank_id());
        let values = buffers.slices(range.clone()).map(|view| view.to_f32());
        let [weights, first, second] = values;
        let (weights, first, second) = (weights?, first?, second?);
        let file = write_part(&draft.temporary, rank, range, [&weights, &first, &second])?;
        checkpoints.drills.at_write(contents.state.step)?;
        Ok(file)
    };
    let part = match written() {
        Ok(file) => Part::Written { file },
        Err(error) => Part::Failed { error: format!("rank {rank}: {error:#}") },
    };
    let parts = collectives.all_gather_bytes(&serde_json::to_vec(&part)?);
    let published = if rank == 0 { publish(&draft, &parts) } else { Ok(()) };
    agree(collectives, published).map_err(|error| error.context(write_failed(&draft.name)))?;
    let stall_s = started.elapsed().as_secs_f64();
    Ok(Saved { name: draft.name, stall_s, durable_s: stall_s })
}

fn publish(draft: &Draft, parts: &[Vec<u8>]) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for part in parts {
        match serde_json::from_slice(part)? {
            Part::Written { file } => files.push(file),
            Part::Failed { error } => {
                draft.discard();
                anyhow::bail!(error);
            }
        }
    }
    draft.publish(files)
}

/// Returns rank 0's result on every rank.
fn agree(collectives: &Collectives, result: anyhow::Result<()>) -> anyhow::Result<()> {
    let text = result.err().map(|error| format!("{error:#}")).unwrap_or_default();
    let text = String::from_utf8(collectives.broadcast(text.into_bytes()))?;
    if text.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(text)) }
}

pub(super) fn write_failed(name: &str) -> String {
    format!("checkpoint {name} could not be written")
}

/// Writes the parameters that are never trained, once for all checkpoints of a run, and returns the
/// BLAKE3 hash of the file.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn save_frozen(folder: &Path, frozen: &Tensor) -> anyhow::Result<String> {
    let path = folder.join(FROZEN);
    let temporary = folder.join(format!(".{FROZEN}.writing"));
    let values = frozen.view().host_f32("save_frozen", "frozen")?;
    let (_, hash) = write_tensors(&temporary, &[(FROZEN_TENSOR, values)])?;
    fs::rename(&temporary, &path)?;
    sync_folder(folder)?;
    Ok(hash.to_hex().to_string())
}
