//! A video that is read while it comes, frame by frame and in bounded memory.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::Dictionary;
use ffmpeg_next::format::context::{Input, StreamIo};
use ffmpeg_next::util::frame::Video as Frame;
use vljepa_recipes::protocol::VideoSource;

use super::container::check_whole;
use super::convert::Converter;
use super::stream::{
    CONTAINER_NAMES, CONTAINERS, MISSING_FRACTION, Opened, initialise, next_packet,
};
use crate::decode::{Picture, Shape};

/// Microseconds without an answer after which a server counts as lost.
const SERVER_TIMEOUT_US: &str = "10000000";

/// Longest time between two frames in seconds. A recording of a screen may show one picture for
/// minutes; a longer time is an error of the source, whose clock has jumped.
const LONGEST_FRAME_S: f64 = 600.0;

/// Longest step back of time stamps, in seconds, after which they still count from the same start.
/// A longer one is a new start, as of a camera that has connected again.
const LONGEST_STEP_BACK_S: f64 = 1.0;

/// Advice for a pipe that cannot seek.
const OF_PIPE: &str = "of a pipe, an MP4 or MOV is read only if its index comes first: `ffmpeg -i FILE \
                       -c copy -movflags +faststart …`, or `-f mpegts` for any video";

/// Video that is open for reading from its start, once.
pub(super) struct LiveVideo {
    opened: Opened,
    converter: Converter,
    frame: Frame,
    clock: Clock,
    drained: bool,
    origin: Origin,
    /// Frames and packets that were left out because they are damaged.
    damaged: u64,
}

/// Kind of source: decides whether a damaged frame or an early end is an error.
enum Origin {
    /// A damaged frame ends the video. The result says whether the file was cut short.
    File(Result<(), String>),
    /// A damaged frame is left out: it may precede the first whole one.
    Pipe,
    /// Damaged frames are left out. The end is an error unless the declared duration (seconds) was
    /// reached.
    Server(Option<f64>),
}

/// Frame in the model's shape.
pub(super) struct LiveFrame {
    /// Seconds after the first frame.
    pub(super) time_s: f64,
    pub(super) picture: Picture,
}

impl LiveVideo {
    /// Opens a video. Waits until its format is known.
    pub(super) fn open(source: &VideoSource) -> Result<Self, String> {
        initialise()?;
        let (opened, origin) = match source {
            VideoSource::File(path) => {
                let file = open_path(path)?;
                let whole = check_whole(&file);
                (Opened::new(file)?, Origin::File(whole))
            }
            VideoSource::Pipe(path) => (of_pipe(open_path(path)?)?, Origin::Pipe),
            VideoSource::StandardInput => {
                let input = std::io::stdin().as_fd().try_clone_to_owned();
                let input = input.map_err(|error| format!("no standard input: {error}"))?;
                (of_pipe(File::from(input))?, Origin::Pipe)
            }
            VideoSource::Address(address) => {
                let input = connect(address)?;
                let duration_s = duration_s(&input);
                (Opened::of(input)?, Origin::Server(duration_s))
            }
        };
        let clock = Clock::new(f64::from(opened.time_base), opened.frame_ticks);
        let converter = Converter::new(opened.orientation);
        let (frame, drained) = (Frame::empty(), false);
        Ok(Self { opened, converter, frame, clock, drained, origin, damaged: 0 })
    }

