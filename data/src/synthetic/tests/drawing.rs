//! Tests of scenes and pixels.

use rayon::prelude::*;

use super::first_samples;
use crate::synthetic::design::{FRAMES, PIXEL, SIZE};
use crate::synthetic::draws::Draws;
use crate::synthetic::names::{Colour, Figure, Motion, Paint, Pair, Shape};
use crate::synthetic::raster::{FRAME_BYTES, SIDE, paint};
use crate::synthetic::sample::{Scene, Split, sample};
use crate::synthetic::scene::Clip;

/// BLAKE3 hash of the pixels of the first 64 samples of each split at seed 0. It changes only if
/// the design or the drawing changes. Then the version of the design must be raised, because sets
/// on disk differ from the new set.
const PIXELS: &str = "4b9940a4c9c2bfd9e416c84efbf0ee1d9f4ba552412958bf7f4f1860838dcde0";

fn pixels(seed: u64, threads: usize) -> String {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let drawn: Vec<Vec<u8>> = pool.install(|| {
        let splits: Vec<Split> = Split::TRAIN.into_iter().chain(Split::EVALUATION).collect();
        (0..64 * splits.len())
            .into_par_iter()
            .map(|n| sample(seed, splits[n / 64], n % 64).pixels)
            .collect()
    });
    blake3::hash(&drawn.concat()).to_hex().to_string()
}

#[test]
fn pixels_are_the_same_everywhere_and_on_any_number_of_threads() {
    assert_eq!(pixels(0, 1), PIXELS);
    assert_eq!(pixels(0, 3), PIXELS);
    assert_ne!(pixels(1, 1), PIXELS, "another seed gives other pixels");
}

fn reversed(clip: &Clip) -> Clip {
    let last = i32::try_from(FRAMES).unwrap() - 1;
    let phase = -clip.phase;
    Clip { motion: clip.motion.reversed(), start: clip.at(last).0, phase, ..*clip }
}

#[test]
fn a_clip_played_backwards_is_a_clip_of_the_reverse_motion() {
    let mut draws = Draws::new(7, "test", 0);
    for pair in Pair::all() {
        for motion in Motion::ALL {
            let clip = Clip::draw(&mut draws, pair.into(), motion);
            let backwards: Vec<u8> =
                clip.frames().chunks(FRAME_BYTES).rev().flatten().copied().collect();
            assert_eq!(reversed(&clip).frames(), backwards, "{clip:?}");
            assert_ne!(clip.frames(), backwards, "{clip:?}");
        }
    }
}

/// Compares, for each motion, the sums per pixel of a frame over all starts on the torus and all
/// phases.
#[test]
fn a_single_frame_says_nothing_of_the_motion() {
    let frames_at = |motion: Motion, t: usize| {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for position in 0..SIDE / PIXEL {
            for phase in 0..i32::try_from(FRAMES).unwrap() {
                let figure = Pair { shape: Shape::Triangle, colour: Colour::Red }.into();
                // Starts on the diagonal of the torus are enough.
                let start = (position * PIXEL, position * PIXEL);
                let clip = Clip {
                    figure,
                    motion,
                    start,
                    radius: 2100,
                    speed: 3 * PIXEL,
                    phase,
                    background: 20,
                };
                all.push(clip.frames()[t * FRAME_BYTES..(t + 1) * FRAME_BYTES].to_vec());
            }
        }
        let sum = |pixel: usize| all.iter().map(|frame| u64::from(frame[pixel])).sum::<u64>();
        (0..FRAME_BYTES).map(sum).collect::<Vec<u64>>()
    };
    for t in 0..FRAMES {
        assert_eq!(frames_at(Motion::Growing, t), frames_at(Motion::Shrinking, t), "frame {t}");
    }
    // Left and right, and up and down, show the same shapes at other positions, so the sums over
    // all pixels are equal.
    let rows = |motion: Motion, t: usize| {
        let sums = frames_at(motion, t);
        sums.iter().sum::<u64>()
    };
    for t in 0..FRAMES {
        assert_eq!(rows(Motion::Left, t), rows(Motion::Right, t));
        assert_eq!(rows(Motion::Up, t), rows(Motion::Down, t));
        assert_ne!(
            rows(Motion::Left, t),
            rows(Motion::Growing, t),
            "sizes do differ between moving and growing"
        );
    }
}

