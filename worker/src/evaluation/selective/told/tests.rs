//! Selective decoding of streams whose embeddings are known.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vljepa_data::Annotation;
use vljepa_recipes::protocol::{DecodedEmbedding, DecodingCurves, DecodingPoints, DecodingScore};
use vljepa_recipes::schema::SelectiveDecoding;

use super::{Told, VideoStream, baseline, cider, compared, curves, number_of_settings};
use crate::evaluation::captions::SetScore;

/// Width of the embeddings, and number of the scenes of a video.
const SCENES: usize = 30;

/// Seconds from one embedding to the next.
const STRIDE_S: f64 = 0.5;

/// Text of a scene, whose words no other scene has.
fn text(video: u64, scene: usize) -> String {
    format!("thing{video}x{scene} does{video}x{scene} something{video}x{scene} here{video}x{scene}")
}

/// A video of scenes whose numbers of windows `length` draws, each with its own direction plus
/// noise, and the caption of each scene at its middle.
fn video_of(
    seed: u64,
    noise: f32,
    length: fn(&mut ChaCha8Rng) -> u32,
) -> (VideoStream, Vec<Annotation>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut stream, mut annotations) =
        (VideoStream { duration_s: 0.0, times: Vec::new(), embeddings: Vec::new() }, Vec::new());
    for scene in 0..SCENES {
        let windows = length(&mut random);
        let start = stream.duration_s;
        for window in 0..windows {
            let direction = (0..SCENES).map(|i| f32::from(u8::from(i == scene)));
            let noisy = direction.map(|x| x + noise * random.random_range(-1.0f32..1.0));
            stream.embeddings.push(noisy.collect());
            stream.times.push(start + STRIDE_S * (f64::from(window) + 0.5));
        }
        stream.duration_s += STRIDE_S * f64::from(windows);
        let t = f64::midpoint(start, stream.duration_s);
        annotations.push(Annotation { t, text: text(seed, scene) });
    }
    (stream, annotations)
}

/// A video of short and long scenes.
fn video(seed: u64, noise: f32) -> (VideoStream, Vec<Annotation>) {
    video_of(seed, noise, |random| match random.random_bool(0.5) {
        true => random.random_range(2..=4),
        false => random.random_range(12..=28),
    })
}

/// Decodes an embedding as the text of the scene with the nearest direction.
fn write(video: u64, embeddings: &[Vec<f32>]) -> Vec<String> {
    let scene = |embedding: &Vec<f32>| {
        let order = |&a: &usize, &b: &usize| embedding[a].total_cmp(&embedding[b]);
        text(video, (0..SCENES).max_by(order).unwrap())
    };
    embeddings.iter().map(scene).collect()
}

/// What four videos tell.
fn told_of(
    keys: &SelectiveDecoding,
    video: impl Fn(u64) -> (VideoStream, Vec<Annotation>),
) -> Vec<Told> {
    let of = |seed: u64| {
        let (stream, annotations) = video(seed);
        let write = |embeddings: &[Vec<f32>]| Ok(write(seed, embeddings));
        Told::of(&stream, &annotations, keys, true, write).unwrap()
    };
    (0..4).map(of).collect()
}

fn told(noise: f32, keys: &SelectiveDecoding) -> Vec<Told> {
    told_of(keys, |seed| video(seed, noise))
}

fn measured(told: &[Told], keys: &SelectiveDecoding) -> DecodingCurves {
    let ciders = (0..number_of_settings(keys)).map(|setting| cider(told, setting).unwrap());
    curves(told, keys, &ciders.collect::<Vec<SetScore>>())
}

fn scores(
    curves: &DecodingCurves,
    points: DecodingPoints,
    embedding: DecodedEmbedding,
) -> &[DecodingScore] {
    let mut all = curves.curves.iter();
    &all.find(|it| (it.points, it.embedding) == (points, embedding)).unwrap().scores
}

