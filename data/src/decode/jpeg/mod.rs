//! Decodes JPEG pictures with libjpeg-turbo.
//!
//! Its accurate integer inverse transform, smooth chroma upsampling and colour conversion give the
//! same bytes with and without vector instructions, so a run computes the same on every machine.
//! Pillow decodes with the same library.

mod library;

use image::metadata::Orientation;

use self::library::Decoder;
use super::{Part, Picture, Region, check_size, oriented};

/// Largest number of scans in a progressive JPEG. Encoders write about ten. A small file with
/// thousands of scans of a large picture would take minutes.
const MOST_SCANS: u16 = 500;

/// Pixels that are decoded on each side of a region. The library treats the sides of a region as
/// sides of the picture: it smooths chroma of the outer two pixels without their neighbours.
const MARGIN: u32 = 2;

/// The left side of a region must be a multiple of this width in pixels: the largest width of a
/// minimum coded unit (MCU). Smaller ones divide it.
const WIDEST_MCU: u32 = 32;

/// Decodes a JPEG and applies its EXIF orientation. Bytes after the picture are ignored: cameras
/// append a second picture or a clip. The decoder's warnings are errors, because it fills damaged
/// or missing parts with grey.
///
/// If only a region is needed, the library computes no pixels above the region and beside it, but
/// it reads all coefficients, and so finds damage there. It would not read the coefficients below
/// the region, so all rows down to the last one are decoded. The pixels of the region are those of
/// the whole picture.
pub(super) fn decode(bytes: &[u8], region: &dyn Fn(u32, u32) -> Region) -> Result<Part, String> {
    decode_with(&Header::read(bytes)?, bytes, region)
}

/// Decodes a frame of a clip, in which an EXIF orientation has no meaning: the clip says how its
/// frames are turned.
pub(super) fn decode_upright(
    bytes: &[u8],
    region: &dyn Fn(u32, u32) -> Region,
) -> Result<Part, String> {
    let header = Header { orientation: Orientation::NoTransforms, ..Header::read(bytes)? };
    decode_with(&header, bytes, region)
}

/// Whether the JPEG is shown as it is stored. An EXIF orientation turns or mirrors it.
pub(super) fn is_upright(bytes: &[u8]) -> Result<bool, String> {
    Ok(Header::read(bytes)?.orientation == Orientation::NoTransforms)
}

fn decode_with(
    header: &Header,
    bytes: &[u8],
    region: &dyn Fn(u32, u32) -> Region,
) -> Result<Part, String> {
    check_size(header.width, header.height, 3)?;
    if header.bits != 8 {
        return Err(format!(
            "the JPEG has {} bits per colour, but only 8 are supported; convert it to 8 bits",
            header.bits
        ));
    }
    let wrong = |text: String| match text {
        text if text.contains("Premature end") => format!("the JPEG is cut short: {text}"),
        text => format!("the JPEG cannot be decoded: {text}"),
    };
    let (width, height) = (u32::from(header.width), u32::from(header.height));
    let mut decoder = Decoder::new(bytes, MOST_SCANS).map_err(wrong)?;
    if decoder.size() != (width, height) {
        return Err(wrong("its headers give different sizes".to_owned()));
    }
    let whole = Region::whole(width, height);
    let mut part = whole;
    if header.can_be_cropped() && decoder.knows_subsampling() {
        part = region(width, height).widened(MARGIN, (WIDEST_MCU, 1), width, height);
        part.height = height - part.top;
    }
    let mut pixels = decoder.decode(Some(part).filter(|&part| part != whole)).map_err(wrong)?;
    if decoder.is_cmyk() {
        pixels = pixels.as_chunks().0.iter().flat_map(rgb_of_inverted_cmyk).collect();
    }
    let pixels = Picture { width: part.width, height: part.height, pixels };
    if header.orientation != Orientation::NoTransforms {
        return oriented(pixels, header.orientation).map(Part::whole);
    }
    let Region { left, top, .. } = part;
    Ok(Part { pixels, left, top, full_width: width, full_height: height })
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
    /// Marker of the frame, which tells the kind of compression.
    marker: u8,
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
                (marker @ 0xc0..=0xcf, &[bits, h0, h1, w0, w1, ..]) => {
                    size = Some((marker, bits, [w0, w1], [h0, h1]));
                }
                (0xe1, [b'E', b'x', b'i', b'f', 0, 0, exif @ ..]) => {
                    orientation = Orientation::from_exif_chunk(exif).unwrap_or(orientation);
                }
                _ => {}
            }
        }
        let (marker, bits, width, height) =
            size.ok_or("the JPEG has no picture before its first scan")?;
        let [width, height] = [width, height].map(u16::from_be_bytes);
        Ok(Self { marker, bits, width, height, orientation })
    }

    /// Whether a region can be decoded alone. A region of a turned picture would have to be turned
    /// too. In progressive JPEGs the library may smooth blocks with blocks outside of the region.
    fn can_be_cropped(&self) -> bool {
        matches!(self.marker, 0xc0 | 0xc1) && self.orientation == Orientation::NoTransforms
    }
}

#[cfg(test)]
mod tests;
