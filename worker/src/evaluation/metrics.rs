//! Computes scores from embeddings: pure functions, without a model or files. Protocols: paper §4.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One entry of `scores.json`. Value, interval, chance and baseline are fractions; of CIDEr, they
/// are numbers from 0 to 10.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Score that the model reached.
    pub value: f64,
    /// Ends of the 95 % interval: of [`wilson`] for a share of `n`, of the jackknife for scores of
    /// captions. `None` for other scores.
    pub interval: Option<[f64; 2]>,
    /// Expected score of random guessing.
    pub chance: f64,
    /// Score of always giving the most frequent answer.
    pub baseline: f64,
    /// Number of samples, questions or triplets.
    pub n: usize,
    /// Number of samples that could not be read. They are among `n` and count as wrong.
    pub unreadable: usize,
    /// Hash of what was measured: samples, frames, queries, candidates, true answers and weights.
    pub measured: String,
}

impl Score {
    /// Score of `right` of `n` answers, of which the samples were all read.
    #[must_use]
    pub fn of_share(right: usize, n: usize, chance: f64, baseline: f64) -> Self {
        let interval = Some(wilson(right, n));
        Self { interval, ..Self::of_value(share(right, n), n, chance, baseline) }
    }

    /// Score of `n` answers that is no share of them, of which the samples were all read.
    #[must_use]
    pub fn of_value(value: f64, n: usize, chance: f64, baseline: f64) -> Self {
        let (unreadable, measured) = (0, String::new());
        Self { value, interval: None, chance, baseline, n, unreadable, measured }
    }
}

impl Score {
    /// Mean of scores of different samples, each with the same weight. Its interval is as far from
    /// the mean as the root of the summed squares of the distances of theirs, divided by their
    /// number (Zou and Donner, 2008).
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "scores are few")]
    pub fn mean(scores: &[Self]) -> Self {
        let count = scores.len().max(1) as f64;
        let mean = |of: fn(&Self) -> f64| scores.iter().map(of).sum::<f64>() / count;
        let value = mean(|score| score.value);
        let distance = |end: usize| {
            let ends = scores.iter().map(|s| Some((s.value - s.interval?[end]).powi(2)));
            ends.sum::<Option<f64>>().map(|sum| sum.sqrt() / count)
        };
        let interval = distance(0).zip(distance(1)).map(|(low, high)| [value - low, value + high]);
        let n = scores.iter().map(|score| score.n).sum();
        let score = Self::of_value(value, n, mean(|s| s.chance), mean(|s| s.baseline));
        Self { interval, ..score }
    }
}

/// Returns the Wilson interval of a share of `right` among `n` at 95 % (z = 1.96): the true shares
/// from which the measured one is at most z standard deviations away. It says how far the score of
/// other samples may be, not of other seeds of the training. All of `0..1` if `n` is 0.
///
/// p̂ = right/n; (p̂ + z²/2n ± z·√(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n). Wilson, 1927.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^52")]
pub fn wilson(right: usize, n: usize) -> [f64; 2] {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return [0.0, 1.0];
    }
    let (p, n) = (share(right, n), n as f64);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    [-half, half].map(|half| ((centre + half) / (1.0 + Z * Z / n)).clamp(0.0, 1.0))
}

/// Returns the cosine of two embeddings, summed in f64, so that equal embeddings give equal scores.
/// Losses without similarities leave embeddings their own length.
#[must_use]
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    cosine_of(dot(a, b), dot(a, a), dot(b, b))
}

/// Cosine of two embeddings from their product and their squares.
pub(super) fn cosine_of(product: f64, square_a: f64, square_b: f64) -> f64 {
    product / (square_a * square_b).sqrt().max(f64::MIN_POSITIVE)
}

