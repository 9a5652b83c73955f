//! Layer normalisation by its definition, one row at a time, in f64 between reading and writing.

use super::{Input, Saved};
use crate::{Write, parallel::round};

pub(super) fn forward(
    input: Input<'_>,
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let d = input.width as f64;
    for (n, x) in input.x.chunks_exact(input.width).enumerate() {
        let average = x.iter().map(|&v| f64::from(v)).sum::<f64>() / d;
        let variance = x.iter().map(|&v| (f64::from(v) - average).powi(2)).sum::<f64>() / d;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for i in 0..input.width {
            let normalised = (f64::from(x[i]) - average) * scale;
            let y = normalised * f64::from(input.weight[i]) + f64::from(bias[i]);
            out[n * input.width + i] = round(y);
        }
        (mean[n], rstd[n]) = (round(average), round(scale));
    }
}

pub(super) fn backward(
    input: Input<'_>,
    saved: Saved<'_>,
    d_out: &[f32],
    write: Write,
    d_x: &mut [f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let d = input.width;
    for (n, x) in input.x.chunks_exact(d).enumerate() {
        let d_out = &d_out[n * d..(n + 1) * d];
        let rstd = f64::from(saved.rstd[n]);
        let normalised = |i: usize| (f64::from(x[i]) - f64::from(saved.mean[n])) * rstd;
        let g = |i: usize| f64::from(d_out[i]) * f64::from(input.weight[i]);
        let g_mean = (0..d).map(g).sum::<f64>() / d as f64;
        let g_x_mean = (0..d).map(|i| g(i) * normalised(i)).sum::<f64>() / d as f64;
        for i in 0..d {
            let gradient = rstd * (g(i) - g_mean - normalised(i) * g_x_mean);
            let d_x = &mut d_x[n * d + i];
            *d_x = write.apply(*d_x, round(gradient));
            d_weight[i] += round(f64::from(d_out[i]) * normalised(i));
            d_bias[i] += d_out[i];
        }
    }
}
