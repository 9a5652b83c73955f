//! Index of a shard: the offset and length of every member of every sample. It is made once by
//! reading the tar's headers, and stored next to the tar as `<shard>.index`.
//!
//! An index file is little-endian. It starts with a head of fixed size (`Head`: the identity of the
//! tar, the number of samples, a hash of the rest). The field names, the samples with the offsets
//! and lengths of their members, and the dropped samples follow. The index is made again if the
//! size, the modification time, or the first or last bytes of the tar differ. If it cannot be
//! written, it is kept in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::DataError;
use crate::tar::{End, Member, key_and_field, read_members};

const MAGIC: &[u8; 8] = b"VLJEPAI1";
/// Size of the encoded [`Head`] in bytes.
const HEAD_BYTES: usize = 8 + 8 + 8 + 8 + 32 + 8 + 8 + 32;

/// Number of bytes at each end of a tar that its fingerprint covers.
const FINGERPRINT_BYTES: u64 = 4096;

/// Location of the samples in one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardIndex {
    /// Names of the fields that occur in the shard (`jpg`, `txt`, `0.png`).
    pub fields: Vec<String>,
    /// Samples, in the order of their first members.
    pub samples: Vec<IndexedSample>,
    /// Samples that were left out, with the reason.
    pub dropped: Vec<Dropped>,
}

/// Sample of a shard, with the location of its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedSample {
    /// Key of the sample, unique in the shard.
    pub key: Box<str>,
    /// Members of the sample, in the order of the tar.
    pub members: Box<[IndexedMember]>,
}

/// Location of one file of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedMember {
    /// Index of the field name in [`ShardIndex::fields`].
    pub field: u16,
    /// Offset of the file's first byte in the tar.
    pub offset: u64,
    /// Length of the file in bytes.
    pub length: u64,
}

/// Sample that the index leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Key of the dropped sample.
    pub key: String,
    /// Why the sample was dropped.
    pub reason: String,
}

/// Index of a shard, and how it was obtained.
#[derive(Debug)]
pub struct Loaded {
    /// Samples of the shard.
    pub index: ShardIndex,
    /// Whether an index file exists. False if the file cannot be written.
    pub on_disk: bool,
    /// Whether the index was made by this call, rather than read from a file.
    pub made: bool,
}

/// Path of the file that holds the index of `shard`.
#[must_use]
pub fn index_path(shard: &Path) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(".index");
    PathBuf::from(name)
}

/// Number of samples in a shard according to its index file, or `None` if there is no index file
/// that is up to date.
#[must_use]
pub fn known_length(shard: &Path) -> Option<u64> {
    let tar = File::open(shard).ok()?;
    let wanted = TarIdentity::of(&tar).ok()?;
    let file = File::open(index_path(shard)).ok()?;
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, 0).ok()?;
    let head = Head::parse(&head)?;
    let whole = u64::try_from(HEAD_BYTES).ok()? + head.payload_bytes;
    (head.tar == wanted && file.metadata().ok()?.len() == whole).then_some(head.samples)
}

/// Reads the index of a shard if the index file is up to date. Otherwise makes the index and, if
/// possible, writes it.
///
/// # Errors
/// [`DataError::Io`] if the shard cannot be read, [`DataError::NotATar`] if it is not a tar
/// archive.
pub fn load_or_make(shard: &Path) -> Result<Loaded, DataError> {
    let tar = File::open(shard).map_err(DataError::io("open", shard))?;
    let identity = TarIdentity::of(&tar).map_err(DataError::io("read", shard))?;
    if let Some(index) = read_index(&index_path(shard), &identity) {
        return Ok(Loaded { index, on_disk: true, made: false });
    }
    let index = make(shard, tar, identity.bytes)?;
    let on_disk = write_index(shard, &index, &identity).is_ok();
    Ok(Loaded { index, on_disk, made: true })
}

fn read_index(path: &Path, wanted: &TarIdentity) -> Option<ShardIndex> {
    let bytes = fs::read(path).ok()?;
    let (head, payload) = bytes.split_at_checked(HEAD_BYTES)?;
    let head = Head::parse(head)?;
    let fits = head.tar == *wanted && *blake3::hash(payload).as_bytes() == head.payload_hash;
    fits.then(|| ShardIndex::parse(payload))?
}

