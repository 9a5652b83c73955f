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
            check_webp(bytes)?;
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

/// Checks the lengths in a WebP before they are believed. A WebP is a RIFF file: after `RIFF`, a
/// length and `WEBP`, it is a sequence of chunks, each with a name, a length and padding to an even
/// length. The decoder would allocate as many bytes as a damaged length says.
fn check_webp(bytes: &[u8]) -> Result<(), String> {
    let length_at = |at: usize| {
        let length = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*length)).ok()
    };
    let end = length_at(4).and_then(|length| length.checked_add(8));
    let end = end.filter(|end| *end <= bytes.len()).ok_or("the WebP is cut short")?;
    let mut at = 12;
    while at + 8 <= end {
        let length = length_at(at + 4).unwrap_or(usize::MAX);
        if length > end - at - 8 {
            let name = String::from_utf8_lossy(&bytes[at..at + 4]).into_owned();
            return Err(format!("the WebP is damaged: its chunk `{name}` is longer than the file"));
        }
        at += 8 + length.next_multiple_of(2);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::decode;
    use crate::decode::Region;

    #[test]
    fn a_webp_whose_chunk_is_longer_than_the_file_is_refused_before_memory_is_allocated() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/exif_6.webp");
        let mut bytes = std::fs::read(file).unwrap();
        assert!(decode(&bytes, &Region::whole).is_ok());
        let exif = bytes.windows(4).position(|name| name == b"EXIF").unwrap();
        bytes[exif + 4..exif + 8].copy_from_slice(&0xf349_f15a_u32.to_le_bytes());
        let error = decode(&bytes, &Region::whole).unwrap_err();
        assert!(error.contains("chunk `EXIF` is longer than the file"), "{error}");
    }
}
