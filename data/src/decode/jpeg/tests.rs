//! Tests that a region decoded alone has the pixels of the whole picture, and that damage outside
//! of the region is found.

use super::library::Decoder;
use super::{MARGIN, MOST_SCANS, WIDEST_MCU, decode};
use crate::decode::{Picture, Region};
use crate::fixtures::cut_out;

/// JPEGs of each chroma subsampling (`make_samplings.py`), and the CRC-32 of the pixels that Pillow
/// 13.0.0 reads.
const SAMPLINGS: [(&str, u32); 6] = [
    ("sampling_444.jpg", 0x874a_44cd),
    ("sampling_440.jpg", 0xad15_012b),
    ("sampling_422.jpg", 0xf4b6_d335),
    ("sampling_420.jpg", 0xd49e_c561),
    ("sampling_411.jpg", 0x5cbd_736c),
    ("sampling_grey.jpg", 0x8e90_d50f),
];

const WIDTH: u32 = 119;
const HEIGHT: u32 = 93;

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn whole(jpeg: &[u8]) -> Picture {
    decode(jpeg, &Region::whole).unwrap().pixels
}

/// Regions at every column and every row, down to one pixel.
fn regions() -> impl Iterator<Item = Region> {
    let columns = (0..WIDTH).map(|left| Region {
        left,
        top: 11 * left % HEIGHT,
        width: 1 + 7 * left % (WIDTH - left),
        height: 1,
    });
    let rows = (0..HEIGHT).map(|top| Region {
        left: 5 * top % WIDTH,
        top,
        width: 1,
        height: 1 + 7 * top % (HEIGHT - top),
    });
    let squares = (0..60).map(|n| Region { left: n, top: n + 9, width: 50, height: 20 });
    columns.chain(rows).chain(squares)
}

#[test]
fn a_region_has_the_pixels_of_the_whole_picture() {
    for (name, checksum) in SAMPLINGS {
        let jpeg = read(name);
        let picture = whole(&jpeg);
        assert_eq!((picture.width, picture.height), (WIDTH, HEIGHT), "{name}");
        let mut crc = flate2::Crc::new();
        crc.update(&picture.pixels);
        assert_eq!(crc.sum(), checksum, "{name}: not Pillow's pixels");
        let mut smaller = 0;
        for region in regions() {
            let part = decode(&jpeg, &|_, _| region).unwrap();
            assert_eq!((part.full_width, part.full_height), (WIDTH, HEIGHT));
            let decoded = Region {
                left: part.left,
                top: part.top,
                width: part.pixels.width,
                height: part.pixels.height,
            };
            let inner =
                Region { left: region.left - part.left, top: region.top - part.top, ..region };
            // The pixels of the margin may differ.
            let (ours, golden) = (cut_out(&part.pixels, inner), cut_out(&picture, region));
            assert!(ours == golden, "{name}: {region:?} decoded as {decoded:?}");
            smaller += u32::from(decoded.width < WIDTH && decoded.top > 0);
        }
        assert!(smaller > 100, "{name}: {smaller} regions were decoded alone");
    }
}

/// Without the margin, chroma at the sides of the region is smoothed without its neighbours.
#[test]
fn a_region_needs_its_margin() {
    let jpeg = read("sampling_420.jpg");
    let picture = whole(&jpeg);
    let pixels = |region: Region| {
        let mut decoder = Decoder::new(&jpeg, MOST_SCANS).unwrap();
        decoder.decode(Some(region)).unwrap()
    };
    let bare = Region { left: WIDEST_MCU, top: 0, width: 32, height: HEIGHT };
    assert!(pixels(bare) != cut_out(&picture, bare).pixels);
    let inner = Region { left: MARGIN, top: 0, width: 32 - 2 * MARGIN, height: HEIGHT };
    let alone = Picture { width: 32, height: HEIGHT, pixels: pixels(bare) };
    let golden = Region { left: WIDEST_MCU + MARGIN, ..inner };
    assert!(cut_out(&alone, inner) == cut_out(&picture, golden));
}

#[test]
fn damage_outside_of_the_region_is_found() {
    let jpeg = read("sampling_420.jpg");
    let region = |_, _| Region { left: 50, top: 40, width: 9, height: 9 };
    for length in 1..jpeg.len() {
        assert!(decode(&jpeg[..length], &region).is_err(), "{length} of {} bytes", jpeg.len());
    }
    let mut damaged = jpeg.clone();
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    damaged[scan + 40..scan + 42].copy_from_slice(&[0xff, 0xd3]);
    let error = decode(&damaged, &region).unwrap_err();
    assert!(error.contains("Corrupt JPEG data"), "{error}");
    assert!(decode(&jpeg, &region).is_ok());
}

/// Progressive and turned JPEGs are decoded whole.
#[test]
fn a_jpeg_that_cannot_be_cut_gives_all_pixels() {
    for name in ["progressive.jpg", "exif_6.jpg"] {
        let jpeg = read(name);
        let part = decode(&jpeg, &|_, _| Region::whole(1, 1)).unwrap();
        assert_eq!((part.left, part.top), (0, 0));
        assert_eq!((part.full_width, part.full_height), (part.pixels.width, part.pixels.height));
        assert!(part.pixels == whole(&jpeg), "{name}");
    }
}
