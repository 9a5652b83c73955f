//! Decodes compressed pictures and clips into pixels.

mod image;
#[cfg(feature = "video")]
pub mod video;
#[cfg(not(feature = "video"))]
#[path = "no_video.rs"]
pub mod video;

use vljepa_recipes::schema::Visual;

/// Largest side of a picture or frame, in pixels. Without a limit, a small file could demand
/// gigabytes of memory.
const LARGEST_SIDE: u32 = 16_384;

/// Type of a visual member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// A picture (JPEG or PNG).
    Image,
    /// A clip (video file).
    Video,
}

impl Media {
    /// Type that a lower-case file extension means (`jpg`, `jpeg`, `png`; `mp4`, `mkv`, `webm`,
    /// `avi`, `mov`), or `None` for other extensions.
    #[must_use]
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "jpg" | "jpeg" | "png" => Some(Self::Image),
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
/// so that a long clip is never in memory at its full size. A picture is repeated. From a clip, the
/// frames chosen by [`uniform_frames`] are taken.
///
/// # Errors
/// A message that describes why the bytes cannot be decoded.
pub fn decode(
    media: Media,
    bytes: &[u8],
    frames: usize,
    shape: &mut dyn FnMut(Picture) -> Result<Picture, String>,
) -> Result<Clip, String> {
    if bytes.is_empty() {
        return Err("the picture or clip is empty".to_owned());
    }
    match media {
        Media::Image => {
            let picture = shape(image::decode(bytes)?)?;
            Ok(Clip { pictures: vec![picture], order: vec![0; frames] })
        }
        Media::Video => video::decode(bytes, frames, shape),
    }
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
