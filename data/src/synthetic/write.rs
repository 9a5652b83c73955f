//! Writes samples to tar shards, and files to disk.

use std::fs;
use std::path::Path;

use rayon::prelude::*;

use super::manifest::{FileEntry, ShardEntry};
use super::sample::{Sample, Split, sample};
use crate::error::DataError;

/// Writes a file atomically: first to a temporary file in the same folder, which is then renamed.
pub(super) fn file(folder: &Path, path: &str, content: &[u8]) -> Result<FileEntry, DataError> {
    let target = folder.join(path);
    let parent = target.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(DataError::io("create folder", parent))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}", std::process::id()));
    fs::write(&temporary, content).map_err(DataError::io("write", &temporary))?;
    fs::rename(&temporary, &target).map_err(DataError::io("write", &target))?;
    Ok(FileEntry::new(path, content))
}

/// Writes the samples `range` of a split to the tar `path`. Samples are drawn and encoded on all
/// threads, and written in order.
pub(super) fn shard(
    folder: &Path,
    path: &str,
    seed: u64,
    split: Split,
    range: std::ops::Range<usize>,
) -> Result<ShardEntry, DataError> {
    let samples: Vec<(Sample, &'static str, Vec<u8>)> = range
        .into_par_iter()
        .map(|index| {
            let sample = sample(seed, split, index);
            let (extension, bytes) = sample.encode()?;
            Ok((sample, extension, bytes))
        })
        .collect::<Result<_, DataError>>()?;
    let mut pixels = blake3::Hasher::new();
    let mut archive = tar::Builder::new(Vec::new());
    for (sample, extension, bytes) in &samples {
        pixels.update(&sample.pixels);
        let json = serde_json::to_vec(&sample.description)
            .map_err(|error| DataError::Synthetic(error.to_string()))?;
        let caption =
            sample.description.caption.as_ref().map(|caption| ("txt", caption.as_bytes()));
        for (extension, content) in [(*extension, bytes.as_slice())]
            .into_iter()
            .chain(caption)
            .chain([("json", json.as_slice())])
        {
            append(&mut archive, &format!("{}.{extension}", sample.key), content)
                .map_err(DataError::io("write", folder.join(path)))?;
        }
    }
    let content = archive.into_inner().map_err(DataError::io("write", folder.join(path)))?;
    let file = file(folder, path, &content)?;
    Ok(ShardEntry { samples: samples.len(), pixels: pixels.finalize().to_hex().to_string(), file })
}

/// Appends a member whose header does not depend on the machine or the time.
pub(super) fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    name: &str,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content)
}

/// Removes shards of an earlier, larger set, from number `count`. A `shards` entry that names the
/// folder would otherwise include them.
pub(super) fn remove_stale(
    folder: &Path,
    path: impl Fn(usize) -> String,
    count: usize,
) -> Result<(), DataError> {
    for index in count.. {
        let shard = folder.join(path(index));
        if !shard.exists() {
            break;
        }
        fs::remove_file(&shard).map_err(DataError::io("remove", &shard))?;
    }
    Ok(())
}
