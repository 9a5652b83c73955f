//! Decodes clips from memory with FFmpeg's libraries.
//!
//! All packets of the best video stream are read first, and their time stamps decide which frames
//! to take. Each chosen frame is then decoded from the key frame before it, so that taking sixteen
//! frames of a long clip does not require decoding the whole clip. If time stamps are missing, or
//! the decoder returns other time stamps than the packets have, the clip is decoded from its start
//! twice: once to count the frames and once to take the chosen ones.

use std::io::Cursor;
use std::sync::Once;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::packet::side_data::Type as SideData;
use ffmpeg_next::codec::threading;
use ffmpeg_next::format::{Pixel, context::StreamIo, input_from_stream};
use ffmpeg_next::software::scaling::{Context as Scaler, Flags};
use ffmpeg_next::util::frame::Video as Frame;
use ffmpeg_next::{Dictionary, Packet, Rational, media};

use super::yuv::{Matrix, Planes, to_rgb};
use super::{Clip, LARGEST_SIDE, Picture, uniform_frames};

/// Container formats that FFmpeg may open. Without this list it would also open playlists, which
/// name other files and servers.
const CONTAINERS: &str = "mov,matroska,avi";

/// Decodes `frames` uniformly chosen frames of the best video stream, and passes each of them to
/// `shape`.
///
/// # Errors
/// A message that describes why the clip cannot be decoded.
pub fn decode(
    bytes: &[u8],
    frames: usize,
    shape: &mut dyn FnMut(Picture) -> Result<Picture, String>,
) -> Result<Clip, String> {
    let mut stream = Stream::open(bytes)?;
    let mut converter = Converter { scaler: None, quarter_turns: stream.quarter_turns };
    let mut shaped = |frame: &Frame| shape(converter.picture(frame)?);
    if let Some(clip) = stream.decode_from_key_frames(frames, &mut shaped)? {
        return Ok(clip);
    }
    let mut count = 0;
    stream.decode_all(&mut |_| {
        count += 1;
        Ok(())
    })?;
    if count == 0 {
        return Err("the clip has no frames".to_owned());
    }
    let wanted = uniform_frames(count, frames);
    let mut chosen = ChosenFrames::new(wanted);
    let mut number = 0;
    stream.decode_all(&mut |frame| {
        chosen.offer(number, || shaped(frame))?;
        number += 1;
        Ok(())
    })?;
    chosen.into_clip()
}

/// Time of every frame of the best video stream, in seconds, in display order.
///
/// # Errors
/// A message that describes why the clip cannot be decoded.
pub fn frame_times(bytes: &[u8]) -> Result<Vec<f64>, String> {
    let mut stream = Stream::open(bytes)?;
    let unit = f64::from(stream.time_base);
    let mut times = Vec::new();
    stream.decode_all(&mut |frame| {
        let time = frame.timestamp().ok_or("a frame of the clip has no time stamp")?;
        #[expect(clippy::cast_precision_loss, reason = "ticks of a clip stay far below 2⁵³")]
        times.push(time as f64 * unit);
        Ok(())
    })?;
    Ok(times)
}

/// Packets of one video stream, and its decoder.
struct Stream {
    packets: Vec<Packet>,
    decoder: ffmpeg::decoder::Video,
    time_base: Rational,
    start: Option<i64>,
    /// Clockwise quarter turns that make the frames upright.
    quarter_turns: u8,
}

