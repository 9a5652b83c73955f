//! The gated MLP on the host: vectorised code over fixed blocks of rows.

use super::Activation;
use crate::activation;
use crate::math::sigmoid;
use crate::parallel::{blocks, rows_per_block};

pub(super) fn forward(gate_up: &[f32], width: usize, activation: Activation, out: &mut [f32]) {
    match activation {
        Activation::Silu => forward_with(gate_up, width, out, |x| x * sigmoid(x)),
        Activation::GeluTanh => forward_with(gate_up, width, out, activation::tanh_value),
    }
}

pub(super) fn backward(
    gate_up: &[f32],
    width: usize,
    activation: Activation,
    d_out: &[f32],
    d_gate_up: &mut [f32],
) {
    match activation {
        Activation::Silu => backward_with(gate_up, width, d_out, d_gate_up, |x| {
            let s = sigmoid(x);
            (x * s, (x * s).mul_add(1.0 - s, s))
        }),
        Activation::GeluTanh => backward_with(gate_up, width, d_out, d_gate_up, |x| {
            (activation::tanh_value(x), activation::tanh_derivative(x))
        }),
    }
}

fn forward_with(gate_up: &[f32], width: usize, out: &mut [f32], value: impl Fn(f32) -> f32 + Sync) {
    if width == 0 {
        return;
    }
    let rows = rows_per_block(out.len() / width, 2 * width);
    blocks(gate_up.len(), (out, rows * width), |block, out| {
        let inputs = gate_up[block * rows * 2 * width..].chunks_exact(2 * width);
        for (out, input) in out.chunks_exact_mut(width).zip(inputs) {
            let (gate, up) = input.split_at(width);
            for (y, (&gate, &up)) in out.iter_mut().zip(gate.iter().zip(up)) {
                *y = value(gate) * up;
            }
        }
    });
}

/// Backward for the activation `f`, which returns value and derivative.
fn backward_with(
    gate_up: &[f32],
    width: usize,
    d_out: &[f32],
    d_gate_up: &mut [f32],
    f: impl Fn(f32) -> (f32, f32) + Sync,
) {
    if width == 0 {
        return;
    }
    let rows = rows_per_block(d_out.len() / width, 2 * width);
    blocks(gate_up.len(), (d_gate_up, rows * 2 * width), |block, d_gate_up| {
        let inputs = gate_up[block * rows * 2 * width..].chunks_exact(2 * width);
        let inputs = inputs.zip(d_out[block * rows * width..].chunks_exact(width));
        for (d_input, (input, d_out)) in d_gate_up.chunks_exact_mut(2 * width).zip(inputs) {
            let (gate, up) = input.split_at(width);
            let (d_gate, d_up) = d_input.split_at_mut(width);
            let gradients = d_gate.iter_mut().zip(d_up);
            let inputs = gate.iter().zip(up).zip(d_out);
            for ((d_gate, d_up), ((&gate, &up), &d)) in gradients.zip(inputs) {
                let (value, derivative) = f(gate);
                (*d_gate, *d_up) = (d * up * derivative, d * value);
            }
        }
    });
}
