//! Tests that pictures and clips are stored upright, at their size, with the right frames, and
//! close to the original.

use std::path::PathBuf;
use std::sync::Arc;

use image::{DynamicImage, ImageFormat, RgbImage};
use serde_json::json;

use super::{Encoded, Encoder, Failure, chosen};
use crate::decode::{JpegClip, Picture, picture};
use crate::fixtures::encoded;
use crate::prepare::item::{MediaSource, Visual};
use crate::prepare::{FrameRate, Options};
use crate::transform::Shrinker;

fn options() -> Options {
    Options {
        name: "shard".to_owned(),
        short_side: 40,
        quality: 90,
        frames_per_second: FrameRate::All,
        shard_mib: 1,
    }
}

fn encode(visual: &Visual) -> Result<Encoded, Failure> {
    Encoder::new(&options()).unwrap().encode(visual)
}

fn bytes(bytes: &[u8]) -> MediaSource {
    MediaSource::Bytes(Arc::from(bytes))
}

fn case(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR")))
}

/// A smooth picture, which JPEG stores well.
fn smooth(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| {
        let byte = |n: u32, of: u32| u8::try_from(255 * n / of).unwrap();
        image::Rgb([byte(x, width), byte(y, height), byte(x + y, width + height)])
    }))
}

/// Peak signal-to-noise ratio in dB.
fn psnr(one: &Picture, other: &Picture) -> f64 {
    assert_eq!((one.width, one.height), (other.width, other.height));
    let squares =
        one.pixels.iter().zip(&other.pixels).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2));
    10.0 * (255.0_f64.powi(2) * one.pixels.len() as f64 / squares.sum::<u64>() as f64).log10()
}

#[test]
fn a_large_picture_is_scaled_down_and_says_its_original_size() {
    for (width, height, scaled) in [(120, 90, (53, 40)), (60, 200, (40, 133)), (41, 41, (40, 40))] {
        let png = encoded(&smooth(width, height), ImageFormat::Png);
        let stored = encode(&Visual::Picture(bytes(&png))).unwrap();
        let decoded = picture(&stored.bytes).unwrap();
        assert_eq!((decoded.width, decoded.height), scaled);
        let expected = Shrinker::new(40).shrink(picture(&png).unwrap()).unwrap();
        // A smooth picture has few coefficients, and each is rounded to a step of a few levels.
        let quality = psnr(&decoded, &expected);
        assert!(quality > 36.0, "{quality} dB");
        assert_eq!(stored.extension, "jpg");
        let facts = json!({"width": width, "height": height, "codec": "png"});
        assert_eq!(serde_json::Value::Object(stored.facts), facts);
    }
}

#[test]
fn a_small_upright_jpeg_is_kept_byte_for_byte_and_other_small_pictures_keep_their_size() {
    let small = encoded(&smooth(40, 70), ImageFormat::Jpeg);
    let stored = encode(&Visual::Picture(bytes(&small))).unwrap();
    assert!(stored.bytes == small && stored.kept);
    let large = encoded(&smooth(41, 70), ImageFormat::Jpeg);
    let stored = encode(&Visual::Picture(bytes(&large))).unwrap();
    assert!(stored.bytes != large && !stored.kept);
    let png = encoded(&smooth(20, 30), ImageFormat::Png);
    let stored = encode(&Visual::Picture(bytes(&png))).unwrap();
    let decoded = picture(&stored.bytes).unwrap();
    assert_eq!((decoded.width, decoded.height, stored.kept), (20, 30, false));
}

/// The JPEGs of the cases have an EXIF orientation, and the PNG beside each is what Pillow shows.
#[test]
fn a_turned_jpeg_is_stored_upright() {
    for orientation in 2..=8 {
        let name = format!("exif_{orientation}.jpg");
        let stored = encode(&Visual::Picture(MediaSource::File(case(&name)))).unwrap();
        assert!(!stored.kept, "{name}");
        let golden = std::fs::read(case(&format!("{name}.png"))).unwrap();
        let golden = Shrinker::new(40).shrink(picture(&golden).unwrap()).unwrap();
        let quality = psnr(&picture(&stored.bytes).unwrap(), &golden);
        assert!(quality > 28.0, "{name}: {quality} dB");
        assert!(crate::decode::is_upright_jpeg(&stored.bytes), "{name}");
    }
}

#[test]
fn a_damaged_picture_is_left_out_with_the_reason() {
    let jpeg = encoded(&smooth(30, 30), ImageFormat::Jpeg);
    for (source, said) in [
        (bytes(&jpeg[..jpeg.len() / 2]), "cut short"),
        (bytes(b"no picture"), "neither a JPEG nor a PNG"),
        (bytes(b""), "empty"),
        (MediaSource::File(case("no-such.jpg")), "no-such.jpg"),
    ] {
        let Err(Failure::Item { reason, .. }) = encode(&Visual::Picture(source)) else {
            panic!("{said}")
        };
        assert!(reason.contains(said), "{reason}");
    }
}

