//! Tests that the frames between two times are those that decoding from the start shows at these
//! times, in every codec and container, from memory and from a file.

use std::path::PathBuf;

use super::{MediaSource, Picture, Span, Video};
use crate::decode::uniform_frames;
use crate::decode::video::stream::Stream;
use crate::decode::video::tests::{CASES, Case, in_order, read};

/// All frames that a read gives, with their times.
type Frames = Vec<(Picture, i64)>;

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR")))
}

fn frames(
    video: &mut Video,
    seconds: Option<std::ops::Range<f64>>,
    keep: Option<usize>,
) -> Result<(Span, Frames), String> {
    for in_order in [false, true] {
        let mut frames = Vec::new();
        let choose = |count: usize, _| uniform_frames(count, keep.unwrap_or(count).min(count));
        let span = video.read(seconds.as_ref(), in_order, &choose, &mut |picture, time| {
            frames.push((picture, time));
            Ok(())
        })?;
        if let Some(span) = span {
            return Ok((span, frames));
        }
    }
    Err("decoding in order says nothing".to_owned())
}

/// Times of all frames in ticks, as FFmpeg's decoder gives them from the start. For some AVI files
/// it knows no times; all cases have 25 frames a second.
fn times(bytes: &[u8]) -> Vec<i64> {
    let mut times = Vec::new();
    let mut stream = Stream::open(bytes).unwrap();
    let take = &mut |frame: &ffmpeg_next::util::frame::Video| {
        times.push(frame.timestamp());
        Ok(true)
    };
    stream.decode_all(take).unwrap();
    let base = stream.time_base;
    let of_rate = |n: i64| n * i64::from(base.denominator()) / i64::from(25 * base.numerator());
    let known: Option<Vec<i64>> = times.iter().copied().collect();
    known.unwrap_or_else(|| (0..).map(of_rate).take(times.len()).collect())
}

#[test]
fn frames_between_two_times_are_those_of_decoding_from_the_start() {
    for Case { name, .. } in CASES {
        let bytes = read(name);
        let (pictures, times) = (in_order(&bytes).0, times(&bytes));
        let in_file = MediaSource::File(path(name));
        for source in [MediaSource::Bytes(bytes.into()), in_file] {
            let mut video = Video::open(&source).unwrap();
            let (ticks, scale) = video.ticks_per_s();
            let second = |number: usize| {
                let ticks_since = times[number] - times[0];
                ticks_since as f64 * f64::from(scale) / f64::from(ticks)
            };
            let count = pictures.len();
            // The last span goes back to the beginning, which needs a seek.
            let (quarter, half) = (count / 4, count / 2);
            for numbers in [
                0..count,
                quarter..half + 2,
                count - 4..count,
                half..half + 1,
                0..3,
                count - 1..count,
            ] {
                let (from, to) = (second(numbers.start), second(numbers.end.min(count - 1)));
                // The end of a span is not part of it.
                let to = if numbers.end == count { 1e6 } else { to };
                let case = format!("{name}, {numbers:?}");
                let (span, all) = frames(&mut video, Some(from - 1e-4..to - 1e-4), None).unwrap();
                assert_eq!((span.frames, all.len()), (numbers.len(), numbers.len()), "{case}");
                assert_eq!(span.start, times[numbers.start], "{case}");
                let end = times.get(numbers.end).copied();
                assert!(end.is_none_or(|end| end == span.end) && span.end > all[all.len() - 1].1);
                for ((picture, time), number) in all.iter().zip(numbers.clone()) {
                    assert_eq!(*time, times[number], "{case}: frame {number}");
                    assert!(*picture == pictures[number], "{case}: frame {number}");
                }
                let (_, some) = frames(&mut video, Some(from - 1e-4..to - 1e-4), Some(3)).unwrap();
                let kept = uniform_frames(numbers.len(), numbers.len().min(3));
                let expected: Frames = kept.into_iter().map(|number| all[number].clone()).collect();
                assert!(some == expected, "{case}: three frames of it");
            }
            let (_, all) = frames(&mut video, None, None).unwrap();
            assert_eq!(all.len(), count, "{name}");
        }
    }
}

#[test]
fn a_span_without_frames_is_refused_with_the_duration() {
    let mut video = Video::open(&MediaSource::File(path("h264_closed.mp4"))).unwrap();
    for seconds in [9.0..10.0, 0.5..0.5, 0.7..0.2, -3.0..-1.0, f64::NAN..f64::NAN] {
        let error = frames(&mut video, Some(seconds), None).unwrap_err();
        // 36 frames of 1/25 s.
        assert!(error.contains("36 frames in 1.440 s"), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_the_reason() {
    let refused = |source: MediaSource| Video::open(&source).unwrap_err();
    assert!(refused(MediaSource::File(path("no-such.mp4"))).contains("no-such.mp4"));
    let folder = tempfile::tempdir().unwrap();
    for Case { name, .. } in CASES.iter().filter(|case| !case.name.ends_with(".ts")) {
        let bytes = read(name);
        let cut = folder.path().join(name);
        std::fs::write(&cut, &bytes[..bytes.len() * 7 / 10]).unwrap();
        let cut =
            Video::open(&MediaSource::File(cut)).and_then(|mut it| frames(&mut it, None, None));
        assert!(cut.is_err(), "{name}");
    }
    // A video that changes between opening and reading is an error, never other frames.
    let changing = folder.path().join("changing.mp4");
    std::fs::copy(path("h264_closed.mp4"), &changing).unwrap();
    let mut video = Video::open(&MediaSource::File(changing.clone())).unwrap();
    std::fs::write(&changing, read("h264_open.mp4")).unwrap();
    assert!(frames(&mut video, None, None).is_err());
}
