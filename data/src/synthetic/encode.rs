//! Encodes drawn pixels as JPEG, or as H.264 in mp4. Neither subsamples chroma, which would blur
//! the colours of 32-pixel frames.

use image::codecs::jpeg::JpegEncoder;

use super::design::SIZE;
use crate::error::DataError;

/// JPEG quality at which the coding error of a 32-pixel picture is below the picture's own noise.
const JPEG_QUALITY: u8 = 98;

/// Encodes one RGB frame as JPEG. The crate `image` writes 4:4:4.
pub(super) fn jpeg(frame: &[u8]) -> Result<Vec<u8>, DataError> {
    let side = u32::try_from(SIZE).map_err(|error| DataError::Synthetic(error.to_string()))?;
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .encode(frame, side, side, image::ExtendedColorType::Rgb8)
        .map_err(|error| DataError::Synthetic(error.to_string()))?;
    Ok(bytes)
}

/// Frame rate of clips.
pub(super) const FRAMES_PER_SECOND: i32 = 8;

#[cfg(feature = "video")]
pub(super) use video::{mp4, prepare};

#[cfg(feature = "video")]
mod video {
    use std::io::{Cursor, Seek, SeekFrom, Write};
    use std::sync::{Arc, Mutex, PoisonError};

    use ffmpeg_next as ffmpeg;
    use ffmpeg_next::format::Pixel;
    use ffmpeg_next::{Dictionary, Rational, codec, encoder, format, frame, software};

    use super::FRAMES_PER_SECOND;
    use crate::error::DataError;
    use crate::synthetic::design::SIZE;
    use crate::synthetic::raster::FRAME_BYTES;

    /// Initialises FFmpeg and checks that it has the H.264 encoder. Call this before the first
    /// clip.
    pub(in crate::synthetic) fn prepare() -> Result<(), DataError> {
        ffmpeg::init().map_err(encode_error)?;
        ffmpeg::log::set_level(ffmpeg::log::Level::Error);
        encoder::find_by_name("libx264").map(|_| ()).ok_or_else(|| {
            DataError::Synthetic(
                "this FFmpeg has no libx264 encoder (Debian: apt-get install libavcodec-extra)"
                    .to_owned(),
            )
        })
    }

    /// File in memory whose contents can be taken after the muxer has dropped its clone.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Cursor<Vec<u8>>>>);

    impl Memory {
        fn take(&self) -> Vec<u8> {
            std::mem::take(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut())
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Memory {
        fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).seek(to)
        }
    }

    /// Encodes RGB frames as 4:4:4 H.264 in mp4. The quantiser is fixed: without rate control, the
    /// bytes of a clip depend only on its frames. There are no B-frames, so each frame is one
    /// packet, in display order.
    pub(in crate::synthetic) fn mp4(frames: &[u8]) -> Result<Vec<u8>, DataError> {
        let memory = Memory::default();
        write(frames, memory.clone()).map_err(encode_error)?;
        Ok(memory.take())
    }

    fn write(frames: &[u8], memory: Memory) -> Result<(), ffmpeg::Error> {
        let side = u32::try_from(SIZE).map_err(|_| ffmpeg::Error::Bug)?;
        let io = format::context::StreamIo::from_write_seek(memory)?;
        let mut output = format::output_to_stream(io, None, Some("mp4"))?;
        let mut encoder = open(side)?;
        let time_base = Rational(1, FRAMES_PER_SECOND);
        let mut stream = output.add_stream_with(&encoder)?;
        stream.set_time_base(time_base);
        output.write_header()?;
        let stream_base = output.stream(0).ok_or(ffmpeg::Error::StreamNotFound)?.time_base();

        let mut scaler = software::scaling::Context::get(
            Pixel::RGB24,
            side,
            side,
            Pixel::YUV444P,
            side,
            side,
            software::scaling::Flags::BILINEAR,
        )?;
        let (mut rgb, mut yuv) =
            (frame::Video::new(Pixel::RGB24, side, side), frame::Video::empty());
        let mut drain = |encoder: &mut encoder::Video| -> Result<(), ffmpeg::Error> {
            let mut packet = ffmpeg::Packet::empty();
            while encoder.receive_packet(&mut packet).is_ok() {
                packet.set_stream(0);
                packet.set_duration(1);
                packet.rescale_ts(time_base, stream_base);
                packet.write_interleaved(&mut output)?;
            }
            Ok(())
        };
        for (time, pixels) in (0..).zip(frames.chunks_exact(FRAME_BYTES)) {
            let stride = rgb.stride(0);
            for (row, line) in rgb.data_mut(0).chunks_mut(stride).zip(pixels.chunks_exact(SIZE * 3))
            {
                row[..SIZE * 3].copy_from_slice(line);
            }
            scaler.run(&rgb, &mut yuv)?;
            yuv.set_pts(Some(time));
            encoder.send_frame(&yuv)?;
            drain(&mut encoder)?;
        }
        encoder.send_eof()?;
        drain(&mut encoder)?;
        output.write_trailer()
    }

    fn open(side: u32) -> Result<encoder::Video, ffmpeg::Error> {
        let codec = encoder::find_by_name("libx264").ok_or(ffmpeg::Error::EncoderNotFound)?;
        let mut video = codec::context::Context::new_with_codec(codec).encoder().video()?;
        video.set_width(side);
        video.set_height(side);
        video.set_format(Pixel::YUV444P);
        video.set_time_base(Rational(1, FRAMES_PER_SECOND));
        video.set_frame_rate(Some(Rational(FRAMES_PER_SECOND, 1)));
        video.set_max_b_frames(0);
        video.set_colorspace(ffmpeg::color::Space::SMPTE170M);
        video.set_color_range(ffmpeg::color::Range::MPEG);
        video.set_flags(codec::Flags::GLOBAL_HEADER);
        // For such small clips, opening the encoder takes most of the time: it fills cost tables
        // per quantiser and motion vector length. The CAVLC tables, which the preset ultrafast
        // would use, take three times as long as all the rest, so CABAC is selected and the vectors
        // are short.
        let x264 = "qp=6:ipratio=1:mvrange=32:cabac=1";
        let mut options = Dictionary::new();
        for (key, value) in [
            ("preset", "ultrafast"),
            ("tune", "zerolatency"),
            ("threads", "1"),
            ("x264-params", x264),
        ] {
            options.set(key, value);
        }
        video.open_with(options)
    }

    fn encode_error(error: ffmpeg::Error) -> DataError {
        DataError::Synthetic(error.to_string())
    }
}

/// Always fails: clips cannot be written without FFmpeg.
#[cfg(not(feature = "video"))]
pub(super) fn prepare() -> Result<(), DataError> {
    Err(built_without_video())
}

#[cfg(not(feature = "video"))]
pub(super) fn mp4(_frames: &[u8]) -> Result<Vec<u8>, DataError> {
    Err(built_without_video())
}

#[cfg(not(feature = "video"))]
fn built_without_video() -> DataError {
    let reason = "the clips are mp4 files, but this program was built without FFmpeg; \
                  build it with `--features video`";
    DataError::Synthetic(reason.to_owned())
}
