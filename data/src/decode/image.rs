//! Decodes pictures. The format is detected from the bytes.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::{Part, Picture, Region, check_size, jpeg, oriented, video};

/// Decodes a JPEG, PNG, WebP or AVIF into 8-bit red, green and blue. Alpha is dropped, and the
/// orientation in the EXIF data is applied. `region` tells which pixels are needed of an upright
/// picture of a width and height.
pub(super) fn decode(bytes: &[u8], region: &dyn Fn(u32, u32) -> Region) -> Result<Part, String> {
    let whole = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => return jpeg::decode(bytes, region),
        Ok(ImageFormat::Png) => decode_with_crate(bytes, ImageFormat::Png),
        Ok(ImageFormat::WebP) => {
            check_webp_length(bytes)?;
            decode_with_crate(bytes, ImageFormat::WebP)
        }
        Ok(ImageFormat::Avif) => video::decode_avif(bytes),
        Ok(other) => {
            let name = other.extensions_str().first().unwrap_or(&"other");
            Err(format!("a picture of type {name} cannot be read; use JPEG, PNG, WebP or AVIF"))
        }
        Err(_) => Err("the picture is neither a JPEG nor a PNG, WebP or AVIF".to_owned()),
    };
    whole.map(Part::whole)
}

fn decode_with_crate(bytes: &[u8], format: ImageFormat) -> Result<Picture, String> {
    let wrong = |error: image::ImageError| format!("the picture cannot be decoded: {error}");
    let reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, decoder.color_type().bytes_per_pixel())?;
    let orientation = decoder.orientation().map_err(wrong)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    oriented(Picture { width, height, pixels: picture.into_rgb8().into_raw() }, orientation)
}

/// A RIFF file says its length in its header: the bytes after the first eight.
fn check_webp_length(bytes: &[u8]) -> Result<(), String> {
    let length = bytes.get(4..8).and_then(|length| length.try_into().ok());
    let length = length.map_or(u64::MAX, |length| u64::from(u32::from_le_bytes(length)));
    let whole = length.saturating_add(8) <= u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    whole.then_some(()).ok_or_else(|| "the WebP is cut short".to_owned())
}
