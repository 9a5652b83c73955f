//! Tests that pictures of all kinds decode to Pillow's pixels, and that damaged ones are refused.

use vljepa_data::decode::{Media, Picture, decode};

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR"))).expect(name)
}

fn picture(bytes: &[u8]) -> Result<Picture, String> {
    decode(Media::Image, bytes, 1, &mut Ok::<Picture, String>)
        .map(|mut clip| clip.pictures.remove(0))
}

const JPEGS: [&str; 16] = [
    "arithmetic.jpg",
    "cmyk.jpg",
    "exif_2.jpg",
    "exif_3.jpg",
    "exif_4.jpg",
    "exif_5.jpg",
    "exif_6.jpg",
    "exif_7.jpg",
    "exif_8.jpg",
    "grey.jpg",
    "noninterleaved.jpg",
    "progressive.jpg",
    "restarts.jpg",
    "scans.jpg",
    "subsampled.jpg",
    "ycck.jpg",
];

const WEBPS: [&str; 3] = ["exif_6.webp", "lossless.webp", "lossy.webp"];

/// The golden PNG beside each picture holds Pillow's pixels (`make_pictures.py`). Pillow 13.0.0
/// uses libjpeg-turbo too, so JPEGs are equal to the byte. Both decoders of WebP follow its
/// specification, which is exact.
#[test]
fn pictures_have_the_pixels_that_pillow_reads() {
    let mut turned = 0;
    for name in JPEGS.into_iter().chain(WEBPS) {
        let golden = picture(&read(&format!("{name}.png"))).unwrap();
        assert!(picture(&read(name)).unwrap() == golden, "{name} differs");
        turned += u32::from((golden.width, golden.height) == (28, 44));
    }
    assert_eq!(turned, 5, "orientations 5 to 8, and one WebP");
    assert_ne!(picture(&read("exif_2.jpg")), picture(&read("exif_4.jpg")), "mirrors differ");
}

/// Even a missing end marker makes a picture incomplete. A clip after the cut must not hide it.
#[test]
fn a_picture_cut_anywhere_is_refused() {
    let clip = read("h264_closed.mp4");
    for name in JPEGS.into_iter().chain(WEBPS) {
        let whole = read(name);
        for length in 1..whole.len() {
            let cut = &whole[..length];
            assert!(picture(cut).is_err(), "{name}: {length} of {} bytes", whole.len());
            if name.ends_with("jpg") {
                let hidden = [cut, &clip].concat();
                assert!(picture(&hidden).is_err(), "{name}: {length} bytes and a clip");
            }
        }
    }
}

#[test]
fn bytes_after_a_jpeg_are_ignored() {
    for name in JPEGS {
        let jpeg = read(name);
        let alone = picture(&jpeg).unwrap();
        // A motion photo, a second picture, and padding. The second picture's end marker is cut.
        let second = read("progressive.jpg");
        let others = [read("h264_closed.mp4"), second[..second.len() - 2].to_vec(), vec![0; 64]];
        for other in others {
            assert!(picture(&[jpeg.clone(), other].concat()).unwrap() == alone, "{name}");
        }
    }
}

#[test]
fn damaged_jpegs_are_refused() {
    let jpeg = read("subsampled.jpg");
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    // A restart marker in the middle of the scan makes libjpeg warn and skip.
    let mut damaged = jpeg.clone();
    damaged[scan + 40..scan + 42].copy_from_slice(&[0xff, 0xd3]);
    let error = picture(&damaged).unwrap_err();
    assert!(error.contains("Corrupt JPEG data"), "{error}");
}

#[test]
fn pictures_of_other_kinds_are_refused_with_their_kind() {
    // Behind the marker of the frame come two bytes of length, one of precision, and the size.
    let with_frame = |change: &dyn Fn(&mut [u8])| {
        let mut jpeg = read("subsampled.jpg");
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        change(&mut jpeg[frame + 4..]);
        picture(&jpeg).unwrap_err()
    };
    let twelve_bits = with_frame(&|frame| frame[0] = 12);
    assert!(twelve_bits.contains("12 bits per colour"), "{twelve_bits}");
    let too_large = with_frame(&|frame| frame[1..5].copy_from_slice(&[0x3f, 0xff, 0x3f, 0xff]));
    assert!(too_large.contains("16383×16383 pixels are too many"), "{too_large}");
    let empty = with_frame(&|frame| frame[1..5].copy_from_slice(&[0, 0, 0, 9]));
    assert!(empty.contains("9×0 pixels"), "{empty}");
    let gif = picture(b"GIF89a\x01\0\x01\0").unwrap_err();
    assert!(gif.contains("type gif cannot be read"), "{gif}");
}

/// 66 kB of PNG with 16,384² pixels of one bit. They took over a gigabyte of memory.
#[test]
fn a_small_file_with_many_pixels_is_refused() {
    let error = picture(&read("bilevel_16384.png")).unwrap_err();
    assert!(error.contains("16384×16384 pixels are too many"), "{error}");
}

#[cfg(not(feature = "video"))]
#[test]
fn avif_without_ffmpeg_is_refused_with_the_missing_feature() {
    let error = picture(&read("picture.avif")).unwrap_err();
    assert!(error.contains("AVIF pictures need FFmpeg"), "{error}");
}

#[cfg(feature = "video")]
#[test]
fn avif_has_the_pixels_that_pillow_reads() {
    let (avif, golden) = (picture(&read("picture.avif")), picture(&read("picture.avif.png")));
    let (avif, golden) = (avif.unwrap(), golden.unwrap());
    assert_eq!((avif.width, avif.height), (golden.width, golden.height));
    let difference = |other: &Picture| {
        golden.pixels.iter().zip(&other.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    // Decoding AV1 is exact. Both conversions to RGB round in fixed point, each in its own way.
    assert!(difference(&avif) <= 2, "{}", difference(&avif));
    assert!(difference(&picture(&read("progressive.jpg")).unwrap()) > 2, "another picture differs");
    let turned = picture(&read("turned.avif")).unwrap_err();
    assert!(turned.contains("`irot`"), "{turned}");
    let whole = read("picture.avif");
    for length in 1..whole.len() {
        assert!(picture(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
}
