//! Loops over whole vectors for single rows of scores and for the operands of the products.

use std::ops::Range;

use super::product::{VECTOR, padded};
use crate::math::exp;

/// Rows of a matrix: the slice that holds them and the distance between their starts.
pub(super) type Rows<'a> = (&'a [f32], usize);

/// out (width, count padded) = scale · rowsᵀ for the first `count` rows; the padding is zero.
pub(super) fn transpose(
    (rows, stride): Rows<'_>,
    count: usize,
    width: usize,
    scale: f32,
    out: &mut [f32],
) {
    let out_stride = padded(count);
    for first in (0..count).step_by(VECTOR) {
        let lanes = VECTOR.min(count - first);
        if lanes == VECTOR {
            let sources: [&[f32]; VECTOR] =
                std::array::from_fn(|lane| &rows[(first + lane) * stride..][..width]);
            for (e, out) in out.chunks_exact_mut(out_stride).take(width).enumerate() {
                let column: [f32; VECTOR] = std::array::from_fn(|lane| sources[lane][e] * scale);
                out[first..first + VECTOR].copy_from_slice(&column);
            }
        } else {
            for (e, out) in out.chunks_exact_mut(out_stride).take(width).enumerate() {
                for lane in 0..VECTOR {
                    let row = (first + lane) * stride + e;
                    out[first + lane] = if lane < lanes { rows[row] * scale } else { 0.0 };
                }
            }
        }
    }
}

/// Copies the first `count` rows to `out` (count, width padded); the padding is zero.
pub(super) fn copy_rows((rows, stride): Rows<'_>, count: usize, width: usize, out: &mut [f32]) {
    let whole = width / VECTOR * VECTOR;
    for (i, out) in out.chunks_exact_mut(padded(width)).take(count).enumerate() {
        let row = &rows[i * stride..][..width];
        // Vector by vector: a copy of unknown length is a call that takes longer than the copy
        // itself.
        let (to, from) = (out.as_chunks_mut::<VECTOR>().0, row.as_chunks::<VECTOR>().0);
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        if whole < width {
            let (values, padding) = out[whole..].split_at_mut(width - whole);
            values.copy_from_slice(&row[whole..]);
            padding.fill(0.0);
        }
    }
}

/// One step of the online softmax: replaces the visible scores of a row by e^(score − max) and all
/// other scores by zero.
///
/// Updates `max` and `sum` and returns the factor by which earlier terms of this row must be
/// multiplied.
pub(super) fn online_softmax(
    row: &mut [f32],
    visible: Range<usize>,
    max: &mut f32,
    sum: &mut f32,
) -> f32 {
    if visible.is_empty() {
        row.fill(0.0);
        return 1.0;
    }
    hide(row, visible, f32::NEG_INFINITY);
    let mut lanes = [*max; VECTOR];
    for x in row.as_chunks::<VECTOR>().0 {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = larger(x, *lane);
        }
    }
    let new_max = pairwise(lanes, larger);
    // A separate loop over single elements: the compiler vectorises this form in every context.
    for x in row.iter_mut() {
        *x = exp(*x - new_max);
    }
    let mut lanes = [0.0; VECTOR];
    for x in row.as_chunks::<VECTOR>().0 {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += *x;
        }
    }
    let shrink = if *max == f32::NEG_INFINITY { 0.0 } else { exp(*max - new_max) };
    *sum = sum.mul_add(shrink, pairwise(lanes, |a, b| a + b));
    *max = new_max;
    shrink
}

/// Replaces the scores of a row by probabilities e^(score − lse), and the gradient of the
/// probabilities in `d_row` by the gradient of the scores before scaling,
/// scale · p · (d_p − delta).
pub(super) fn softmax_backward(
    row: &mut [f32],
    d_row: &mut [f32],
    visible: Range<usize>,
    lse: f32,
    delta: f32,
    scale: f32,
) {
    hide(row, visible, f32::NEG_INFINITY);
    for (p, d) in row.iter_mut().zip(d_row) {
        *p = exp(*p - lse);
        *d = scale * *p * (*d - delta);
    }
}

/// Fills the elements of `row` outside `visible` with the value `with`.
fn hide(row: &mut [f32], visible: Range<usize>, with: f32) {
    if visible.start > 0 {
        row[..visible.start].fill(with);
    }
    for x in &mut row[visible.end..] {
        *x = with;
    }
}

/// Multiplies each element of `row` by `factor`.
pub(super) fn scale_all(row: &mut [f32], factor: f32) {
    row.iter_mut().for_each(|x| *x *= factor);
}

/// Σ aᵢ·bᵢ, summed in eight partial sums.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_whole, a_rest) = a.as_chunks::<VECTOR>();
    let (b_whole, b_rest) = b.as_chunks::<VECTOR>();
    let mut lanes = [0.0; VECTOR];
    for (a, b) in a_whole.iter().zip(b_whole) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    pairwise(lanes, |a, b| a + b) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The larger of `a` and `b`; `b` if either is NaN.
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

fn pairwise([a, b, c, d, e, f, g, h]: [f32; VECTOR], of: impl Fn(f32, f32) -> f32) -> f32 {
    of(of(of(a, e), of(c, g)), of(of(b, f), of(d, h)))
}
