//! Activations by their definitions, in f64.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::Activation;
use crate::parallel::round;

pub(super) fn forward(x: &[f32], kind: Activation, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = round(f64::from(x) * factor(f64::from(x), kind));
    }
}

pub(super) fn backward(x: &[f32], kind: Activation, d_out: &[f32], d_x: &mut [f32]) {
    for ((d_x, &x), &d_out) in d_x.iter_mut().zip(x).zip(d_out) {
        *d_x = round(f64::from(d_out) * derivative(f64::from(x), kind));
    }
}

/// The factor g of out = x·g(x).
fn factor(x: f64, kind: Activation) -> f64 {
    match kind {
        Activation::Gelu => 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => 0.5 * (1.0 + u(x).tanh()),
        Activation::GeluQuick => 1.0 / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => f64::from(u8::from(x > 0.0)),
    }
}

/// The derivative of x·g(x) in f64.
pub(crate) fn derivative(x: f64, kind: Activation) -> f64 {
    let slope = match kind {
        Activation::Gelu => (-0.5 * x * x).exp() / (2.0 * PI).sqrt(),
        Activation::GeluTanh => {
            let inner = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
            0.5 * (1.0 - u(x).tanh().powi(2)) * inner
        }
        Activation::GeluQuick => {
            let s = factor(x, kind);
            1.702 * s * (1.0 - s)
        }
        Activation::Relu => 0.0,
    };
    factor(x, kind) + x * slope
}

/// The activation in f64: x·g(x).
pub(crate) fn value(x: f64, kind: Activation) -> f64 {
    x * factor(x, kind)
}

fn u(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))
}

/// The error function by the series 2/√π · e^(−x²) · Σ 2ᵏ·x²ᵏ⁺¹ / (2k+1)!!, whose terms all have
/// the same sign.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for k in 1..160_u32 {
        term *= 2.0 * x * x / f64::from(2 * k + 1);
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}