#[test]
fn adaptive_points_beat_as_many_uniform_ones_and_save_at_least_half_of_the_decodes() {
    let keys = SelectiveDecoding::default();
    let told = told(0.3, &keys);
    let curves = measured(&told, &keys);
    for embedding in [DecodedEmbedding::Exact, DecodedEmbedding::Mean] {
        let uniform = scores(&curves, DecodingPoints::Uniform, embedding);
        let adaptive = scores(&curves, DecodingPoints::Adaptive, embedding);
        // The mean length of a scene is 5.75 s: at 0.16 Hz there are about as many points as
        // scenes. With far fewer points, neither can tell the scenes.
        for (uniform, adaptive) in uniform.iter().zip(adaptive) {
            assert_eq!(uniform.decodes_per_s.to_bits(), adaptive.decodes_per_s.to_bits());
            let beaten = adaptive.cider >= uniform.cider - 1e-9;
            assert!(beaten || adaptive.frequency < 0.16, "{adaptive:?} against {uniform:?}");
        }
        let at = |scores: &[DecodingScore]| scores[4];
        assert!((at(uniform).frequency - 0.25).abs() < 1e-12);
        assert!(at(adaptive).cider > at(uniform).cider + 1.0, "{adaptive:?} {uniform:?}");
    }
    let saving = curves.saving.unwrap();
    assert!(saving.ratio >= 2.0 && !saving.at_least, "{saving:?}");
    let score = compared(&curves, DecodingPoints::Uniform).unwrap();
    assert!((score.frequency - 1.0).abs() < 1e-12 && score.cider > 7.0, "{score:?}");
    assert_eq!((curves.videos, curves.annotations), (4, 4 * SCENES));
    let most = scores(&curves, DecodingPoints::Uniform, DecodedEmbedding::Mean)[0];
    assert!(most.decodes_per_s <= 2.0 && most.decodes_per_s > 1.9, "{most:?}");
    // One text for all annotations is right for one of them.
    let constant = baseline(&told).unwrap();
    assert!(constant < 0.2 && constant > 0.0, "{constant}");
}

/// Equal steps in time find each of equally long scenes.
#[test]
fn scenes_of_equal_lengths_save_nothing() {
    let keys = SelectiveDecoding::default();
    let curves = measured(&told_of(&keys, |seed| video_of(seed, 0.3, |_| 12)), &keys);
    let saving = curves.saving.unwrap();
    assert!(saving.ratio > 0.7 && saving.ratio < 1.5, "{saving:?}");
}

#[test]
fn a_mean_is_less_noisy_than_one_embedding() {
    let keys = SelectiveDecoding { frequencies: vec![0.2], compare_at: 0.2, ..Default::default() };
    let curves = measured(&told(1.2, &keys), &keys);
    let of = |embedding| scores(&curves, DecodingPoints::Adaptive, embedding)[0].cider;
    let (exact, mean) = (of(DecodedEmbedding::Exact), of(DecodedEmbedding::Mean));
    assert!(mean > exact + 0.3, "{mean} against {exact}");
}

#[test]
fn annotations_of_a_video_that_cannot_be_read_count_as_0() {
    let keys = SelectiveDecoding::default();
    let mut all = told(0.0, &keys);
    let whole = measured(&all, &keys);
    let (_, annotations) = video(3, 0.0);
    all[3] = Told::nothing(&annotations);
    let part = measured(&all, &keys);
    let best = |curves: &DecodingCurves| compared(curves, DecodingPoints::Adaptive).unwrap().cider;
    // Every scene has its own words, so all annotations that are told right have the score 10.
    assert!((best(&whole) - 10.0).abs() < 1e-9, "{}", best(&whole));
    assert!((best(&part) - 7.5).abs() < 1e-9, "{}", best(&part));
    assert_eq!((part.videos, part.annotations), (4, 4 * SCENES));
    assert!(part.seconds < whole.seconds);
    let none = measured(&[Told::nothing(&annotations)], &keys);
    let none = (best(&none), none.saving, none.curves[0].scores[0].decodes_per_s.to_bits());
    assert_eq!(none, (0.0, None, 0));
}

#[test]
fn each_distinct_embedding_is_decoded_once() {
    let keys = SelectiveDecoding::default();
    let (stream, annotations) = video(0, 0.0);
    let mut asked = Vec::new();
    let write = |embeddings: &[Vec<f32>]| {
        asked = embeddings.to_vec();
        Ok(write(0, embeddings))
    };
    Told::of(&stream, &annotations, &keys, true, write).unwrap();
    let bits = |row: &Vec<f32>| row.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let mut distinct: Vec<Vec<u32>> = asked.iter().map(bits).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), asked.len());
    let collapsed = VideoStream { embeddings: vec![vec![1.0; 2]; stream.times.len()], ..stream };
    let one = |embeddings: &[Vec<f32>]| {
        assert_eq!(embeddings.len(), 1);
        Ok(vec!["the same".to_owned()])
    };
    Told::of(&collapsed, &annotations, &keys, false, one).unwrap();
}