/// Writes the index to a temporary file and renames that file, so that no other process sees an
/// incomplete index.
fn write_index(shard: &Path, index: &ShardIndex, tar: &TarIdentity) -> std::io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let payload = index.to_bytes();
    let head = Head {
        tar: tar.clone(),
        samples: to_u64(index.samples.len()),
        payload_bytes: to_u64(payload.len()),
        payload_hash: *blake3::hash(&payload).as_bytes(),
    };
    let path = index_path(shard);
    let mut temporary = path.clone().into_os_string();
    let nth = WRITES.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{nth}", std::process::id()));
    let mut bytes = head.to_bytes();
    bytes.extend_from_slice(&payload);
    let written = fs::write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() && fs::remove_file(&temporary).is_err() {
        tracing::debug!(path = %path.display(), "no temporary index file to remove");
    }
    written
}

fn make(shard: &Path, tar: File, length: u64) -> Result<ShardIndex, DataError> {
    let mut start = [0; 2];
    if length >= 2 && tar.read_exact_at(&mut start, 0).is_ok() && start == [0x1f, 0x8b] {
        let reason = "the file is gzip-compressed, so its members cannot be indexed; \
                      decompress it first (gunzip)";
        return Err(DataError::NotATar { path: shard.to_owned(), reason: reason.to_owned() });
    }
    let (members, end) = read_members(tar, length).map_err(DataError::io("read", shard))?;
    if end == (End::Damaged { at: 0 }) {
        let reason = "the first 512 bytes are not a tar header".to_owned();
        return Err(DataError::NotATar { path: shard.to_owned(), reason });
    }
    Ok(group(&members, &end))
}

/// Groups members into samples by key. All members with the same key belong to one sample, even if
/// other keys lie between them; otherwise, interleaved keys would silently give incomplete samples.
/// A sample with two members of the same field is ambiguous and is dropped. If the shard is cut
/// short, its last sample may lack members and is dropped.
#[must_use]
pub fn group(members: &[Member], end: &End) -> ShardIndex {
    let mut index = ShardIndex::default();
    let mut fields: BTreeMap<String, u16> = BTreeMap::new();
    let mut index_of_key: BTreeMap<&str, usize> = BTreeMap::new();
    let mut samples: Vec<(&str, Vec<IndexedMember>)> = Vec::new();
    let mut dropped: BTreeMap<&str, String> = BTreeMap::new();
    for member in members {
        let Some((key, field)) = key_and_field(&member.name) else { continue };
        let next = u16::try_from(fields.len()).unwrap_or(u16::MAX);
        let field = match fields.entry(field) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) if next < u16::MAX => {
                index.fields.push(new.key().clone());
                *new.insert(next)
            }
            Entry::Vacant(_) => {
                dropped.insert(key, "the shard has more than 65,534 field names".to_owned());
                continue;
            }
        };
        let nth = *index_of_key.entry(key).or_insert_with(|| {
            samples.push((key, Vec::new()));
            samples.len() - 1
        });
        let known = &mut samples[nth].1;
        if known.iter().any(|other| other.field == field) {
            let name = &index.fields[usize::from(field)];
            dropped.insert(key, format!("the shard holds two `{name}` members of this sample"));
        }
        known.push(IndexedMember { field, offset: member.offset, length: member.length });
    }
    let cut = match end {
        End::Complete => None,
        End::CutShort { at, member } => Some((member.as_deref(), "is cut short", at)),
        End::Damaged { at } => Some((None, "is damaged", at)),
    };
    if let Some((member, state, at)) = cut {
        let last = member.or(members.last().map(|member| member.name.as_str()));
        if let Some((key, _)) = last.and_then(key_and_field) {
            dropped.insert(
                key,
                format!("the shard {state} at byte {at}; this sample may lack members"),
            );
        }
    }
    index.samples = samples
        .into_iter()
        .filter(|(key, _)| !dropped.contains_key(key))
        .map(|(key, members)| IndexedSample { key: key.into(), members: members.into() })
        .collect();
    index.dropped =
        dropped.into_iter().map(|(key, reason)| Dropped { key: key.to_owned(), reason }).collect();
    index
}