/// Product of two embeddings, summed in f64 in the order of the elements.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// Returns index and similarity of all candidates, most similar first. Ties keep their order.
#[must_use]
pub fn ranked(query: &[f32], candidates: &[Vec<f32>]) -> Vec<(usize, f64)> {
    let square = dot(query, query);
    let similarity = |c: &Vec<f32>| cosine_of(dot(query, c), square, dot(c, c));
    let mut all: Vec<(usize, f64)> = candidates.iter().map(similarity).enumerate().collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

/// Returns the rank (1 is best) of the best right candidate. Ties count against it, so a collapsed
/// encoder ranks last, not first. Returns `None` if no candidate is right.
#[must_use]
pub fn pessimistic_rank(scores: &[f64], right: impl Fn(usize) -> bool) -> Option<usize> {
    let best = (0..scores.len()).filter(|&i| right(i)).map(|i| scores[i]).reduce(f64::max)?;
    Some(1 + (0..scores.len()).filter(|&i| !right(i) && scores[i] >= best).count())
}

/// Returns the share of `truths` that equal the most frequent one.
#[must_use]
pub fn majority<T: Ord>(truths: &[T]) -> f64 {
    let mut counts: BTreeMap<&T, usize> = BTreeMap::new();
    for truth in truths {
        *counts.entry(truth).or_default() += 1;
    }
    share(counts.into_values().max().unwrap_or(0), truths.len())
}

/// Whether a caption contains all names as whole words, in any case.
#[must_use]
pub fn names_all(caption: &str, names: &[String]) -> bool {
    let words = |text: &str| {
        let text = text.to_lowercase();
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let caption = words(caption);
    names.iter().all(|name| {
        let name = words(name);
        !name.is_empty() && caption.windows(name.len()).any(|part| part == name)
    })
}

/// Returns `part / whole`, or 0 if `whole` is 0.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^52")]
pub fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Returns recall at `k` over `ranks`, with guessing's k of `pool` as chance and baseline. `None`
/// is a text whose sample is never found.
#[must_use]
pub fn recall(ranks: &[Option<usize>], k: usize, pool: usize) -> Score {
    let hits = ranks.iter().flatten().filter(|&&rank| rank <= k).count();
    let chance = share(k.min(pool), pool);
    Score::of_share(hits, ranks.len(), chance, chance)
}

/// Returns the normalised mean of normalised embeddings, which represents a label with several
/// texts.
#[must_use]
pub fn mean_direction(embeddings: &[Vec<f32>]) -> Vec<f32> {
    let width = embeddings.first().map_or(0, Vec::len);
    let mut mean = vec![0.0f64; width];
    for embedding in embeddings {
        let norm = dot(embedding, embedding).sqrt().max(1e-12);
        for (sum, &x) in mean.iter_mut().zip(embedding) {
            *sum += f64::from(x) / norm;
        }
    }
    let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    #[expect(clippy::cast_possible_truncation, reason = "embeddings are f32")]
    let unit = mean.iter().map(|x| (x / norm) as f32).collect();
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collapsed_encoder_ranks_last() {
        assert_eq!(pessimistic_rank(&[0.5; 10], |i| i == 3), Some(10));
        assert_eq!(recall(&[Some(10); 10], 1, 10).value.to_bits(), 0.0f64.to_bits());
        assert_eq!(recall(&[Some(1), None], 1, 10).value.to_bits(), 0.5f64.to_bits());
    }

    #[test]
    fn an_interval_is_that_of_wilson() {
        // By hand, with z² = 3.8415: 8 of 10 gives (0.8 + 0.1921 ± 1.96·√(0.016 + 0.0096)) /
        // 1.3841.
        let close = |found: [f64; 2], wanted: [f64; 2]| {
            found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-4)
        };
        assert!(close(wilson(8, 10), [0.4902, 0.9433]), "{:?}", wilson(8, 10));
        assert!(!close(wilson(7, 10), [0.4902, 0.9433]));
        // No right answer among ten: 0 to z² / (10 + z²).
        assert!(close(wilson(0, 10), [0.0, 0.2775]) && close(wilson(10, 10), [0.7225, 1.0]));
        assert!(close(wilson(0, 0), [0.0, 1.0]));
    }

    #[test]
    fn identical_captions_share_the_hit() {
        // Candidates 0 and 2 are right. Candidate 2 is second best, and 0 does not count against
        // it.
        assert_eq!(pessimistic_rank(&[0.1, 0.9, 0.8, 0.2], |i| i == 0 || i == 2), Some(2));
        assert_eq!(pessimistic_rank(&[0.1], |_| false), None);
    }

    #[test]
    fn majority_is_the_share_of_the_most_frequent_answer() {
        assert_eq!(majority(&[0, 1, 1, 2]).to_bits(), 0.5f64.to_bits());
        assert_eq!(majority::<usize>(&[]).to_bits(), 0.0f64.to_bits());
    }

    #[test]
    fn a_caption_names_whole_words_only() {
        let named = |caption, names: &[&str]| {
            names_all(caption, &names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
        };
        assert!(named("A red circle, moving left.", &["circle", "moving left", "Red"]));
        assert!(!named("a red circle moving left", &["circle", "moving right"]));
        assert!(!named("a reddish circle", &["red"]));
        assert!(!named("moving to the left", &["moving left"]));
        assert!(!named("a circle", &[""]));
    }

    #[test]
    fn a_label_is_the_direction_of_its_texts() {
        let mean = mean_direction(&[vec![2.0, 0.0], vec![0.0, 1.0]]);
        assert!((f64::from(mean[0]) - 0.5f64.sqrt()).abs() < 1e-7);
        assert!((f64::from(mean[1]) - 0.5f64.sqrt()).abs() < 1e-7);
    }
}
