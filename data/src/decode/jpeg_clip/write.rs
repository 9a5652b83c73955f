//! Writes clips of JPEG frames. The table comes before the frames, and the same frames give the
//! same bytes on every machine.

use super::boxes::{boxed, numbers};
use super::{JPEG_OBJECT, UPRIGHT};

/// Language code for an undetermined language, packed in 15 bits.
const UNDETERMINED: u32 = 0x55c4;

/// Makes the file of a clip from its frames.
#[derive(Debug)]
pub struct JpegClipWriter {
    ticks_per_s: u32,
    width: u16,
    height: u16,
    /// Time of each frame in ticks.
    times: Vec<u64>,
    lengths: Vec<u32>,
    frames: Vec<u8>,
}

impl JpegClipWriter {
    /// A clip of frames of one size, whose times have `ticks_per_s` ticks per second.
    ///
    /// # Errors
    /// A message if MP4 cannot store such a clip.
    pub fn new(ticks_per_s: u32, width: u32, height: u32) -> Result<Self, String> {
        let side = |side: u32| {
            u16::try_from(side).map_err(|_| format!("a side of {side} pixels is too long for MP4"))
        };
        let (width, height) = (side(width)?, side(height)?);
        let (times, lengths, frames) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { ticks_per_s: ticks_per_s.max(1), width, height, times, lengths, frames })
    }

    /// Adds the frame that is shown from `time` on, in ticks.
    ///
    /// # Errors
    /// A message if the frame is not later than the frame before it.
    pub fn push(&mut self, time: u64, jpeg: &[u8]) -> Result<(), String> {
        if self.times.last().is_some_and(|&last| time <= last) {
            return Err(format!("two frames of the clip have the time {time}"));
        }
        let length = u32::try_from(jpeg.len()).map_err(|_| "a frame is too large for MP4")?;
        self.times.push(time);
        self.lengths.push(length);
        self.frames.extend_from_slice(jpeg);
        Ok(())
    }

    /// Bytes of all frames so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are no frames yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The file. The last frame is shown until `end`, in ticks. The first frame gets the time 0.
    ///
    /// # Errors
    /// A message if the clip has no frames, or is too long or too large for MP4.
    pub fn finish(self, end: u64) -> Result<Vec<u8>, String> {
        let Some((&first, &last)) = self.times.first().zip(self.times.last()) else {
            return Err("the clip has no frames".to_owned());
        };
        let end = end.max(last + 1);
        let duration = u32::try_from(end - first).map_err(|_| {
            format!(
                "the clip is too long: MP4 stores times of 32 bits, and it has {} ticks of \
                 1/{} s",
                end - first,
                self.ticks_per_s
            )
        })?;
        let kind = boxed(b"ftyp", &[b"isom", &numbers(&[0x200]), b"isomiso2mp41"]);
        // The length of the table does not depend on the offset in it.
        let head = kind.len() + self.table(0, duration, end).len() + 8;
        let fits = |bytes: usize| u32::try_from(bytes).ok();
        let offset = fits(head + self.frames.len()).and(fits(head));
        let offset = offset.ok_or("the clip is too large for MP4: it has 4 GiB or more")?;
        let table = self.table(offset, duration, end);
        Ok([kind, table, boxed(b"mdat", &[&self.frames])].concat())
    }

    /// The `moov` box, if the first frame is at `offset` in the file.
    fn table(&self, offset: u32, duration: u32, end: u64) -> Vec<u8> {
        let rate = self.ticks_per_s;
        let movie = boxed(
            b"mvhd",
            &[
                &numbers(&[0, 0, 0, rate, duration, 0x1_0000, 0x0100_0000, 0, 0]),
                &numbers(&UPRIGHT),
                &numbers(&[0, 0, 0, 0, 0, 0, 2]),
            ],
        );
        let size = [self.width, self.height].map(|side| u32::from(side) << 16);
        // Flags: the track is enabled and in the movie.
        let track = boxed(
            b"tkhd",
            &[
                &numbers(&[3, 0, 0, 1, 0, duration, 0, 0, 0, 0]),
                &numbers(&UPRIGHT),
                &numbers(&size),
            ],
        );
        let media = boxed(b"mdhd", &[&numbers(&[0, 0, 0, rate, duration, UNDETERMINED << 16])]);
        let handler =
            boxed(b"hdlr", &[&numbers(&[0, 0]), b"vide", &numbers(&[0, 0, 0]), b"VideoHandler\0"]);
        let here = boxed(b"url ", &[&numbers(&[1])]);
        let reference = boxed(b"dinf", &[&boxed(b"dref", &[&numbers(&[0, 1]), &here])]);
        let video = boxed(b"vmhd", &[&numbers(&[1, 0, 0])]);
        let information = boxed(b"minf", &[&video, &reference, &self.samples(offset, end)]);
        let media = boxed(b"mdia", &[&media, &handler, &information]);
        boxed(b"moov", &[&movie, &boxed(b"trak", &[&track, &media])])
    }

    /// The `stbl` box: kind, durations, lengths and the offset of the frames.
    fn samples(&self, offset: u32, end: u64) -> Vec<u8> {
        let ends = self.times.iter().skip(1).copied().chain([end]);
        let durations = self.times.iter().zip(ends).map(|(&time, end)| {
            // The whole clip has fewer than 2³² ticks.
            u32::try_from(end - time).unwrap_or(u32::MAX)
        });
        let mut runs: Vec<[u32; 2]> = Vec::new();
        for duration in durations {
            match runs.last_mut() {
                Some([frames, same]) if *same == duration => *frames += 1,
                _ => runs.push([1, duration]),
            }
        }
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let frames = count(self.lengths.len());
        let times = [numbers(&[0, count(runs.len())]), numbers(runs.as_flattened())].concat();
        let lengths = [numbers(&[0, 0, frames]), numbers(&self.lengths)].concat();
        boxed(
            b"stbl",
            &[
                &boxed(b"stsd", &[&numbers(&[0, 1]), &self.description()]),
                &boxed(b"stts", &[&times]),
                &boxed(b"stsc", &[&numbers(&[0, 1, 1, frames, 1])]),
                &boxed(b"stsz", &[&lengths]),
                &boxed(b"stco", &[&numbers(&[0, 1, offset])]),
            ],
        )
    }

    /// The sample entry: frames are JPEGs of this size.
    fn description(&self) -> Vec<u8> {
        // Stream type 4 (visual) in the upper six bits, and a bit that is always set. The buffer
        // size and the bit rates are unknown.
        let decoder = [&[JPEG_OBJECT, 0x11, 0, 0, 0][..], &numbers(&[0, 0])].concat();
        let stream = [&[0, 1, 0, 4, 13][..], &decoder, &[6, 1, 2]].concat();
        let length = u8::try_from(stream.len()).unwrap_or(u8::MAX);
        let descriptor = boxed(b"esds", &[&numbers(&[0]), &[3, length], &stream]);
        let (width, height) = (self.width.to_be_bytes(), self.height.to_be_bytes());
        boxed(
            b"mp4v",
            &[
                &[0, 0, 0, 0, 0, 0, 0, 1],
                &[0; 16],
                &width,
                &height,
                // 72 dots per inch, one frame per sample, no name, 24 bits per pixel.
                &numbers(&[0x48_0000, 0x48_0000, 0]),
                &[0, 1],
                &[0; 32],
                &[0, 24, 0xff, 0xff],
                &descriptor,
            ],
        )
    }
}
