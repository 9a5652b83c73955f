//! Decodes JPEG and PNG pictures.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{LARGEST_SIDE, Picture};

/// Largest size of a decoded picture in bytes: a hundred million pixels of three 8-bit colours.
const LARGEST_PICTURE_BYTES: u64 = 300_000_000;

/// Whether a JPEG has an end marker after the start of its last scan. Decoders silently fill a
/// truncated picture with grey.
fn has_end_marker(jpeg: &[u8]) -> bool {
    let last = |marker: [u8; 2]| jpeg.windows(2).rposition(|pair| pair == marker);
    last([0xff, 0xd9]).is_some_and(|end| last([0xff, 0xda]).is_some_and(|scan| scan < end))
}

/// Decodes a JPEG or PNG into 8-bit red, green and blue. The format is detected from the bytes.
/// Alpha is dropped, and the EXIF orientation is applied.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let wrong = |error: image::ImageError| format!("the picture cannot be decoded: {error}");
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| format!("the picture cannot be decoded: {error}"))?;
    if reader.format().is_none() {
        return Err("the picture is neither a JPEG nor a PNG".to_owned());
    }
    if reader.format() == Some(ImageFormat::Jpeg) && !has_end_marker(bytes) {
        return Err("the JPEG is cut short: it has no end marker after its last scan".to_owned());
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    if decoder.total_bytes() > LARGEST_PICTURE_BYTES {
        let bytes = decoder.total_bytes();
        return Err(format!(
            "the decoded picture has {bytes} bytes, more than {LARGEST_PICTURE_BYTES}"
        ));
    }
    let orientation = decoder.orientation().map_err(wrong)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    picture.apply_orientation(orientation);
    let pixels = picture.into_rgb8();
    let (width, height) = pixels.dimensions();
    Ok(Picture { width, height, pixels: pixels.into_raw() })
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn a_jpeg_cut_anywhere_in_its_pixels_is_refused() {
        let noise: Vec<u8> =
            (0u32..64 * 64 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut jpeg = Vec::new();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90);
        image::ImageEncoder::write_image(encoder, &noise, 64, 64, image::ExtendedColorType::Rgb8)
            .unwrap();
        assert!(decode(&jpeg).is_ok());
        for part in [2, 4, 8, 9] {
            let cut = &jpeg[..jpeg.len() * part / 10];
            assert!(decode(cut).is_err(), "{part} tenths were accepted");
        }
        // Bytes after the end marker are common (padding, a second picture) and allowed.
        jpeg.extend([0; 16]);
        assert!(decode(&jpeg).is_ok());
    }
}
