//! The linear layer by its definition: every output element is one sum in f64.

use super::Size;
use crate::{Write, parallel::round};

pub(super) fn forward(
    size: Size,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    write: Write,
    out: &mut [f32],
) {
    for n in 0..size.rows {
        for o in 0..size.outputs {
            let products = (0..size.inputs)
                .map(|i| product(x[n * size.inputs + i], weight[o * size.inputs + i]));
            let sum = products.sum::<f64>() + bias.map_or(0.0, |b| f64::from(b[o]));
            let out = &mut out[n * size.outputs + o];
            *out = write.apply(*out, round(sum));
        }
    }
}

pub(super) fn backward_input(
    size: Size,
    d_out: &[f32],
    weight: &[f32],
    write: Write,
    d_x: &mut [f32],
) {
    for n in 0..size.rows {
        for i in 0..size.inputs {
            let products = (0..size.outputs)
                .map(|o| product(d_out[n * size.outputs + o], weight[o * size.inputs + i]));
            let d_x = &mut d_x[n * size.inputs + i];
            *d_x = write.apply(*d_x, round(products.sum()));
        }
    }
}

pub(super) fn backward_weight(
    size: Size,
    x: &[f32],
    d_out: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    for o in 0..size.outputs {
        for i in 0..size.inputs {
            let products = (0..size.rows)
                .map(|n| product(d_out[n * size.outputs + o], x[n * size.inputs + i]));
            d_weight[o * size.inputs + i] += round(products.sum());
        }
        let sum = (0..size.rows).map(|n| f64::from(d_out[n * size.outputs + o])).sum();
        d_bias[o] += round(sum);
    }
}

fn product(a: f32, b: f32) -> f64 {
    f64::from(a) * f64::from(b)
}
