//! The global norm on the host: f64 partial sums of fixed chunks, added in order.

use super::NORM_EPS;
use crate::parallel::{BLOCK, blocks, round};

/// Independent partial sums within a chunk: four 256-bit registers of f64.
const LANES: usize = 16;

pub(super) fn squared_sum(x: &[f32]) -> f32 {
    let mut partials = vec![0.0; x.len().div_ceil(BLOCK)];
    blocks(x.len(), (&mut partials, 1), |block, partial| {
        let end = ((block + 1) * BLOCK).min(x.len());
        partial[0] = chunk_sum(&x[block * BLOCK..end]);
    });
    round(partials.iter().sum())
}

pub(super) fn control(squared_sum: f32, max_norm: f32) -> [f32; 2] {
    if !squared_sum.is_finite() {
        return [0.0, 0.0];
    }
    let norm = f64::from(squared_sum).sqrt();
    [round((f64::from(max_norm) / (norm + NORM_EPS)).min(1.0)), 1.0]
}

fn chunk_sum(x: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x) * f64::from(x);
    }
    lanes.iter().sum()
}
