//! Catalogue of a set of shards: for each shard the number of samples, the identity of the tar, and
//! the location of its table, which lists the samples with the offsets of their files.
//!
//! A run reads the catalogue once, on rank 0, and sends it to all ranks ([`Catalogues`]); a table
//! is read when its shard is opened. So no rank opens a tar before it reads samples from it.
//! [`update`] makes the entries that are missing, or whose tar has changed, from the headers of the
//! tar.

mod expanded;
mod file;
mod stage;
mod update;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::expanded::Expanded;
pub use self::file::Record;
pub use self::stage::Catalogues;
pub use self::update::{Unlisted, Updated, update};
use crate::error::DataError;
use crate::shard_index::ShardIndex;
use crate::storage::{Location, Storage, StoredFile};

/// Name of the folder beside the shards that holds their catalogue, unless the recipe names another
/// (`data.sources.<name>.catalogue`).
pub const FOLDER: &str = "vljepa-catalogue";

/// Folder of a catalogue, and how shards are named in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueFolder {
    /// Path of the folder.
    pub path: PathBuf,
    /// Folder that the names of the shards are relative to, so that a set can be moved with its
    /// catalogue. `None` if shards are named by their whole path.
    base: Option<PathBuf>,
}

impl CatalogueFolder {
    /// Folder of the catalogue of `set`: `chosen`, or [`FOLDER`] beside the shards.
    ///
    /// # Errors
    /// [`DataError::BadLocation`] if the shards are remote and no folder is chosen.
    pub fn of(set: &Expanded, chosen: Option<&Path>) -> Result<Self, DataError> {
        match (chosen, &set.base) {
            (Some(path), _) => Ok(Self { path: path.to_owned(), base: None }),
            (None, Some(base)) => Ok(Self { path: base.join(FOLDER), base: Some(base.clone()) }),
            (None, None) => Err(DataError::BadLocation {
                location: set.entry.clone(),
                reason: "the catalogue of remote shards needs a folder on a disk that all nodes \
                         share; name it with the key `catalogue` beside `shards` (for \
                         `vljepa-shards`: --catalogue FOLDER)"
                    .to_owned(),
            }),
        }
    }

    /// Opens the shard at `path` and reads its table. If the table cannot be read, it is made again
    /// from the tar.
    ///
    /// # Errors
    /// [`DataError::Io`] if the shard cannot be read, or if it has changed since `record` was made.
    pub fn open_shard(
        &self,
        storage: &Storage,
        path: &str,
        record: &Record,
    ) -> Result<(StoredFile, ShardIndex), DataError> {
        let tar = storage.open_known(&parse(path)?, &record.version)?;
        let changed = || {
            let reason = "the shard has changed since its catalogue was read; start again, and the \
                          catalogue follows";
            DataError::io("read", path)(std::io::Error::other(reason))
        };
        if !record.is_of(&tar).map_err(DataError::io("read", path))? {
            return Err(changed());
        }
        let index = match record.read_table(&self.path) {
            Some(index) => index,
            None => ShardIndex::of(&tar)?,
        };
        if u64::try_from(index.samples.len()) != Ok(record.samples) {
            return Err(changed());
        }
        Ok((tar, index))
    }

    /// Name of a shard in the catalogue.
    fn name<'a>(&self, shard: &'a str) -> &'a str {
        let path = Path::new(shard);
        let relative = self.base.as_ref().and_then(|base| path.strip_prefix(base).ok());
        relative.and_then(Path::to_str).unwrap_or(shard)
    }
}

/// Identity of a set of samples, as two hexadecimal BLAKE3 hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetIdentity {
    /// Hash of names, sizes, ends and numbers of samples of the shards: a copy of the set has the
    /// same.
    pub content: String,
    /// Hash that also covers the paths and the versions of the shards: it differs as soon as a
    /// shard is written again.
    pub version: String,
}

/// Shards of one `shards` entry in their order, with what the catalogue says about each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    folder: CatalogueFolder,
    shards: Vec<(Box<str>, Record)>,
}

