//! Reads tar headers and applies WebDataset's rules to the member names.
//!
//! Only headers are read. The result says where the bytes of each file are. A shard that was cut
//! short is read up to the cut, and the cut is reported.

use std::io::{self, BufRead, BufReader, Read, Seek};

use tar::{EntryType, Header};

/// Size of a tar block in bytes. Headers and padded contents are multiples of it.
const BLOCK: u64 = 512;

/// Largest extension header (GNU long name or pax attributes) that is read, in bytes. Real ones
/// have a few hundred bytes.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Regular file in a tar archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path of the file in the archive.
    pub name: String,
    /// Offset of the file's first byte in the archive.
    pub offset: u64,
    /// Length of the file in bytes.
    pub length: u64,
}

/// How an archive ends: complete, cut short or damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The archive ends with an end marker.
    Complete,
    /// The archive ends without an end marker.
    CutShort {
        /// Length of the archive in bytes.
        at: u64,
        /// Path of the file whose bytes are incomplete, if the cut is inside a file.
        member: Option<String>,
    },
    /// The archive contains an invalid header.
    Damaged {
        /// Offset of the invalid header.
        at: u64,
    },
}

/// Regular files of an archive of `length` bytes, and how the archive ends. If the first block is
/// not a header, the end is [`End::Damaged`] at 0.
///
/// # Errors
/// If reading fails.
pub fn read_members<R: Read + Seek>(archive: R, length: u64) -> io::Result<(Vec<Member>, End)> {
    let mut reader = BufReader::with_capacity(1 << 16, archive);
    let mut members = Vec::new();
    let mut position = 0;
    let mut extension = Extension::default();
    loop {
        if length - position < BLOCK {
            return Ok((members, End::CutShort { at: length, member: None }));
        }
        let mut block = [0; 512];
        reader.read_exact(&mut block)?;
        if block == [0; 512] {
            return Ok((members, End::Complete));
        }
        let header = Header::from_byte_slice(&block);
        let Some(size) = checked_size(header, &block, &extension) else {
            return Ok((members, End::Damaged { at: position }));
        };
        let offset = position + BLOCK;
        let name = extension.path.take().unwrap_or_else(|| text(&header.path_bytes()));
        let kind = header.entry_type();
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        // Hard links, folders and devices may declare a size, but no bytes follow their header.
        let stored = if is_file || has_bytes(kind) { size } else { 0 };
        if stored > length - offset {
            let member = is_file.then_some(name);
            return Ok((members, End::CutShort { at: length, member }));
        }
        let padded = stored.next_multiple_of(BLOCK).min(length - offset);
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            if stored > LONGEST_EXTENSION {
                return Ok((members, End::Damaged { at: position }));
            }
            let mut bytes = vec![0; usize::try_from(padded).unwrap_or(0)];
            reader.read_exact(&mut bytes)?;
            bytes.truncate(usize::try_from(stored).unwrap_or(0));
            extension.read(kind, &bytes);
        } else {
            extension = Extension::default();
            skip(&mut reader, padded)?;
            if is_file {
                members.push(Member { name, offset, length: stored });
            }
        }
        position = offset + padded;
    }
}

/// Name and size that extension headers give to the next member.
#[derive(Debug, Default)]
struct Extension {
    path: Option<String>,
    size: Option<u64>,
}

impl Extension {
    fn read(&mut self, kind: EntryType, bytes: &[u8]) {
        if kind.is_gnu_longname() {
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            self.path = Some(text(&bytes[..end]));
            return;
        }
        for record in tar::PaxExtensions::new(bytes).flatten() {
            match record.key_bytes() {
                b"path" => self.path = Some(text(record.value_bytes())),
                b"size" => self.size = record.value().ok().and_then(|value| value.parse().ok()),
                _ => {}
            }
        }
    }
}

/// Size of the header's member, or `None` if the header's checksum is wrong.
fn checked_size(header: &Header, block: &[u8; 512], extension: &Extension) -> Option<u64> {
    // For the checksum, its own field counts as eight spaces.
    let counted = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
    let sum: u32 = counted.map(|&byte| u32::from(byte)).sum();
    if header.cksum().ok()? != sum {
        return None;
    }
    let size = extension.size.or_else(|| header.entry_size().ok())?;
    // Leave room for the padding, so that adding it cannot overflow.
    (size < u64::MAX / 2).then_some(size)
}

/// Whether bytes follow the header of a member that is not a regular file.
fn has_bytes(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

fn skip<R: Read + Seek>(reader: &mut BufReader<R>, bytes: u64) -> io::Result<()> {
    if let Ok(buffered) = usize::try_from(bytes)
        && buffered <= reader.buffer().len()
    {
        reader.consume(buffered);
        return Ok(());
    }
    reader.seek_relative(i64::try_from(bytes).map_err(io::Error::other)?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Splits a member's name into the key of its sample and the field, as webdataset does: at the
/// first dot of the last path component, with the field in lower case. Returns `None` for names
/// that belong to no sample: names without a dot, dot-files, and names whose first path component
/// has the form `__…__`.
#[must_use]
pub fn key_and_field(name: &str) -> Option<(&str, String)> {
    let first = name.split('/').next().unwrap_or(name);
    if first.len() >= 4 && first.starts_with("__") && first.ends_with("__") {
        return None;
    }
    let base_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base_start + name[base_start..].find('.')?;
    (dot > base_start).then(|| (&name[..dot], name[dot + 1..].to_lowercase()))
}
