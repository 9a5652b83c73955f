//! Ranks of texts in a pool of samples, without the matrix of all similarities.
//!
//! Most similarities are only computed in f32, by matrix products of blocks. One that may lie on
//! the wrong side of the right sample's within the rounding error of f32 is computed again in f64,
//! so ranks are those of f64.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rayon::prelude::*;
use vljepa_kernels::{Stream, View, ViewMut, Write, linear};

use super::metrics::{cosine_of, dot};

/// Texts of a block.
const TEXTS: usize = 256;
/// Samples of a block. With [`TEXTS`], a block of similarities has 4 MB.
const SAMPLES: usize = 4096;

/// Samples among which texts look for theirs.
#[derive(Debug)]
pub struct Pool<'a> {
    samples: &'a [Vec<f32>],
    width: usize,
    /// Number in `distinct` of each sample's embedding.
    numbers: Vec<usize>,
    /// Embeddings that differ, each once.
    distinct: Vec<Embedding<'a>>,
    /// Unit vectors of `distinct`, (distinct, e).
    units: Vec<f32>,
}

#[derive(Debug)]
struct Embedding<'a> {
    values: &'a [f32],
    /// Sum of the squares of `values`.
    square: f64,
    /// Number of samples that have it.
    count: usize,
}

impl<'a> Pool<'a> {
    /// Prepares a pool of embeddings (n, e). Equal ones are compared once, so a collapsed encoder
    /// costs no more than one sample. Embeddings that are nearly equal, whose cosines f32 cannot
    /// tell apart, are all compared in f64, which is slow.
    #[must_use]
    pub fn new(samples: &'a [Vec<f32>]) -> Self {
        let (mut known, mut distinct) = (BTreeMap::new(), Vec::<Embedding<'_>>::new());
        let mut number = |values: &'a Vec<f32>| {
            let number =
                *known.entry(bytemuck::cast_slice::<f32, u8>(values)).or_insert_with(|| {
                    distinct.push(Embedding { values, square: dot(values, values), count: 0 });
                    distinct.len() - 1
                });
            distinct[number].count += 1;
            number
        };
        let numbers = samples.iter().map(&mut number).collect();
        let units = distinct.iter().flat_map(|e| unit(e.values, e.square)).collect();
        let width = samples.first().map_or(0, Vec::len);
        Self { samples, width, numbers, distinct, units }
    }

    /// Returns the rank (1 is best) of the best right sample of each text, by cosine. `right` holds
    /// the numbers of the right samples of each text. Ties count against the right sample, so a
    /// collapsed encoder ranks last, not first. `None` for a text that has no right sample, or
    /// whose similarity to all of them is no number.
    ///
    /// # Errors
    /// Fails if texts and samples have different widths.
    pub fn ranks<T: AsRef<[f32]> + Sync>(
        &self,
        texts: &[T],
        right: &[Vec<usize>],
    ) -> vljepa_kernels::Result<Vec<Option<usize>>> {
        let wanted: Vec<Wanted> =
            texts.par_iter().zip(right).map(|(t, right)| self.wanted(t.as_ref(), right)).collect();
        let mut similarities = vec![0.0f32; TEXTS * SAMPLES];
        let mut above = Vec::with_capacity(texts.len());
        for (texts, wanted) in texts.chunks(TEXTS).zip(wanted.chunks(TEXTS)) {
            let rows = texts.len();
            let units = texts.iter().zip(wanted).flat_map(|(t, w)| unit(t.as_ref(), w.square));
            let units: Vec<f32> = units.collect();
            let mut counts = vec![0usize; rows];
            for first in (0..self.distinct.len()).step_by(SAMPLES) {
                let block = first..(first + SAMPLES).min(self.distinct.len());
                let similarities = &mut similarities[..rows * block.len()];
                self.multiply(&units, block.clone(), similarities)?;
                counts.par_iter_mut().enumerate().for_each(|(row, count)| {
                    let row_of = &similarities[row * block.len()..(row + 1) * block.len()];
                    *count += self.above(texts[row].as_ref(), &wanted[row], block.start, row_of);
                });
            }
            above.extend(counts);
        }
        let rank = |(above, wanted): (usize, &Wanted)| {
            // The best right samples are counted among those that are at least as near.
            wanted.best.is_some().then(|| 1 + above - wanted.tied)
        };
        Ok(above.into_iter().zip(&wanted).map(rank).collect())
    }

    /// Similarity of a text to its best right sample.
    fn wanted(&self, text: &[f32], right: &[usize]) -> Wanted {
        let square = dot(text, text);
        let right: BTreeSet<usize> = right.iter().copied().collect();
        let all = || right.iter().map(|&i| self.cosine(text, square, self.numbers[i]));
        let best = all().reduce(f64::max).filter(|best| !best.is_nan());
        let tied = all().filter(|similarity| Some(*similarity) == best).count();
        Wanted { square, best, tied }
    }

    fn cosine(&self, text: &[f32], square: f64, number: usize) -> f64 {
        let sample = &self.distinct[number];
        cosine_of(dot(text, sample.values), square, sample.square)
    }