impl Stream {
    fn open(bytes: &[u8]) -> Result<Self, String> {
        static QUIET: Once = Once::new();
        // FFmpeg's errors are returned. Its own log lines would not name the sample.
        QUIET.call_once(|| ffmpeg::log::set_level(ffmpeg::log::Level::Quiet));
        let wrong = |error: ffmpeg::Error| format!("the clip cannot be opened: {error}");
        let mut options = Dictionary::new();
        options.set("format_whitelist", CONTAINERS);
        options.set("protocol_whitelist", "");
        let io = StreamIo::from_read_seek(Cursor::new(bytes.to_vec())).map_err(wrong)?;
        let mut input = input_from_stream(io, None, Some(options)).map_err(wrong)?;
        let stream =
            input.streams().best(media::Type::Video).ok_or("the clip has no video stream")?;
        let (index, time_base) = (stream.index(), stream.time_base());
        let start = Some(stream.start_time()).filter(|&start| start != ffmpeg::ffi::AV_NOPTS_VALUE);
        let quarter_turns = quarter_turns(&stream);
        let mut context =
            ffmpeg::codec::Context::from_parameters(stream.parameters()).map_err(wrong)?;
        // One thread is enough: the callers decode one sample per thread.
        context.set_threading(threading::Config::count(1));
        let mut decoder = context.decoder();
        decoder.set_packet_time_base(time_base);
        let decoder = decoder.video().map_err(wrong)?;
        let mut packets = Vec::new();
        loop {
            let mut packet = Packet::empty();
            match packet.read(&mut input) {
                Ok(()) if packet.stream() == index => packets.push(packet),
                Ok(()) => {}
                Err(ffmpeg::Error::Eof) => break,
                Err(error) => return Err(format!("the clip cannot be read: {error}")),
            }
        }
        if packets.is_empty() {
            return Err("the clip has no frames".to_owned());
        }
        Ok(Self { packets, decoder, time_base, start, quarter_turns })
    }

    /// Decodes each chosen frame from the key frame before it. Returns `None` if this does not give
    /// all chosen frames.
    fn decode_from_key_frames(
        &mut self,
        frames: usize,
        shaped: &mut dyn FnMut(&Frame) -> Result<Picture, String>,
    ) -> Result<Option<Clip>, String> {
        // (time, packet number) of the frames, in display order. Packets are numbered in decoding
        // order. The decoder needs packets before the start of an edit list, but their frames are
        // not shown.
        let mut shown = Vec::with_capacity(self.packets.len());
        for (number, packet) in self.packets.iter().enumerate() {
            let Some(time) = packet.pts() else { return Ok(None) };
            if self.start.is_none_or(|start| time >= start) {
                shown.push((time, number));
            }
        }
        shown.sort_unstable();
        let repeated = shown.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if shown.is_empty() || repeated {
            return Ok(None);
        }
        let wanted = uniform_frames(shown.len(), frames);
        let mut distinct = wanted.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let mut chosen = ChosenFrames::new(wanted);
        let mut next = 0;
        while next < distinct.len() {
            let Some(start) = self.decoding_start(shown[distinct[next]]) else { return Ok(None) };
            let mut end = next + 1;
            while end < distinct.len() && self.decoding_start(shown[distinct[end]]) == Some(start) {
                end += 1;
            }
            let mut missing = distinct[next..end].to_vec();
            let found = self.decode_from(start, &mut |frame| {
                let time = frame.pts();
                let nth = missing.iter().position(|&number| time == Some(shown[number].0));
                if let Some(nth) = nth {
                    chosen.offer(missing.remove(nth), || shaped(frame))?;
                }
                Ok(!missing.is_empty())
            });
            match found {
                Ok(()) if missing.is_empty() => next = end,
                Ok(()) | Err(Fault::Stream(_)) => return Ok(None),
                Err(Fault::Frame(reason)) => return Err(reason),
            }
        }
        chosen.into_clip().map(Some)
    }

    /// Number of the packet where decoding must start to get the frame of packet `number`, which is
    /// shown at `time`. This is the key frame at or before the packet. A frame that is shown before
    /// that key frame may need the previous key frame too, so decoding starts there.
    fn decoding_start(&self, (time, number): (i64, usize)) -> Option<usize> {
        let keys = || (0..=number).rev().filter(|&number| self.packets[number].is_key());
        let nearest = keys().next()?;
        let is_leading = self.packets[nearest].pts().is_some_and(|key_time| time < key_time);
        if is_leading { keys().nth(1) } else { Some(nearest) }
    }

