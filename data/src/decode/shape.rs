//! Which pixels of a picture a caller needs. Decoders convert only these pixels.

use super::Picture;

/// Rectangle in a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Number of columns on the left of the rectangle.
    pub left: u32,
    /// Number of rows above the rectangle.
    pub top: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Region {
    /// All pixels of a picture.
    #[must_use]
    pub const fn whole(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// This region of a picture of `width`×`height` pixels with `margin` more pixels on each side
    /// where the picture has them, and with its left and upper side moved to multiples of `step`.
    pub(super) fn widened(self, margin: u32, step: (u32, u32), width: u32, height: u32) -> Self {
        let left = self.left.saturating_sub(margin) / step.0 * step.0;
        let top = self.top.saturating_sub(margin) / step.1 * step.1;
        let right = (self.left + self.width).saturating_add(margin).min(width);
        let bottom = (self.top + self.height).saturating_add(margin).min(height);
        Self { left, top, width: right - left, height: bottom - top }
    }
}

/// Pixels of a region of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Pixels of the region.
    pub pixels: Picture,
    /// Number of columns of the whole picture on the left of the region.
    pub left: u32,
    /// Number of rows of the whole picture above the region.
    pub top: u32,
    /// Width of the whole picture in pixels.
    pub full_width: u32,
    /// Height of the whole picture in pixels.
    pub full_height: u32,
}

impl Part {
    /// The whole picture as a part of itself.
    #[must_use]
    pub fn whole(picture: Picture) -> Self {
        let (full_width, full_height) = (picture.width, picture.height);
        Self { pixels: picture, left: 0, top: 0, full_width, full_height }
    }
}

/// Makes frames of decoded pictures.
pub trait Shape {
    /// Region whose pixels [`Shape::shape`] needs of an upright picture of this size. It must lie
    /// within the picture and have at least one pixel.
    fn region(&self, width: u32, height: u32) -> Region;

    /// Makes a frame. `part` holds at least the pixels of [`Shape::region`].
    ///
    /// # Errors
    /// A message if the frame cannot be made.
    fn shape(&mut self, part: Part) -> Result<Picture, String>;
}

/// A function of whole pictures.
impl<F: FnMut(Picture) -> Result<Picture, String>> Shape for F {
    fn region(&self, width: u32, height: u32) -> Region {
        Region::whole(width, height)
    }

    fn shape(&mut self, part: Part) -> Result<Picture, String> {
        self(part.pixels)
    }
}
