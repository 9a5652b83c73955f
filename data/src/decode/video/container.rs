//! Finds files that were cut short. FFmpeg reads most of them without an error, up to the cut.
//!
//! Containers say how long their parts are. A part that is longer than the rest of the file is cut.
//! A file that ends exactly between two parts is not recognised, except where an outer part says
//! its length too. MPEG-TS has only packets of 188 bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a clip, in memory or in a file.
pub(super) trait Bytes {
    /// Number of bytes.
    fn length(&self) -> u64;

    /// Fills `buffer` with the bytes at `offset`. Returns false if there are fewer, or they cannot
    /// be read.
    fn read(&self, buffer: &mut [u8], offset: u64) -> bool;
}

impl Bytes for &[u8] {
    fn length(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> bool {
        let start = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let bytes = start.and_then(|start| start.get(..buffer.len()));
        bytes.map(|bytes| buffer.copy_from_slice(bytes)).is_some()
    }
}

impl Bytes for File {
    fn length(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.read_exact_at(buffer, offset).is_ok()
    }
}

/// Bytes of a clip from an offset to the end.
#[derive(Clone, Copy)]
struct Rest<'a> {
    clip: &'a dyn Bytes,
    offset: u64,
    length: u64,
}

impl Rest<'_> {
    fn is_empty(self) -> bool {
        self.length == 0
    }

    /// The first `N` bytes, or `None` if there are fewer.
    fn head<const N: usize>(self) -> Option<[u8; N]> {
        let mut head = [0; N];
        self.clip.read(&mut head, self.offset).then_some(head)
    }

    /// Removes the first `length` bytes, or returns `None` if there are fewer.
    fn skip(self, length: u64) -> Option<Self> {
        let rest = self.length.checked_sub(length)?;
        Some(Self { offset: self.offset + length, length: rest, ..self })
    }
}

/// Returns an error if a part of the clip is longer than the rest of the file.
pub(super) fn check_whole(clip: &dyn Bytes) -> Result<(), String> {
    let rest = Rest { clip, offset: 0, length: clip.length() };
    let whole = match rest.head::<8>() {
        Some([0x1a, 0x45, 0xdf, 0xa3, ..]) => matroska(rest),
        Some([b'R', b'I', b'F', b'F', ..]) => riff(rest),
        Some([b'F', b'L', b'V', ..]) => flv(rest),
        Some([_, _, _, _, kind @ ..]) if BOXES.contains(&&kind) => iso(rest),
        Some([0x47, ..]) if rest.skip(188).and_then(Rest::head) == Some([0x47]) => {
            rest.length.is_multiple_of(188)
        }
        Some(_) | None => true,
    };
    whole
        .then_some(())
        .ok_or_else(|| "the clip is cut short: its last part is incomplete".to_owned())
}

/// Types of the outer boxes of MP4 and MOV. Some files end with bytes that are no box, which FFmpeg
/// ignores.
const BOXES: [&[u8; 4]; 14] = [
    b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"emsg", b"meta", b"uuid",
    b"free", b"skip", b"wide", b"pdin",
];

/// Boxes of MP4 and MOV: a length of four bytes that counts itself, and four bytes of type. Length
/// 1 means that eight bytes of length follow, length 0 that the box reaches to the end.
fn iso(mut rest: Rest<'_>) -> bool {
    while let Some([a, b, c, d, kind @ ..]) = rest.head::<8>() {
        let length = match u32::from_be_bytes([a, b, c, d]) {
            0 => return true,
            1 => {
                let Some(long) = rest.skip(8).and_then(Rest::head) else { return false };
                u64::from_be_bytes(long)
            }
            length => u64::from(length),
        };
        if length < 8 || !BOXES.contains(&&kind) {
            return true;
        }
        match rest.skip(length) {
            Some(next) => rest = next,
            None => return false,
        }
    }
    true
}

/// Lists and chunks of AVI: four bytes of type, and a length that does not count these eight bytes.
/// A long AVI consists of several lists, each padded to an even length.
fn riff(mut rest: Rest<'_>) -> bool {
    while let Some([b'R', b'I', b'F', b'F', a, b, c, d]) = rest.head() {
        let length = u32::from_le_bytes([a, b, c, d]);
        // Programs that cannot seek back leave the length open.
        if length == 0 || length == u32::MAX {
            return true;
        }
        let Some(next) = rest.skip(8 + u64::from(length)) else { return false };
        match next.skip(u64::from(length % 2)) {
            Some(next) => rest = next,
            None => return true,
        }
    }
    true
}

/// Tags of FLV: type, a length of three bytes, seven other bytes, the content, and four bytes that
/// repeat the length.
fn flv(clip: Rest<'_>) -> bool {
    // The header has nine bytes, and four of length follow.
    let Some(mut rest) = clip.skip(13) else { return false };
    while !rest.is_empty() {
        let Some([_, a, b, c]) = rest.head() else { return false };
        match rest.skip(11 + u64::from(u32::from_be_bytes([0, a, b, c])) + 4) {
            Some(next) => rest = next,
            None => return false,
        }
    }
    true
}

/// Elements of Matroska and WebM: a number that says the type, a number that says the length, and
/// the content. The file is one segment after a header. A live recording leaves the length of the
/// segment open, and often those of its clusters.
fn matroska(mut rest: Rest<'_>) -> bool {
    const SEGMENT: u64 = 0x1853_8067;
    const CLUSTER: u64 = 0x1f43_b675;
    /// Bytes of the longest type and the longest length.
    const LONGEST_HEADER: u64 = 12;
    while !rest.is_empty() {
        let header = ebml_number(rest).and_then(|(kind, _, after)| {
            ebml_number(after).map(|(_, length, it)| (kind, length, it))
        });
        let Some((kind, length, content)) = header else { return rest.length >= LONGEST_HEADER };
        let next = match length {
            Some(length) => content.skip(length),
            // Go on with the elements inside.
            None => Some(content),
        };
        let Some(next) = next else { return false };
        let is_open = length.is_none() && (kind == SEGMENT || kind == CLUSTER);
        // What follows the segment is not part of the clip.
        if !is_open && (kind == SEGMENT || length.is_none()) {
            return true;
        }
        rest = next;
    }
    true
}

/// Number of one to eight bytes at the start. The zero bits before the first one say how many bytes
/// follow. Returns the number with and without that mark, and the bytes after it. The number
/// without mark is `None` if all its bits are 1, which means an unknown length.
fn ebml_number(rest: Rest<'_>) -> Option<(u64, Option<u64>, Rest<'_>)> {
    let [first] = rest.head()?;
    let extra = first.leading_zeros();
    if extra > 7 {
        return None;
    }
    let mut number = [0; 8];
    let count = usize::try_from(extra + 1).ok()?;
    let after = rest.skip(u64::from(extra + 1))?;
    rest.clip.read(&mut number[8 - count..], rest.offset).then_some(())?;
    let marked = u64::from_be_bytes(number);
    let largest = (1 << (7 * (extra + 1))) - 1;
    let value = marked & largest;
    Some((marked, (value != largest).then_some(value), after))
}
