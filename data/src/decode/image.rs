//! JPEG and PNG.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use super::{LARGEST_SIDE, Picture};

/// Decodes a JPEG or a PNG, whichever the bytes are, as 8-bit red, green, blue; alpha is dropped, and a camera's orientation (EXIF) is
/// carried out.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let wrong = |error: image::ImageError| format!("its picture cannot be decoded: {error}");
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| format!("its picture cannot be decoded: {error}"))?;
    if reader.format().is_none() {
        return Err("its picture is neither a JPEG nor a PNG".to_owned());
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let orientation = decoder.orientation().map_err(wrong)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    picture.apply_orientation(orientation);
    let pixels = picture.into_rgb8();
    let (width, height) = pixels.dimensions();
    Ok(Picture { width, height, pixels: pixels.into_raw() })
}
