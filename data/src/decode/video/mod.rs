//! Decodes clips from memory with FFmpeg's libraries.
//!
//! All packets of the best video stream are read first, and their time stamps decide which frames
//! to take. Each chosen frame is then decoded from the last entry before it (`entry.rs`), without
//! the frames in between that no other frame refers to, so that taking sixteen frames of a long
//! clip does not require decoding the whole clip. If time stamps
//! are missing, or the packets do not tell which frames the decoder will show, the clip is decoded
//! from its start twice: once to count the frames and once to take the chosen ones. Both ways give
//! the same frames.
//!
//! Clips of JPEG frames, as prepared shards hold them, are decoded without FFmpeg
//! ([`JpegClip`]).

mod bitstream;
mod container;
mod convert;
mod entry;
mod live;
mod long;
mod open;
mod segments;
mod stream;
mod whole;
mod windows;
mod yuv;

use ffmpeg_next::util::frame::Video as Frame;

use self::convert::Converter;
use self::entry::Coded;
pub use self::long::LongVideo;
pub use self::segments::Segments;
use self::stream::{Fault, Stream};
pub use self::whole::{Span, Video};
pub use self::windows::{LiveWindows, WindowFrames};
use super::{Clip, JpegClip, Picture, Region, Shape, uniform_frames};

/// Decodes `frames` uniformly chosen frames of the best video stream, and passes each of them to
/// `shape`.
///
/// # Errors
/// A message that describes why the clip cannot be decoded.
pub fn decode(bytes: &[u8], frames: usize, shape: &mut dyn Shape) -> Result<Clip, String> {
    if let Some(clip) = JpegClip::find(bytes)? {
        return clip.decode(frames, shape);
    }
    let mut stream = Stream::open(bytes)?;
    let mut converter = Converter::new(stream.orientation);
    let mut shaped = |frame: &Frame| {
        let part = converter.part(frame, &|width, height| shape.region(width, height))?;
        shape.shape(part)
    };
    match decode_from_entries(&mut stream, frames, &mut shaped)? {
        Some(clip) => Ok(clip),
        None => decode_in_order(&mut stream, frames, &mut shaped),
    }
}

/// Properties of an AVIF that FFmpeg ignores in some versions: rotation, mirroring, cropping, and
/// pictures that consist of tiles.
const AVIF_PROPERTIES: [&[u8; 4]; 4] = [b"irot", b"imir", b"clap", b"grid"];

/// Decodes the picture of an AVIF file.
pub(super) fn decode_avif(bytes: &[u8]) -> Result<Picture, String> {
    // The properties precede the coded picture.
    let head = bytes.windows(4).take_while(|kind| kind != b"mdat");
    for kind in head {
        if AVIF_PROPERTIES.iter().any(|property| kind == *property) {
            let kind = String::from_utf8_lossy(kind);
            return Err(format!("AVIF with the property `{kind}` is not supported; convert it"));
        }
    }
    let mut stream = Stream::open(bytes)?;
    let mut converter = Converter::new(stream.orientation);
    let mut picture = None;
    stream.decode_all(&mut |frame| {
        picture = Some(converter.part(frame, &Region::whole)?.pixels);
        Ok(false)
    })?;
    picture.ok_or_else(|| "the AVIF has no picture".to_owned())
}

/// Time of every frame of the best video stream, in seconds, in display order.
///
/// # Errors
/// A message that describes why the clip cannot be decoded.
pub fn frame_times(bytes: &[u8]) -> Result<Vec<f64>, String> {
    if let Some(clip) = JpegClip::find(bytes)? {
        return Ok(clip.times());
    }
    let mut stream = Stream::open(bytes)?;
    let unit = f64::from(stream.time_base);
    let mut times = Vec::new();
    stream.decode_all(&mut |frame| {
        let time = frame.timestamp().ok_or("a frame of the clip has no time stamp")?;
        #[expect(clippy::cast_precision_loss, reason = "ticks of a clip stay far below 2⁵³")]
        times.push(time as f64 * unit);
        Ok(true)
    })?;
    Ok(times)
}

/// Decodes the chosen frames from the start of the clip, which takes two passes.
fn decode_in_order(
    stream: &mut Stream,
    frames: usize,
    shaped: &mut dyn FnMut(&Frame) -> Result<Picture, String>,
) -> Result<Clip, String> {
    let mut count = 0;
    stream.decode_all(&mut |_| {
        count += 1;
        Ok(true)
    })?;
    if count == 0 {
        return Err("the clip has no frames".to_owned());
    }
    let wanted = uniform_frames(count, frames);
    let last = wanted.iter().copied().max();
    let mut chosen = ChosenFrames::new(wanted);
    let mut number = 0;
    stream.decode_all(&mut |frame| {
        chosen.offer(number, || shaped(frame))?;
        number += 1;
        Ok(last.is_some_and(|last| number <= last))
    })?;
    chosen.into_clip()
}

