//! The file with the index of a shard. It is little-endian and starts with a head of fixed size
//! (`Head`: the identity of the tar, the number of samples and of remarks, a hash of the rest). The
//! field names, the samples with the offsets and lengths of their members, the dropped samples and
//! the warnings follow.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Dropped, IndexedMember, IndexedSample, ShardIndex};

/// First bytes of an index file. The last one is the version of the format and of the rules by
/// which members become samples; index files of another version are made again.
const MAGIC: &[u8; 8] = b"VLJEPAI2";

/// Size of the encoded [`Head`] in bytes.
const HEAD_BYTES: usize = 8 + 8 + 8 + 8 + 32 + 8 + 8 + 8 + 32;

/// Number of bytes at each end of a tar that its fingerprint covers.
const FINGERPRINT_BYTES: u64 = 4096;

/// Number of samples according to the head of the index file `path`, if it belongs to `tar` and has
/// no remarks.
pub(super) fn known_length(tar: &File, path: &Path) -> Option<u64> {
    let wanted = TarIdentity::of(tar).ok()?;
    let file = File::open(path).ok()?;
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, 0).ok()?;
    let head = Head::parse(&head)?;
    let whole = u64::try_from(HEAD_BYTES).ok()? + head.payload_bytes;
    let fits = head.tar == wanted && head.remarks == 0 && file.metadata().ok()?.len() == whole;
    fits.then_some(head.samples)
}

/// Reads the index in the file `path` if it belongs to the tar `wanted`.
pub(super) fn read(path: &Path, wanted: &TarIdentity) -> Option<ShardIndex> {
    let bytes = fs::read(path).ok()?;
    let (head, payload) = bytes.split_at_checked(HEAD_BYTES)?;
    let head = Head::parse(head)?;
    let fits = head.tar == *wanted && *blake3::hash(payload).as_bytes() == head.payload_hash;
    fits.then(|| ShardIndex::parse(payload))?
}

/// Writes the index to a temporary file and renames that file, so that no other process sees an
/// incomplete index.
pub(super) fn write(path: &Path, index: &ShardIndex, tar: &TarIdentity) -> std::io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let payload = index.to_bytes();
    let head = Head {
        tar: tar.clone(),
        samples: to_u64(index.samples.len()),
        remarks: to_u64(index.dropped.len() + index.warnings.len()),
        payload_bytes: to_u64(payload.len()),
        payload_hash: *blake3::hash(&payload).as_bytes(),
    };
    let mut temporary = path.as_os_str().to_owned();
    let nth = WRITES.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{nth}", std::process::id()));
    let mut bytes = head.to_bytes();
    bytes.extend_from_slice(&payload);
    let written = fs::write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() && fs::remove_file(&temporary).is_err() {
        tracing::debug!(path = %path.display(), "no temporary index file to remove");
    }
    written
}

/// Properties of a tar that differ if the tar was changed or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TarIdentity {
    pub(super) bytes: u64,
    modified_s: i64,
    modified_ns: i64,
    fingerprint: [u8; 32],
}

impl TarIdentity {
    pub(super) fn of(tar: &File) -> std::io::Result<Self> {
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
    /// Number of dropped samples and warnings.
    remarks: u64,
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
        bytes.extend(self.remarks.to_le_bytes());
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
            remarks: bytes.u64()?,
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
        count(&mut bytes, self.warnings.len());
        self.warnings.iter().for_each(|warning| text(&mut bytes, warning));
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
        let warnings = bytes.list(Cursor::text)?;
        bytes.0.is_empty().then_some(Self { fields, samples, dropped, warnings })
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
