//! Manifest of a set: its seed, scale and design, and the hash of every file. It is written last,
//! so a set with a manifest is complete.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::design::Design;

/// File name of the manifest in the set's folder.
pub(super) const FILE_NAME: &str = "manifest.json";

/// Contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) seed: u64,
    /// Number of training samples per thousand of the design's number.
    pub(super) scale_permille: u32,
    pub(super) design: Design,
    pub(super) shards: Vec<ShardEntry>,
    pub(super) files: Vec<FileEntry>,
}

/// Tar of the set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardEntry {
    pub(super) samples: usize,
    /// BLAKE3 hash of the drawn pixels of all samples in order, the same on every machine. The hash
    /// of the file may differ between versions of the encoders.
    pub(super) pixels: String,
    #[serde(flatten)]
    pub(super) file: FileEntry,
}

/// File of the set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    /// Path relative to the manifest's folder.
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) blake3: String,
}

impl FileEntry {
    pub(super) fn new(path: &str, content: &[u8]) -> Self {
        Self {
            path: path.to_owned(),
            bytes: content.len() as u64,
            blake3: blake3::hash(content).to_hex().to_string(),
        }
    }

    fn is_unchanged(&self, folder: &Path) -> bool {
        fs::read(folder.join(&self.path))
            .is_ok_and(|content| Self::new(&self.path, &content) == *self)
    }
}

impl Manifest {
    /// Reads the folder's manifest. Returns `None` unless its seed, scale and design are the given
    /// ones and every file has the recorded hash.
    pub(super) fn up_to_date(
        folder: &Path,
        seed: u64,
        scale_permille: u32,
        design: &Design,
    ) -> Option<Self> {
        let manifest: Self =
            serde_json::from_slice(&fs::read(folder.join(FILE_NAME)).ok()?).ok()?;
        let same = manifest.seed == seed
            && manifest.scale_permille == scale_permille
            && manifest.design == *design;
        let files = || manifest.shards.iter().map(|shard| &shard.file).chain(&manifest.files);
        (same && files().all(|file| file.is_unchanged(folder))).then_some(manifest)
    }
}
