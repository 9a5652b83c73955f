//! Crops and resizes pictures to squares of the model's size.
//!
//! Resizing is bilinear with antialiasing, as in Pillow (the kernel widens with the scale). The
//! preprocessing of V-JEPA 2 and CLIP does the same.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use vljepa_recipes::schema::Transform;

use crate::decode::Picture;
use crate::order::mix;

/// Smallest fraction of the area that a random crop keeps (CLIP: 0.9 to 1).
const LEAST_AREA: f64 = 0.9;

/// Largest aspect ratio of a random crop, width / height. The smallest is its reciprocal, 3/4
/// (torchvision's `RandomResizedCrop`).
const WIDEST_ASPECT: f64 = 4.0 / 3.0;

/// Number of random crops that are tried before the centre crop is used (torchvision).
const CROP_TRIES: u64 = 10;

/// Converts pictures to `size`×`size` pixels with one transform.
#[derive(Debug)]
pub struct Shaper {
    transform: Transform,
    size: u32,
    resizer: Resizer,
}

impl Shaper {
    /// Creates a shaper for one transform and one size.
    #[must_use]
    pub fn new(transform: Transform, size: u32) -> Self {
        Self { transform, size, resizer: Resizer::new() }
    }

    /// Converts a picture to the model's size. `draw` selects the random crop, and only
    /// [`Transform::RandomResizedCrop`] uses it. All frames of a clip must get the same `draw`.
    ///
    /// # Errors
    /// A message if the picture cannot be resized.
    pub fn shape(&mut self, picture: Picture, draw: u64) -> Result<Picture, String> {
        let size = self.size;
        let (width, height) = (picture.width, picture.height);
        let whole = Crop { left: 0, top: 0, width, height };
        match self.transform {
            Transform::ResizeCenterCrop | Transform::Squash if (width, height) == (size, size) => {
                Ok(picture)
            }
            Transform::ResizeCenterCrop => {
                let (width, height) = short_side_to(width, height, short_side(size));
                let resized = self.resize(&picture, whole, width, height)?;
                Ok(cropped(&resized, center_crop(width, height, size)))
            }
            Transform::Squash => self.resize(&picture, whole, size, size),
            Transform::RandomResizedCrop => {
                self.resize(&picture, random_crop(width, height, draw), size, size)
            }
        }
    }

    fn resize(
        &mut self,
        picture: &Picture,
        crop: Crop,
        width: u32,
        height: u32,
    ) -> Result<Picture, String> {
        let wrong =
            |error: &dyn std::fmt::Display| format!("the frames cannot be resized: {error}");
        let source = ImageRef::new(picture.width, picture.height, &picture.pixels, PixelType::U8x3)
            .map_err(|error| wrong(&error))?;
        let mut resized = Image::new(width, height, PixelType::U8x3);
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(
                f64::from(crop.left),
                f64::from(crop.top),
                f64::from(crop.width),
                f64::from(crop.height),
            );
        self.resizer.resize(&source, &mut resized, &options).map_err(|error| wrong(&error))?;
        Ok(Picture { width, height, pixels: resized.into_vec() })
    }
}

/// Rectangle in a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crop {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

/// Length of the short side before a centre crop of `size`: ⌊size·256/224⌋ (V-JEPA 2's
/// `int(crop_size * 256 / 224)`).
fn short_side(size: u32) -> u32 {
    u32::try_from(u64::from(size) * 256 / 224).unwrap_or(u32::MAX)
}

/// Width and height after scaling the shorter side to `short`. The longer side is rounded down, as
/// in torchvision.
fn short_side_to(width: u32, height: u32, short: u32) -> (u32, u32) {
    let long = |long_side: u32, short_side: u32| {
        let scaled = u64::from(short) * u64::from(long_side) / u64::from(short_side.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX)
    };
    if width <= height { (short, long(height, width)) } else { (long(width, height), short) }
}

/// Square in the middle of the picture. Its corner is at half of the excess, rounded with ties to
/// even, as Python's `round` does.
fn center_crop(width: u32, height: u32, size: u32) -> Crop {
    let corner = |side: u32| {
        let over = side.saturating_sub(size);
        // ⌊over/2⌋, plus one if the half rounds up to an even number.
        over / 2 + u32::from(over % 4 == 3)
    };
    Crop { left: corner(width), top: corner(height), width: size, height: size }
}

/// torchvision's `RandomResizedCrop.get_params` with CLIP's range of areas. The area, the logarithm
/// of the aspect ratio, and the corner are uniform.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides are between 0 and 2³², and checked against the picture's"
)]
fn random_crop(width: u32, height: u32, draw: u64) -> Crop {
    let area = f64::from(width) * f64::from(height);
    for attempt in 0..CROP_TRIES {
        let uniform = |axis: u64| unit(mix(&[draw, attempt, axis]));
        let area = area * (LEAST_AREA + (1.0 - LEAST_AREA) * uniform(0));
        let aspect = ((2.0 * uniform(1) - 1.0) * WIDEST_ASPECT.ln()).exp();
        let crop_width = (area * aspect).sqrt().round() as u32;
        let crop_height = (area / aspect).sqrt().round() as u32;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let corner = |room: u32, axis| {
                let positions = f64::from(room) + 1.0;
                ((uniform(axis) * positions) as u32).min(room)
            };
            let left = corner(width - crop_width, 2);
            let top = corner(height - crop_height, 3);
            return Crop { left, top, width: crop_width, height: crop_height };
        }
    }
    // No crop fits, as in very wide or narrow pictures: use the centre, with the nearest allowed
    // aspect ratio.
    let widest = ((f64::from(height) * WIDEST_ASPECT).round() as u32).clamp(1, width);
    let tallest = ((f64::from(width) * WIDEST_ASPECT).round() as u32).clamp(1, height);
    let (left, top) = ((width - widest) / 2, (height - tallest) / 2);
    Crop { left, top, width: widest, height: tallest }
}

/// Number in [0, 1) made from the upper 53 bits.
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact in f64")]
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

fn cropped(picture: &Picture, crop: Crop) -> Picture {
    let bytes = |pixels: u32| 3 * usize::try_from(pixels).unwrap_or(usize::MAX);
    let (stride, left, row) = (bytes(picture.width), bytes(crop.left), bytes(crop.width));
    let skip = usize::try_from(crop.top).unwrap_or(usize::MAX);
    let lines = usize::try_from(crop.height).unwrap_or(usize::MAX);
    let mut pixels = Vec::with_capacity(row * lines);
    for line in picture.pixels.chunks_exact(stride).skip(skip).take(lines) {
        pixels.extend_from_slice(&line[left..left + row]);
    }
    Picture { width: crop.width, height: crop.height, pixels }
}

#[cfg(test)]
mod tests;