/// Decodes each chosen frame from the entry before it. Returns `None` if the packets do not tell
/// which frames the decoder will show.
fn decode_from_entries(
    stream: &mut Stream,
    frames: usize,
    shaped: &mut dyn FnMut(&Frame) -> Result<Picture, String>,
) -> Result<Option<Clip>, String> {
    let Some(plan) = Plan::new(stream, frames) else { return Ok(None) };
    let mut chosen = ChosenFrames::new(plan.wanted.clone());
    for run in plan.frames.chunk_by(|a, b| a.start == b.start) {
        let mut missing = run.to_vec();
        let (packets, needed) = plan.packets(run, stream.packets.len());
        let found = stream.decode_from(packets, &needed, &mut |frame| {
            let time = frame.pts();
            if let Some(nth) = missing.iter().position(|wanted| time == Some(wanted.time)) {
                chosen.offer(missing.remove(nth).number, || shaped(frame))?;
            }
            Ok(!missing.is_empty())
        });
        match found {
            Ok(()) if missing.is_empty() => {}
            Ok(()) | Err(Fault::Stream(_)) => return Ok(None),
            Err(Fault::Frame(reason)) => return Err(reason),
        }
    }
    chosen.into_clip().map(Some)
}

/// Frames to take from a clip, and where to start decoding for each of them.
struct Plan {
    /// Number of each chosen frame, in display order. Short clips repeat frames.
    wanted: Vec<usize>,
    /// The distinct chosen frames, in display order.
    frames: Vec<PlannedFrame>,
    /// Whether a packet can be left out unless its own frame is chosen.
    droppable: Vec<bool>,
}

#[derive(Clone, Copy)]
struct PlannedFrame {
    /// Number of the frame in display order.
    number: usize,
    time: i64,
    /// Number of the packet that holds the frame.
    packet: usize,
    /// Number of the packet at which decoding starts.
    start: usize,
}

impl Plan {
    fn new(stream: &Stream, frames: usize) -> Option<Self> {
        let packets = &stream.packets;
        let data = packets.iter().map(|packet| packet.data().unwrap_or_default());
        let coded = entry::read(stream.codec, data)?;
        let times: Vec<i64> =
            packets.iter().map(ffmpeg_next::Packet::pts).collect::<Option<_>>()?;
        let shown = shown(&coded, &times, stream.start)?;
        let wanted = uniform_frames(shown.len(), frames);
        Some(Self::of(wanted, &coded, &times, &shown))
    }

    /// `wanted` are numbers of frames of `shown`.
    fn of(wanted: Vec<usize>, coded: &[Coded], times: &[i64], shown: &[(i64, usize)]) -> Self {
        // The last entry at or before a packet. A frame that is shown before this entry may need
        // packets before it, so decoding starts at an earlier entry.
        let start = |(time, number): (i64, usize)| {
            let entry = |&n: &usize| coded[n].entry && times[n] <= time;
            (0..=number).rev().find(entry).unwrap_or(0)
        };
        let mut distinct = wanted.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let planned = |number: usize| PlannedFrame {
            number,
            time: shown[number].0,
            packet: shown[number].1,
            start: start(shown[number]),
        };
        Self {
            wanted,
            frames: distinct.into_iter().map(planned).collect(),
            droppable: coded.iter().map(|packet| packet.droppable).collect(),
        }
    }

    /// Packets of `run`, which are frames with the same start, and which of them are needed.
    fn packets<'a>(
        &'a self,
        run: &'a [PlannedFrame],
        count: usize,
    ) -> (std::ops::Range<usize>, impl Fn(usize) -> bool + 'a) {
        // A packet after a wanted one may hold the second field of its frame.
        let last = run.iter().map(|it| it.packet + 1).max().unwrap_or(0);
        let needed = |packet: usize| {
            !self.droppable[packet]
                || run.iter().any(|it| it.packet == packet || it.packet + 1 == packet)
        };
        (run[0].start..count.min(last + 1), needed)
    }
}

/// (Time, packet number) of the frames that are shown, in display order. Packets are numbered in
/// decoding order. The decoder needs packets before the start of an edit list, but their frames are
/// not shown. `None` if the packets do not tell which frames the decoder will show.
fn shown(coded: &[Coded], times: &[i64], start: Option<i64>) -> Option<Vec<(i64, usize)>> {
    let is_shown = |&(time, number): &(i64, usize)| {
        !coded[number].hidden && start.is_none_or(|start| time >= start)
    };
    let mut shown: Vec<_> = times.iter().copied().zip(0..).filter(is_shown).collect();
    shown.sort_unstable();
    let repeated = shown.windows(2).any(|pair| pair[0].0 == pair[1].0);
    // The decoder may drop frames that are shown before the first one in the file.
    (!repeated && shown.first()?.0 >= times[0]).then_some(shown)
}

/// Collects the chosen frames of a clip, which arrive in any order.
struct ChosenFrames {
    wanted: Vec<usize>,
    numbers: Vec<usize>,
    pictures: Vec<Picture>,
}

impl ChosenFrames {
    fn new(wanted: Vec<usize>) -> Self {
        Self { wanted, numbers: Vec::new(), pictures: Vec::new() }
    }

    fn offer(
        &mut self,
        number: usize,
        picture: impl FnOnce() -> Result<Picture, String>,
    ) -> Result<(), String> {
        if self.wanted.contains(&number) {
            self.numbers.push(number);
            self.pictures.push(picture()?);
        }
        Ok(())
    }

    fn into_clip(self) -> Result<Clip, String> {
        let index = |number| self.numbers.iter().position(|&taken| taken == number);
        let order: Option<Vec<usize>> = self.wanted.iter().map(|&number| index(number)).collect();
        let order = order.ok_or("decoding the clip again gave fewer frames")?;
        Ok(Clip { pictures: self.pictures, order })
    }
}

/// Lossless: `usize` has at least 32 bits on the supported machines.
fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
