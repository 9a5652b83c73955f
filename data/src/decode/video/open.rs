//! Opens a container, without decoding frames if its header tells enough.
//!
//! `ffmpeg-next` always lets FFmpeg read and decode the first frames (`avformat_find_stream_info`),
//! which takes longer than decoding a frame of a short clip.
#![expect(unsafe_code, reason = "ffmpeg-next cannot open a container without decoding frames")]

use std::io::{Read, Seek};
use std::ptr;

use ffmpeg_next::codec::Parameters;
use ffmpeg_next::ffi::{
    AVFMT_FLAG_CUSTOM_IO, avformat_alloc_context, avformat_find_stream_info, avformat_open_input,
};
use ffmpeg_next::format::context::{Input, StreamIo};
use ffmpeg_next::{Dictionary, Error};

/// Opens the container that `file` holds. If its header does not describe the streams enough for
/// `is_described`, FFmpeg reads and decodes the first frames.
pub(super) fn open(
    file: impl Read + Seek + Send + 'static,
    options: Dictionary<'_>,
    is_described: &dyn Fn(&Input) -> bool,
) -> Result<Input, Error> {
    let mut io = StreamIo::from_read_seek(file)?;
    // SAFETY: The function has no preconditions. The result is null if memory is short.
    let mut context = unsafe { avformat_alloc_context() };
    if context.is_null() {
        return Err(Error::Other { errno: ffmpeg_next::error::ENOMEM });
    }
    // SAFETY: `context` is a context that only this function knows. `io` outlives it: `input` below
    // owns both, and frees the context first.
    unsafe {
        (*context).pb = io.as_mut_ptr();
        (*context).flags |= AVFMT_FLAG_CUSTOM_IO;
    }
    // SAFETY: `disown` gives up the options, and `own` takes back those that were not used.
    let mut unused = unsafe { options.disown() };
    // SAFETY: The pointers are a context, null where FFmpeg allows it, and a dictionary. If the
    // function fails, it frees the context.
    let opened =
        unsafe { avformat_open_input(&raw mut context, ptr::null(), ptr::null(), &raw mut unused) };
    // SAFETY: `unused` is a dictionary or null, and nothing else owns it.
    drop(unsafe { Dictionary::own(unused) });
    if opened < 0 {
        return Err(Error::from(opened));
    }
    // SAFETY: `context` is an open context whose input is `io`. Nothing else owns them.
    let mut input = unsafe { Input::wrap_with_custom_io(context, io) };
    if !is_described(&input) {
        // SAFETY: `input` owns an open context.
        let found = unsafe { avformat_find_stream_info(input.as_mut_ptr(), ptr::null_mut()) };
        if found < 0 {
            return Err(Error::from(found));
        }
    }
    Ok(input)
}

/// Whether the header of the container has the size of the pictures and the codec's headers.
pub(super) fn has_codec_headers(parameters: &Parameters) -> bool {
    // SAFETY: `parameters` owns the structure. Its fields are numbers.
    let (width, height, length) = unsafe {
        let parameters = &*parameters.as_ptr();
        (parameters.width, parameters.height, parameters.extradata_size)
    };
    width > 0 && height > 0 && length > 0
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ffmpeg_next::format::context::Input;
    use ffmpeg_next::{Dictionary, Packet};

    use super::open;
    use crate::decode::video::stream::{initialise, is_described};

    /// Whether a file is opened without decoding, and what a reader of its packets sees: their data
    /// and times, and the start of the stream.
    fn seen(bytes: &[u8], is_described: &dyn Fn(&Input) -> bool) -> (bool, Vec<Packet>, Vec<i64>) {
        let mut input = open(Cursor::new(bytes.to_vec()), Dictionary::new(), is_described).unwrap();
        // Only decoding tells the format of the pixels.
        let probed = input.streams().any(|stream| {
            let context =
                ffmpeg_next::codec::Context::from_parameters(stream.parameters()).unwrap();
            let video = context.decoder().video();
            video.is_ok_and(|video| video.format() != ffmpeg_next::format::Pixel::None)
        });
        let mut packets = Vec::new();
        let mut packet = Packet::empty();
        while packet.read(&mut input).is_ok() {
            packets.push(std::mem::replace(&mut packet, Packet::empty()));
        }
        let starts = input.streams().map(|stream| stream.start_time()).collect();
        (!probed, packets, starts)
    }

    #[test]
    fn h264_in_mp4_is_read_the_same_without_decoding() {
        initialise().unwrap();
        let folder = format!("{}/tests/cases", env!("CARGO_MANIFEST_DIR"));
        let mut unprobed = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let clip = ["mp4", "mkv", "webm", "ts", "flv", "avi"];
            if !clip.iter().any(|end| name.ends_with(end)) || name == "h264_no_moov.mp4" {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let (skipped, packets, starts) = seen(&bytes, &is_described);
            let (_, probed_packets, probed_starts) = seen(&bytes, &|_| false);
            assert_eq!(starts, probed_starts, "{name}");
            let fields = |packet: &Packet| {
                let times = (packet.pts(), packet.dts(), packet.duration());
                (packet.stream(), times, packet.data().map(<[u8]>::to_vec))
            };
            let (ours, probed) = (packets.iter().map(fields), probed_packets.iter().map(fields));
            assert!(ours.eq(probed), "{name}: other packets");
            if skipped {
                unprobed.push(name);
            }
        }
        unprobed.sort_unstable();
        let expected = [
            "h264_closed.mp4",
            "h264_false_recovery.mp4",
            "h264_mirrored_turned.mp4",
            "h264_open.mp4",
            "h264_refresh.mp4",
        ];
        assert_eq!(unprobed, expected);
    }
}
