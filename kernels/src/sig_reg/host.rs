//! `SIGReg` on the host. Sums over rows are those of blocks of rows, added in the order of the
//! blocks.

use super::{KNOTS, SPACING, turns};
use crate::math::sin_cos_turns;
use crate::parallel::{self, round};

/// Calls `f(k, cos t_k·x, sin t_k·x)` for each point.
#[inline]
fn rotations(x: f32, turns: f32, mut f: impl FnMut(usize, f32, f32)) {
    let (sine, cosine) = sin_cos_turns(x * turns);
    let (mut s, mut c) = (sine, cosine);
    for k in 0..KNOTS {
        f(k, c, s);
        (s, c) = (s * cosine + c * sine, c * cosine - s * sine);
    }
}

/// Adds to `sums` (2·[`KNOTS`], m).
pub(super) fn add_sums(projections: &[f32], directions: usize, sums: &mut [f32]) {
    if projections.is_empty() {
        return;
    }
    let rows = parallel::rows_per_block(projections.len() / directions, directions);
    let blocks: Vec<&[f32]> = projections.chunks(rows * directions).collect();
    let mut partials = vec![0.0; blocks.len() * sums.len()];
    let turns = turns();
    parallel::blocks(projections.len(), (&mut partials, sums.len()), |i, partial| {
        for row in blocks[i].chunks_exact(directions) {
            for (direction, &x) in row.iter().enumerate() {
                rotations(x, turns, |k, c, s| {
                    partial[k * directions + direction] += c;
                    partial[(KNOTS + k) * directions + direction] += s;
                });
            }
        }
    });
    for partial in partials.chunks_exact(sums.len()) {
        parallel::add_into(sums, partial);
    }
}

/// Replaces `sums` by coefficients and writes `terms` (m).
pub(super) fn coefficients(sums: &mut [f32], global: f32, factor: f32, terms: &mut [f32]) {
    let directions = terms.len();
    for (direction, term) in terms.iter_mut().enumerate() {
        let mut statistic = 0.0;
        for k in 0..KNOTS {
            let [t, window, weight] = point(k);
            let (c, s) = (k * directions + direction, (KNOTS + k) * directions + direction);
            let (real, imaginary) = (sums[c] / global - window, sums[s] / global);
            statistic += weight * (real * real + imaginary * imaginary);
            // Derivatives of factor · g · weight · (real² + imaginary²) in Σ cos and in Σ sin,
            // times those of cos(t·x) and sin(t·x) in x without their sine and cosine.
            sums[c] = -2.0 * factor * weight * t * real;
            sums[s] = 2.0 * factor * weight * t * imaginary;
        }
        *term = factor * global * statistic;
    }
}

/// Point t_k, window e^(−t²/2), and the window times the weight of the points t_k and −t_k.
fn point(k: usize) -> [f32; 3] {
    #[expect(clippy::cast_precision_loss, reason = "at most 8")]
    let t = SPACING * (k + 1) as f64;
    let window = (-t * t / 2.0).exp();
    let both = if k + 1 == KNOTS { SPACING } else { 2.0 * SPACING };
    [t, window, both * window].map(round)
}

/// Writes the gradients (b, m).
pub(super) fn gradients(projections: &[f32], coefficients: &[f32], out: &mut [f32]) {
    let directions = coefficients.len() / (2 * KNOTS);
    let turns = turns();
    parallel::blocks(projections.len(), (out, directions), |row, out| {
        let projections = &projections[row * directions..][..directions];
        for (direction, (out, &x)) in out.iter_mut().zip(projections).enumerate() {
            let mut sum = 0.0;
            rotations(x, turns, |k, c, s| {
                sum += coefficients[k * directions + direction] * s;
                sum += coefficients[(KNOTS + k) * directions + direction] * c;
            });
            *out = sum;
        }
    });
}
