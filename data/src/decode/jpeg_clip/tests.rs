//! Tests that clips of JPEG frames are read as they were written, and that other files and damaged
//! ones are not taken for such clips.

use image::{DynamicImage, ImageFormat, RgbImage};

use super::{JpegClip, JpegClipWriter};
use crate::decode::{Clip, Media, Picture, decode, uniform_frames};
use crate::fixtures::encoded;

/// Ticks per second and times of the frames, with gaps of different lengths.
const RATE: u32 = 90_000;
const TIMES: [u64; 7] = [500, 3_500, 6_500, 9_503, 12_506, 90_500, 90_501];

fn jpeg(number: u32) -> Vec<u8> {
    let picture = RgbImage::from_fn(48, 32, |x, y| {
        let byte = |n: u32| u8::try_from(n % 256).unwrap();
        image::Rgb([byte(5 * x + 40 * number), byte(7 * y), byte(3 * x + y)])
    });
    encoded(&DynamicImage::ImageRgb8(picture), ImageFormat::Jpeg)
}

fn clip() -> Vec<u8> {
    let mut writer = JpegClipWriter::new(RATE, 48, 32).unwrap();
    for (number, time) in (0..).zip(TIMES) {
        writer.push(time, &jpeg(number)).unwrap();
    }
    writer.finish(99_500).unwrap()
}

fn decoded(clip: &[u8], frames: usize) -> Result<Clip, String> {
    decode(Media::Video, clip, frames, &mut Ok::<Picture, String>)
}

#[test]
fn frames_and_times_are_read_as_they_were_written() {
    let file = clip();
    let clip = JpegClip::find(&file).unwrap().unwrap();
    assert_eq!(clip.frames().len(), 7);
    for (number, frame) in (0..).zip(clip.frames()) {
        assert_eq!(*frame, jpeg(number), "frame {number}");
    }
    // The first frame is at 0.
    for (time, ticks) in clip.times().into_iter().zip(TIMES) {
        let expected = (f64::from(u32::try_from(ticks).unwrap()) - 500.0) / 90_000.0;
        assert!((time - expected).abs() < 1e-12, "{time} instead of {expected}");
    }
    let times = crate::decode::video::frame_times(&file).unwrap();
    assert_eq!(times, clip.times());
}

#[test]
fn chosen_frames_have_the_pixels_of_their_jpegs() {
    let file = clip();
    for frames in [1, 2, 3, 5, 7, 12] {
        let clip = decoded(&file, frames).unwrap();
        let numbers = uniform_frames(7, frames);
        assert_eq!(clip.order.len(), frames);
        for (frame, number) in clip.frames().zip(numbers) {
            let jpeg = jpeg(u32::try_from(number).unwrap());
            let picture = decode(Media::Image, &jpeg, 1, &mut Ok::<Picture, String>).unwrap();
            assert!(frame == picture.pictures[0].pixels, "frame {number} of {frames}");
            assert!(frame != decoded(&file, 7).unwrap().pictures[(number + 1) % 7].pixels);
        }
    }
}

#[test]
fn a_clip_that_is_cut_short_is_refused() {
    let file = clip();
    let table = file.len() - JpegClip::find(&file).unwrap().unwrap().frames().concat().len();
    for length in (0..file.len()).step_by(7).chain([file.len() - 1]) {
        let cut = decoded(&file[..length], 2);
        assert!(cut.is_err(), "{length} of {} bytes", file.len());
        if length >= table {
            let error = cut.unwrap_err();
            assert!(error.contains("cut short") && error.contains("of 7"), "{error}");
        }
    }
}

/// No change of a byte of the table makes the reader panic or use much memory, and a frame is
/// always a whole JPEG.
#[test]
fn a_damaged_table_is_no_panic() {
    let file = clip();
    let table = file.windows(4).position(|kind| kind == b"mdat").unwrap();
    let mut read = 0;
    for place in 0..table {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[place] = value;
            if let Ok(Some(clip)) = JpegClip::find(&damaged) {
                assert!(clip.frames().len() <= damaged.len());
                read += 1;
            }
            // Without FFmpeg, what is no clip of JPEGs is an error.
            drop(decoded(&damaged, 2));
        }
    }
    assert!(read > 500, "{read}: most bytes say nothing that is needed");
}

#[test]
fn a_damaged_frame_is_named() {
    let mut file = clip();
    let last = file.len() - jpeg(6).len();
    file[last + 300..].fill(0);
    assert!(decoded(&file, 1).is_ok(), "only the frame in the middle is decoded");
    let error = decoded(&file, 2).unwrap_err();
    assert!(error.starts_with("frame 6 of 7: the JPEG"), "{error}");
}

#[test]
fn other_files_are_left_to_the_other_readers() {
    let folder = format!("{}/tests/cases", env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(JpegClip::find(&bytes).unwrap().is_none(), "{}", path.display());
        }
    }
}

#[test]
fn what_mp4_cannot_store_is_refused() {
    assert!(JpegClipWriter::new(RATE, 70_000, 32).unwrap_err().contains("70000 pixels"));
    let mut writer = JpegClipWriter::new(RATE, 48, 32).unwrap();
    writer.push(5, &jpeg(0)).unwrap();
    assert!(writer.push(5, &jpeg(1)).unwrap_err().contains("the time 5"));
    assert!(writer.finish(1 << 33).unwrap_err().contains("too long"));
    let empty = JpegClipWriter::new(RATE, 48, 32).unwrap();
    assert!(empty.finish(9).unwrap_err().contains("no frames"));
}
