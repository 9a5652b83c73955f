//! Clips whose frames are JPEGs, in an MP4 file: the format of prepared clips.
//!
//! Each frame can be decoded alone, and the table of the file says where it is. So a few frames are
//! taken from a clip without FFmpeg, without reading the other frames, and with only the pixels
//! that the transform needs. The pixels are those of the JPEG as a picture. FFmpeg and the programs
//! that use it read the same file as motion JPEG.
//!
//! The reader takes only files whose table it understands completely: one track, one kind of
//! frames, no edit list. All other files are left to FFmpeg (`decode::video`).

mod boxes;
mod write;

use self::boxes::{boxes, entries, has, number, only};
use super::{Clip, Shape, jpeg, uniform_frames};

pub use write::JpegClipWriter;

/// Type of a JPEG stream in the descriptor of an MP4 sample entry (ISO 14496-1, table 5).
const JPEG_OBJECT: u8 = 0x6c;

/// Length of a visual sample entry before the boxes in it, in bytes.
const VISUAL_ENTRY: usize = 78;

/// Transformation matrix of an upright picture: a, b, u, c, d, v, x, y, w.
const UPRIGHT: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

/// Clip of JPEG frames in a file in memory.
#[derive(Debug)]
pub struct JpegClip<'a> {
    /// The frames, in the order of time.
    frames: Vec<&'a [u8]>,
    /// Time of each frame, in ticks.
    times: Vec<u64>,
    ticks_per_s: u32,
}

impl<'a> JpegClip<'a> {
    /// Finds the frames in the bytes of a file. `None` if the file is a clip of another kind.
    ///
    /// # Errors
    /// If a frame lies outside of the file, because the file is cut short.
    pub fn find(file: &'a [u8]) -> Result<Option<Self>, String> {
        let Some(table) = Table::find(file) else { return Ok(None) };
        let count = table.frames.len();
        let mut frames = Vec::with_capacity(count);
        for (nth, &(offset, length)) in table.frames.iter().enumerate() {
            let frame = file.get(offset..).and_then(|rest| rest.get(..length));
            frames.push(frame.ok_or_else(|| {
                format!(
                    "the clip is cut short: it has {} bytes, but frame {nth} of {count} is at \
                     byte {offset} and has {length} bytes",
                    file.len()
                )
            })?);
        }
        Ok(Some(Self { frames, times: table.times, ticks_per_s: table.ticks_per_s }))
    }

    /// Decodes `frames` uniformly chosen frames.
    pub(super) fn decode(&self, frames: usize, shape: &mut dyn Shape) -> Result<Clip, String> {
        let count = self.frames.len();
        let wanted = uniform_frames(count, frames);
        let mut distinct = wanted.clone();
        distinct.dedup();
        let mut pictures = Vec::with_capacity(distinct.len());
        for &nth in &distinct {
            let wrong = |reason| format!("frame {nth} of {count}: {reason}");
            let region = |width, height| shape.region(width, height);
            let part = jpeg::decode_upright(self.frames[nth], &region).map_err(wrong)?;
            pictures.push(shape.shape(part)?);
        }
        let index = |nth: &usize| distinct.partition_point(|other| other < nth);
        Ok(Clip { pictures, order: wanted.iter().map(index).collect() })
    }

    /// Time of each frame in seconds.
    #[must_use]
    pub fn times(&self) -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "ticks of a clip stay far below 2⁵³")]
        let seconds = |&ticks: &u64| ticks as f64 / f64::from(self.ticks_per_s);
        self.times.iter().map(seconds).collect()
    }

    /// Bytes of each frame.
    #[must_use]
    pub fn frames(&self) -> &[&'a [u8]] {
        &self.frames
    }
}

/// Where the frames of a file are, and when they are shown.
struct Table {
    /// Offset and length of each frame in bytes.
    frames: Vec<(usize, usize)>,
    times: Vec<u64>,
    ticks_per_s: u32,
}

impl Table {
    /// Reads the table of a file. `None` if the file has none, or one with other contents than JPEG
    /// frames that follow each other.
    fn find(file: &[u8]) -> Option<Self> {
        boxes(file).next().filter(|(kind, _)| kind == b"ftyp")?;
        let movie = only(file, b"moov")?;
        let track = only(movie, b"trak")?;
        if has(file, b"moof") || has(movie, b"mvex") || has(track, b"edts") {
            return None;
        }
        let media = only(track, b"mdia")?;
        let is_video = only(media, b"hdlr")?.get(8..12)? == b"vide";
        let samples = only(only(media, b"minf")?, b"stbl")?;
        if !is_video || !is_upright(only(track, b"tkhd")?)? || has(samples, b"ctts") {
            return None;
        }
        if !holds_jpegs(only(samples, b"stsd")?)? {
            return None;
        }
        let header = only(media, b"mdhd")?;
        let ticks_per_s = number(header, if header.first()? == &1 { 20 } else { 12 })?;
        let lengths = lengths(only(samples, b"stsz")?, file.len())?;
        let times = times(&entries(only(samples, b"stts")?)?, lengths.len())?;
        let offsets = offsets(samples, &lengths)?;
        let frames: Vec<_> = offsets.into_iter().zip(lengths).collect();
        (ticks_per_s > 0 && !frames.is_empty()).then_some(Self { frames, times, ticks_per_s })
    }
}

