//! Tests that resizing agrees with Pillow and crops with torchvision, and that pictures of the
//! right size are unchanged.

use vljepa_recipes::schema::{Interpolation, Preprocessing, Transform};

use super::{Shaper, center_crop, random_crop, short_side, short_side_to};
use crate::decode::{Part, Picture, Region, Shape};
use crate::fixtures::cut_out;

/// Picture from which the golden numbers were computed.
fn picture(width: u32, height: u32) -> Picture {
    let byte = |n: u32| u8::try_from(n % 256).unwrap();
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            pixels.extend([byte(7 * x + 13 * y), byte(x * x + 3 * y), byte(x * y + 40)]);
        }
    }
    Picture { width, height, pixels }
}

/// Case of `resizes.json`. Pixels are hexadecimal digits.
#[derive(serde::Deserialize)]
struct Golden {
    width: u32,
    height: u32,
    size: u32,
    /// Left, top, width and height of the crop that is resized, or `None` for the centre crop.
    crop: Option<[u32; 4]>,
    torchvision: String,
    pillow: String,
    not_antialiased: String,
}

/// Largest difference between two right results. The exact value of a pixel is a weighted mean with
/// weights that add up to 1. Each implementation resizes in two passes and rounds to integers after
/// each: the first rounding changes the mean by at most 0.5, and the second by 0.5 more. Weights in
/// 16-bit fixed point have errors of at most 2⁻¹⁵, which change a mean of 16 values by less than
/// 0.13 in each pass. So a result is within 1.3 of the exact value, and two are within 2.6.
const TOLERANCE: u8 = 2;

fn difference(ours: &[u8], golden: &str) -> u8 {
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let golden: Vec<u8> = golden.as_bytes().chunks(2).map(digits).collect();
    assert_eq!(ours.len(), golden.len());
    ours.iter().zip(golden).map(|(a, b)| a.abs_diff(b)).max().unwrap()
}

/// `resizes.json` is from torchvision 0.29.2 and Pillow 13.0.0 (`make_resizes.py`).
#[test]
fn frames_are_those_of_torchvision_and_pillow() {
    let path = format!("{}/tests/cases/resizes.json", env!("CARGO_MANIFEST_DIR"));
    let goldens: Vec<Golden> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut cases, mut aliased) = (0, 0);
    for golden in goldens {
        let Golden { width, height, size, crop, .. } = golden;
        let picture = picture(width, height);
        let shaped = shape(picture, size, crop, Preprocessing::default());
        let name = format!("{width}×{height}, {crop:?}");
        for right in [&golden.torchvision, &golden.pillow] {
            let difference = difference(&shaped.pixels, right);
            assert!(difference <= TOLERANCE, "{name}: {difference}");
        }
        aliased += u32::from(difference(&shaped.pixels, &golden.not_antialiased) > TOLERANCE);
        cases += 1;
    }
    // Enlarging needs no antialiasing: four cases enlarge both sides, and others one side.
    assert!(cases == 16 && aliased >= 9, "{aliased} of {cases} differ without antialiasing");
}

/// Makes a frame of the centre of a picture, of the whole picture or of a crop.
fn shape(picture: Picture, size: u32, crop: Option<[u32; 4]>, centre: Preprocessing) -> Picture {
    let transform = match crop {
        None => centre.transform,
        Some(crop) if crop == [0, 0, picture.width, picture.height] => Transform::Squash,
        Some(_) => Transform::RandomResizedCrop,
    };
    let mut shaper = Shaper::new(Preprocessing { transform, ..centre }, size);
    let shaped = match (transform, crop) {
        (Transform::RandomResizedCrop, Some([left, top, width, height])) => {
            shaper.resize_crop(&picture, Region { left, top, width, height }).unwrap()
        }
        _ => shaper.shape(Part::whole(picture)).unwrap(),
    };
    assert_eq!((shaped.width, shaped.height), (size, size));
    shaped
}

/// Case of `bicubic.json`.
#[derive(serde::Deserialize)]
struct BicubicGolden {
    width: u32,
    height: u32,
    size: u32,
    /// As in [`Golden`]. The centre crop is CLIP's.
    crop: Option<[u32; 4]>,
    bicubic: String,
    bilinear: String,
}

