//! Points of a long video at which texts are decoded (paper §4.5, Figure 4), from the embeddings of
//! its windows.
//!
//! A video of D seconds is decoded at N = round(f · D) points, f times a second. Uniform points are
//! the middles of N equal intervals. Adaptive points are the middles of N segments, which
//! [`segments`] finds. At each point the embedding nearest in time is decoded, or the mean of the
//! embeddings in the interval or segment. Texts of both are compared with annotations in `told`.

pub(super) mod task;
pub mod told;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use vljepa_recipes::protocol::{DecodingPoints, Saving};

use super::segments::segments;

/// Embeddings of the windows of one video.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoStream {
    /// Duration of the video in seconds.
    pub duration_s: f64,
    /// Centre of each window in seconds, in ascending order, at least one.
    pub times: Vec<f64>,
    /// Embedding of each window, (T, e).
    pub embeddings: Vec<Vec<f32>>,
}

/// Point at which a text is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decode {
    /// Number of the embedding that is nearest to the point in time. Its time is that of the text.
    pub row: usize,
    /// Numbers of the embeddings in the interval or segment of the point.
    pub rows: Range<usize>,
}

/// Windows of `window_s` seconds that start each `stride_s` seconds and end within a video. A
/// shorter video is a single window.
#[must_use]
pub fn windows(duration_s: f64, window_s: f64, stride_s: f64) -> Vec<Range<f64>> {
    if duration_s <= window_s {
        return vec![0.0..duration_s];
    }
    // The last window may end after the video by the rounding error of a sum of times.
    let starts = (0..u32::MAX).map(|number| f64::from(number) * stride_s);
    let starts = starts.take_while(|start| start + window_s <= duration_s + 1e-6);
    starts.map(|start| start..start + window_s).collect()
}

/// Number of points at `frequency` decodes per second: at least 1, and at most one per embedding.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of seconds is positive, and the cast saturates"
)]
pub fn count(frequency: f64, stream: &VideoStream) -> usize {
    let count = (frequency * stream.duration_s).round() as usize;
    count.clamp(1, stream.times.len().max(1))
}

/// The `count` points of a video, in the order of time. `count` is at most the number of
/// embeddings.
#[must_use]
pub fn decodes(points: DecodingPoints, stream: &VideoStream, count: usize) -> Vec<Decode> {
    match points {
        DecodingPoints::Uniform => uniform(stream, count),
        DecodingPoints::Adaptive => adaptive(stream, count),
    }
}

/// An interval in which no window has its centre has the nearest embedding alone.
#[expect(clippy::cast_precision_loss, reason = "videos have fewer windows than 2^52")]
fn uniform(VideoStream { duration_s, times, .. }: &VideoStream, count: usize) -> Vec<Decode> {
    let length = duration_s / count as f64;
    let place = |interval: usize| times.partition_point(|&t| t < interval as f64 * length);
    let decode = |interval: usize| {
        let row = nearest(times, (interval as f64 + 0.5) * length);
        let rows = place(interval)..place(interval + 1);
        Decode { row, rows: if rows.is_empty() { row..row + 1 } else { rows } }
    };
    (0..count).map(decode).collect()
}

fn adaptive(VideoStream { times, embeddings, .. }: &VideoStream, count: usize) -> Vec<Decode> {
    let decode = |rows: Range<usize>| {
        let middle = f64::midpoint(times[rows.start], times[rows.end - 1]);
        Decode { row: nearest(times, middle), rows }
    };
    segments(embeddings, count).into_iter().map(decode).collect()
}

/// Number of the time that is nearest to `t`; of two that are equally near, the earlier one.
/// `times` are in ascending order.
///
/// # Panics
/// If there are no times.
#[must_use]
pub fn nearest(times: &[f64], t: f64) -> usize {
    let later = times.partition_point(|&time| time < t).min(times.len() - 1);
    let earlier = later.saturating_sub(1);
    let earlier = times.partition_point(|&time| time < times[earlier]);
    if (t - times[earlier]).abs() <= (times[later] - t).abs() { earlier } else { later }
}

/// Mean of embeddings, summed in f64. With `normalise` it has length one, as the embeddings have.
#[must_use]
pub fn mean<E: AsRef<[f32]>>(embeddings: &[E], normalise: bool) -> Vec<f32> {
    let mut sum = vec![0.0; embeddings.first().map_or(0, |first| first.as_ref().len())];
    for embedding in embeddings {
        add(&mut sum, embedding.as_ref());
    }
    pooled(&sum, embeddings.len(), normalise)
}

