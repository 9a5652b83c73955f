//! Packets of a clip's video stream, and their decoder.

use std::io::Cursor;
use std::sync::Once;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::codec::packet::side_data::Type as SideData;
use ffmpeg_next::codec::{Id, threading};
use ffmpeg_next::format::{context::StreamIo, input_from_stream};
use ffmpeg_next::util::frame::Video as Frame;
use ffmpeg_next::{Dictionary, Packet, Rational, media};

/// Container formats that FFmpeg may open. Without this list it would also open playlists, which
/// name other files and servers.
const CONTAINERS: &str = "mov,matroska,avi,mpegts,flv";

/// Packets of one video stream, and its decoder.
pub(super) struct Stream {
    /// All packets, in decoding order.
    pub(super) packets: Vec<Packet>,
    pub(super) codec: Id,
    pub(super) time_base: Rational,
    /// Time of the first frame that is shown, in units of `time_base`.
    pub(super) start: Option<i64>,
    /// Clockwise quarter turns that make the frames upright.
    pub(super) quarter_turns: u8,
    decoder: ffmpeg::decoder::Video,
}

impl Stream {
    pub(super) fn open(bytes: &[u8]) -> Result<Self, String> {
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
        let parameters = stream.parameters();
        let codec = parameters.id();
        let mut context = ffmpeg::codec::Context::from_parameters(parameters).map_err(wrong)?;
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
        Ok(Self { packets, codec, time_base, start, quarter_turns, decoder })
    }

    /// Decodes from the start until `take` returns false or the clip ends.
    pub(super) fn decode_all(
        &mut self,
        take: &mut dyn FnMut(&Frame) -> Result<bool, String>,
    ) -> Result<(), String> {
        self.decode_from(0, take).map_err(|fault| match fault {
            Fault::Stream(reason) | Fault::Frame(reason) => reason,
        })
    }

    /// Decodes from packet number `first` until `take` returns false or the packets end. Every
    /// packet is sent once, so the loop terminates.
    pub(super) fn decode_from(
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
pub(super) enum Fault {
    /// The packets cannot be decoded from this start.
    Stream(String),
    /// A decoded frame cannot be used.
    Frame(String),
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
