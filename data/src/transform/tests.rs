//! Tests that resizing agrees with Pillow and crops with torchvision, and that pictures of the
//! right size are unchanged.

use vljepa_recipes::schema::Transform;

use super::{Crop, Shaper, center_crop, random_crop, short_side, short_side_to};
use crate::decode::Picture;

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

/// Asserts that values differ by at most 1: both implementations use fixed point, and may round a
/// half differently.
fn assert_close(ours: &[u8], golden: &[u8]) {
    assert_eq!(ours.len(), golden.len());
    let worst = ours.iter().zip(golden).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= 1, "differs by {worst}:\n{ours:?}\n{golden:?}");
}

/// Golden numbers from Pillow 13.0.0: `Image.fromarray(picture).resize((ow, oh), Image.BILINEAR)`
/// with the short side `int(8 * 256 / 224)`, then the 8×8 crop at `int(round((o - 8) / 2))`. First
/// and last row.
#[test]
fn resize_and_center_crop_are_pillows() {
    type Golden = (u32, u32, [u8; 24], [u8; 24]);
    let goldens: [Golden; 3] = [
        (
            23,
            17,
            [
                38, 21, 43, 51, 41, 44, 65, 68, 45, 78, 103, 46, 92, 146, 48, 105, 196, 49, 119,
                84, 50, 132, 61, 51,
            ],
            [
                208, 60, 99, 221, 80, 125, 223, 107, 151, 179, 142, 177, 89, 185, 204, 33, 180,
                222, 33, 45, 127, 46, 100, 38,
            ],
        ),
        (
            9,
            14,
            [
                39, 9, 40, 46, 10, 43, 53, 13, 46, 60, 18, 49, 67, 25, 52, 74, 34, 55, 81, 45, 58,
                88, 58, 61,
            ],
            [
                130, 30, 40, 137, 31, 50, 144, 34, 60, 151, 39, 70, 158, 46, 80, 165, 55, 90, 172,
                66, 100, 179, 79, 110,
            ],
        ),
        (
            5,
            6,
            [
                5, 1, 40, 7, 1, 40, 11, 2, 40, 15, 3, 40, 19, 5, 41, 23, 8, 41, 27, 11, 41, 31, 15,
                42,
            ],
            [
                60, 14, 40, 62, 14, 42, 66, 15, 44, 70, 16, 47, 74, 18, 49, 78, 21, 52, 82, 24, 54,
                86, 28, 57,
            ],
        ),
    ];
    for (width, height, first, last) in goldens {
        let mut shaper = Shaper::new(Transform::ResizeCenterCrop, 8);
        let shaped = shaper.shape(picture(width, height), 0).unwrap();
        assert_eq!((shaped.width, shaped.height), (8, 8));
        assert_close(&shaped.pixels[..24], &first);
        assert_close(&shaped.pixels[7 * 24..], &last);
    }
}

/// Golden numbers from Pillow 13.0.0: `resize((4, 4), Image.BILINEAR)` of the 23×17 picture.
/// Without antialiasing, the first value would be 39.
#[test]
fn squash_is_pillows_resize() {
    let golden = [
        46, 18, 46, 83, 77, 56, 123, 139, 68, 160, 129, 78, 96, 30, 57, 133, 89, 88, 173, 151, 121,
        198, 140, 152, 152, 42, 69, 187, 101, 122, 186, 149, 174, 96, 130, 157, 200, 54, 81, 169,
        113, 153, 72, 139, 162, 61, 125, 74,
    ];
    let shaped = Shaper::new(Transform::Squash, 4).shape(picture(23, 17), 0).unwrap();
    assert_close(&shaped.pixels, &golden);
}

#[test]
fn a_picture_of_the_right_size_is_taken_as_it_is() {
    for transform in [Transform::ResizeCenterCrop, Transform::Squash] {
        let original = picture(8, 8);
        assert_eq!(Shaper::new(transform, 8).shape(original.clone(), 9).unwrap(), original);
        let other = Shaper::new(transform, 8).shape(picture(9, 8), 9).unwrap();
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
        let Crop { left, top, width, height } = crop;
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
    let mut shaper = Shaper::new(Transform::RandomResizedCrop, 8);
    let shaped = shaper.shape(picture(1, 1), 3).unwrap();
    assert_eq!(shaped.pixels, [0, 0, 40].repeat(64));
}
