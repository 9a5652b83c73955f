//! Files of a catalogue. `head` has a record for each shard; it is read as a whole and replaced
//! atomically. The tables of the shards are in the files `tables-<id>`: each process that updates
//! the catalogue appends to a file of its own. So several processes may update a catalogue at once,
//! without locks: the worst that can happen is that a record is lost and made again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::shard_index::ShardIndex;
use crate::storage::{StoredFile, Version};

/// First bytes of `head`. The last one is the version of the format, and of the rules by which
/// members become samples. Catalogues of another version are made again.
const MAGIC: &[u8; 8] = b"VLJEPAC1";

const HEAD: &str = "head";
const TABLES: &str = "tables-";

/// Number of bytes at each end of a tar that its fingerprint covers.
const FINGERPRINT_BYTES: u64 = 4096;

/// Age at which a file of tables that no record refers to is deleted. Younger ones may belong to a
/// process that has not written its records yet.
const UNUSED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// First half of a BLAKE3 hash.
type Hash = [u8; 16];

fn hash(bytes: &[u8]) -> Hash {
    shortened(blake3::hash(bytes))
}

fn shortened(hash: blake3::Hash) -> Hash {
    std::array::from_fn(|index| hash.as_bytes()[index])
}

/// What the catalogue says about one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the tar that the record was made from.
    pub version: Version,
    /// Hash of the first and the last bytes of a local tar. `None` for a remote one, whose version
    /// the server ensures.
    fingerprint: Option<Hash>,
    /// Number of samples.
    pub samples: u64,
    /// Number of dropped samples and warnings.
    pub remarks: u64,
    /// Location of the table, or `None` if it could not be written.
    table: Option<Table>,
}

/// Location of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    /// Number in the name of the file.
    file: u64,
    offset: u64,
    bytes: u64,
    hash: Hash,
}

impl Record {
    /// Record of the open file `tar`, whose index is `index`. Its table has not been written.
    pub(super) fn new(tar: &StoredFile, index: &ShardIndex) -> io::Result<Self> {
        Ok(Self {
            version: tar.version().clone(),
            fingerprint: fingerprint(tar)?,
            samples: to_u64(index.samples.len()),
            remarks: to_u64(index.dropped.len() + index.warnings.len()),
            table: None,
        })
    }

    /// Hash of the first and the last bytes of a local tar, or `None` for a remote one.
    pub(super) fn fingerprint(&self) -> Option<&Hash> {
        self.fingerprint.as_ref()
    }

    /// Whether the record was made from the open file `tar`, whose version is that of the record.
    pub(super) fn is_of(&self, tar: &StoredFile) -> io::Result<bool> {
        Ok(fingerprint(tar)? == self.fingerprint)
    }

    /// Reads the table from the catalogue in `folder`. `None` if it was not written, or cannot be
    /// read.
    pub(super) fn read_table(&self, folder: &Path) -> Option<ShardIndex> {
        let table = self.table?;
        let file = File::open(table_path(folder, table.file)).ok()?;
        let end = table.offset.checked_add(table.bytes)?;
        (end <= file.metadata().ok()?.len()).then_some(())?;
        let mut bytes = vec![0; usize::try_from(table.bytes).ok()?];
        file.read_exact_at(&mut bytes, table.offset).ok()?;
        (hash(&bytes) == table.hash).then_some(())?;
        let index: ShardIndex = postcard::from_bytes(&bytes).ok()?;
        index.is_consistent().then_some(index)
    }
}

fn fingerprint(tar: &StoredFile) -> io::Result<Option<Hash>> {
    if let Version::Remote { .. } = tar.version() {
        return Ok(None);
    }
    let ends = FINGERPRINT_BYTES.min(tar.length());
    let mut buffer = vec![0; usize::try_from(ends).unwrap_or(0)];
    let mut hasher = blake3::Hasher::new();
    for start in [0, tar.length() - ends] {
        tar.read_exact_at(&mut buffer, start)?;
        hasher.update(&buffer);
    }
    Ok(Some(shortened(hasher.finalize())))
}