#[test]
fn several_pictures_become_a_clip_of_one_frame_a_second() {
    let sizes = [(60, 40), (60, 40), (60, 40)];
    let pngs = sizes.map(|(width, height)| encoded(&smooth(width, height), ImageFormat::Png));
    let sources = pngs.iter().map(|png| bytes(png)).collect();
    let stored = encode(&Visual::Pictures(sources)).unwrap();
    let clip = JpegClip::find(&stored.bytes).unwrap().unwrap();
    assert_eq!(clip.times(), [0.0, 1.0, 2.0]);
    let first = picture(clip.frames()[0]).unwrap();
    assert_eq!((first.width, first.height), (60, 40), "equal sizes are kept");
    assert_eq!(stored.facts["sizes"], json!([[60, 40], [60, 40], [60, 40]]));
}

/// Pictures of different sizes are cut to squares, as a recipe's default transform does it later.
#[test]
fn pictures_of_different_sizes_become_squares_of_the_shortest_side() {
    let sizes = [(120, 80), (36, 90), (200, 50)];
    let pngs = sizes.map(|(width, height)| encoded(&smooth(width, height), ImageFormat::Png));
    let sources = pngs.iter().map(|png| bytes(png)).collect();
    let stored = encode(&Visual::Pictures(sources)).unwrap();
    let clip = JpegClip::find(&stored.bytes).unwrap().unwrap();
    for (frame, png) in clip.frames().iter().zip(&pngs) {
        let frame = picture(frame).unwrap();
        assert_eq!((frame.width, frame.height), (36, 36));
        let mut shrinker = Shrinker::new(40);
        let shrunk = shrinker.shrink(picture(png).unwrap()).unwrap();
        let square = shrinker.square(&shrunk, 36).unwrap();
        assert!(psnr(&frame, &square) > 34.0, "{}", psnr(&frame, &square));
        // The middle of the picture has the mean colour of its middle row and column.
        let middle = &frame.pixels[3 * (18 * 36 + 18)..][..3];
        assert!(middle.iter().all(|&level| level.abs_diff(128) < 12), "{middle:?}");
    }
    let none = encode(&Visual::Pictures(Vec::new()));
    assert!(matches!(none, Err(Failure::Item { class: "no picture", .. })));
}

#[test]
fn a_limited_rate_keeps_the_first_and_the_last_frame_and_enough_of_a_short_clip() {
    let limited = FrameRate::AtMost(8);
    let all = |count: usize| (0..count).collect::<Vec<_>>();
    assert_eq!(chosen(300, 10.0, FrameRate::All), all(300));
    // 80 frames of 10 s.
    let kept = chosen(300, 10.0, limited);
    assert_eq!((kept.len(), kept[0], kept[1], kept[79]), (80, 0, 3, 299));
    assert!(kept.windows(2).all(|pair| (3..=4).contains(&(pair[1] - pair[0]))));
    // 16 frames of 2 s would be too few.
    assert_eq!(chosen(60, 2.0, limited), all(60));
    assert_eq!(chosen(100, 2.0, limited).len(), 64);
    assert_eq!(chosen(80, 10.0, limited), all(80));
    assert_eq!(chosen(1, 0.0, limited), [0]);
    assert_eq!(chosen(70, f64::NAN, limited).len(), 64);
}

#[cfg(not(feature = "video"))]
#[test]
fn a_build_without_ffmpeg_ends_at_the_first_clip() {
    let clip = Visual::Clip { video: bytes(b"clip"), seconds: None };
    let Err(Failure::Fatal(reason)) = encode(&clip) else { panic!("clips need FFmpeg") };
    assert!(reason.contains("--features video"), "{reason}");
}

#[cfg(feature = "video")]
mod clips {
    use super::{Encoder, FrameRate, MediaSource, Options, Visual, case, options, psnr};
    use crate::decode::video::frame_times;
    use crate::decode::{JpegClip, Media, Picture, decode, picture};
    use crate::prepare::visual::Failure;
    use crate::transform::Shrinker;

    /// Clips of different codecs, containers, time bases and orientations.
    const CLIPS: [&str; 8] = [
        "h264_closed.mp4",
        "h264_mirrored_turned.mp4",
        "h264.ts",
        "hevc_open.mkv",
        "mjpeg.avi",
        "theora.mkv",
        "vp9.webm",
        "xvid_packed.avi",
    ];

    fn stored(name: &str, seconds: Option<std::ops::Range<f64>>, options: &Options) -> Vec<u8> {
        let visual = Visual::Clip { video: MediaSource::File(case(name)), seconds };
        Encoder::new(options).unwrap().encode(&visual).unwrap().bytes
    }

    fn pictures(clip: &[u8], frames: usize) -> Vec<Picture> {
        let clip = decode(Media::Video, clip, frames, &mut Ok::<Picture, String>).unwrap();
        clip.order.iter().map(|&nth| clip.pictures[nth].clone()).collect()
    }