/// Properties of a tar that differ if the tar was changed or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TarIdentity {
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
    fingerprint: [u8; 32],
}

impl TarIdentity {
    fn of(tar: &File) -> std::io::Result<Self> {
        let metadata: Metadata = tar.metadata()?;
        let bytes = metadata.len();
        let ends = FINGERPRINT_BYTES.min(bytes);
        let mut buffer = vec![0; usize::try_from(ends).unwrap_or(0)];
        let mut hasher = blake3::Hasher::new();
        for start in [0, bytes - ends] {
            tar.read_exact_at(&mut buffer, start)?;
            hasher.update(&buffer);
        }
        Ok(Self {
            bytes,
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
            fingerprint: *hasher.finalize().as_bytes(),
        })
    }
}

/// Fixed part of an index file.
#[derive(Debug)]
struct Head {
    tar: TarIdentity,
    samples: u64,
    payload_bytes: u64,
    payload_hash: [u8; 32],
}

impl Head {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.tar.bytes.to_le_bytes());
        bytes.extend(self.tar.modified_s.to_le_bytes());
        bytes.extend(self.tar.modified_ns.to_le_bytes());
        bytes.extend(self.tar.fingerprint);
        bytes.extend(self.samples.to_le_bytes());
        bytes.extend(self.payload_bytes.to_le_bytes());
        bytes.extend(self.payload_hash);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Cursor(bytes);
        if bytes.array::<8>()? != *MAGIC {
            return None;
        }
        Some(Self {
            tar: TarIdentity {
                bytes: bytes.u64()?,
                modified_s: i64::from_le_bytes(bytes.array()?),
                modified_ns: i64::from_le_bytes(bytes.array()?),
                fingerprint: bytes.array()?,
            },
            samples: bytes.u64()?,
            payload_bytes: bytes.u64()?,
            payload_hash: bytes.array()?,
        })
    }
}

impl ShardIndex {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let count = |bytes: &mut Vec<u8>, n: usize| bytes.extend(to_u64(n).to_le_bytes());
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend(to_u64(text.len()).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        count(&mut bytes, self.fields.len());
        self.fields.iter().for_each(|field| text(&mut bytes, field));
        count(&mut bytes, self.samples.len());
        for sample in &self.samples {
            text(&mut bytes, &sample.key);
            count(&mut bytes, sample.members.len());
            for member in &sample.members {
                bytes.extend(member.field.to_le_bytes());
                bytes.extend(member.offset.to_le_bytes());
                bytes.extend(member.length.to_le_bytes());
            }
        }
        count(&mut bytes, self.dropped.len());
        for dropped in &self.dropped {
            text(&mut bytes, &dropped.key);
            text(&mut bytes, &dropped.reason);
        }
        bytes
    }

    /// Decodes an index, or returns `None` if the bytes have another form. Their hash matches, so
    /// another program must have written such a file.
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut bytes = Cursor(payload);
        let fields = bytes.list(Cursor::text)?;
        let samples = bytes.list(|bytes| {
            let key = bytes.text()?.into();
            let members = bytes.list(|bytes| {
                let field = u16::from_le_bytes(bytes.array()?);
                (usize::from(field) < fields.len()).then_some(())?;
                Some(IndexedMember { field, offset: bytes.u64()?, length: bytes.u64()? })
            })?;
            Some(IndexedSample { key, members: members.into() })
        })?;
        let dropped =
            bytes.list(|bytes| Some(Dropped { key: bytes.text()?, reason: bytes.text()? }))?;
        bytes.0.is_empty().then_some(Self { fields, samples, dropped })
    }
}

/// Reads numbers and texts from the front of a slice.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u64()?).ok()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.u64()?).map(|_| item(self)).collect()
    }
}

/// Lossless: `usize` has at most 64 bits on every machine Rust supports.
fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
