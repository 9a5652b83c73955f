//! Root-mean-square normalisation by its definition, one row at a time, in f64 between reading and
//! writing.

use super::Input;
use crate::{Write, parallel::round};

pub(super) fn forward(input: Input<'_>, eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    let d = input.width;
    for n in 0..rstd.len() {
        let x = &input.x[n * d..(n + 1) * d];
        let mean_square = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / d as f64;
        let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
        for i in 0..d {
            let factor = f64::from(input.offset) + f64::from(input.weight[i]);
            out[n * d + i] = round(f64::from(x[i]) * scale * factor);
        }
        rstd[n] = round(scale);
    }
}

pub(super) fn backward(
    input: Input<'_>,
    rstd: &[f32],
    d_out: &[f32],
    write: Write,
    d_x: &mut [f32],
    d_weight: &mut [f32],
) {
    let d = input.width;
    for n in 0..rstd.len() {
        let (x, d_out) = (&input.x[n * d..(n + 1) * d], &d_out[n * d..(n + 1) * d]);
        let scale = f64::from(rstd[n]);
        let normalised = |i: usize| f64::from(x[i]) * scale;
        let factor = |i: usize| f64::from(input.offset) + f64::from(input.weight[i]);
        let g = |i: usize| f64::from(d_out[i]) * factor(i);
        let g_x_mean = (0..d).map(|i| g(i) * normalised(i)).sum::<f64>() / d as f64;
        for i in 0..d {
            let d_x = &mut d_x[n * d + i];
            *d_x = write.apply(*d_x, round(scale * (g(i) - normalised(i) * g_x_mean)));
            d_weight[i] += round(f64::from(d_out[i]) * normalised(i));
        }
    }
}