impl Catalogue {
    /// Finds the shards of an entry, and updates their catalogue. Logs what is not used of them.
    ///
    /// # Errors
    /// The errors of [`Expanded::of`] and [`CatalogueFolder::of`], [`DataError::BadShard`] or
    /// [`DataError::BadShards`] if shards cannot be used, and [`DataError::NoSamples`] if they hold
    /// no complete sample.
    pub fn open(storage: &Storage, entry: &str, chosen: Option<&Path>) -> Result<Self, DataError> {
        let set = Expanded::of(storage, entry)?;
        let shard_count = set.shards.len();
        let folder = CatalogueFolder::of(&set, chosen)?;
        let updated = update(storage, &set.shards, &folder, Unlisted::Believe, &|done| {
            tracing::info!("read {done} of the {shard_count} shards of {entry} for the catalogue");
        });
        if let Some(error) = &updated.unwritten {
            tracing::warn!(
                "the catalogue of {entry} cannot be written, so that every start reads all shards; \
                 name another folder for it with the key `catalogue` beside `shards`: {error}"
            );
        }
        let mut errors = updated.errors;
        match errors.len() {
            0 => {}
            1 => return Err(errors.remove(0)),
            _ => {
                let shards = entry.to_owned();
                return Err(DataError::BadShards { shards, shard_count, errors });
            }
        }
        let catalogue = Self { folder, shards: updated.shards };
        if catalogue.lengths().all(|length| length == 0) {
            return Err(DataError::NoSamples { shards: entry.to_owned(), shard_count });
        }
        for number in (0..catalogue.len()).filter(|&number| catalogue.record(number).remarks > 0) {
            catalogue.log_remarks(storage, number)?;
        }
        Ok(catalogue)
    }

    /// Number of shards that the entry names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether there are no shards. Always false, because [`Self::open`] rejects such a set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// Number of samples in each shard.
    pub fn lengths(&self) -> impl Iterator<Item = u64> {
        self.shards.iter().map(|(_, record)| record.samples)
    }

    /// Hash of the numbers of samples. The order of the samples of a stage depends on them, and on
    /// nothing else of the shards.
    #[must_use]
    pub fn lengths_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for length in self.lengths() {
            hasher.update(&length.to_le_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// Identity of the samples, from the names of the shards' files, their records and their order.
    #[must_use]
    pub fn identity(&self) -> SetIdentity {
        let (mut content, mut version) = (blake3::Hasher::new(), blake3::Hasher::new());
        for (path, record) in &self.shards {
            let name = path.rsplit('/').next().unwrap_or_default();
            let of_content = (name, record.version.length(), record.fingerprint(), record.samples);
            // Neither can fail: the values are plain, and the buffer grows.
            content.update(&postcard::to_stdvec(&of_content).unwrap_or_default());
            version.update(&postcard::to_stdvec(&(path, &record.version)).unwrap_or_default());
        }
        let content = content.finalize();
        version.update(content.as_bytes());
        let version = version.finalize();
        SetIdentity { content: content.to_string(), version: version.to_string() }
    }

    /// Path of shard number `shard`.
    #[must_use]
    pub fn path(&self, shard: usize) -> &str {
        &self.shards[shard].0
    }

    /// What the catalogue says about shard number `shard`.
    #[must_use]
    pub fn record(&self, shard: usize) -> &Record {
        &self.shards[shard].1
    }

    /// Opens shard number `shard` and reads its table, see [`CatalogueFolder::open_shard`].
    ///
    /// # Errors
    /// The errors of [`CatalogueFolder::open_shard`].
    pub fn open_shard(
        &self,
        storage: &Storage,
        shard: usize,
    ) -> Result<(StoredFile, ShardIndex), DataError> {
        self.folder.open_shard(storage, self.path(shard), self.record(shard))
    }

    fn log_remarks(&self, storage: &Storage, shard: usize) -> Result<(), DataError> {
        let (_, index) = self.open_shard(storage, shard)?;
        let path = self.path(shard);
        for warning in &index.warnings {
            tracing::warn!(shard = path, "{warning}");
        }
        for dropped in &index.dropped {
            let (sample, reason) = (&dropped.key, &dropped.reason);
            tracing::warn!(shard = path, sample, reason, "sample dropped");
        }
        Ok(())
    }
}

/// Location of a shard in a catalogue.
fn parse(path: &str) -> Result<Location, DataError> {
    Location::parse(path)
        .map_err(|reason| DataError::BadLocation { location: path.to_owned(), reason })
}

#[cfg(test)]
mod tests;
