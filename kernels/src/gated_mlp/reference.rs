//! The gated MLP by its definition, in f64.

use super::Activation;
use crate::activation::{self, reference};
use crate::parallel::round;

pub(super) fn forward(gate_up: &[f32], width: usize, activation: Activation, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let (gate, up) = pair(gate_up, width, i);
        *out = round(value(gate, activation) * up);
    }
}

pub(super) fn backward(
    gate_up: &[f32],
    width: usize,
    activation: Activation,
    d_out: &[f32],
    d_gate_up: &mut [f32],
) {
    for (i, &d_out) in d_out.iter().enumerate() {
        let (gate, up) = pair(gate_up, width, i);
        let (row, column) = (i / width, i % width);
        let d_out = f64::from(d_out);
        d_gate_up[row * 2 * width + column] = round(d_out * up * derivative(gate, activation));
        d_gate_up[row * 2 * width + width + column] = round(d_out * value(gate, activation));
    }
}

/// Gate and up of the output element `i`.
fn pair(gate_up: &[f32], width: usize, i: usize) -> (f64, f64) {
    let (row, column) = (i / width, i % width);
    let gate = gate_up[row * 2 * width + column];
    (f64::from(gate), f64::from(gate_up[row * 2 * width + width + column]))
}

fn value(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => reference::value(x, activation::Activation::GeluTanh),
    }
}

fn derivative(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            s * (1.0 + x * (1.0 - s))
        }
        Activation::GeluTanh => reference::derivative(x, activation::Activation::GeluTanh),
    }
}
