//! Packets of a clip's video stream, and their decoder.

use std::io::{Cursor, Read, Seek};
use std::ops::Range;
use std::sync::OnceLock;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::packet::side_data::Type as SideData;
use ffmpeg_next::codec::{Context, Id, Parameters, threading};
use ffmpeg_next::format::{self, context::Input};
use ffmpeg_next::util::frame::Video as Frame;
use ffmpeg_next::{Dictionary, Packet, Rational, decoder, media};
use image::metadata::Orientation;

use super::container::check_whole;
use super::open::{has_codec_headers, open};
use crate::decode::{LARGEST_BYTES, check_size};

/// Container formats that FFmpeg may open. Without this list it would also open playlists, which
/// name other files and servers.
pub(super) const CONTAINERS: &str = "mov,matroska,avi,mpegts,flv";

/// The same formats as users know them.
pub(super) const CONTAINER_NAMES: &str = "MP4, MOV, Matroska, WebM, AVI, MPEG-TS and FLV";

/// Packets of one video stream, and its decoder.
pub(super) struct Stream {
    /// All packets, in decoding order.
    pub(super) packets: Vec<Packet>,
    pub(super) codec: Id,
    pub(super) time_base: Rational,
    /// Time of the first frame that is shown, in units of `time_base`.
    pub(super) start: Option<i64>,
    /// How frames must be turned and mirrored.
    pub(super) orientation: Orientation,
    decoder: decoder::Video,
}

fn cannot_open(error: ffmpeg::Error) -> String {
    format!("the clip cannot be opened: {error} ({CONTAINER_NAMES} are read)")
}

impl Stream {
    pub(super) fn open(bytes: &[u8]) -> Result<Self, String> {
        check_whole(&bytes)?;
        let opened = Opened::new(Cursor::new(bytes.to_vec()))?;
        let mut packets = Vec::new();
        let Opened { codec, time_base, start, orientation, decoder, .. } =
            opened.read_packets(&mut |packet| packets.push(packet))?;
        Ok(Self { packets, codec, time_base, start, orientation, decoder })
    }

    /// Decodes from the start until `take` returns false or the clip ends.
    pub(super) fn decode_all(
        &mut self,
        take: &mut dyn FnMut(&Frame) -> Result<bool, String>,
    ) -> Result<(), String> {
        self.decode_from(0..self.packets.len(), &|_| true, take).map_err(Fault::reason)
    }

    /// Decodes the `needed` packets among those with the `numbers`, as if the clip had no others,
    /// until `take` returns false.
    pub(super) fn decode_from(
        &mut self,
        numbers: Range<usize>,
        needed: &dyn Fn(usize) -> bool,
        take: &mut dyn FnMut(&Frame) -> Result<bool, String>,
    ) -> Result<(), Fault> {
        let packets = &self.packets;
        let send = &mut |decoder: &mut decoder::Video, number: usize| {
            decoder.send_packet(&packets[number]).map_err(|error| cannot_decode(number, error))
        };
        decode_packets(&mut self.decoder, numbers, needed, send, take)
    }
}

/// Decodes the `needed` packets among those with the `numbers`, as if the clip had no others, until
/// `take` returns false. `send` sends the packet with a number to the decoder.
pub(super) fn decode_packets(
    decoder: &mut decoder::Video,
    numbers: Range<usize>,
    needed: &dyn Fn(usize) -> bool,
    send: &mut dyn FnMut(&mut decoder::Video, usize) -> Result<(), String>,
    take: &mut dyn FnMut(&Frame) -> Result<bool, String>,
) -> Result<(), Fault> {
    decoder.flush();
    let mut frame = Frame::empty();
    let end = numbers.end;
    for number in numbers.filter(|&number| needed(number)).chain([end]) {
        let sent = if number == end {
            decoder.send_eof().map_err(|error| cannot_decode(number, error))
        } else {
            send(decoder, number)
        };
        sent.map_err(Fault::Stream)?;
        loop {
            match decoder.receive_frame(&mut frame) {
                Ok(()) if frame.is_corrupt() || frame.has_decode_errors() => {
                    return Err(Fault::Stream(format!("a frame near packet {number} is corrupt")));
                }
                Ok(()) if take(&frame).map_err(Fault::Frame)? => {}
                Ok(()) => return Ok(()),
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN })
                | Err(ffmpeg::Error::Eof) => break,
                Err(error) => {
                    return Err(Fault::Stream(format!(
                        "a frame near packet {number} cannot be decoded: {error}"
                    )));
                }
            }
        }
    }
    Ok(())
}

fn cannot_decode(number: usize, error: ffmpeg::Error) -> String {
    format!("packet {number} cannot be decoded: {error}")
}

