//! Finds files that were cut short. FFmpeg reads most of them without an error, up to the cut.
//!
//! Containers say how long their parts are. A part that is longer than the rest of the file is cut.
//! A file that ends exactly between two parts is not recognised, except where an outer part says
//! its length too. MPEG-TS has only packets of 188 bytes.

/// Returns an error if a part of the file is longer than the rest of the file.
pub(super) fn check_whole(bytes: &[u8]) -> Result<(), String> {
    let whole = match bytes {
        [0x1a, 0x45, 0xdf, 0xa3, ..] => matroska(bytes),
        [b'R', b'I', b'F', b'F', ..] => riff(bytes),
        [b'F', b'L', b'V', ..] => flv(bytes),
        [_, _, _, _, kind @ ..] if kind.first_chunk().is_some_and(|kind| BOXES.contains(&kind)) => {
            iso(bytes)
        }
        [0x47, ..] if bytes.get(188) == Some(&0x47) => bytes.len().is_multiple_of(188),
        _ => true,
    };
    whole
        .then_some(())
        .ok_or_else(|| "the clip is cut short: its last part is incomplete".to_owned())
}

/// Removes the first `length` bytes, or returns `None` if there are fewer.
fn skip(bytes: &[u8], length: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(length).ok()?..)
}

/// Types of the outer boxes of MP4 and MOV. Some files end with bytes that are no box, which FFmpeg
/// ignores.
const BOXES: [&[u8; 4]; 14] = [
    b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"emsg", b"meta", b"uuid",
    b"free", b"skip", b"wide", b"pdin",
];

/// Boxes of MP4 and MOV: a length of four bytes that counts itself, and four bytes of type. Length
/// 1 means that eight bytes of length follow, length 0 that the box reaches to the end.
fn iso(mut rest: &[u8]) -> bool {
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = match u32::from_be_bytes(*length) {
            0 => return true,
            1 => {
                let long = after.get(4..12).and_then(|long| long.try_into().ok());
                let Some(long) = long else { return false };
                u64::from_be_bytes(long)
            }
            length => u64::from(length),
        };
        let is_box = after.first_chunk().is_some_and(|kind| BOXES.contains(&kind));
        if length < 8 || !is_box {
            return true;
        }
        match skip(rest, length) {
            Some(next) => rest = next,
            None => return false,
        }
    }
    true
}

/// Lists and chunks of AVI: four bytes of type, and a length that does not count these eight bytes.
/// A long AVI consists of several lists, each padded to an even length.
fn riff(mut rest: &[u8]) -> bool {
    while let [b'R', b'I', b'F', b'F', a, b, c, d, content @ ..] = rest {
        let length = u32::from_le_bytes([*a, *b, *c, *d]);
        // Programs that cannot seek back leave the length open.
        if length == 0 || length == u32::MAX {
            return true;
        }
        match skip(content, u64::from(length)) {
            Some(next) => rest = next.get(usize::from(length % 2 == 1)..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

/// Tags of FLV: type, a length of three bytes, seven other bytes, the content, and four bytes that
/// repeat the length.
fn flv(bytes: &[u8]) -> bool {
    // The header has nine bytes, and four of length follow.
    let Some(mut rest) = bytes.get(13..) else { return false };
    while !rest.is_empty() {
        let &[_, a, b, c, ..] = rest else { return false };
        match skip(rest, 11 + u64::from(u32::from_be_bytes([0, a, b, c])) + 4) {
            Some(next) => rest = next,
            None => return false,
        }
    }
    true
}

/// Elements of Matroska and WebM: a number that says the type, a number that says the length, and
/// the content. The file is one segment after a header. A live recording leaves the length of the
/// segment open, and often those of its clusters.
fn matroska(mut rest: &[u8]) -> bool {
    const SEGMENT: u64 = 0x1853_8067;
    const CLUSTER: u64 = 0x1f43_b675;
    /// Bytes of the longest type and the longest length.
    const LONGEST_HEADER: usize = 12;
    while !rest.is_empty() {
        let header = ebml_number(rest).and_then(|(kind, _, after)| {
            ebml_number(after).map(|(_, length, it)| (kind, length, it))
        });
        let Some((kind, length, content)) = header else { return rest.len() >= LONGEST_HEADER };
        let next = match length {
            Some(length) => skip(content, length),
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
fn ebml_number(bytes: &[u8]) -> Option<(u64, Option<u64>, &[u8])> {
    let extra = usize::try_from(bytes.first()?.leading_zeros()).ok()?;
    let (number, after) = bytes.split_at_checked(extra + 1)?;
    if extra > 7 {
        return None;
    }
    let marked = number.iter().fold(0, |value, &byte| (value << 8) | u64::from(byte));
    let bits = 7 * (extra + 1);
    let largest = (1 << bits) - 1;
    let value = marked & largest;
    Some((marked, (value != largest).then_some(value), after))
}