pub(super) fn add(sum: &mut [f64], embedding: &[f32]) {
    for (sum, &x) in sum.iter_mut().zip(embedding) {
        *sum += f64::from(x);
    }
}

/// Mean of `count` embeddings from their sum, with length one if it is to be normalised.
#[expect(clippy::cast_possible_truncation, reason = "embeddings are f32")]
#[expect(clippy::cast_precision_loss, reason = "videos have fewer windows than 2^52")]
pub(super) fn pooled(sum: &[f64], count: usize, normalise: bool) -> Vec<f32> {
    let scale = match normalise {
        true => sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE),
        false => count.max(1) as f64,
    };
    sum.iter().map(|x| (x / scale) as f32).collect()
}

/// How many times fewer decodes at adaptive points than at uniform points reach a score: the ratio
/// of the lowest frequencies that do. Each point of the curves is (decodes per second, score), in
/// descending order of the first. Between two of them, the score is linear in the logarithm of the
/// frequency.
///
/// `None` if one kind of points reaches the score at no measured frequency, or if uniform points
/// reach it even at the lowest one, because the frequency that they need is then not known.
#[must_use]
pub fn saving(score: f64, uniform: &[(f64, f64)], adaptive: &[(f64, f64)]) -> Option<Saving> {
    let needed = match reached(score, uniform)? {
        Reached::Above { frequency } => frequency,
        Reached::AtLowest { .. } => return None,
    };
    Some(match reached(score, adaptive)? {
        Reached::Above { frequency } => Saving { ratio: needed / frequency, at_least: false },
        Reached::AtLowest { frequency } => Saving { ratio: needed / frequency, at_least: true },
    })
}

/// Where a curve reaches a score.
enum Reached {
    /// At the lowest measured frequency, and perhaps below it.
    AtLowest { frequency: f64 },
    /// Above the lowest measured frequency.
    Above { frequency: f64 },
}