    #[test]
    fn a_stored_clip_has_the_frames_and_times_of_its_video() {
        for name in CLIPS {
            let original = std::fs::read(case(name)).unwrap();
            let stored = stored(name, None, &options());
            // FFmpeg gives no times for this AVI, which has 34 frames at 25 a second.
            let of_rate = |_| (0..34).map(|n| f64::from(n) / 25.0).collect();
            let times: Vec<f64> = frame_times(&original).unwrap_or_else(of_rate);
            let ours = frame_times(&stored).unwrap();
            assert_eq!(ours.len(), times.len(), "{name}");
            for (ours, theirs) in ours.iter().zip(&times) {
                assert!((ours - (theirs - times[0])).abs() < 1e-6, "{name}: {ours}, {theirs}");
            }
            // The same frames are chosen of both.
            for frames in [1, 4, 7] {
                let originals = pictures(&original, frames);
                let chosen = pictures(&stored, frames);
                for (ours, theirs) in chosen.iter().zip(&originals) {
                    let theirs = Shrinker::new(40).shrink(theirs.clone()).unwrap();
                    let quality = psnr(ours, &theirs);
                    // The test picture is small and noisy, so JPEG keeps little of its detail.
                    assert!(quality > 24.0, "{name}: {quality} dB");
                }
                let other = Shrinker::new(40).shrink(originals[0].clone()).unwrap();
                let last = &chosen[frames - 1];
                assert!(frames == 1 || psnr(last, &other) < 24.0, "{name}: other frames differ");
            }
        }
    }

    #[test]
    fn a_segment_holds_the_frames_between_its_times() {
        // 36 frames at 25 a second: frames 10 to 19 are in [0.4, 0.8).
        let segment = stored("h264_closed.mp4", Some(0.4 - 1e-6..0.8 - 1e-6), &options());
        let whole = stored("h264_closed.mp4", None, &options());
        let frames = |clip: &[u8]| {
            let clip = JpegClip::find(clip).unwrap().unwrap();
            clip.frames().iter().map(|frame| frame.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(frames(&segment), frames(&whole)[10..20]);
        let times = frame_times(&segment).unwrap();
        assert!(times.iter().zip(0..).all(|(time, n)| (time - f64::from(n) / 25.0).abs() < 1e-9));
    }

    #[test]
    fn the_json_says_where_a_clip_comes_from() {
        let video = MediaSource::File(case("h264_closed.mp4"));
        let visual = Visual::Clip { video, seconds: Some(0.4..0.8) };
        let options = Options { frames_per_second: FrameRate::AtMost(8), ..options() };
        let encoded = Encoder::new(&options).unwrap().encode(&visual).unwrap();
        let facts = serde_json::Value::Object(encoded.facts);
        let expected = serde_json::json!({
            "width": 64, "height": 48, "codec": "h264", "seconds": [0.4, 0.8],
            "frames": 10, "source_frames": 10,
        });
        assert_eq!(facts, expected);
    }

    #[test]
    fn a_clip_that_cannot_be_used_is_left_out_with_the_file_and_the_reason() {
        let junk = std::env::temp_dir();
        for (video, seconds, said) in [
            (MediaSource::File(case("h264_no_moov.mp4")), None, "h264_no_moov.mp4: "),
            (MediaSource::File(case("h264_closed.mp4")), Some(5.0..6.0), "no frame is between"),
            (MediaSource::File(case("song_with_cover.mp4")), None, "it is a song"),
            (MediaSource::File(junk), None, "cannot be"),
        ] {
            let visual = Visual::Clip { video, seconds };
            let failure = Encoder::new(&options()).unwrap().encode(&visual).unwrap_err();
            let Failure::Item { class: "clip", reason } = failure else { panic!("{failure:?}") };
            assert!(reason.contains(said) || said == "cannot be", "{reason}");
        }
    }

    /// A video file stays open for the next clip of it.
    #[test]
    fn an_encoder_that_goes_back_in_a_video_gives_the_same_clips() {
        let options = options();
        let mut encoder = Encoder::new(&options).unwrap();
        for (name, seconds) in [
            ("h264_closed.mp4", Some(0.8..1.2)),
            ("h264_closed.mp4", Some(0.0..0.4)),
            ("h264_closed.mp4", None),
            ("xvid_packed.avi", Some(0.5..1.0)),
            ("xvid_packed.avi", Some(0.1..0.6)),
            ("h264_closed.mp4", Some(0.8..1.2)),
        ] {
            let video = MediaSource::File(case(name));
            let visual = Visual::Clip { video, seconds: seconds.clone() };
            let again = encoder.encode(&visual).unwrap().bytes;
            assert!(again == stored(name, seconds.clone(), &options), "{name}, {seconds:?}");
        }
    }

    #[test]
    fn small_frames_are_not_enlarged() {
        let options = Options { short_side: 400, ..options() };
        let stored = stored("h264_closed.mp4", None, &options);
        let clip = JpegClip::find(&stored).unwrap().unwrap();
        let first = picture(clip.frames()[0]).unwrap();
        assert_eq!((first.width, first.height), (64, 48));
    }
}