/// Records by the name of the shard.
pub(super) type Records = BTreeMap<Box<str>, Record>;

/// Reads the records of the catalogue in `folder`. Empty if it was not written, or if
/// `head` is damaged.
pub(super) fn read_head(folder: &Path) -> Records {
    let path = folder.join(HEAD);
    let Ok(bytes) = fs::read(&path) else { return Records::new() };
    let parse = || {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (expected, rest) = rest.split_first_chunk::<16>()?;
        (magic == MAGIC && hash(rest) == *expected).then_some(())?;
        postcard::from_bytes(rest).ok()
    };
    parse().unwrap_or_else(|| {
        tracing::warn!("{} is damaged or of another version; it is made again", path.display());
        Records::new()
    })
}

/// Writes tables and records to the catalogue in a folder.
#[derive(Debug)]
pub(super) struct Writer {
    folder: PathBuf,
    id: u64,
    tables: Option<File>,
    offset: u64,
}

impl Writer {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), id: rand::random(), tables: None, offset: 0 }
    }

    /// Appends the table of a shard, and enters its location into the record.
    pub(super) fn append(&mut self, index: &ShardIndex, record: &mut Record) -> io::Result<()> {
        let bytes = postcard::to_stdvec(index).map_err(io::Error::other)?;
        let file = match &mut self.tables {
            Some(file) => file,
            unopened => {
                fs::create_dir_all(&self.folder)?;
                let path = table_path(&self.folder, self.id);
                unopened.insert(File::create_new(path)?)
            }
        };
        // A failed write may have left bytes behind, so the offset is not that of the file's end.
        file.write_all_at(&bytes, self.offset)?;
        record.table = Some(Table {
            file: self.id,
            offset: self.offset,
            bytes: to_u64(bytes.len()),
            hash: hash(&bytes),
        });
        self.offset += to_u64(bytes.len());
        Ok(())
    }

    /// Enters `changed` into the head.
    pub(super) fn publish<'a>(
        &mut self,
        changed: impl Iterator<Item = (&'a str, &'a Record)>,
    ) -> io::Result<()> {
        if let Some(tables) = &self.tables {
            tables.sync_data()?;
        }
        let mut records = read_head(&self.folder);
        records.extend(changed.map(|(name, record)| (name.into(), record.clone())));
        let payload = postcard::to_stdvec(&records).map_err(io::Error::other)?;
        let temporary = self.folder.join(format!("{HEAD}-{:016x}", self.id));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(MAGIC)?;
            file.write_all(&hash(&payload))?;
            file.write_all(&payload)?;
            file.sync_all()?;
            fs::rename(&temporary, self.folder.join(HEAD))
        };
        let written = write();
        if written.is_err() && fs::remove_file(&temporary).is_err() {
            tracing::debug!("there is no {} to delete", temporary.display());
        }
        written
    }

    /// Deletes files of the folder that no record refers to and that no running process is likely
    /// to write.
    pub(super) fn delete_unused(&self) -> io::Result<()> {
        let used: BTreeSet<String> = read_head(&self.folder)
            .values()
            .filter_map(|record| record.table)
            .map(|table| table_name(table.file))
            .collect();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = name.starts_with(TABLES) || name.starts_with(&format!("{HEAD}-"));
            let now = SystemTime::from(vljepa_recipes::clock::now());
            let age = now.duration_since(entry.metadata()?.modified()?);
            if is_ours && !used.contains(&name) && age.is_ok_and(|age| age > UNUSED_AFTER) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn table_name(file: u64) -> String {
    format!("{TABLES}{file:016x}")
}

fn table_path(folder: &Path, file: u64) -> PathBuf {
    folder.join(table_name(file))
}

/// Lossless: `usize` has at most 64 bits on every machine Rust supports.
fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}
