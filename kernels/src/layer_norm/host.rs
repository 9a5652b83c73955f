//! Layer normalisation on the host: one pass over memory, with each row in cache for its sums.

use super::{Input, Saved};
use crate::Write;
use crate::parallel::{add_into, blocks2, blocks3, rows_per_block, sum1, sum2, sum3};

pub(super) fn forward(
    input: Input<'_>,
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let Input { x, weight, width } = input;
    if width == 0 {
        return;
    }
    let rows = rows_per_block(mean.len(), width);
    blocks3(x.len(), (out, rows * width), (mean, rows), (rstd, rows), |block, out, mean, rstd| {
        let x = &x[block * rows * width..];
        let outputs = out.chunks_exact_mut(width).zip(mean.iter_mut().zip(rstd));
        for (x, (out, (mean, rstd))) in x.chunks_exact(width).zip(outputs) {
            let average = sum1(x, |v| v) / width as f32;
            let variance = sum1(x, |v| (v - average) * (v - average)) / width as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            let affine = weight.iter().zip(bias);
            for ((y, &v), (&w, &b)) in out.iter_mut().zip(x).zip(affine) {
                *y = ((v - average) * scale).mul_add(w, b);
            }
            (*mean, *rstd) = (average, scale);
        }
    });
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
    let (x, width) = (input.x, input.width);
    if x.is_empty() {
        return;
    }
    let rows = rows_per_block(saved.mean.len(), width);
    let count = saved.mean.len().div_ceil(rows);
    // Sums of each block: for the weight's gradient, then for the bias's gradient.
    let mut partials = vec![0.0; count * 2 * width];
    blocks2(x.len(), (d_x, rows * width), (&mut partials, 2 * width), |block, d_x, partial| {
        let start = block * rows;
        let (d_weight, d_bias) = partial.split_at_mut(width);
        let inputs =
            x[start * width..].chunks_exact(width).zip(d_out[start * width..].chunks_exact(width));
        let statistics = saved.mean[start..].iter().zip(&saved.rstd[start..]);
        for ((d_x, (x, d_out)), (&mean, &rstd)) in
            d_x.chunks_exact_mut(width).zip(inputs).zip(statistics)
        {
            backward_row(x, input.weight, (mean, rstd), d_out, write, d_x, d_weight);
            add_into(d_bias, d_out);
        }
    });
    for partial in partials.chunks_exact(2 * width) {
        add_into(d_weight, &partial[..width]);
        add_into(d_bias, &partial[width..]);
    }
}

#[inline]
fn backward_row(
    x: &[f32],
    weight: &[f32],
    (mean, rstd): (f32, f32),
    d_out: &[f32],
    write: Write,
    d_x: &mut [f32],
    d_weight: &mut [f32],
) {
    let width = x.len() as f32;
    let g_mean = sum2(d_out, weight, |d, w| d * w) / width;
    let g_x_mean = sum3(d_out, weight, x, |d, w, v| d * w * (v - mean)) * rstd / width;
    let gradients = d_x.iter_mut().zip(d_weight);
    let inputs = x.iter().zip(d_out.iter().zip(weight));
    match write {
        Write::Set => {
            for ((d_x, d_weight), (&v, (&d, &w))) in gradients.zip(inputs) {
                let normalised = (v - mean) * rstd;
                *d_x = rstd * (d * w - g_mean - normalised * g_x_mean);
                *d_weight += d * normalised;
            }
        }
        Write::Add => {
            for ((d_x, d_weight), (&v, (&d, &w))) in gradients.zip(inputs) {
                let normalised = (v - mean) * rstd;
                *d_x += rstd * (d * w - g_mean - normalised * g_x_mean);
                *d_weight += d * normalised;
            }
        }
    }
}
