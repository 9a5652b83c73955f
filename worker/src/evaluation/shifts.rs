//! Finds where a stream of embeddings changes, as it comes (paper §2, selective decoding).

use std::collections::VecDeque;
use std::ops::Range;

use super::selective::{add, mean, pooled};

/// Divides a stream of embeddings into segments, one embedding at a time and with bounded memory.
///
/// A segment ends when the variance of the last embeddings, the mean of their squared distances to
/// their mean, exceeds a threshold. Unlike the segments of `segments`, their number is not known
/// before, and no later embedding moves their ends.
#[derive(Debug, Clone)]
pub struct Shifts {
    /// The last embeddings of the segment, at most `length`.
    window: VecDeque<Vec<f32>>,
    length: usize,
    threshold: f64,
    normalise: bool,
    /// Numbers of the embeddings of the segment so far.
    rows: Range<usize>,
    /// Sum of the embeddings of the segment so far, (e).
    sum: Vec<f64>,
    /// Variance of the window when the last embedding was added.
    variance: f64,
}

/// Embeddings between two shifts.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Numbers of the embeddings in the stream.
    pub rows: Range<usize>,
    /// Mean of the embeddings (e), which a decoder reads.
    pub mean: Vec<f32>,
}

impl Shifts {
    /// Watches the variance of the last `length` embeddings, at least two. With `normalise` the
    /// means of segments have length one, as the embeddings have.
    #[must_use]
    pub fn new(length: usize, threshold: f64, normalise: bool) -> Self {
        let (window, rows, sum, variance) = (VecDeque::new(), 0..0, Vec::new(), 0.0);
        Self { window, length: length.max(2), threshold, normalise, rows, sum, variance }
    }

    /// Takes the next embedding (e). If the stream has changed, the embedding starts a segment, and
    /// the segment before it is returned.
    pub fn push(&mut self, embedding: &[f32]) -> Option<Segment> {
        if self.window.len() == self.length {
            self.window.pop_front();
        }
        self.window.push_back(embedding.to_vec());
        self.variance = self.spread();
        let ended = if self.variance > self.threshold { self.finish() } else { None };
        if ended.is_some() {
            self.window.push_back(embedding.to_vec());
        }
        self.sum.resize(embedding.len(), 0.0);
        add(&mut self.sum, embedding);
        self.rows.end += 1;
        ended
    }

    /// Ends the segment, for example because the stream ends. `None` if no embedding came after the
    /// last segment.
    pub fn finish(&mut self) -> Option<Segment> {
        self.window.clear();
        let rows = self.rows.clone();
        if rows.is_empty() {
            return None;
        }
        self.rows = rows.end..rows.end;
        let sum = std::mem::take(&mut self.sum);
        Some(Segment { mean: pooled(&sum, rows.len(), self.normalise), rows })
    }

    /// Variance that the last embedding was compared with the threshold by: that of the window with
    /// it. 0 before the first.
    #[must_use]
    pub fn variance(&self) -> f64 {
        self.variance
    }

    /// Mean of the window (e), if it is full of embeddings of the segment. `None` soon after a
    /// shift.
    #[must_use]
    pub fn steady_mean(&self) -> Option<Vec<f32>> {
        let is_full = self.window.len() == self.length;
        is_full.then(|| mean(&self.window.iter().collect::<Vec<_>>(), self.normalise))
    }

    /// Mean squared distance of the embeddings of the window to their mean.
    #[expect(clippy::cast_precision_loss, reason = "windows have few embeddings")]
    fn spread(&self) -> f64 {
        let count = self.window.len() as f64;
        let width = self.window.front().map_or(0, Vec::len);
        let mut sum = vec![0.0; width];
        self.window.iter().for_each(|embedding| add(&mut sum, embedding));
        let distance = |embedding: &Vec<f32>| {
            let elements = embedding.iter().zip(&sum);
            elements.map(|(&x, sum)| (f64::from(x) - sum / count).powi(2)).sum::<f64>()
        };
        self.window.iter().map(distance).sum::<f64>() / count
    }
}

#[cfg(test)]
mod tests {
    use super::{Segment, Shifts};

    fn segments(shifts: &mut Shifts, stream: &[[f32; 2]]) -> Vec<Segment> {
        let mut found: Vec<Segment> =
            stream.iter().filter_map(|embedding| shifts.push(embedding)).collect();
        found.extend(shifts.finish());
        found
    }

    #[test]
    fn a_shift_starts_a_segment_and_is_reported_once() {
        let (a, b) = ([1.0, 0.0], [0.0, 1.0]);
        let stream = [a, a, a, b, b, b, b, a];
        let found = segments(&mut Shifts::new(4, 0.3, false), &stream);
        let rows: Vec<_> = found.iter().map(|segment| segment.rows.clone()).collect();
        // The variance of three equal embeddings and one at a distance of √2 is 2 · 3/16 = 0.375.
        assert_eq!(rows, [0..3, 3..7, 7..8]);
        assert_eq!(found[0].mean, a);
        assert_eq!(found[1].mean, b);
        let whole = segments(&mut Shifts::new(4, 0.51, false), &stream);
        assert_eq!(whole.len(), 1, "two of each have a variance of 1/2, the largest");
        assert_eq!(whole[0].mean, [0.5, 0.5]);
        let unit = segments(&mut Shifts::new(4, 0.51, true), &stream);
        assert!((unit[0].mean[0] - 0.5f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn the_mean_is_steady_when_the_window_is_full_of_the_segment() {
        let (a, b) = ([1.0, 0.0], [0.0, 1.0]);
        let mut shifts = Shifts::new(2, 0.3, false);
        let mut steady = [a, a, b, b, b].into_iter().map(|embedding| {
            shifts.push(&embedding);
            (shifts.steady_mean(), shifts.variance())
        });
        assert_eq!(steady.next(), Some((None, 0.0)));
        assert_eq!(steady.next(), Some((Some(a.to_vec()), 0.0)));
        assert_eq!(steady.next(), Some((None, 0.5)), "two of a distance of √2: 2 · 1/4");
        assert_eq!(steady.next(), Some((Some(b.to_vec()), 0.0)));
    }

    #[test]
    fn slow_drift_within_a_window_is_no_shift_and_memory_is_bounded() {
        let mut shifts = Shifts::new(3, 0.01, false);
        for number in 0..10_000u16 {
            let angle = f32::from(number) * 0.05;
            // Three steps of 0.05 have a variance of 2/3 · 0.05² = 0.0017.
            assert_eq!(shifts.push(&[angle.cos(), angle.sin()]), None, "{number}");
            assert!(shifts.window.len() <= 3);
        }
        assert_eq!(shifts.finish().unwrap().rows, 0..10_000);
        assert_eq!(shifts.finish(), None);
        // Faster steps of the same path are shifts.
        let fast = (0..10u8).filter_map(|i| {
            let angle = f32::from(i) * 0.5;
            shifts.push(&[angle.cos(), angle.sin()])
        });
        assert!(fast.count() > 3);
    }
}
