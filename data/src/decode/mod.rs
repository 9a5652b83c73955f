//! Decodes compressed pictures and clips into pixels.

mod image;
mod jpeg;
mod jpeg_clip;
mod shape;
#[cfg(feature = "video")]
pub mod video;
#[cfg(not(feature = "video"))]
#[path = "no_video.rs"]
pub mod video;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, RgbImage};
use vljepa_recipes::schema::Visual;

pub use jpeg_clip::{JpegClip, JpegClipWriter};
pub use shape::{Part, Region, Shape};

/// Largest side of a picture or frame, in pixels.
const LARGEST_SIDE: u32 = 16_384;

/// Largest size of a decoded picture or frame in bytes: a hundred million pixels of three 8-bit
/// colours. Without a limit, a small file could demand gigabytes of memory.
const LARGEST_BYTES: u64 = 300_000_000;

/// Type of a visual member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// A picture (JPEG, PNG, WebP or AVIF).
    Image,
    /// A clip (video file).
    Video,
}

impl Media {
    /// Type that a lower-case file extension means (`jpg`, `jpeg`, `png`, `webp`, `avif`; `mp4`,
    /// `mkv`, `webm`, `avi`, `mov`), or `None` for other extensions.
    #[must_use]
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "jpg" | "jpeg" | "png" | "webp" | "avif" => Some(Self::Image),
            "mp4" | "mkv" | "webm" | "avi" | "mov" => Some(Self::Video),
            _ => None,
        }
    }

    /// Type of the visual members of a source in the recipe.
    #[must_use]
    pub fn of_source(visual: Visual) -> Self {
        match visual {
            Visual::Image => Self::Image,
            Visual::Video => Self::Video,
        }
    }
}

/// Bytes of a picture or video, or where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaSource {
    /// Encoded bytes, from a shard.
    Bytes(Arc<[u8]>),
    /// A local file.
    File(PathBuf),
}

/// Decoded picture: 8-bit pixels, (height, width, 3), in the order red, green, blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels, the number of columns.
    pub width: u32,
    /// Height in pixels, the number of rows.
    pub height: u32,
    /// Pixels row by row, three bytes each.
    pub pixels: Vec<u8>,
}

/// Frames of a sample. Frame `i` is `pictures[order[i]]`, so a repeated picture is stored once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    /// Distinct frames, in any order.
    pub pictures: Vec<Picture>,
    /// Index into `pictures` for each frame, in the order of time.
    pub order: Vec<usize>,
}

/// Decodes `bytes` into `frames` frames. Each frame is passed to `shape` as soon as it is decoded,
/// so that a long clip is never in memory at its full size. Only the pixels that `shape` needs are
/// computed where that saves time; they are the pixels of the whole picture. A picture is repeated.
/// From a clip, the frames chosen by [`uniform_frames`] are taken.
///
/// # Errors
/// A message that describes why the bytes cannot be decoded.
pub fn decode(
    media: Media,
    bytes: &[u8],
    frames: usize,
    shape: &mut dyn Shape,
) -> Result<Clip, String> {
    if bytes.is_empty() {
        return Err("the picture or clip is empty".to_owned());
    }
    match media {
        Media::Image => {
            let part = image::decode(bytes, &|width, height| shape.region(width, height))?;
            let picture = shape.shape(part)?;
            Ok(Clip { pictures: vec![picture], order: vec![0; frames] })
        }
        Media::Video => video::decode(bytes, frames, shape),
    }
}

/// Decodes a whole picture.
///
/// # Errors
/// A message that describes why the bytes cannot be decoded.
pub fn picture(bytes: &[u8]) -> Result<Picture, String> {
    if bytes.is_empty() {
        return Err("the picture is empty".to_owned());
    }
    Ok(image::decode(bytes, &Region::whole)?.pixels)
}

/// Name of the format of a picture: `jpeg`, `png`, `webp` or `avif`. `None` for other bytes.
#[must_use]
pub fn picture_format(bytes: &[u8]) -> Option<&'static str> {
    match ::image::guess_format(bytes).ok()? {
        ::image::ImageFormat::Jpeg => Some("jpeg"),
        ::image::ImageFormat::Png => Some("png"),
        ::image::ImageFormat::WebP => Some("webp"),
        ::image::ImageFormat::Avif => Some("avif"),
        _ => None,
    }
}

/// Whether the bytes are a JPEG that is shown as it is stored, without an EXIF orientation that
/// turns or mirrors it.
#[must_use]
pub fn is_upright_jpeg(bytes: &[u8]) -> bool {
    picture_format(bytes) == Some("jpeg") && jpeg::is_upright(bytes) == Ok(true)
}

/// Indices of the `n` frames that are taken from a clip of `count` frames: ⌊i·(count−1)/(n−1)⌋, or
/// the middle frame if n = 1. If the clip has fewer than `n` frames, indices repeat.
///
/// # Panics
/// If `count` is 0.
#[must_use]
pub fn uniform_frames(count: usize, n: usize) -> Vec<usize> {
    assert!(count > 0, "a clip has frames");
    if n == 1 {
        return vec![count / 2];
    }
    (0..n).map(|i| i * (count - 1) / (n - 1)).collect()
}

/// Refuses a segment that is no stretch of time.
fn checked_seconds(seconds: &Range<f64>) -> Result<(), String> {
    let Range { start, end } = seconds;
    if start.is_finite() && *start >= 0.0 && start < end {
        return Ok(());
    }
    Err(format!("its segment from {start} s to {end} s is no stretch of time"))
}

/// Refuses sizes that would take too much memory. A decoder needs at least `pixel_bytes` for each
/// pixel, and the result three.
fn check_size(
    width: impl Into<u32>,
    height: impl Into<u32>,
    pixel_bytes: u8,
) -> Result<(), String> {
    let (width, height) = (width.into(), height.into());
    if width == 0 || height == 0 {
        return Err(format!("a size of {width}×{height} pixels is not possible"));
    }
    let bytes = u64::from(width) * u64::from(height) * u64::from(pixel_bytes.max(3));
    if width.max(height) > LARGEST_SIDE || bytes > LARGEST_BYTES {
        return Err(format!(
            "{width}×{height} pixels are too many: at most {LARGEST_SIDE} on a side and \
             {LARGEST_BYTES} bytes are decoded, and these need {bytes} bytes; make it smaller"
        ));
    }
    Ok(())
}

/// Turns and mirrors a picture.
fn oriented(picture: Picture, orientation: Orientation) -> Result<Picture, String> {
    if orientation == Orientation::NoTransforms {
        return Ok(picture);
    }
    let Picture { width, height, pixels } = picture;
    let pixels = RgbImage::from_raw(width, height, pixels)
        .ok_or("the picture has another number of bytes than pixels")?;
    let mut picture = DynamicImage::ImageRgb8(pixels);
    picture.apply_orientation(orientation);
    let pixels = picture.into_rgb8();
    let (width, height) = pixels.dimensions();
    Ok(Picture { width, height, pixels: pixels.into_raw() })
}

impl Clip {
    /// Pixels of each frame, (H, W, 3), in the order of time.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.order.iter().map(|&picture| &self.pictures[picture].pixels[..])
    }

    /// Approximate size in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let pixels: usize = self.pictures.iter().map(|picture| picture.pixels.len()).sum();
        pixels + self.order.len() * size_of::<usize>() + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests;
