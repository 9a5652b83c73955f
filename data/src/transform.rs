//! Crops and resizes pictures to squares of the model's size, and scales them down to be stored.
//!
//! Resizing is bilinear or bicubic with antialiasing, as in Pillow: the kernel widens with the
//! scale.

use fast_image_resize::images::{Image, TypedCroppedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};
use vljepa_recipes::schema::{Interpolation, Preprocessing, Transform};

use crate::decode::{Part, Picture, Region, Shape};
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
    preprocessing: Preprocessing,
    size: u32,
    resizer: Resizer,
}

impl Shaper {
    /// Creates a shaper to frames of one size.
    #[must_use]
    pub fn new(preprocessing: Preprocessing, size: u32) -> Self {
        Self { preprocessing, size, resizer: Resizer::new() }
    }

    /// Crops a picture at random and resizes it to the model's size. `draw` selects the crop. All
    /// frames of a clip must get the same `draw`.
    ///
    /// # Errors
    /// A message if the picture cannot be resized.
    pub fn random_crop(&mut self, picture: &Picture, draw: u64) -> Result<Picture, String> {
        self.resize_crop(picture, random_crop(picture.width, picture.height, draw))
    }

    fn resize_crop(&mut self, picture: &Picture, crop: Region) -> Result<Picture, String> {
        let window = Window::of(Region { left: 0, top: 0, ..crop });
        self.resize(picture, crop, window)
    }

    /// Rectangle of a picture that becomes the frame. `None` if the frame is the picture itself.
    fn window(&self, width: u32, height: u32) -> Option<Window> {
        match self.preprocessing.transform {
            _ if (width, height) == (self.size, self.size) => None,
            Transform::ResizeCenterCrop | Transform::RandomResizedCrop => {
                Some(center_window((width, height), short_side(self.size), self.size))
            }
            Transform::CenterCrop => Some(center_window((width, height), self.size, self.size)),
            Transform::Squash => Some(Window::of(Region::whole(width, height))),
        }
    }

    /// Resizes the `window` of the `crop` of a picture to the model's size.
    fn resize(
        &mut self,
        picture: &Picture,
        crop: Region,
        window: Window,
    ) -> Result<Picture, String> {
        let size = (self.size, self.size);
        let interpolation = self.preprocessing.interpolation;
        resize(&mut self.resizer, interpolation, picture, crop, window, size)
    }
}

/// Number of source pixels on each side of its middle that the filter uses to enlarge.
fn support(interpolation: Interpolation) -> f64 {
    match interpolation {
        Interpolation::Bilinear => 1.0,
        Interpolation::Bicubic => 2.0,
    }
}

/// Window that becomes the square of `size` pixels in the middle of a picture whose shorter side is
/// resized to `short` pixels.
fn center_window((width, height): (u32, u32), short: u32, size: u32) -> Window {
    let resized = short_side_to(width, height, short);
    Window::scaled(center_crop(resized.0, resized.1, size), (width, height), resized)
}

/// Resizes the `window` of the `crop` of a picture. Pixels outside of the crop do not contribute.
fn resize(
    resizer: &mut Resizer,
    interpolation: Interpolation,
    picture: &Picture,
    crop: Region,
    window: Window,
    (width, height): (u32, u32),
) -> Result<Picture, String> {
    let Region { left, top, width: across, height: down } = crop;
    let source = typed(picture.width, picture.height, &picture.pixels)?;
    let source = TypedCroppedImage::new(source, left, top, across, down).map_err(wrong)?;
    match interpolation {
        Interpolation::Bilinear => {
            pass(resizer, FilterType::Bilinear, &source, window, (width, height))
        }
        // Rows first and then columns, as Pillow does, because values beyond black and white are
        // cut off after the first pass. The library alone begins with the columns.
        Interpolation::Bicubic => {
            let filter = FilterType::CatmullRom;
            let rows = Window { top: 0.0, height: f64::from(down), ..window };
            let between = pass(resizer, filter, &source, rows, (width, down))?;
            let source = typed(width, down, &between.pixels)?;
            let columns = Window { left: 0.0, width: f64::from(width), ..window };
            pass(resizer, filter, &source, columns, (width, height))
        }
    }
}

fn wrong(error: impl std::fmt::Display) -> String {
    format!("the frames cannot be resized: {error}")
}

// The types for one kind of pixels: those for every kind take a minute to compile.
fn typed(width: u32, height: u32, pixels: &[u8]) -> Result<TypedImageRef<'_, U8x3>, String> {
    TypedImageRef::from_buffer(width, height, pixels).map_err(wrong)
}

fn pass(
    resizer: &mut Resizer,
    filter: FilterType,
    source: &impl ImageView<Pixel = U8x3>,
    window: Window,
    (width, height): (u32, u32),
) -> Result<Picture, String> {
    let mut resized = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(
        window.left,
        window.top,
        window.width,
        window.height,
    );
    let mut target = resized.typed_image_mut().ok_or_else(|| wrong("no such pixels"))?;
    resizer.resize_typed(source, &mut target, &options).map_err(wrong)?;
    Ok(Picture { width, height, pixels: resized.into_vec() })
}

/// Scales pictures down, bilinearly, as the transforms of V-JEPA 2 do before they crop.
#[derive(Debug)]
pub struct Shrinker {
    short_side: u32,
    resizer: Resizer,
}

impl Shrinker {
    /// Creates a shrinker to a length of the short side in pixels.
    #[must_use]
    pub fn new(short_side: u32) -> Self {
        Self { short_side: short_side.max(1), resizer: Resizer::new() }
    }

