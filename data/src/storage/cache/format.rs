//! Format of a block in the cache folder.
//!
//! A header, then the bytes. The header holds a mark, the hash of the block's name, the number of
//! bytes, a CRC-32C of each 64 KiB of the bytes, and a CRC-32C of all this. Numbers are
//! little-endian. A sample is checked without reading the rest of its block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::flights::BlockName;

/// First bytes of a block. The last two count the versions of this format.
const MARK: &[u8; 8] = b"VLJEPA01";

/// Number of bytes that one checksum covers.
const CHUNK: usize = 64 << 10;

/// Length of mark, hash and number of bytes.
const FIXED: usize = 8 + 32 + 8;

/// Checked header of a block.
pub(super) struct Header {
    length: usize,
    checksums: Vec<u32>,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Header of a block that holds `bytes`.
pub(super) fn encoded_header(name: &BlockName, bytes: &[u8]) -> Vec<u8> {
    let mut header = MARK.to_vec();
    header.extend(Header::name(name).as_bytes());
    header.extend(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
    for chunk in bytes.chunks(CHUNK) {
        header.extend(crc32c::crc32c(chunk).to_le_bytes());
    }
    let checksum = crc32c::crc32c(&header);
    header.extend(checksum.to_le_bytes());
    header
}

impl Header {
    /// Hash of a block's name.
    pub(super) fn name((identity, number): &BlockName) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&number.to_le_bytes()).update(identity.as_bytes());
        hasher.finalize()
    }

    fn encoded_length(length: usize) -> usize {
        FIXED + 4 * length.div_ceil(CHUNK) + 4
    }

    /// Reads the header of the block `name`, which must have `length` bytes.
    pub(super) fn read(file: &File, name: &BlockName, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| damaged("it is too long"))?;
        let mut bytes = vec![0; Self::encoded_length(length)];
        let expected = u64::try_from(bytes.len() + length).unwrap_or(u64::MAX);
        if file.metadata()?.len() != expected {
            return Err(damaged("its length is wrong"));
        }
        file.read_exact_at(&mut bytes, 0)?;
        let (content, checksum) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(content).to_le_bytes() != checksum {
            return Err(damaged("the checksum of its header is wrong"));
        }
        let number = u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes();
        let hash = Self::name(name);
        if [&MARK[..], hash.as_bytes(), &number].concat() != content[..FIXED] {
            return Err(damaged("it is another block"));
        }
        let as_number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| (n << 8) | u32::from(b));
        Ok(Self { length, checksums: content[FIXED..].chunks(4).map(as_number).collect() })
    }

    /// Fills `part` with the bytes from `within` of the block, and checks them.
    pub(super) fn part(&self, file: &File, part: &mut [u8], within: usize) -> io::Result<()> {
        let first = within / CHUNK;
        let start = first * CHUNK;
        let end = (within + part.len()).next_multiple_of(CHUNK).min(self.length);
        let mut bytes = vec![0; end - start];
        let offset = Self::encoded_length(self.length) + start;
        file.read_exact_at(&mut bytes, u64::try_from(offset).unwrap_or(u64::MAX))?;
        for (chunk, checksum) in bytes.chunks(CHUNK).zip(&self.checksums[first..]) {
            if crc32c::crc32c(chunk) != *checksum {
                return Err(damaged("the checksum of its bytes is wrong"));
            }
        }
        part.copy_from_slice(&bytes[within - start..within - start + part.len()]);
        Ok(())
    }
}
