//! Mean pooling by its definition. The host runs this version too: it is one pass over memory.

use crate::Lengths;
use crate::parallel::add_into;

pub(super) fn forward(x: &[f32], lengths: &Lengths, d: usize, out: &mut [f32]) {
    for row in 0..lengths.rows() {
        let tokens = lengths.range(row);
        let out = &mut out[row * d..(row + 1) * d];
        out.fill(0.0);
        for token in tokens.clone() {
            add_into(out, &x[token * d..(token + 1) * d]);
        }
        for value in out {
            *value /= tokens.len() as f32;
        }
    }
}

pub(super) fn backward(d_out: &[f32], lengths: &Lengths, d: usize, d_x: &mut [f32]) {
    for row in 0..lengths.rows() {
        let tokens = lengths.range(row);
        let d_out = &d_out[row * d..(row + 1) * d];
        for token in tokens.clone() {
            for (d_x, &value) in d_x[token * d..(token + 1) * d].iter_mut().zip(d_out) {
                *d_x = value / tokens.len() as f32;
            }
        }
    }
    d_x[lengths.tokens() * d..].fill(0.0);
}
