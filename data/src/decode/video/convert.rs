//! Converts decoded frames to upright RGB pictures.

use ffmpeg_next as ffmpeg;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::software::scaling::{Context as Scaler, Flags};
use ffmpeg_next::util::frame::Video as Frame;
use image::metadata::Orientation;

use super::to_usize;
use super::yuv::{Matrix, Planes, to_rgb};
use crate::decode::{Part, Picture, Region, check_size, oriented};

/// Converts decoded frames to upright RGB pictures.
pub(super) struct Converter {
    scaler: Option<Scaler>,
    orientation: Orientation,
}

impl Converter {
    /// `orientation` is how frames must be turned and mirrored.
    pub(super) fn new(orientation: Orientation) -> Self {
        Self { scaler: None, orientation }
    }

    /// Converts a frame, or the region that is needed of an upright picture of a width and height.
    /// Eight-bit YUV is converted by [`to_rgb`] with the matrix and range of the frame, which
    /// FFmpeg's scaler ignores as `ffmpeg-next` wraps it. Other YUV formats are first scaled to
    /// eight-bit YUV, and the remaining formats are converted by the scaler alone.
    pub(super) fn part(
        &mut self,
        frame: &Frame,
        region: &dyn Fn(u32, u32) -> Region,
    ) -> Result<Part, String> {
        let (width, height) = (frame.width(), frame.height());
        check_size(width, height, 3)?;
        let matrix = Matrix::of(frame.color_space(), is_full_range(frame));
        let mut part = Region::whole(width, height);
        let pixels = if let Some(shift) = chroma_shift(frame.format()) {
            if self.orientation == Orientation::NoTransforms {
                let block = (1 << shift.0, 1 << shift.1);
                part = region(width, height).widened(0, block, width, height);
            }
            to_rgb(&planes(frame, shift), part, &matrix)
        } else if is_other_yuv(frame.format()) {
            let eight_bit = self.converted(frame, Pixel::YUV444P)?;
            to_rgb(&planes(&eight_bit, (0, 0)), part, &matrix)
        } else {
            let rgb = self.converted(frame, Pixel::RGB24)?;
            let row = 3 * to_usize(width);
            let lines = rgb.data(0).chunks(rgb.stride(0)).take(to_usize(height));
            lines.flat_map(|line| &line[..row]).copied().collect()
        };
        let pixels = Picture { width: part.width, height: part.height, pixels };
        if self.orientation != Orientation::NoTransforms {
            return oriented(pixels, self.orientation).map(Part::whole);
        }
        let Region { left, top, .. } = part;
        Ok(Part { pixels, left, top, full_width: width, full_height: height })
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

#[cfg(test)]
mod tests {
    use crate::decode::video::decode;
    use crate::decode::{Part, Picture, Region, Shape};
    use crate::fixtures::cut_out;

    /// Needs one region of each frame.
    struct Regional(Region);

    impl Shape for Regional {
        fn region(&self, _: u32, _: u32) -> Region {
            self.0
        }

        fn shape(&mut self, part: Part) -> Result<Picture, String> {
            let (left, top) = (self.0.left - part.left, self.0.top - part.top);
            Ok(cut_out(&part.pixels, Region { left, top, ..self.0 }))
        }
    }

    /// Clips of 4:2:0 are converted in part, and a clip that is turned is converted whole.
    #[test]
    fn a_region_of_a_frame_has_the_pixels_of_the_whole_frame() {
        for name in ["h264_closed.mp4", "h264_mirrored_turned.mp4", "mjpeg.avi"] {
            let path = format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(path).unwrap();
            let whole = decode(&bytes, 3, &mut Ok::<Picture, String>).unwrap();
            for n in 0..20 {
                let region = Region { left: n, top: 21 - n, width: 27 - n, height: 1 + n };
                let parts = decode(&bytes, 3, &mut Regional(region)).unwrap();
                for (part, whole) in parts.pictures.iter().zip(&whole.pictures) {
                    assert!(*part == cut_out(whole, region), "{name}: {region:?}");
                }
            }
        }
    }
}