    fn decode_all(
        &mut self,
        take: &mut dyn FnMut(&Frame) -> Result<(), String>,
    ) -> Result<(), String> {
        let all = self.decode_from(0, &mut |frame| take(frame).map(|()| true));
        all.map_err(|fault| match fault {
            Fault::Stream(reason) | Fault::Frame(reason) => reason,
        })
    }

    /// Decodes from packet number `first` until `take` returns false or the packets end. Every
    /// packet is sent once, so the loop terminates.
    fn decode_from(
        &mut self,
        first: usize,
        take: &mut dyn FnMut(&Frame) -> Result<bool, String>,
    ) -> Result<(), Fault> {
        self.decoder.flush();
        let mut frame = Frame::empty();
        for number in first..=self.packets.len() {
            let sent = match self.packets.get(number) {
                Some(packet) => self.decoder.send_packet(packet),
                None => self.decoder.send_eof(),
            };
            let broken = |error| {
                let count = self.packets.len();
                Fault::Stream(format!("packet {number} of {count} cannot be decoded: {error}"))
            };
            sent.map_err(broken)?;
            loop {
                match self.decoder.receive_frame(&mut frame) {
                    Ok(()) if frame.is_corrupt() || frame.has_decode_errors() => {
                        return Err(Fault::Stream(format!(
                            "a frame near packet {number} is corrupt"
                        )));
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
}

/// Cause of a failed decoding pass.
enum Fault {
    /// The packets cannot be decoded from this start.
    Stream(String),
    /// A decoded frame cannot be used.
    Frame(String),
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

/// Converts decoded frames to upright RGB pictures.
struct Converter {
    scaler: Option<Scaler>,
    quarter_turns: u8,
}

impl Converter {
    /// Converts a frame. Eight-bit YUV is converted by [`to_rgb`] with the matrix and range of the
    /// frame, which FFmpeg's scaler ignores as `ffmpeg-next` wraps it. Other YUV formats are first
    /// scaled to eight-bit YUV, and the remaining formats are converted by the scaler alone.
    fn picture(&mut self, frame: &Frame) -> Result<Picture, String> {
        let (width, height) = (frame.width(), frame.height());
        if width == 0 || height == 0 || width.max(height) > LARGEST_SIDE {
            return Err(format!("frames of {width}×{height} pixels are not supported"));
        }
        let matrix = Matrix::of(frame.color_space(), is_full_range(frame));
        let pixels = if let Some(shift) = chroma_shift(frame.format()) {
            to_rgb(&planes(frame, shift), &matrix)
        } else if is_other_yuv(frame.format()) {
            let eight_bit = self.converted(frame, Pixel::YUV444P)?;
            to_rgb(&planes(&eight_bit, (0, 0)), &matrix)
        } else {
            let rgb = self.converted(frame, Pixel::RGB24)?;
            let row = 3 * to_usize(width);
            let lines = rgb.data(0).chunks(rgb.stride(0)).take(to_usize(height));
            lines.flat_map(|line| &line[..row]).copied().collect()
        };
        Ok(rotated(Picture { width, height, pixels }, self.quarter_turns))
    }

    fn converted(&mut self, frame: &Frame, to: Pixel) -> Result<Frame, String> {
        let wrong = |error: ffmpeg::Error| format!("the frames cannot be converted: {error}");
        let (format, width, height) = (frame.format(), frame.width(), frame.height());
        let fits = |scaler: &Scaler| {
            let (input, output) = (scaler.input(), scaler.output());
            (input.format, input.width, input.height, output.format) == (format, width, height, to)
        };
        let scaler = match self.scaler.take().filter(fits) {
            Some(scaler) => scaler,
            None => Scaler::get(format, width, height, to, width, height, Flags::BILINEAR)
                .map_err(wrong)?,
        };
        let mut converted = Frame::empty();
        self.scaler.insert(scaler).run(frame, &mut converted).map_err(wrong)?;
        Ok(converted)
    }
}

fn planes(frame: &Frame, shift: (u32, u32)) -> Planes<'_> {
    Planes {
        data: [frame.data(0), frame.data(1), frame.data(2)],
        strides: [frame.stride(0), frame.stride(1), frame.stride(2)],
        width: to_usize(frame.width()),
        height: to_usize(frame.height()),
        shift,
    }
}

/// [`Planes::shift`] of a format with eight-bit Y, U and V planes, or `None` for other formats.
fn chroma_shift(format: Pixel) -> Option<(u32, u32)> {
    match format {
        Pixel::YUV420P | Pixel::YUVJ420P => Some((1, 1)),
        Pixel::YUV422P | Pixel::YUVJ422P => Some((1, 0)),
        Pixel::YUV444P | Pixel::YUVJ444P => Some((0, 0)),
        _ => None,
    }
}

/// Whether a format is YUV with more than eight bits or with another arrangement of planes.
fn is_other_yuv(format: Pixel) -> bool {
    matches!(
        format,
        Pixel::YUV420P10LE
            | Pixel::YUV422P10LE
            | Pixel::YUV444P10LE
            | Pixel::YUV420P12LE
            | Pixel::YUV422P12LE
            | Pixel::YUV444P12LE
            | Pixel::NV12
            | Pixel::P010LE
            | Pixel::YUV411P
            | Pixel::YUV410P
            | Pixel::YUYV422
            | Pixel::UYVY422
    )
}

fn is_full_range(frame: &Frame) -> bool {
    matches!(frame.format(), Pixel::YUVJ420P | Pixel::YUVJ422P | Pixel::YUVJ444P)
        || frame.color_range() == ffmpeg::color::Range::JPEG
}

/// Rotates a picture clockwise by quarter turns.
fn rotated(picture: Picture, quarter_turns: u8) -> Picture {
    let Picture { width, height, .. } = picture;
    let (w, h) = (to_usize(width), to_usize(height));
    // Index in the original of the pixel at (row, column) of the result.
    let source: fn(usize, usize, usize, usize) -> usize = match quarter_turns % 4 {
        1 => |row, column, w, h| (h - 1 - column) * w + row,
        2 => |row, column, w, h| (h - 1 - row) * w + (w - 1 - column),
        3 => |row, column, w, _| column * w + (w - 1 - row),
        _ => return picture,
    };
    let (width, height) = if quarter_turns % 2 == 1 { (height, width) } else { (width, height) };
    let mut pixels = Vec::with_capacity(picture.pixels.len());
    for row in 0..to_usize(height) {
        for column in 0..to_usize(width) {
            let start = 3 * source(row, column, w, h);
            pixels.extend_from_slice(&picture.pixels[start..start + 3]);
        }
    }
    Picture { width, height, pixels }
}

/// Clockwise quarter turns that the stream's display matrix asks for. The matrix has 3×3 numbers of
/// 32 bits. The upper left 2×2 numbers, in 16.16 fixed point, are the rotation
/// (libavutil/display.h). Angles that are not multiples of a quarter turn are ignored.
fn quarter_turns(stream: &ffmpeg::Stream<'_>) -> u8 {
    let matrix = stream.side_data().find(|data| data.kind() == SideData::DisplayMatrix);
    let Some(matrix) = matrix else { return 0 };
    let number = |i: usize| {
        let bytes = matrix.data().get(4 * i..4 * i + 4);
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes).signum()
    };
    match (number(0), number(1), number(3), number(4)) {
        (0, 1, -1, 0) => 1,
        (-1, 0, 0, -1) => 2,
        (0, -1, 1, 0) => 3,
        _ => 0,
    }
}

/// Lossless: `usize` has at least 32 bits on the supported machines.
fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
