//! Compressed pictures and clips to pixels.

mod image;
#[cfg(feature = "video")]
pub mod video;
#[cfg(not(feature = "video"))]
#[path = "no_video.rs"]
pub mod video;
#[cfg(feature = "video")]
mod yuv;

use vljepa_recipes::schema::Visual;

/// Largest side of a picture or a frame, pixels: beyond it a few bytes could ask for gigabytes.
const LARGEST_SIDE: u32 = 16_384;

/// What the bytes of a member are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// A picture.
    Image,
    /// A clip.
    Video,
}

impl Media {
    /// By the extension, in lower case: `jpg`, `jpeg`, `png`; `mp4`, `mkv`, `webm`, `avi`, `mov`.
    #[must_use]
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "jpg" | "jpeg" | "png" => Some(Self::Image),
            "mp4" | "mkv" | "webm" | "avi" | "mov" => Some(Self::Video),
            _ => None,
        }
    }

    /// What a source of the recipe holds.
    #[must_use]
    pub fn of_source(visual: Visual) -> Self {
        match visual {
            Visual::Image => Self::Image,
            Visual::Video => Self::Video,
        }
    }
}

/// Pixels, (height, width, 3), red, green, blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The bytes.
    pub pixels: Vec<u8>,
}

/// The frames of a sample. Frame `i` is `pictures[order[i]]`: a picture that is repeated is held once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    /// The different frames.
    pub pictures: Vec<Picture>,
    /// Which of them stands at each time.
    pub order: Vec<usize>,
}

/// Decodes `bytes` to `frames` frames; each one goes through `shape` as soon as it is there, so that a long clip is never in memory at
/// its full size. A picture is repeated; of a clip the frames of [`uniform_frames`] are taken.
///
/// # Errors
/// In words, what is wrong with the bytes.
pub fn decode(
    media: Media,
    bytes: &[u8],
    frames: usize,
    shape: &mut dyn FnMut(Picture) -> Result<Picture, String>,
) -> Result<Clip, String> {
    if bytes.is_empty() {
        return Err("it has no bytes".to_owned());
    }
    match media {
        Media::Image => {
            let picture = shape(image::decode(bytes)?)?;
            Ok(Clip { pictures: vec![picture], order: vec![0; frames] })
        }
        Media::Video => video::decode(bytes, frames, shape),
    }
}

/// Which `n` of `count` frames stand for a clip: ⌊i·(count−1)/(n−1)⌋, the middle one for n = 1 (data_and_evaluation.md §1). Short clips
/// repeat frames.
///
/// # Panics
/// When `count` is 0.
#[must_use]
pub fn uniform_frames(count: usize, n: usize) -> Vec<usize> {
    assert!(count > 0, "a clip has frames");
    if n == 1 {
        return vec![count / 2];
    }
    (0..n).map(|i| i * (count - 1) / (n - 1)).collect()
}

impl Clip {
    /// The pixels of each frame, (H, W, 3), in the order of time.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.order.iter().map(|&picture| &self.pictures[picture].pixels[..])
    }

    /// Bytes it takes in memory, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let pixels: usize = self.pictures.iter().map(|picture| picture.pixels.len()).sum();
        pixels + self.order.len() * size_of::<usize>() + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests;