/// Whether the frames are shown as they are stored.
fn is_upright(track_header: &[u8]) -> Option<bool> {
    let start = if track_header.first()? == &1 { 52 } else { 40 };
    let matrix: Option<Vec<u32>> = (0..9).map(|n| number(track_header, start + 4 * n)).collect();
    Some(matrix? == UPRIGHT)
}

/// Whether the only kind of frames is JPEG.
fn holds_jpegs(descriptions: &[u8]) -> Option<bool> {
    if number(descriptions, 4)? != 1 {
        return None;
    }
    let entry = only(descriptions.get(8..)?, b"mp4v")?;
    let stream = only(entry.get(VISUAL_ENTRY..)?, b"esds")?;
    // A stream descriptor (3) with an identity of two bytes and flags holds a descriptor of the
    // decoder (4), which starts with the type of the stream. Other flags add bytes between them.
    let stream = descriptor(stream.get(4..)?, 3)?;
    let decoder = (stream.get(2)? == &0).then(|| descriptor(stream.get(3..)?, 4))??;
    Some(decoder.first()? == &JPEG_OBJECT)
}

/// Content of the descriptor with a tag. Its length has seven bits in each byte.
fn descriptor(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(&[tag])?;
    let mut length = 0;
    for _ in 0..4 {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        length = (length << 7) | usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return rest.get(..length);
        }
    }
    None
}

/// Length of each frame in bytes. A file of `most` bytes has no more frames than bytes.
fn lengths(table: &[u8], most: usize) -> Option<Vec<usize>> {
    let (all, count) = (number(table, 4)?, usize::try_from(number(table, 8)?).ok()?);
    if count > most {
        return None;
    }
    if all > 0 {
        return Some(vec![usize::try_from(all).ok()?; count]);
    }
    let numbers = table.get(12..)?.get(..count.checked_mul(4)?)?;
    let length = |four: &[u8; 4]| usize::try_from(u32::from_be_bytes(*four)).ok();
    numbers.as_chunks().0.iter().map(length).collect()
}

/// Time of each of `count` frames, from runs of frames with the same duration.
fn times(runs: &[[u32; 2]], count: usize) -> Option<Vec<u64>> {
    let mut times = Vec::with_capacity(count);
    let mut time = 0_u64;
    for &[frames, duration] in runs {
        let frames = usize::try_from(frames).ok()?;
        if frames > count - times.len() {
            return None;
        }
        for _ in 0..frames {
            times.push(time);
            time += u64::from(duration);
        }
    }
    (times.len() == count).then_some(times)
}

/// Offset of each frame in the file. Frames are stored in chunks, in which they follow each other.
/// Each run of chunks with the same number of frames begins with the number of its first chunk.
fn offsets(samples: &[u8], lengths: &[usize]) -> Option<Vec<usize>> {
    let runs: Vec<[u32; 3]> = entries(only(samples, b"stsc")?)?;
    let chunks: Vec<u64> = if has(samples, b"stco") {
        entries(only(samples, b"stco")?)?.iter().map(|&[offset]| u64::from(offset)).collect()
    } else {
        let entries = entries(only(samples, b"co64")?)?;
        entries.iter().map(|&[high, low]| (u64::from(high) << 32) | u64::from(low)).collect()
    };
    let mut offsets = Vec::with_capacity(lengths.len());
    let mut run = 0;
    for (number, &chunk) in (1_u32..).zip(&chunks) {
        while runs.get(run + 1).is_some_and(|next| next[0] <= number) {
            run += 1;
        }
        let &[first, frames, kind] = runs.get(run)?;
        if first > number || kind != 1 {
            return None;
        }
        let mut offset = usize::try_from(chunk).ok()?;
        for _ in 0..frames {
            let &length = lengths.get(offsets.len())?;
            offsets.push(offset);
            offset = offset.checked_add(length)?;
        }
    }
    (offsets.len() == lengths.len()).then_some(offsets)
}

#[cfg(test)]
mod tests;
