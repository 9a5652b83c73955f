//! `InfoNCE` on the host: blocks of rows run in parallel, each over tiles of the batch, so that
//! each thread needs the memory of one tile.

use std::ops::Range;

use rayon::prelude::*;

use crate::device::host_gemm::{Layout, matmul};
use crate::math::exp;
use crate::parallel::{round, sum1, sum2};

/// Rows of one rayon task.
const ROWS: usize = 64;

/// Columns of one tile. Its 64 × 512 scores in f32 take 128 KiB.
const COLUMNS: usize = 512;

/// Inputs of both passes: `rows` (b, width) and `all` (batch, width).
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) rows: &'a [f32],
    pub(super) all: &'a [f32],
    pub(super) width: usize,
    pub(super) batch: usize,
    pub(super) alpha: f32,
    pub(super) first_row: usize,
    /// Hashes of the targets of `rows`, and of all targets.
    pub(super) equal: Option<(&'a [u64], &'a [u64])>,
}

/// A batch size as a divisor in f64.
#[expect(clippy::cast_precision_loss, reason = "batches are below 2^52")]
pub(super) fn count(batch: usize) -> f64 {
    batch as f64
}

impl Inputs<'_> {
    /// Tiles of columns that cover the batch.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let batch = self.batch;
        (0..batch).step_by(COLUMNS).map(move |start| start..batch.min(start + COLUMNS))
    }

    /// Writes s of some rows and columns to `tile` (rows, columns), with equal targets at −∞.
    fn scores(&self, rows: &Range<usize>, columns: &Range<usize>, tile: &mut [f32]) {
        let (height, width) = (rows.len(), columns.len());
        matmul(
            0.0,
            tile,
            Layout::row_major(height, width),
            self.alpha,
            &self.rows[rows.start * self.width..rows.end * self.width],
            Layout::row_major(height, self.width),
            &self.all[columns.start * self.width..columns.end * self.width],
            Layout::row_major(width, self.width).transposed(),
            1,
        );
        let Some((own, all)) = self.equal else { return };
        for (i, scores) in rows.clone().zip(tile.chunks_exact_mut(width)) {
            for (j, score) in columns.clone().zip(scores) {
                if all[j] == own[i] && j != self.first_row + i {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Position of row `i`'s diagonal element within a tile's row, if the tile contains it.
    fn own_column(&self, i: usize, columns: &Range<usize>) -> Option<usize> {
        let own = self.first_row + i;
        columns.contains(&own).then(|| own - columns.start)
    }
}

/// Writes log-sum-exp and diagonal element of every row.
pub(super) fn statistics(inputs: &Inputs<'_>, lse: &mut [f32], diagonal: &mut [f32]) {
    let blocks = lse.par_chunks_mut(ROWS).zip(diagonal.par_chunks_mut(ROWS)).enumerate();
    let buffer = || vec![0.0; ROWS * COLUMNS];
    blocks.for_each_init(buffer, |tile, (block, (lse, diagonal))| {
        let rows = block * ROWS..block * ROWS + lse.len();
        let mut max = [f32::NEG_INFINITY; ROWS];
        let mut sum = [0.0_f32; ROWS];
        for columns in inputs.tiles() {
            let tile = &mut tile[..rows.len() * columns.len()];
            inputs.scores(&rows, &columns, tile);
            for (r, scores) in tile.chunks_exact_mut(columns.len()).enumerate() {
                if let Some(own) = inputs.own_column(rows.start + r, &columns) {
                    diagonal[r] = scores[own];
                }
                add_tile(scores, &mut max[r], &mut sum[r]);
            }
        }
        for ((lse, max), sum) in lse.iter_mut().zip(max).zip(sum) {
            *lse = max + sum.ln();
        }
    });
}

/// Adds a row of a tile to the row's running maximum and to its sum of exponentials below the
/// maximum.
fn add_tile(scores: &[f32], max: &mut f32, sum: &mut f32) {
    let new_max = largest(scores, *max);
    // A tile may consist of masked scores only.
    let shift = if new_max == f32::NEG_INFINITY { 0.0 } else { new_max };
    *sum = sum.mul_add(exp(*max - shift), sum1(scores, |x| exp(x - shift)));
    *max = new_max;
}

/// Largest of `scores` and `least`, found in sixteen running maxima. NaN is skipped; it reappears
/// in the sum of exponentials.
fn largest(scores: &[f32], least: f32) -> f32 {
    let (whole, rest) = scores.as_chunks::<16>();
    let larger = |m: f32, x: f32| if x > m { x } else { m };
    let mut lanes = [least; 16];
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(least, larger)
}

/// Writes `d_rows` and returns Σ dS ∘ S, summed in the order of the blocks.
pub(super) fn backward(
    inputs: &Inputs<'_>,
    rows_lse: &[f32],
    all_lse: &[f32],
    d_rows: &mut [f32],
) -> f64 {
    let buffers = || [vec![0.0; ROWS * COLUMNS], vec![0.0; ROWS * COLUMNS]];
    let block_width = (ROWS * inputs.width).max(1);
    let block = |buffers: &mut [Vec<f32>; 2], (block, d_rows): (usize, &mut [f32])| {
        let start = block * ROWS;
        let rows = start..start + d_rows.len() / inputs.width;
        backward_block(inputs, rows_lse, all_lse, &rows, buffers, d_rows)
    };
    let blocks = d_rows.par_chunks_mut(block_width).enumerate();
    let sums: Vec<f64> = blocks.map_init(buffers, block).collect();
    sums.into_iter().sum::<f64>() / count(inputs.batch)
}

/// Writes the gradient of one block of rows and returns B · Σ dS ∘ S.
fn backward_block(
    inputs: &Inputs<'_>,
    rows_lse: &[f32],
    all_lse: &[f32],
    rows: &Range<usize>,
    [scores, d_scores]: &mut [Vec<f32>; 2],
    d_rows: &mut [f32],
) -> f64 {
    let (height, width) = (rows.len(), inputs.width);
    let scale = round(f64::from(inputs.alpha) / count(inputs.batch));
    let mut sum = 0.0;
    for columns in inputs.tiles() {
        let area = height * columns.len();
        let (scores, d_scores) = (&mut scores[..area], &mut d_scores[..area]);
        // s, then w = B·dS
        inputs.scores(rows, &columns, scores);
        let lines =
            scores.chunks_exact(columns.len()).zip(d_scores.chunks_exact_mut(columns.len()));
        for (i, (s, d)) in rows.clone().zip(lines) {
            let r = rows_lse[i];
            for ((d, &s), &c) in d.iter_mut().zip(s).zip(&all_lse[columns.clone()]) {
                *d = 0.5 * (exp(s - r) + exp(s - c));
            }
            if let Some(own) = inputs.own_column(i, &columns) {
                d[own] -= 1.0;
            }
            // A masked score is −∞ and its gradient is zero.
            let product = |s: f32, d: f32| if s == f32::NEG_INFINITY { 0.0 } else { s * d };
            sum += f64::from(sum2(s, d, product));
        }
        // d_rows += α/B · w·all
        matmul(
            if columns.start == 0 { 0.0 } else { 1.0 },
            d_rows,
            Layout::row_major(height, width),
            scale,
            d_scores,
            Layout::row_major(height, columns.len()),
            &inputs.all[columns.start * width..columns.end * width],
            Layout::row_major(columns.len(), width),
            1,
        );
    }
    sum
}
