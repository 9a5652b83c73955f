//! Tests that FFmpeg reads the clips of JPEG frames that this crate writes.

use ffmpeg_next::{Rational, codec};

use super::{Picture, Stream, decode, in_order};
use crate::decode::JpegClipWriter;

/// FFmpeg reads a clip of JPEG frames as motion JPEG: the same packets, the same times, and the
/// same pixels but for rounding. Chroma is not subsampled here: libjpeg-turbo would smooth it, and
/// the conversion of FFmpeg's frames would not.
#[test]
fn ffmpeg_reads_a_clip_of_jpegs_too() {
    let frame = |number: u32| {
        let picture = image::RgbImage::from_fn(48, 32, |x, y| {
            let byte = |n: u32| u8::try_from(n % 256).unwrap();
            image::Rgb([byte(4 * x + 10 * number), byte(6 * y), byte(2 * x + y)])
        });
        crate::fixtures::encoded(&image::DynamicImage::ImageRgb8(picture), image::ImageFormat::Jpeg)
    };
    let mut writer = JpegClipWriter::new(30_000, 48, 32).unwrap();
    for number in 0..9 {
        writer.push(1001 * u64::from(number), &frame(number)).unwrap();
    }
    let file = writer.finish(9009).unwrap();
    let stream = Stream::open(&file).unwrap();
    assert_eq!((stream.codec, stream.time_base), (codec::Id::MJPEG, Rational(1, 30_000)));
    let packets: Vec<_> = stream.packets.iter().map(|it| (it.pts(), it.duration())).collect();
    assert_eq!(packets, (0..9).map(|n| (Some(1001 * n), 1001)).collect::<Vec<_>>());
    for (number, packet) in (0..).zip(&stream.packets) {
        assert_eq!(packet.data().unwrap(), frame(number));
    }
    let (theirs, ours) = (in_order(&file).0, decode(&file, 9, &mut Ok::<Picture, String>).unwrap());
    let off = |a: &Picture, b: &Picture| {
        a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    for (ours, theirs) in ours.pictures.iter().zip(&theirs) {
        // Both inverse transforms round each of Y, Cb and Cr, off by at most 1. Blue has the
        // largest weight of chroma, 1.77: 1 + 1.77 and a rounding.
        assert!(off(ours, theirs) <= 3, "off by {}", off(ours, theirs));
    }
    assert!(off(&ours.pictures[0], &theirs[1]) > 3, "another frame is seen");
}
