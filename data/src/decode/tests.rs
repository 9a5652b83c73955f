//! Tests that pictures of all supported kinds decode, and that other bytes are rejected with a
//! message.

use image::{DynamicImage, GrayImage, ImageFormat, RgbaImage};

use super::{Clip, Media, Picture, decode, uniform_frames};
use crate::fixtures::{encoded, png};

fn plain(media: Media, bytes: &[u8], frames: usize) -> Result<Clip, String> {
    decode(media, bytes, frames, &mut Ok::<Picture, String>)
}

#[test]
fn frames_are_chosen_uniformly() {
    assert_eq!(uniform_frames(10, 4), [0, 3, 6, 9]);
    assert_eq!(uniform_frames(300, 16)[..4], [0, 19, 39, 59]);
    assert_eq!(uniform_frames(4, 4), [0, 1, 2, 3]);
    assert_eq!(uniform_frames(2, 4), [0, 0, 0, 1]);
    assert_eq!(uniform_frames(9, 1), [4]);
    assert_eq!(uniform_frames(1, 3), [0, 0, 0]);
}

#[test]
fn pictures_decode_to_their_pixels_and_repeat() {
    let clip = plain(Media::Image, &png(5, 3, 77), 4).unwrap();
    assert_eq!((clip.pictures.len(), clip.order.len()), (1, 4));
    assert_eq!((clip.pictures[0].width, clip.pictures[0].height), (5, 3));
    assert_eq!(clip.pictures[0].pixels[..6], [0, 0, 77, 7, 1, 77]);
    let frames = clip.frames().collect::<Vec<_>>().concat();
    assert_eq!(frames, clip.pictures[0].pixels.repeat(4));
    let grey = DynamicImage::ImageLuma8(GrayImage::from_pixel(2, 2, image::Luma([9])));
    let clip = plain(Media::Image, &encoded(&grey, ImageFormat::Png), 1).unwrap();
    assert_eq!(clip.pictures[0].pixels, [9; 12]);
    let deep = DynamicImage::ImageRgb16(image::ImageBuffer::from_pixel(
        1,
        1,
        image::Rgb([0x8080, 0x1010, 0xffff]),
    ));
    let clip = plain(Media::Image, &encoded(&deep, ImageFormat::Png), 1).unwrap();
    assert_eq!(clip.pictures[0].pixels, [0x80, 0x10, 0xff]);
    let clear = RgbaImage::from_pixel(1, 1, image::Rgba([1, 2, 3, 0]));
    let clear = encoded(&DynamicImage::ImageRgba8(clear), ImageFormat::Png);
    assert_eq!(plain(Media::Image, &clear, 1).unwrap().pictures[0].pixels, [1, 2, 3]);
}

#[test]
fn a_jpeg_keeps_a_flat_colour() {
    let flat = image::RgbImage::from_pixel(32, 32, image::Rgb([200, 40, 90]));
    let jpeg = encoded(&DynamicImage::ImageRgb8(flat), ImageFormat::Jpeg);
    let clip = plain(Media::Image, &jpeg, 1).unwrap();
    let pixel: [u8; 3] = clip.pictures[0].pixels[..3].try_into().unwrap();
    // Quality 75 rounds the three constant terms to steps of 16, 17 and 17, which are an eighth of
    // that in pixel values. Colour conversion multiplies the errors of chroma by at most 1.8. The
    // total is below 1 + 2 + 1.
    let off = pixel.iter().zip([200, 40, 90]).map(|(a, b)| a.abs_diff(b)).max().unwrap();
    assert!(off <= 4, "{pixel:?}");
}

#[test]
fn what_is_no_picture_is_refused_in_words() {
    let whole = png(64, 64, 3);
    let flat = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y % 251) as u8, 0, 0]));
    let jpeg = encoded(&DynamicImage::ImageRgb8(flat), ImageFormat::Jpeg);
    let refused = |bytes: &[u8]| plain(Media::Image, bytes, 1).unwrap_err();
    assert_eq!(refused(b""), "the picture or clip is empty");
    assert!(refused(b"not a picture").contains("neither a JPEG nor a PNG"));
    assert!(refused(&whole[..whole.len() / 2]).contains("cannot be decoded"));
    assert!(refused(&jpeg[..40]).contains("cut short"));
    assert!(plain(Media::Image, &whole, 1).is_ok() && plain(Media::Image, &jpeg, 1).is_ok());
}

#[cfg(not(feature = "video"))]
#[test]
fn a_build_without_video_says_so() {
    assert!(plain(Media::Video, b"clip", 4).unwrap_err().contains("built without"));
}

#[cfg(feature = "video")]
#[test]
fn what_is_no_clip_is_refused_in_words() {
    assert!(plain(Media::Video, b"not a clip at all", 4).unwrap_err().contains("cannot be opened"));
    // FFmpeg must not open playlists, because they name other files.
    let playlist = b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n";
    assert!(plain(Media::Video, playlist, 4).unwrap_err().contains("cannot be opened"));
    let picture = png(16, 16, 1);
    assert!(plain(Media::Video, &picture, 4).unwrap_err().contains("cannot be opened"));
}
