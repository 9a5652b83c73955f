//! A video of any length, of which the frames between two times are read.
//!
//! The packets are read once to know their times and where decoding may start, but they are not
//! kept. So a long video takes little memory. A packet is read again when it is decoded.

mod packets;

use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use ffmpeg_next::decoder;
use ffmpeg_next::util::frame::Video as Frame;

use self::packets::{Slot, parts};
use super::container::check_whole;
use super::convert::Converter;
use super::entry::{self, Coded};
use super::stream::{Fault, Opened, decode_packets};
use super::{Plan, shown};
use crate::decode::{MediaSource, Picture, Region};

/// Video that is open for reading.
pub struct Video {
    source: MediaSource,
    opened: Opened,
    packets: Vec<Slot>,
    coded: Option<Vec<Coded>>,
    /// Time of each frame that is shown, and number of its packet. The times of a video that must
    /// be decoded in order are those that the decoder gives, and the numbers are not used.
    shown: Vec<(i64, usize)>,
    /// Number of the packet that is read next.
    next: usize,
}

/// Frames between two times of a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Number of frames of the video in the span, of which some were chosen.
    pub frames: usize,
    /// Time of the first of these frames, in ticks.
    pub start: i64,
    /// Time at which the last of these frames ends, in ticks.
    pub end: i64,
}

impl std::fmt::Debug for Video {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Video").field("frames", &self.shown.len()).finish_non_exhaustive()
    }
}

impl Video {
    /// Opens a video and reads the times of its frames.
    ///
    /// # Errors
    /// A message that describes why the video cannot be read.
    pub fn open(source: &MediaSource) -> Result<Self, String> {
        let mut opened = open(source)?;
        let (mut packets, mut coded) = (Vec::new(), Vec::new());
        let codec = opened.codec;
        opened = opened.read_packets(&mut |packet| {
            coded.push(entry::one(codec, packet.data().unwrap_or_default()));
            packets.push(Slot::of(&packet));
        })?;
        let times: Option<Vec<i64>> = packets.iter().map(|packet| packet.pts).collect();
        let plannable = times.zip(entry::joined(codec, coded));
        let start = opened.start;
        let plannable =
            plannable.and_then(|(times, coded)| Some((shown(&coded, &times, start)?, coded)));
        let next = packets.len();
        let (shown, coded) = plannable.map_or((Vec::new(), None), |(shown, it)| (shown, Some(it)));
        let mut video = Self { source: source.clone(), opened, packets, coded, shown, next };
        if video.coded.is_none() {
            video.find_times()?;
        }
        if video.shown.is_empty() {
            return Err("the clip has no frames".to_owned());
        }
        Ok(video)
    }

