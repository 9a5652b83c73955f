//! Decodes JPEG pictures with libjpeg-turbo.
//!
//! Its accurate integer inverse transform, smooth chroma upsampling and colour conversion give the
//! same bytes with and without vector instructions, so a run computes the same on every machine.
//! Pillow decodes with the same library.

use image::metadata::Orientation;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

use super::{Picture, check_size, oriented};

/// Largest number of scans in a progressive JPEG. Encoders write about ten. A small file with
/// thousands of scans of a large picture would take minutes.
const MOST_SCANS: u32 = 500;

/// Decodes a JPEG and applies its EXIF orientation. Bytes after the picture are ignored: cameras
/// append a second picture or a clip. The decoder's warnings are errors, because it fills damaged
/// or missing parts with grey.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let header = Header::read(bytes)?;
    check_size(header.width, header.height, 3)?;
    if header.bits != 8 {
        return Err(format!(
            "the JPEG has {} bits per colour, but only 8 are supported; convert it to 8 bits",
            header.bits
        ));
    }
    let (width, height) = (usize::from(header.width), usize::from(header.height));
    let wrong = |error: turbojpeg::Error| match error.to_string() {
        text if text.contains("Premature end") => format!("the JPEG is cut short: {text}"),
        text => format!("the JPEG cannot be decoded: {text}"),
    };
    let mut decoder = Decompressor::new().map_err(wrong)?;
    decoder.set_scan_limit(MOST_SCANS).map_err(wrong)?;
    let colours = decoder.read_header(bytes).map_err(wrong)?.colorspace;
    let format = match colours {
        Colorspace::CMYK | Colorspace::YCCK => PixelFormat::CMYK,
        Colorspace::RGB | Colorspace::YCbCr | Colorspace::Gray => PixelFormat::RGB,
    };
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    let image = Image { pixels: &mut pixels[..], width, pitch, height, format };
    decoder.decompress(bytes, image).map_err(wrong)?;
    if format == PixelFormat::CMYK {
        pixels = pixels.as_chunks().0.iter().flat_map(rgb_of_inverted_cmyk).collect();
    }
    let (width, height) = (u32::from(header.width), u32::from(header.height));
    oriented(Picture { width, height, pixels }, header.orientation)
}

/// Red, green and blue of cyan, magenta, yellow and black. JPEGs of four colours store them
/// inverted, as Adobe's programs do. Pillow reads all of them so, and rounds like this.
fn rgb_of_inverted_cmyk(&[cyan, magenta, yellow, black]: &[u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| {
        let product = u16::from(255 - ink) * u16::from(black) + 128;
        let [absorbed, _] = (product + (product >> 8)).to_be_bytes();
        black - absorbed
    })
}

/// What the segments before the first scan say.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    bits: u8,
    width: u16,
    height: u16,
    orientation: Orientation,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "the JPEG is cut short: it ends before its first scan".to_owned();
        let mut orientation = Orientation::NoTransforms;
        let mut size = None;
        // Behind the marker that starts the file.
        let mut rest = bytes.get(2..).ok_or_else(cut)?;
        loop {
            let &[0xff, marker, ref after @ ..] = rest else {
                let wrong = "the JPEG cannot be decoded: a segment does not start with a marker";
                return Err(if rest.len() < 2 { cut() } else { wrong.to_owned() });
            };
            rest = after;
            match marker {
                // Padding: the marker follows.
                0xff => {
                    rest = &bytes[bytes.len() - after.len() - 1..];
                    continue;
                }
                0x01 | 0xd0..=0xd7 => continue,
                0xd9 | 0xda => break,
                _ => {}
            }
            let (length, _) = after.split_first_chunk().ok_or_else(cut)?;
            let length = usize::from(u16::from_be_bytes(*length));
            let segment = after.get(2..length.max(2)).ok_or_else(cut)?;
            rest = &after[length.max(2)..];
            match (marker, segment) {
                (0xc4 | 0xc8 | 0xcc, _) => {}
                (0xc0..=0xcf, &[bits, h0, h1, w0, w1, ..]) => {
                    size = Some((bits, [w0, w1], [h0, h1]));
                }
                (0xe1, [b'E', b'x', b'i', b'f', 0, 0, exif @ ..]) => {
                    orientation = Orientation::from_exif_chunk(exif).unwrap_or(orientation);
                }
                _ => {}
            }
        }
        let (bits, width, height) = size.ok_or("the JPEG has no picture before its first scan")?;
        let [width, height] = [width, height].map(u16::from_be_bytes);
        Ok(Self { bits, width, height, orientation })
    }
}
