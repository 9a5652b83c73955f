//! Tar headers, and WebDataset's rules for the names in them.
//!
//! Only headers are read: the result is where each file's bytes are. A shard that was cut short is read up to the cut, and the cut is
//! reported.

use std::io::{self, BufRead, BufReader, Read, Seek};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;

/// Longest member that holds another member's name or attributes; real ones have a few hundred bytes.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// A regular file in a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path in the archive.
    pub name: String,
    /// Where its bytes start.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

/// How an archive ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With its end marker.
    Complete,
    /// Without: the file stops at this byte; `member` is the file whose bytes are missing, if the cut is inside one.
    CutShort {
        /// Length of what there is.
        at: u64,
        /// The file that is not whole.
        member: Option<String>,
    },
    /// With bytes that are no header.
    Damaged {
        /// Where they stand.
        at: u64,
    },
}

/// The regular files of an archive of `length` bytes, and how it ends. An archive whose very first block is no header is
/// [`End::Damaged`] at 0.
///
/// # Errors
/// When reading fails.
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
        // What hard links, folders and devices say about their size is not followed by bytes.
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

/// What an extension header says about the member behind it.
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

/// The size of a header's member, if the header's checksum is right.
fn checked_size(header: &Header, block: &[u8; 512], extension: &Extension) -> Option<u64> {
    // The checksum's own field counts as eight spaces.
    let counted = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
    let sum: u32 = counted.map(|&byte| u32::from(byte)).sum();
    if header.cksum().ok()? != sum {
        return None;
    }
    let size = extension.size.or_else(|| header.entry_size().ok())?;
    // Padding must not overflow.
    (size < u64::MAX / 2).then_some(size)
}

/// Whether a member that is no file is followed by bytes.
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

/// Splits a member's name into the sample's key and the field, as webdataset does: at the first dot of the last component, the field
/// in lower case. None for names that belong to no sample: without a dot, dot-files, and what is named `__…__` or lies in such a
/// folder.
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