/// Open container, its best video stream, and the decoder of this stream.
pub(super) struct Opened {
    pub(super) input: Input,
    /// Number of the stream in the container.
    pub(super) index: usize,
    pub(super) codec: Id,
    pub(super) time_base: Rational,
    /// Time of the first frame that is shown, in units of `time_base`.
    pub(super) start: Option<i64>,
    /// Duration of a frame at the stream's frame rate, in units of `time_base`.
    pub(super) frame_ticks: Option<i64>,
    /// How frames must be turned and mirrored.
    pub(super) orientation: Orientation,
    pub(super) decoder: decoder::Video,
}

impl Opened {
    pub(super) fn new(file: impl Read + Seek + Send + 'static) -> Result<Self, String> {
        initialise()?;
        let mut options = Dictionary::new();
        options.set("format_whitelist", CONTAINERS);
        options.set("protocol_whitelist", "");
        Self::of(open(file, options, &is_described).map_err(cannot_open)?)
    }

    /// Opens the decoder of a container's best video stream.
    pub(super) fn of(input: Input) -> Result<Self, String> {
        let stream = video_stream(&input)?;
        let (index, time_base) = (stream.index(), stream.time_base());
        let start = Some(stream.start_time()).filter(|&start| start != ffmpeg::ffi::AV_NOPTS_VALUE);
        let frame_ticks = frame_ticks(stream.avg_frame_rate(), time_base);
        let orientation = orientation(&stream)?;
        let parameters = stream.parameters();
        let (codec, decoder) = (parameters.id(), decoder(&parameters, time_base)?);
        Ok(Self { input, index, codec, time_base, start, frame_ticks, orientation, decoder })
    }

    /// Gives all packets of the stream to `take`, in decoding order.
    pub(super) fn read_packets(mut self, take: &mut dyn FnMut(Packet)) -> Result<Self, String> {
        let mut end_s = 0.0_f64;
        let mut is_empty = true;
        while let Some(packet) = next_packet(&mut self.input).map_err(cannot_read)? {
            end_s = end_s.max(packet_end_s(&self.input, &packet));
            if packet.stream() == self.index {
                is_empty = false;
                take(packet);
            }
        }
        check_duration(&self.input, end_s)?;
        if is_empty {
            return Err("the clip has no frames".to_owned());
        }
        Ok(self)
    }
}

/// Duration of a frame at a frame rate in units of `time_base`. `None` if the rate is unknown.
fn frame_ticks(rate: Rational, time_base: Rational) -> Option<i64> {
    let per_frame = [rate.denominator(), time_base.denominator()].map(i64::from);
    let per_tick = [rate.numerator(), time_base.numerator()].map(i64::from);
    let ticks = per_frame[0] * per_frame[1];
    let unit = per_tick[0] * per_tick[1];
    (unit > 0 && ticks > 0).then(|| ((ticks + unit / 2) / unit).max(1))
}