    /// f32 similarities of texts (n, e) to the embeddings `block`, (n, block).
    fn multiply(
        &self,
        texts: &[f32],
        block: Range<usize>,
        out: &mut [f32],
    ) -> vljepa_kernels::Result<()> {
        let (e, samples) = (self.width, block.len());
        let rows = out.len() / samples.max(1);
        let texts = View::from_f32(texts, &[rows, e]);
        let units = View::from_f32(&self.units[block.start * e..block.end * e], &[samples, e]);
        let out = ViewMut::from_f32(out, &[rows, samples]);
        linear::forward(&Stream::Host, texts, units, None, Write::Set, out)
    }

    /// Number of samples of a block that are at least as near to a text as its best right sample.
    fn above(&self, text: &[f32], wanted: &Wanted, start: usize, similarities: &[f32]) -> usize {
        let Some(best) = wanted.best else { return 0 };
        let error = error_bound(self.width);
        let (low, high) = (best - error, best + error);
        let mut count = 0;
        for (number, &similarity) in (start..).zip(similarities) {
            let similarity = f64::from(similarity);
            // A similarity that is no number is compared in f64 too.
            let is_below = similarity < low;
            if !is_below && (similarity > high || self.cosine(text, wanted.square, number) >= best)
            {
                count += self.distinct[number].count;
            }
        }
        count
    }

    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are no samples.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// What a text looks for.
struct Wanted {
    /// Sum of the squares of the text's embedding.
    square: f64,
    /// Similarity of its best right sample.
    best: Option<f64>,
    /// Number of right samples that have it.
    tied: usize,
}

/// Vector of length one, rounded to f32. A vector without a length stays zero.
#[expect(clippy::cast_possible_truncation, reason = "similarities of blocks are f32")]
fn unit(values: &[f32], square: f64) -> impl Iterator<Item = f32> {
    let length = square.sqrt().max(f64::MIN_POSITIVE);
    values.iter().map(move |&x| (f64::from(x) / length) as f32)
}

/// Bound of the difference between an f32 similarity of unit vectors with `width` elements and the
/// cosine. Each element is rounded by u = 2⁻²⁴ of itself, in both vectors; a sum of n products in
/// any order is off by at most n·u·Σ|aᵢbᵢ| ≤ n·u; terms of u² and roundings of f64 are below 6·u.
#[expect(clippy::cast_precision_loss, reason = "widths are small")]
fn error_bound(width: usize) -> f64 {
    (width as f64 + 8.0) * f64::from(f32::EPSILON) / 2.0
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::metrics::{cosine, pessimistic_rank};
    use super::*;

    fn random(seed: u64, rows: usize, width: usize) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..rows).map(|_| (0..width).map(|_| rng.random_range(-1.0..1.0)).collect()).collect()
    }

    fn simple(
        texts: &[Vec<f32>],
        samples: &[Vec<f32>],
        right: &[Vec<usize>],
    ) -> Vec<Option<usize>> {
        let rank = |(text, right): (&Vec<f32>, &Vec<usize>)| {
            let scores: Vec<f64> = samples.iter().map(|sample| cosine(text, sample)).collect();
            pessimistic_rank(&scores, |i| right.contains(&i))
        };
        texts.iter().zip(right).map(rank).collect()
    }

    #[test]
    fn ranks_are_those_of_the_whole_matrix_in_f64() {
        // More texts and samples than one block, with ties, near ties and shared samples.
        let (mut samples, texts) = (random(1, SAMPLES + 40, 4), random(2, TEXTS + 30, 4));
        for i in 0..30 {
            samples[i + 100] = samples[i].clone();
            samples[i + 200] = samples[i].iter().map(|x| x * 2.0).collect();
            samples[i + 300] = samples[i].clone();
            samples[i + 300][0] += f32::EPSILON;
        }
        let right: Vec<Vec<usize>> =
            (0..texts.len()).map(|i| vec![i, (i * 7) % 400, SAMPLES + i % 40]).collect();
        let found = Pool::new(&samples).ranks(&texts, &right).unwrap();
        assert_eq!(found, simple(&texts, &samples, &right));
        // Ranks of similarities in f32 alone would be others.
        let pool = Pool::new(&samples);
        let off = pool.distinct.iter().enumerate().any(|(i, sample)| {
            let in_f32: f32 =
                pool.units[i * 4..][..4].iter().zip(&texts[0]).map(|(a, b)| a * b).sum();
            (f64::from(in_f32) - dot(sample.values, &texts[0]) / sample.square.sqrt()).abs() > 1e-8
        });
        assert!(off);
    }

    #[test]
    fn a_text_without_a_right_sample_has_no_rank_and_no_number_is_never_best() {
        let samples = vec![vec![1.0, 0.0], vec![f32::NAN, 0.0], vec![0.0, 0.0]];
        let texts = vec![vec![1.0, 0.5]; 4];
        let right = vec![vec![], vec![1], vec![0, 1], vec![2]];
        let ranks = Pool::new(&samples).ranks(&texts, &right).unwrap();
        assert_eq!(ranks, [None, None, Some(1), Some(2)]);
    }

    #[test]
    fn a_collapsed_encoder_ranks_last_at_the_cost_of_one_sample() {
        let samples = vec![vec![0.5f32; 8]; 1000];
        let pool = Pool::new(&samples);
        assert_eq!((pool.distinct.len(), pool.len()), (1, 1000));
        let right: Vec<Vec<usize>> = (0..1000).map(|i| vec![i]).collect();
        let ranks = pool.ranks(&samples, &right).unwrap();
        assert!(ranks.iter().all(|rank| *rank == Some(1000)));
    }
}