    /// Name of the codec, as FFmpeg writes it.
    #[must_use]
    pub fn codec(&self) -> &'static str {
        self.opened.codec.name()
    }

    /// Number of ticks of the times per second, as numerator and denominator.
    #[must_use]
    pub fn ticks_per_s(&self) -> (u32, u32) {
        let base = self.opened.time_base;
        (base.denominator().unsigned_abs(), base.numerator().unsigned_abs())
    }

    /// Reads frames that begin between two times in seconds after the first frame, or of the whole
    /// video. `choose` gets the number of these frames and their duration in seconds, and gives the
    /// numbers of the frames to decode, in ascending order. Each decoded frame is upright, and goes
    /// to `take` with its time in ticks.
    ///
    /// `in_order` decodes the video from its start. Otherwise decoding starts near the frames;
    /// the result is `None` if the packets do not allow this, and `take` may have got some frames.
    ///
    /// # Errors
    /// A message that describes why the frames cannot be decoded.
    pub fn read(
        &mut self,
        seconds: Option<&Range<f64>>,
        in_order: bool,
        choose: &dyn Fn(usize, f64) -> Vec<usize>,
        take: &mut dyn FnMut(Picture, i64) -> Result<(), String>,
    ) -> Result<Option<Span>, String> {
        // Frames are counted as the decoder shows them.
        if in_order && self.coded.is_some() {
            self.find_times()?;
        }
        let numbers = self.numbers(seconds)?;
        let span = self.span(&numbers);
        let chosen = choose(numbers.len(), self.seconds(span.end - span.start));
        let wanted: Vec<usize> = chosen.into_iter().map(|number| numbers.start + number).collect();
        let mut converter = Converter::new(self.opened.orientation);
        let mut taken =
            |frame: &Frame, time| take(converter.part(frame, &Region::whole)?.pixels, time);
        let done = if in_order {
            self.read_in_order(&wanted, &mut taken)?
        } else {
            self.read_from_entries(wanted, &mut taken)?
        };
        Ok(done.then_some(span))
    }

    /// Seconds from the first frame to the end of the last one.
    pub(super) fn duration_s(&self) -> f64 {
        let whole = self.span(&(0..self.shown.len()));
        self.seconds(whole.end - whole.start)
    }

    /// Time of each frame in seconds after the first one. `in_order` decodes the video to find them
    /// as the decoder shows them, as [`Self::read`] does.
    pub(super) fn times_s(&mut self, in_order: bool) -> Result<Vec<f64>, String> {
        if in_order && self.coded.is_some() {
            self.find_times()?;
        }
        let first = self.shown[0].0;
        Ok(self.shown.iter().map(|&(time, _)| self.seconds(time - first)).collect())
    }

    /// Numbers of the frames between two times.
    fn numbers(&self, seconds: Option<&Range<f64>>) -> Result<Range<usize>, String> {
        let Some(seconds) = seconds else { return Ok(0..self.shown.len()) };
        let first = self.shown[0].0;
        let place = |second: f64| {
            self.shown.partition_point(|&(time, _)| self.seconds(time - first) < second)
        };
        let numbers = place(seconds.start)..place(seconds.end);
        if numbers.is_empty() {
            let whole = self.span(&(0..self.shown.len()));
            return Err(format!(
                "no frame is between {} s and {} s; the video has {} frames in {:.3} s",
                seconds.start,
                seconds.end,
                self.shown.len(),
                self.seconds(whole.end - whole.start)
            ));
        }
        Ok(numbers)
    }

    fn span(&self, numbers: &Range<usize>) -> Span {
        let times = &self.shown[numbers.clone()];
        let (start, last) = (times[0].0, times[times.len() - 1].0);
        let next = self.shown.get(numbers.end).map(|&(time, _)| time);
        let end = next.unwrap_or_else(|| last + self.last_duration());
        Span { frames: numbers.len(), start, end }
    }

    /// Duration of the last frame of the video in ticks: that of its packet, or the mean.
    fn last_duration(&self) -> i64 {
        let (first, last) = (self.shown[0].0, self.shown[self.shown.len() - 1]);
        let stated = self.packets.get(last.1).map_or(0, |packet| packet.duration);
        let others = i64::try_from(self.shown.len() - 1).unwrap_or(i64::MAX);
        if stated > 0 { stated } else { ((last.0 - first) / others.max(1)).max(1) }
    }

    #[expect(clippy::cast_precision_loss, reason = "ticks of a video stay far below 2⁵³")]
    fn seconds(&self, ticks: i64) -> f64 {
        ticks as f64 * f64::from(self.opened.time_base)
    }

    /// Decodes each run of wanted frames from the entry before it. Returns false if this is not
    /// possible.
    fn read_from_entries(
        &mut self,
        wanted: Vec<usize>,
        take: &mut dyn FnMut(&Frame, i64) -> Result<(), String>,
    ) -> Result<bool, String> {
        let Some(coded) = &self.coded else { return Ok(false) };
        let times: Vec<i64> = self.packets.iter().filter_map(|packet| packet.pts).collect();
        let plan = Plan::of(wanted, coded, &times, &self.shown);
        let count = self.packets.len();
        let (decoder, mut packets) =
            parts(&self.source, &mut self.opened, &self.packets, &mut self.next);
        let send = &mut |decoder: &mut decoder::Video, number| packets.send(decoder, number);
        for run in plan.frames.chunk_by(|a, b| a.start == b.start) {
            let (numbers, needed) = plan.packets(run, count);
            let mut missing = run;
            let found = decode_packets(decoder, numbers, &needed, send, &mut |frame| {
                if let [wanted, others @ ..] = missing
                    && frame.pts() == Some(wanted.time)
                {
                    take(frame, wanted.time)?;
                    missing = others;
                }
                Ok(!missing.is_empty())
            });
            match found {
                Ok(()) if missing.is_empty() => {}
                Ok(()) | Err(Fault::Stream(_)) => return Ok(false),
                Err(Fault::Frame(reason)) => return Err(reason),
            }
        }
        Ok(true)
    }

    /// Decodes the video from its start.
    fn read_in_order(
        &mut self,
        wanted: &[usize],
        take: &mut dyn FnMut(&Frame, i64) -> Result<(), String>,
    ) -> Result<bool, String> {
        let times: Vec<i64> = wanted.iter().map(|&number| self.shown[number].0).collect();
        let mut missing = wanted.iter().zip(times).peekable();
        let mut number = 0;
        self.decode_all(&mut |frame| {
            if let Some((_, time)) = missing.next_if(|&(&wanted, _)| wanted == number) {
                take(frame, time)?;
            }
            number += 1;
            Ok(missing.peek().is_some())
        })?;
        match missing.next() {
            None => Ok(true),
            Some((wanted, _)) => {
                Err(format!("decoding the video again gave {number} frames, not frame {wanted}"))
            }
        }
    }

    /// Finds the times of the frames by decoding the whole video. If the decoder does not know them
    /// (AVI has none), the frames follow each other at the stream's frame rate.
    fn find_times(&mut self) -> Result<(), String> {
        let mut times = Vec::new();
        self.decode_all(&mut |frame| {
            times.push(frame.timestamp());
            Ok(true)
        })?;
        let known: Option<Vec<i64>> = times.iter().copied().collect();
        let known = known.filter(|times| times.is_sorted_by(|a, b| a < b));
        let times = match (known, self.opened.frame_ticks) {
            (Some(known), _) => known,
            (None, Some(ticks)) => (0..).map(|n| n * ticks).take(times.len()).collect(),
            (None, None) => return Err("its frames have no times".to_owned()),
        };
        self.shown = times.into_iter().map(|time| (time, usize::MAX)).collect();
        self.coded = None;
        Ok(())
    }

    fn decode_all(
        &mut self,
        take: &mut dyn FnMut(&Frame) -> Result<bool, String>,
    ) -> Result<(), String> {
        let count = self.packets.len();
        let (decoder, mut packets) =
            parts(&self.source, &mut self.opened, &self.packets, &mut self.next);
        let send = &mut |decoder: &mut decoder::Video, number| packets.send(decoder, number);
        decode_packets(decoder, 0..count, &|_| true, send, take).map_err(Fault::reason)
    }
}

fn open(source: &MediaSource) -> Result<Opened, String> {
    match source {
        MediaSource::Bytes(bytes) => {
            check_whole(&&**bytes)?;
            Opened::new(Cursor::new(Arc::clone(bytes)))
        }
        MediaSource::File(path) => {
            let file = File::open(path)
                .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
            check_whole(&file)?;
            Opened::new(file)
        }
    }
}

#[cfg(test)]
mod tests;