#[test]
fn a_figure_that_leaves_on_one_side_comes_in_on_the_other() {
    let figure = Figure { shape: Some(Shape::Circle), paint: Paint::Grey(200) };
    let bright = |centre: (i32, i32)| {
        let mut frame = vec![0; FRAME_BYTES];
        paint(&mut frame, figure, centre, 8 * PIXEL);
        frame
    };
    let middle = bright((SIDE / 2, SIDE / 2));
    let area = middle.iter().filter(|&&value| value == 200).count() / 3;
    // π·8² = 201, up to half a pixel along the circumference.
    assert!((176..=226).contains(&area), "{area}");
    let mut shifted = bright((0, SIDE / 2));
    assert_ne!(shifted, middle);
    for row in shifted.chunks_mut(SIZE * 3) {
        row.rotate_right(SIZE * 3 / 2);
    }
    assert_eq!(shifted, middle);
    assert_eq!(bright((SIDE, 3 * SIDE / 2)), bright((0, SIDE / 2)));
}

#[test]
fn shapes_differ_from_each_other_at_every_size() {
    for radius in [5 * PIXEL, 6 * PIXEL, 9 * PIXEL] {
        let outlines = Shape::ALL.into_iter().map(Some).chain([None]);
        let frames: Vec<Vec<u8>> = outlines
            .map(|shape| {
                let mut frame = vec![0; FRAME_BYTES];
                paint(
                    &mut frame,
                    Figure { shape, paint: Paint::Grey(100) },
                    (SIDE / 2, SIDE / 2),
                    radius,
                );
                frame
            })
            .collect();
        for (i, a) in frames.iter().enumerate() {
            for b in &frames[..i] {
                let different = a.iter().zip(b).filter(|(a, b)| a != b).count() / 3;
                assert!(different >= 12, "{different} pixels at radius {radius}");
            }
        }
    }
}

#[test]
fn training_never_shows_nor_names_a_held_out_pair() {
    let held_out: Vec<String> = Pair::unseen().into_iter().map(Pair::name).collect();
    let names_one = |text: &str| held_out.iter().any(|name| text.contains(name));
    let shows_one = |scene: &Scene| match scene {
        Scene::Clip(clip) => clip.figure.pair().is_some_and(Pair::held_out),
        Scene::Picture(picture) => picture.pairs().any(Pair::held_out),
    };
    for split in Split::TRAIN {
        for sample in first_samples(split) {
            assert!(!shows_one(&sample.scene), "{}", sample.key);
            let texts = sample
                .description
                .questions
                .iter()
                .map(|q| q.question.as_str())
                .chain(sample.description.caption.as_deref());
            assert!(!texts.into_iter().any(names_one), "{}", sample.key);
        }
    }
    assert!(first_samples(Split::HeldOut).all(|sample| shows_one(&sample.scene)));
    assert!(
        first_samples(Split::HeldOut).all(|sample| names_one(&sample.description.caption.unwrap()))
    );
}

#[test]
fn evaluation_shows_no_picture_of_training() {
    let trained: std::collections::BTreeSet<Vec<u8>> =
        first_samples(Split::TrainQuestions).map(|sample| sample.pixels).collect();
    assert!(first_samples(Split::Count).all(|sample| !trained.contains(&sample.pixels)));
}

#[test]
fn noise_has_mean_zero_and_standard_deviation_two() {
    let mut draws = Draws::new(3, "noise", 0);
    let mut values = vec![100; 60_000];
    draws.add_noise(&mut values);
    let n = f64::from(60_000);
    let mean = values.iter().map(|&v| f64::from(v) - 100.0).sum::<f64>() / n;
    let variance = values.iter().map(|&v| (f64::from(v) - 100.0).powi(2)).sum::<f64>() / n;
    // The standard error is 2/√n = 0.008 for the mean and 4·√(2/n) = 0.023 for the variance. The
    // limits are five standard errors.
    assert!(mean.abs() < 0.04, "{mean}");
    assert!((variance - 4.0).abs() < 0.12, "{variance}");
}
