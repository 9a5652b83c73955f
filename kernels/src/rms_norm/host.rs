//! Root-mean-square normalisation on the host: one pass over memory, with each row in cache for its
//! sum.

use super::Input;
use crate::Write;
use crate::parallel::{add_into, blocks2, rows_per_block, sum1, sum3};

pub(super) fn forward(input: Input<'_>, eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    let Input { x, weight, offset, width } = input;
    if width == 0 {
        return;
    }
    let rows = rows_per_block(rstd.len(), width);
    blocks2(x.len(), (out, rows * width), (rstd, rows), |block, out, rstd| {
        let x = x[block * rows * width..].chunks_exact(width);
        for (x, (out, rstd)) in x.zip(out.chunks_exact_mut(width).zip(rstd)) {
            let mean_square = sum1(x, |v| v * v) / width as f32;
            let scale = 1.0 / (mean_square + eps).sqrt();
            for (y, (&v, &w)) in out.iter_mut().zip(x.iter().zip(weight)) {
                *y = v * scale * (offset + w);
            }
            *rstd = scale;
        }
    });
}

pub(super) fn backward(
    input: Input<'_>,
    rstd: &[f32],
    d_out: &[f32],
    write: Write,
    d_x: &mut [f32],
    d_weight: &mut [f32],
) {
    let Input { x, weight, offset, width } = input;
    if x.is_empty() {
        return;
    }
    let rows = rows_per_block(rstd.len(), width);
    let mut partials = vec![0.0; rstd.len().div_ceil(rows) * width];
    blocks2(x.len(), (d_x, rows * width), (&mut partials, width), |block, d_x, d_weight| {
        let (x, d_out) = (&x[block * rows * width..], &d_out[block * rows * width..]);
        let inputs = x.chunks_exact(width).zip(d_out.chunks_exact(width));
        for ((d_x, (x, d_out)), &scale) in
            d_x.chunks_exact_mut(width).zip(inputs).zip(&rstd[block * rows..])
        {
            let products = sum3(d_out, weight, x, |d, w, v| d * (offset + w) * v);
            let g_x_mean = products * scale / width as f32;
            let gradients = d_x.iter_mut().zip(&mut *d_weight);
            let inputs = x.iter().zip(d_out.iter().zip(weight));
            for ((d_x, d_weight), (&v, (&d, &w))) in gradients.zip(inputs) {
                let normalised = v * scale;
                let gradient = scale * (d * (offset + w) - normalised * g_x_mean);
                *d_x = write.apply(*d_x, gradient);
                *d_weight += d * normalised;
            }
        }
    });
    for partial in partials.chunks_exact(width) {
        add_into(d_weight, partial);
    }
}
