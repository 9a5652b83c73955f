//! Reads tar headers and applies WebDataset's rules to the member names.
//!
//! Only headers are read. The result says where the bytes of each file are. A shard that was cut
//! short is read up to the cut, and the cut is reported.

use std::io::{self, BufRead, BufReader, Read, Seek};

use tar::{EntryType, Header};

/// Size of a tar block in bytes. Headers and padded contents are multiples of it.
pub const BLOCK: u64 = 512;

/// Largest extension header (GNU long name or pax attributes) that is read, in bytes. Real ones
/// have a few hundred bytes.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Regular file in a tar archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path of the file in the archive. Bytes that are not UTF-8 are written as `\xE9`.
    pub name: String,
    /// Offset of the file's first byte in the archive.
    pub offset: u64,
    /// Length of the file in bytes.
    pub length: u64,
}

/// Files of an archive, and how the archive ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Regular files, in the order of the archive.
    pub members: Vec<Member>,
    /// Paths of hard and symbolic links, which have no bytes of their own.
    pub links: Vec<String>,
    /// How the archive ends.
    pub end: End,
}

/// How an archive ends: complete, cut short, damaged, or at a file that is not supported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The archive ends with an end marker.
    Complete {
        /// Offset of the end marker.
        at: u64,
        /// Number of bytes after the end marker, from the first byte on that is not zero.
        unread: u64,
    },
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
    /// The archive contains a file that is stored without its zeros, so that its bytes do not
    /// follow each other in the archive.
    Sparse {
        /// Path of the file.
        member: String,
    },
}

/// Reads the headers of an archive of `length` bytes. If the first block is not a header, the end
/// is [`End::Damaged`] at 0.
///
/// # Errors
/// If reading fails.
pub fn read_contents<R: Read + Seek>(archive: R, length: u64) -> io::Result<Contents> {
    let mut reader = BufReader::with_capacity(1 << 16, archive);
    let mut contents = Contents {
        members: Vec::new(),
        links: Vec::new(),
        end: End::CutShort { at: length, member: None },
    };
    let mut position = 0;
    let mut extension = Extension::default();
    while length - position >= BLOCK {
        let mut block = [0; 512];
        reader.read_exact(&mut block)?;
        if block == [0; 512] {
            let unread = unread_bytes(&mut reader, length)?;
            contents.end = End::Complete { at: position, unread };
            break;
        }
        let header = Header::from_byte_slice(&block);
        let Some(size) = checked_size(header, &block, &extension) else {
            contents.end = End::Damaged { at: position };
            break;
        };
        let offset = position + BLOCK;
        let kind = header.entry_type();
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        // Hard links, folders and devices may declare a size, but no bytes follow their header.
        let stored = if is_file || has_bytes(kind) { size } else { 0 };
        let name = extension.path.clone().unwrap_or_else(|| text(&header.path_bytes()));
        if kind.is_gnu_sparse() || extension.sparse {
            contents.end = End::Sparse { member: name };
            break;
        }
        if stored > length - offset {
            contents.end = End::CutShort { at: length, member: is_file.then_some(name) };
            break;
        }
        let padded = stored.next_multiple_of(BLOCK).min(length - offset);
        position = offset + padded;
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            if stored > LONGEST_EXTENSION {
                contents.end = End::Damaged { at: offset - BLOCK };
                break;
            }
            let mut bytes = vec![0; usize::try_from(padded).unwrap_or(0)];
            reader.read_exact(&mut bytes)?;
            bytes.truncate(usize::try_from(stored).unwrap_or(0));
            extension.read(kind, &bytes);
            continue;
        }
        skip(&mut reader, padded)?;
        if kind.is_gnu_longlink() || kind.is_pax_global_extensions() {
            // The extensions that were read belong to the member after this header.
            continue;
        }
        extension = Extension::default();
        if is_file {
            contents.members.push(Member { name, offset, length: stored });
        } else if matches!(kind, EntryType::Link | EntryType::Symlink) {
            contents.links.push(name);
        }
    }
    Ok(contents)
}

/// Number of bytes from the first byte on that is not zero, in the rest of an archive of `length`
/// bytes.
fn unread_bytes<R: Read + Seek>(reader: &mut BufReader<R>, length: u64) -> io::Result<u64> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(0);
        }
        let zeros = buffer.iter().take_while(|&&byte| byte == 0).count();
        let only_zeros = zeros == buffer.len();
        reader.consume(zeros);
        if !only_zeros {
            return Ok(length.saturating_sub(reader.stream_position()?));
        }
    }
}

/// Name, size and storage that extension headers give to the next member.
#[derive(Debug, Default)]
struct Extension {
    path: Option<String>,
    size: Option<u64>,
    sparse: bool,
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
                b"path" if !self.sparse => self.path = Some(text(record.value_bytes())),
                b"GNU.sparse.name" => {
                    self.sparse = true;
                    self.path = Some(text(record.value_bytes()));
                }
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
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

/// Text of a name. Bytes that are not UTF-8 become `\xE9`, so that different names stay different.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
    }
    text
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

/// Splits a field into its prefix and its extension, without the suffix `.gz`: `0.png` into `0` and
/// `png`, `txt.gz` into an empty prefix and `txt`.
#[must_use]
pub fn prefix_and_extension(field: &str) -> (&str, &str) {
    let plain = field.strip_suffix(".gz").unwrap_or(field);
    plain.rsplit_once('.').unwrap_or(("", plain))
}
