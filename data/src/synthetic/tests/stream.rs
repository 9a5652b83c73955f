//! Tests of the synthetic stream.

use std::collections::BTreeSet;

use crate::synthetic::raster::FRAME_BYTES;
use crate::synthetic::stream::{StreamVideo, video};

/// BLAKE3 hash of the pixels of the first video at seed 0.
const PIXELS: &str = "3e49b20db66f6f1d9129ab799b5f3d319bedf746c658f59629509a1040756f9a";

#[test]
fn a_stream_is_the_same_everywhere_and_comes_from_its_seed() {
    let hash = |video: &StreamVideo| blake3::hash(&video.pixels).to_hex().to_string();
    assert_eq!(hash(&video(0, 0)), PIXELS);
    assert_eq!(video(0, 0), video(0, 0));
    let all: BTreeSet<String> = [(0, 0), (0, 1), (1, 0)].map(|(s, i)| hash(&video(s, i))).into();
    assert_eq!(all.len(), 3, "another seed or number gives another video");
}

#[test]
fn motions_are_annotated_in_their_middle_and_have_unequal_lengths() {
    for index in 0..4 {
        let StreamVideo { pixels, description, seconds } = video(0, index);
        let frames = pixels.len() / FRAME_BYTES;
        assert!((seconds - frames as f64 / 8.0).abs() < 1e-9);
        let (starts, texts) = (&description.boundaries, &description.annotations);
        assert!((20..=40).contains(&texts.len()) && starts.len() == texts.len());
        let ends = starts[1..].iter().copied().chain([seconds]);
        let mut lengths = Vec::new();
        for ((start, end), annotation) in starts.iter().zip(ends).zip(texts) {
            assert!((annotation.t - (start + end) / 2.0).abs() < 1e-9);
            lengths.push(end - start);
        }
        let short = lengths.iter().filter(|length| (1.0..=2.0).contains(*length)).count();
        let long = lengths.iter().filter(|length| (6.0..=14.0).contains(*length)).count();
        assert_eq!(short + long, texts.len());
        assert!(short >= 5 && long >= 5, "{short} short, {long} long");
        assert!(texts.windows(2).all(|pair| pair[0].text != pair[1].text), "a motion ends");
    }
}

/// At a boundary almost all pixels of a frame may change; within a motion few do.
#[test]
fn pixels_change_where_the_boundaries_are() {
    let StreamVideo { pixels, description, .. } = video(3, 0);
    let frame = |number: usize| &pixels[number * FRAME_BYTES..(number + 1) * FRAME_BYTES];
    let background = |number: usize| {
        // The mean of the darkest half: shapes are brighter than the background.
        let mut values = frame(number).to_vec();
        values.sort_unstable();
        let dark = &values[..values.len() / 4];
        dark.iter().map(|&value| f64::from(value)).sum::<f64>() / dark.len() as f64
    };
    let frames = 1..pixels.len() / FRAME_BYTES;
    let changes = frames.filter(|&n| (background(n) - background(n - 1)).abs() > 3.0);
    // Eighths of seconds are exact.
    let changes: Vec<f64> = changes.map(|number| number as f64 / 8.0).collect();
    let starts = &description.boundaries;
    let at_starts = changes.iter().filter(|change| starts.contains(change)).count();
    assert!(at_starts * 2 > starts.len(), "{at_starts} of {}", starts.len());
    assert_eq!(changes.len(), at_starts, "the background changes only there");
}