    /// Name of the codec, as FFmpeg writes it.
    pub(super) fn codec(&self) -> &'static str {
        self.opened.codec.name()
    }

    /// Seconds from the first frame to the end of the last one that was read.
    pub(super) fn end_s(&self) -> f64 {
        self.clock.end_s()
    }

    /// Number of damaged frames that were left out.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Next frame in the order of time, or `None` at the end.
    pub(super) fn next_frame(
        &mut self,
        shape: &mut dyn Shape,
    ) -> Result<Option<LiveFrame>, String> {
        loop {
            match self.opened.decoder.receive_frame(&mut self.frame) {
                Ok(()) if self.frame.is_corrupt() || self.frame.has_decode_errors() => {
                    self.leave_out("a frame is corrupt")?;
                }
                Ok(()) => {
                    let time_s = self.clock.time_s(self.frame.timestamp());
                    let needed = &|width, height| shape.region(width, height);
                    let part = self.converter.part(&self.frame, needed)?;
                    return Ok(Some(LiveFrame { time_s, picture: shape.shape(part)? }));
                }
                Err(ffmpeg::Error::Eof) => return self.finished().map(|()| None),
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => self.send()?,
                Err(error) => self.leave_out(&format!("a frame cannot be decoded: {error}"))?,
            }
        }
    }

    /// Sends the next packet of the stream to the decoder, or the end.
    fn send(&mut self) -> Result<(), String> {
        let packet = next_packet(&mut self.opened.input).map_err(|error| match self.origin {
            Origin::Pipe if self.clock.last_s.is_none() => {
                format!("the pipe cannot be read: {error} ({OF_PIPE})")
            }
            Origin::Pipe => format!("the pipe cannot be read: {error}"),
            Origin::File(_) => format!("the file cannot be read: {error}"),
            Origin::Server(_) => format!("the connection is lost: {error}"),
        })?;
        let sent = match packet {
            Some(packet) if packet.stream() != self.opened.index => Ok(()),
            Some(packet) => self.opened.decoder.send_packet(&packet),
            None if self.drained => return Err("the decoder does not end".to_owned()),
            None => {
                self.drained = true;
                self.opened.decoder.send_eof()
            }
        };
        sent.or_else(|error| self.leave_out(&format!("a packet cannot be decoded: {error}")))
    }

    fn leave_out(&mut self, what: &str) -> Result<(), String> {
        match self.origin {
            Origin::File(_) => Err(format!("the file is damaged: {what}")),
            Origin::Pipe | Origin::Server(_) => {
                self.damaged += 1;
                Ok(())
            }
        }
    }

    /// Whether the end of the data is the end of the video.
    fn finished(&self) -> Result<(), String> {
        match &self.origin {
            Origin::File(whole) => whole.clone()?,
            Origin::Pipe => {}
            Origin::Server(Some(seconds)) if self.end_s() >= seconds * (1.0 - MISSING_FRACTION) => {
            }
            Origin::Server(_) => return Err("the server closed the connection".to_owned()),
        }
        match self.clock.last_s {
            Some(_) => Ok(()),
            None => Err("the video has no frames".to_owned()),
        }
    }
}

fn open_path(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))
}

fn of_pipe(file: File) -> Result<Opened, String> {
    let cannot_open = |error: ffmpeg::Error| {
        format!("the pipe cannot be opened: {error} ({CONTAINER_NAMES} are read; {OF_PIPE})")
    };
    let mut options = Dictionary::new();
    options.set("format_whitelist", CONTAINERS);
    options.set("protocol_whitelist", "");
    let io = StreamIo::from_read(file).map_err(cannot_open)?;
    let input = ffmpeg::format::input_from_stream(io, None, Some(options));
    Opened::of(input.map_err(cannot_open)?)
}

/// Connects to a server of RTSP. The frames come over TCP if the server allows it, so that none is
/// lost on the way.
fn connect(address: &str) -> Result<Input, String> {
    let mut options = Dictionary::new();
    options.set("format_whitelist", "rtsp");
    options.set("protocol_whitelist", "rtp,udp,tcp,tls,crypto");
    options.set("rtsp_flags", "prefer_tcp");
    // In FFmpeg 4, `timeout` lets a server wait for clients.
    let timeout = if ffmpeg::format::version() >> 16 < 59 { "stimeout" } else { "timeout" };
    options.set(timeout, SERVER_TIMEOUT_US);
    ffmpeg::format::input_with_dictionary(address, options)
        .map_err(|error| format!("the server cannot be reached: {error}"))
}

/// Duration that a container declares, in seconds.
#[expect(clippy::cast_precision_loss, reason = "microseconds of a video stay far below 2⁵³")]
fn duration_s(input: &Input) -> Option<f64> {
    let ticks = Some(input.duration()).filter(|&ticks| ticks > 0);
    ticks.map(|ticks| ticks as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE))
}