/// `bicubic.json` is from Pillow 13.0.0 (`make_resizes.py`). The absolute weights of a pixel add up
/// to less than 1.3, so the first rounding changes it by at most 0.65, and two right results differ
/// by at most 2 as those of the bilinear filter do.
#[test]
fn bicubic_frames_and_clips_centre_crop_are_those_of_pillow() {
    let path = format!("{}/tests/cases/bicubic.json", env!("CARGO_MANIFEST_DIR"));
    let goldens: Vec<BicubicGolden> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(goldens.len(), 16);
    let (mut other_filter, mut other_crop) = (0, 0);
    for golden in goldens {
        let BicubicGolden { width, height, size, crop, .. } = golden;
        let frames = [Interpolation::Bicubic, Interpolation::Bilinear].map(|interpolation| {
            let centre = Preprocessing { transform: Transform::CenterCrop, interpolation };
            shape(picture(width, height), size, crop, centre).pixels
        });
        let name = format!("{width}×{height}, {crop:?}");
        let near = |ours: &[u8], golden: &str| difference(ours, golden) <= TOLERANCE;
        assert!(near(&frames[0], &golden.bicubic), "{name}");
        assert!(near(&frames[1], &golden.bilinear), "{name}");
        other_filter += u32::from(!near(&frames[0], &golden.bilinear));
        if crop.is_none() {
            let wrong =
                Preprocessing { interpolation: Interpolation::Bicubic, ..Default::default() };
            let wrong = shape(picture(width, height), size, crop, wrong).pixels;
            other_crop += u32::from(!near(&wrong, &golden.bicubic));
        }
    }
    // Smooth pictures of nearly the right size hardly depend on the filter.
    assert!(other_filter >= 12 && other_crop == 7, "{other_filter} filters, {other_crop} crops");
}

/// A frame of the needed region alone is the frame of the whole picture.
#[test]
fn a_frame_depends_only_on_its_region() {
    let mut smaller = 0;
    for (width, height) in [(7, 9), (20, 27), (97, 60), (61, 120), (13, 300), (640, 360)] {
        for (transform, interpolation, size) in [
            (Transform::ResizeCenterCrop, Interpolation::Bilinear, 12),
            (Transform::ResizeCenterCrop, Interpolation::Bicubic, 37),
            (Transform::CenterCrop, Interpolation::Bicubic, 12),
            (Transform::Squash, Interpolation::Bilinear, 12),
        ] {
            let mut shaper = Shaper::new(Preprocessing { transform, interpolation }, size);
            let picture = picture(width, height);
            let region = shaper.region(width, height);
            let part = Part {
                pixels: cut_out(&picture, region),
                left: region.left,
                top: region.top,
                full_width: width,
                full_height: height,
            };
            let alone = shaper.shape(part).unwrap();
            assert!(alone == shaper.shape(Part::whole(picture)).unwrap(), "{width}×{height}");
            smaller += u32::from(region != Region::whole(width, height));
            assert!(transform != Transform::Squash || region == Region::whole(width, height));
        }
    }
    assert!(smaller >= 9, "{smaller} regions");
}

#[test]
fn a_picture_of_the_right_size_is_taken_as_it_is() {
    for transform in [Transform::ResizeCenterCrop, Transform::Squash] {
        let original = picture(8, 8);
        let preprocessing = Preprocessing { transform, ..Preprocessing::default() };
        let mut shaper = Shaper::new(preprocessing, 8);
        assert_eq!(shaper.shape(Part::whole(original.clone())).unwrap(), original);
        let other = shaper.shape(Part::whole(picture(9, 8))).unwrap();
        assert_ne!(other, original, "a picture of another size is resized");
    }
}

#[test]
fn sides_and_corners_are_those_of_the_reference() {
    assert_eq!((short_side(256), short_side(224), short_side(32)), (292, 256, 36));
    assert_eq!(short_side_to(500, 375, 292), (389, 292));
    assert_eq!(short_side_to(375, 500, 292), (292, 389));
    // Computed in Python: [int(round(over / 2)) for over in range(9)]
    let corners: Vec<u32> = (0..9).map(|over| center_crop(8 + over, 8, 8).left).collect();
    assert_eq!(corners, [0, 0, 1, 2, 2, 2, 3, 4, 4]);
}

#[test]
fn random_crops_keep_nine_tenths_and_repeat() {
    let mut different = std::collections::BTreeSet::new();
    for draw in 0..500 {
        let crop = random_crop(400, 300, draw);
        assert_eq!(crop, random_crop(400, 300, draw));
        let Region { left, top, width, height } = crop;
        assert!(left + width <= 400 && top + height <= 300);
        let share = f64::from(width * height) / 120_000.0;
        // Rounding changes each side by at most half a pixel, which is at most 0.5/300 + 0.5/300 of
        // the area.
        assert!((0.896..=1.0).contains(&share), "{share}");
        different.insert((left, top, width, height));
    }
    // Few aspect ratios fit in a 4:3 picture. After ten misses the whole picture is used, about two
    // times in five.
    assert!((200..400).contains(&different.len()), "{}", different.len());
    let narrow = random_crop(10, 1000, 3);
    assert_eq!((narrow.width, narrow.height), (10, 13));
    let mut shaper = Shaper::new(Preprocessing::default(), 8);
    let shaped = shaper.random_crop(&picture(1, 1), 3).unwrap();
    assert_eq!(shaped.pixels, [0, 0, 40].repeat(64));
}