/// Next packet of any stream, or `None` at the end.
pub(super) fn next_packet(input: &mut Input) -> Result<Option<Packet>, ffmpeg::Error> {
    let mut packet = Packet::empty();
    match packet.read(input) {
        Ok(()) => Ok(Some(packet)),
        Err(ffmpeg::Error::Eof) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn cannot_read(error: ffmpeg::Error) -> String {
    format!("the clip cannot be read: {error}")
}

/// Cause of a failed decoding pass.
pub(super) enum Fault {
    /// The packets cannot be decoded from this start.
    Stream(String),
    /// A decoded frame cannot be used.
    Frame(String),
}

impl Fault {
    pub(super) fn reason(self) -> String {
        match self {
            Self::Stream(reason) | Self::Frame(reason) => reason,
        }
    }
}

/// Time at which a packet's frame or sound ends, in seconds, or 0 if it has no time stamp.
#[expect(clippy::cast_precision_loss, reason = "ticks of a clip stay far below 2⁵³")]
fn packet_end_s(input: &Input, packet: &Packet) -> f64 {
    let ticks = packet.pts().or(packet.dts()).unwrap_or(0).saturating_add(packet.duration());
    input.stream(packet.stream()).map_or(0.0, |it| ticks as f64 * f64::from(it.time_base()))
}

/// Fraction of the declared duration that may be missing at the end of an FLV, and of the video of
/// a server.
pub(super) const MISSING_FRACTION: f64 = 0.1;

/// Refuses an FLV that was cut between two of its parts: it is shorter than it declares. The parts
/// of the other containers are nested, and [`check_whole`] finds such cuts.
#[expect(clippy::cast_precision_loss, reason = "microseconds of a clip stay far below 2⁵³")]
fn check_duration(input: &Input, end_s: f64) -> Result<(), String> {
    let declared_s = input.duration() as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE);
    if input.format().name() == "flv" && end_s < declared_s * (1.0 - MISSING_FRACTION) {
        return Err(format!(
            "the clip is cut short: it declares {declared_s:.2} s, but ends after {end_s:.2} s"
        ));
    }
    Ok(())
}

/// Prepares FFmpeg once. Its errors get their texts. Its log lines are switched off, because they
/// would not name the sample.
pub(super) fn initialise() -> Result<(), String> {
    static INITIALISED: OnceLock<Result<(), ffmpeg::Error>> = OnceLock::new();
    let initialised = INITIALISED.get_or_init(|| {
        ffmpeg::init()?;
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
        Ok(())
    });
    initialised.map_err(|error| format!("FFmpeg cannot be initialised: {error}"))
}

/// Opens a decoder that refuses frames of too many pixels before it allocates memory for them.
fn decoder(parameters: &Parameters, time_base: Rational) -> Result<decoder::Video, String> {
    let codec = parameters.id();
    let found = decoder::find(codec)
        .ok_or_else(|| format!("this FFmpeg has no decoder for {}", codec.name()))?;
    let open = |limits: Dictionary| {
        let mut context = Context::from_parameters(parameters.clone())?;
        // One thread is enough: the callers decode one sample per thread.
        context.set_threading(threading::Config::count(1));
        let mut decoder = context.decoder();
        decoder.set_packet_time_base(time_base);
        decoder.open_as_with(found, limits)?.video()
    };
    let mut limits = Dictionary::new();
    limits.set("max_pixels", &(LARGEST_BYTES / 3).to_string());
    open(limits).map_err(|error| {
        // Without the limit, the decoder tells the size.
        let size = open(Dictionary::new()).map(|decoder| (decoder.width(), decoder.height()));
        let too_large = size.ok().and_then(|(width, height)| check_size(width, height, 3).err());
        too_large.unwrap_or_else(|| cannot_open(error))
    })
}

/// Whether the header of a file tells everything about its video that reading and decoding need.
/// That is so for H.264 in MP4 and MOV. Their index tells the start and by how many frames decoding
/// runs ahead of display, and the codec's headers are stored apart from the frames. Of several
/// video streams, only the frames tell which is the best.
pub(super) fn is_described(input: &Input) -> bool {
    let is_video = |stream: &ffmpeg::Stream<'_>| stream.parameters().medium() == media::Type::Video;
    let mut videos = input.streams().filter(is_video);
    let (Some(video), None) = (videos.next(), videos.next()) else { return false };
    let is_mp4 = input.format().name().split(',').any(|name| name == "mp4");
    let parameters = video.parameters();
    is_mp4
        && parameters.id() == Id::H264
        && has_codec_headers(&parameters)
        && video.start_time() != ffmpeg::ffi::AV_NOPTS_VALUE
}

/// The best video stream that is not the cover picture of a song.
fn video_stream(input: &Input) -> Result<ffmpeg::Stream<'_>, String> {
    let is_cover = |stream: &ffmpeg::Stream<'_>| {
        stream.disposition().contains(format::stream::Disposition::ATTACHED_PIC)
    };
    let is_video = |stream: &ffmpeg::Stream<'_>| stream.parameters().medium() == media::Type::Video;
    let best = input.streams().best(media::Type::Video).ok_or("the clip has no video stream")?;
    if !is_cover(&best) {
        return Ok(best);
    }
    let other = input.streams().find(|stream| is_video(stream) && !is_cover(stream));
    other.ok_or_else(|| "the file has a cover picture, but no clip: it is a song".to_owned())
}

/// How the stream's display matrix turns and mirrors the frames. The matrix has 3×3 numbers of 32
/// bits. The upper left 2×2 numbers, in 16.16 fixed point, map (x, y) to (a·x + c·y, b·x + d·y)
/// (libavutil/display.h).
fn orientation(stream: &ffmpeg::Stream<'_>) -> Result<Orientation, String> {
    let matrix = stream.side_data().find(|data| data.kind() == SideData::DisplayMatrix);
    let Some(matrix) = matrix else { return Ok(Orientation::NoTransforms) };
    let number = |i: usize| {
        let bytes = matrix.data().get(4 * i..4 * i + 4);
        let fixed = bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
        // Rounding errors of the program that wrote the matrix.
        if fixed.abs_diff(0) < 1 << 8 { 0 } else { fixed.signum() }
    };
    match (number(0), number(1), number(3), number(4)) {
        (1, 0, 0, 1) | (0, 0, 0, 0) => Ok(Orientation::NoTransforms),
        (0, 1, -1, 0) => Ok(Orientation::Rotate90),
        (-1, 0, 0, -1) => Ok(Orientation::Rotate180),
        (0, -1, 1, 0) => Ok(Orientation::Rotate270),
        (-1, 0, 0, 1) => Ok(Orientation::FlipHorizontal),
        (1, 0, 0, -1) => Ok(Orientation::FlipVertical),
        (0, 1, 1, 0) => Ok(Orientation::Rotate90FlipH),
        (0, -1, -1, 0) => Ok(Orientation::Rotate270FlipH),
        _ => Err("the clip is turned by an angle that is no multiple of 90 degrees".to_owned()),
    }
}