/// Times of frames in seconds after the first one, from time stamps that may be missing or jump.
struct Clock {
    /// Seconds of a tick.
    unit: f64,
    /// Duration of a frame in seconds at the stream's rate.
    nominal_s: f64,
    /// Duration of the last frame in seconds: that of the frame before it.
    frame_s: f64,
    /// Time stamp whose time is `shift_s`.
    origin: Option<i64>,
    shift_s: f64,
    /// Time of the last frame, or `None` before the first.
    last_s: Option<f64>,
}

impl Clock {
    #[expect(clippy::cast_precision_loss, reason = "ticks of a frame stay far below 2⁵³")]
    fn new(unit: f64, frame_ticks: Option<i64>) -> Self {
        // 25 frames a second is the rate that FFmpeg assumes too.
        let frame_s = frame_ticks.map_or(0.04, |ticks| ticks as f64 * unit);
        Self { unit, nominal_s: frame_s, frame_s, origin: None, shift_s: 0.0, last_s: None }
    }

    /// Time of the next frame. A frame with a time stamp at or a little before that of the last one
    /// has the last one's time, so that later stamps keep their meaning. A frame without a time
    /// stamp, or with one more than [`LONGEST_STEP_BACK_S`] before or [`LONGEST_FRAME_S`] after the
    /// last, follows the last one by the duration of a frame.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a video stay far below 2⁵³")]
    fn time_s(&mut self, ticks: Option<i64>) -> f64 {
        let stamped = ticks
            .zip(self.origin)
            .map(|(ticks, origin)| ticks.saturating_sub(origin) as f64 * self.unit + self.shift_s);
        let Some(last_s) = self.last_s else {
            (self.origin, self.last_s) = (ticks, Some(0.0));
            return 0.0;
        };
        let known = last_s - LONGEST_STEP_BACK_S..=last_s + LONGEST_FRAME_S;
        let time_s = match stamped.filter(|stamped| known.contains(stamped)) {
            Some(stamped) => stamped.max(last_s),
            None => {
                let next_s = last_s + self.nominal_s;
                (self.origin, self.shift_s) = (ticks, next_s);
                next_s
            }
        };
        if time_s > last_s {
            self.frame_s = time_s - last_s;
        }
        self.last_s = Some(time_s);
        time_s
    }

    /// End of the last frame, or 0 before the first.
    fn end_s(&self) -> f64 {
        self.last_s.map_or(0.0, |last| last + self.frame_s)
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    fn times(clock: &mut Clock, stamps: &[Option<i64>]) -> Vec<f64> {
        stamps.iter().map(|&ticks| clock.time_s(ticks)).collect()
    }

    #[test]
    fn time_starts_at_the_first_frame_and_follows_the_stamps() {
        let mut clock = Clock::new(0.5, Some(1));
        assert!(clock.end_s().abs() < 1e-12);
        assert_eq!(times(&mut clock, &[Some(100), Some(101), Some(104)]), [0.0, 0.5, 2.0]);
        // The last frame takes as long as the one before it.
        assert!((clock.end_s() - 3.5).abs() < 1e-12, "{}", clock.end_s());
    }

    #[test]
    fn time_goes_on_where_stamps_are_missing_or_jump() {
        let mut clock = Clock::new(0.5, Some(1));
        let stamps =
            [None, None, Some(7), Some(8), Some(3), Some(4), Some(9_000_000), Some(9_000_001)];
        assert_eq!(times(&mut clock, &stamps), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
        assert_eq!(times(&mut clock, &[Some(9_000_003)]), [4.5], "no jump");
    }

    #[test]
    fn a_repeated_stamp_or_a_small_step_back_does_not_shift_later_times() {
        let mut clock = Clock::new(0.25, Some(1));
        let stamps = [Some(0), Some(1), Some(1), Some(4), Some(2), Some(5)];
        assert_eq!(times(&mut clock, &stamps), [0.0, 0.25, 0.25, 1.0, 1.0, 1.25]);
        // A step back of more than a second is a new start.
        assert_eq!(times(&mut clock, &[Some(0), Some(1)]), [1.5, 1.75]);
        // Frames without stamps follow at the stream's rate, also after a long frame.
        assert_eq!(times(&mut clock, &[Some(41), None, None]), [11.75, 12.0, 12.25]);
    }
}