/// The lowest frequency at which a curve reaches a score.
fn reached(score: f64, curve: &[(f64, f64)]) -> Option<Reached> {
    let &(frequency, of_lowest) = curve.last()?;
    if of_lowest >= score {
        return Some(Reached::AtLowest { frequency });
    }
    let mut pairs = curve.windows(2).rev();
    let pair = pairs.find(|pair| pair[1].1 < score && score <= pair[0].1)?;
    let [(high, of_high), (low, of_low)] = [pair[0], pair[1]];
    let along = (score - of_low) / (of_high - of_low);
    Some(Reached::Above { frequency: low * (high / low).powf(along) })
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::{DecodingPoints, Saving};

    use super::{Decode, VideoStream, count, decodes, mean, nearest, saving, windows};

    /// Ten windows a second apart in a video of 10 s, of three scenes.
    fn stream() -> VideoStream {
        let scenes = [0, 0, 0, 0, 0, 0, 1, 2, 2, 2];
        let embedding = |scene: &usize| (0..3).map(|i| f32::from(u8::from(i == *scene))).collect();
        VideoStream {
            duration_s: 10.0,
            times: (0..10).map(|i| f64::from(i) + 0.5).collect(),
            embeddings: scenes.iter().map(embedding).collect(),
        }
    }

    fn decode(row: usize, rows: std::ops::Range<usize>) -> Decode {
        Decode { row, rows }
    }

    #[test]
    fn windows_end_within_the_video() {
        assert_eq!(windows(3.0, 2.0, 0.5), [0.0..2.0, 0.5..2.5, 1.0..3.0]);
        assert_eq!(windows(2.9, 2.0, 0.5), [0.0..2.0, 0.5..2.5]);
        assert_eq!(windows(1.5, 2.0, 0.5), [0.0..1.5]);
        // 0.1 + 0.2 is more than 0.3 in f64.
        assert_eq!(windows(0.3, 0.2, 0.1).len(), 2);
    }

    #[test]
    fn there_are_frequency_times_duration_points_but_at_least_one_and_at_most_one_per_embedding() {
        let of = |frequency| count(frequency, &stream());
        assert_eq!([2.0, 1.0, 0.34, 0.36, 0.05, 0.01].map(of), [10, 10, 3, 4, 1, 1]);
    }

    #[test]
    fn uniform_points_are_in_the_middle_of_equal_intervals() {
        let of = |count| decodes(DecodingPoints::Uniform, &stream(), count);
        // Of 1.5 and 2.5 s, which are equally near to 2 s, the earlier.
        assert_eq!(of(3), [decode(1, 0..3), decode(4, 3..7), decode(8, 7..10)]);
        assert_eq!(of(1), [decode(4, 0..10)]);
        let each = of(10);
        assert!(each.iter().enumerate().all(|(i, it)| *it == decode(i, i..i + 1)), "{each:?}");
        // The centres of windows of 2 s begin 1 s after the video does.
        let short = VideoStream {
            duration_s: 4.0,
            times: vec![1.0, 1.5, 2.0, 2.5, 3.0],
            embeddings: vec![vec![1.0]; 5],
        };
        let of_short = decodes(DecodingPoints::Uniform, &short, 5);
        assert_eq!(of_short[0], decode(0, 0..1), "no centre is in the first 0.8 s");
        assert_eq!(of_short[2].rows, 2..3);
    }

    #[test]
    fn adaptive_points_are_in_the_middle_of_scenes() {
        let of = |count| decodes(DecodingPoints::Adaptive, &stream(), count);
        assert_eq!(of(3), [decode(2, 0..6), decode(6, 6..7), decode(8, 7..10)]);
        assert_ne!(of(3), decodes(DecodingPoints::Uniform, &stream(), 3));
        assert_eq!(of(10).len(), 10);
    }

    #[test]
    fn the_nearest_time_is_the_earlier_of_two() {
        let times = [1.0, 2.0, 2.0, 4.0];
        for (t, expected) in
            [(0.0, 0), (1.5, 0), (1.6, 1), (2.0, 1), (3.0, 1), (3.1, 3), (4.0, 3), (99.0, 3)]
        {
            assert_eq!(nearest(&times, t), expected, "{t}");
        }
        assert_eq!(nearest(&[5.0], 0.0), 0);
    }

    #[test]
    fn a_mean_has_length_one_only_if_embeddings_have() {
        let two = [[3.0f32, 0.0], [0.0, 4.0]];
        assert_eq!(mean(&two, false), [1.5, 2.0]);
        assert_eq!(mean(&two, true), [0.6, 0.8]);
        assert_eq!(mean(&[[0.0f32, 0.0]], true), [0.0, 0.0]);
    }

    #[test]
    fn the_saving_is_the_ratio_of_the_lowest_frequencies_with_the_same_score() {
        let exact = |ratio, at_least| Some(Saving { ratio, at_least });
        // Uniform points reach their score at 1 Hz nowhere below.
        let of = |score: f64, adaptive: &[(f64, f64)]| {
            saving(score, &[(2.0, score + 0.1), (1.0, score), (0.5, score - 0.01)], adaptive)
        };
        // Halfway between the scores at 1/4 and 1 Hz lies the score at 1/2 Hz.
        let curve = [(2.0, 0.9), (1.0, 0.8), (0.25, 0.4), (0.01, 0.1)];
        let found = of(0.6, &curve).unwrap();
        assert!((found.ratio - 2.0).abs() < 1e-12 && !found.at_least, "{found:?}");
        assert_eq!(of(0.8, &curve), exact(1.0, false));
        assert_eq!(of(0.9, &curve), exact(0.5, false), "more decodes");
        assert_eq!(of(0.91, &curve), None, "never");
        assert_eq!(of(0.05, &curve), exact(100.0, true), "below the lowest frequency");
        // Where scores fall again, the lowest frequency that reaches the score counts.
        let uneven = [(2.0, 0.9), (1.0, 0.5), (0.5, 0.7), (0.1, 0.1)];
        assert_eq!(of(0.7, &uneven), exact(2.0, false));
        // Short videos have one point at all low frequencies.
        let short = [(1.0, 0.5), (0.2, 0.3), (0.2, 0.3)];
        assert_eq!(of(0.5, &short), exact(1.0, false));
        assert_eq!(of(0.5, &[]), None);
        // Uniform points that reach the score at 1/4 Hz too are compared there.
        let uniform = [(2.0, 0.7), (1.0, 0.6), (0.25, 0.6), (0.01, 0.1)];
        let found = saving(0.6, &uniform, &curve).unwrap();
        assert!((found.ratio - 0.5).abs() < 1e-12, "{found:?}");
        // A model that tells nothing has the same score at all frequencies.
        assert_eq!(saving(0.0, &[(1.0, 0.0), (0.1, 0.0)], &curve), None);
    }
}
