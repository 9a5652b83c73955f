//! L2 normalisation by its definition. The host runs this version too, because there are few
//! embeddings compared to tokens.

use crate::parallel::round;

pub(super) fn forward(x: &[f32], e: usize, eps: f32, out: &mut [f32], norm: &mut [f32]) {
    for (row, norm) in norm.iter_mut().enumerate() {
        let x = &x[row * e..(row + 1) * e];
        let length = round(dot(x, x).sqrt());
        let divisor = length.max(eps);
        for (out, &value) in out[row * e..(row + 1) * e].iter_mut().zip(x) {
            *out = value / divisor;
        }
        // NaN lengths stay NaN, like their outputs.
        *norm = if length < eps { -eps } else { length };
    }
}

pub(super) fn backward(out: &[f32], norm: &[f32], d_out: &[f32], e: usize, d_x: &mut [f32]) {
    for (row, &norm) in norm.iter().enumerate() {
        let (out, d_out) = (&out[row * e..(row + 1) * e], &d_out[row * e..(row + 1) * e]);
        let projection = if norm < 0.0 { 0.0 } else { round(dot(out, d_out)) };
        let d_x = &mut d_x[row * e..(row + 1) * e];
        for (d_x, (&y, &d)) in d_x.iter_mut().zip(out.iter().zip(d_out)) {
            *d_x = (d - y * projection) / norm.abs();
        }
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