    /// Scales a picture so that its short side has the shrinker's length. A picture whose short
    /// side is not longer stays as it is.
    ///
    /// # Errors
    /// A message if the picture cannot be resized.
    pub fn shrink(&mut self, picture: Picture) -> Result<Picture, String> {
        let (width, height) = (picture.width, picture.height);
        if width.min(height) <= self.short_side {
            return Ok(picture);
        }
        let whole = Region::whole(width, height);
        let size = short_side_to(width, height, self.short_side);
        let window = Window::of(whole);
        resize(&mut self.resizer, Interpolation::Bilinear, &picture, whole, window, size)
    }

    /// Scales a picture so that its short side has `side` pixels, and cuts out the square in its
    /// middle.
    ///
    /// # Errors
    /// A message if the picture cannot be resized.
    pub fn square(&mut self, picture: &Picture, side: u32) -> Result<Picture, String> {
        let (width, height) = (picture.width, picture.height);
        let window = center_window((width, height), side, side);
        let whole = Region::whole(width, height);
        resize(&mut self.resizer, Interpolation::Bilinear, picture, whole, window, (side, side))
    }
}

/// The transforms without a random draw. A random crop is made later, of the whole picture
/// ([`Shaper::random_crop`]).
impl Shape for Shaper {
    fn region(&self, width: u32, height: u32) -> Region {
        self.window(width, height).map_or(Region::whole(width, height), |window| {
            window.region(self.size, support(self.preprocessing.interpolation), width, height)
        })
    }

    fn shape(&mut self, part: Part) -> Result<Picture, String> {
        let Some(window) = self.window(part.full_width, part.full_height) else {
            return Ok(part.pixels);
        };
        let window = Window {
            left: window.left - f64::from(part.left),
            top: window.top - f64::from(part.top),
            ..window
        };
        let whole = Region::whole(part.pixels.width, part.pixels.height);
        self.resize(&part.pixels, whole, window)
    }
}

/// Rectangle in a picture, in pixels. Its sides may lie within pixels.
#[derive(Debug, Clone, Copy)]
struct Window {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Window {
    fn of(region: Region) -> Self {
        let [left, top, width, height] =
            [region.left, region.top, region.width, region.height].map(f64::from);
        Self { left, top, width, height }
    }

    /// Window of a picture of a size that becomes the `crop` of the picture after it is resized. It
    /// gives the pixels that resizing the whole picture and cropping would give, because a resized
    /// pixel depends only on its place.
    fn scaled(crop: Region, size: (u32, u32), resized: (u32, u32)) -> Self {
        let (across, down) = (ratio(size.0, resized.0), ratio(size.1, resized.1));
        Self {
            left: f64::from(crop.left) * across,
            top: f64::from(crop.top) * down,
            width: f64::from(crop.width) * across,
            height: f64::from(crop.height) * down,
        }
    }

    /// Pixels of a picture on which the window depends after it is resized to `size`×`size` by a
    /// filter with this `support`.
    fn region(&self, size: u32, support: f64, width: u32, height: u32) -> Region {
        let (left, across) = reach(self.left, self.width, size, support, width);
        let (top, down) = reach(self.top, self.height, size, support, height);
        Region { left, top, width: across, height: down }
    }
}

/// First pixel and number of pixels of a side of `side` pixels on which the stretch at `start` of
/// `length` pixels depends after it is resized to `size` pixels by a filter with this `support`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers are not negative and limited to the side"
)]
fn reach(start: f64, length: f64, size: u32, support: f64, side: u32) -> (u32, u32) {
    // The filter of a resized pixel reaches `support` source pixels, or as many resized pixels,
    // beyond the middle of that pixel. One more absorbs the rounding of these numbers.
    let beyond = support * (length / f64::from(size.max(1))).max(1.0) + 1.0;
    let first = ((start - beyond).floor().max(0.0) as u32).min(side - 1);
    let end = ((start + length + beyond).ceil() as u32).min(side);
    (first, end - first)
}

fn ratio(of: u32, to: u32) -> f64 {
    f64::from(of) / f64::from(to.max(1))
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
fn center_crop(width: u32, height: u32, size: u32) -> Region {
    let corner = |side: u32| {
        let over = side.saturating_sub(size);
        // ⌊over/2⌋, plus one if the half rounds up to an even number.
        over / 2 + u32::from(over % 4 == 3)
    };
    Region { left: corner(width), top: corner(height), width: size, height: size }
}

/// torchvision's `RandomResizedCrop.get_params` with CLIP's range of areas. The area, the logarithm
/// of the aspect ratio, and the corner are uniform.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides are between 0 and 2³², and checked against the picture's"
)]
fn random_crop(width: u32, height: u32, draw: u64) -> Region {
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
            return Region { left, top, width: crop_width, height: crop_height };
        }
    }
    // No crop fits, as in very wide or narrow pictures: use the centre, with the nearest allowed
    // aspect ratio.
    let widest = ((f64::from(height) * WIDEST_ASPECT).round() as u32).clamp(1, width);
    let tallest = ((f64::from(width) * WIDEST_ASPECT).round() as u32).clamp(1, height);
    let (left, top) = ((width - widest) / 2, (height - tallest) / 2);
    Region { left, top, width: widest, height: tallest }
}

/// Number in [0, 1) made from the upper 53 bits.
#[expect(clippy::cast_precision_loss, reason = "53 bits are exact in f64")]
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
