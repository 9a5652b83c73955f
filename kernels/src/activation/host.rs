//! Activations on the host: vectorised code over fixed blocks.

use std::f32::consts::FRAC_1_SQRT_2;

use super::Activation;
use crate::math::{erf, exp, sigmoid};
use crate::parallel::{BLOCK, blocks};

/// 2·√(2/π). The factor 2 is there because (1 + tanh u) / 2 is the logistic function of 2u.
const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;

/// Coefficient of x³ in the tanh form.
const CUBIC: f32 = 0.044_715;

/// Factor of x in the quick form.
const QUICK: f32 = 1.702;

pub(super) fn forward(x: &[f32], kind: Activation, out: &mut [f32]) {
    match kind {
        Activation::Gelu => map(x, out, erf_value),
        Activation::GeluTanh => map(x, out, tanh_value),
        Activation::GeluQuick => map(x, out, |x| x * sigmoid(QUICK * x)),
        Activation::Relu => map(x, out, |x| x * relu_derivative(x)),
    }
}

pub(super) fn backward(x: &[f32], kind: Activation, d_out: &[f32], d_x: &mut [f32]) {
    match kind {
        Activation::Gelu => map2(x, d_out, d_x, |x, d| d * erf_derivative(x)),
        Activation::GeluTanh => map2(x, d_out, d_x, |x, d| d * tanh_derivative(x)),
        Activation::GeluQuick => map2(x, d_out, d_x, |x, d| d * quick_derivative(x)),
        Activation::Relu => map2(x, d_out, d_x, |x, d| d * relu_derivative(x)),
    }
}

#[inline]
fn erf_value(x: f32) -> f32 {
    (0.5 * x) * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// The derivative in the exact form: Φ(x) + x·φ(x).
#[inline]
fn erf_derivative(x: f32) -> f32 {
    // 1/√(2π), the height of the normal density.
    const DENSITY: f32 = 0.398_942_3;
    let cumulative = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
    (x * DENSITY).mul_add(exp(-0.5 * x * x), cumulative)
}

/// GELU in the tanh form, as x · σ(2u).
#[inline]
pub(crate) fn tanh_value(x: f32) -> f32 {
    x * sigmoid(twice_u(x))
}

/// The derivative in the tanh form: σ(2u) + x · σ(2u)·(1 − σ(2u)) · d(2u)/dx.
#[inline]
pub(crate) fn tanh_derivative(x: f32) -> f32 {
    let s = sigmoid(twice_u(x));
    let slope = TWICE_SQRT_2_OVER_PI * (3.0 * CUBIC * x).mul_add(x, 1.0);
    // For large |x| the slope is finite and s·(1 − s) is zero, so their product is zero too.
    (x * slope).mul_add(s * (1.0 - s), s)
}

/// The derivative in the quick form: s + x · 1.702·s·(1 − s) with s = σ(1.702·x).
#[inline]
fn quick_derivative(x: f32) -> f32 {
    let s = sigmoid(QUICK * x);
    (QUICK * x).mul_add(s * (1.0 - s), s)
}

/// The derivative of ReLU: 0 up to zero and 1 above. It is 1 for NaN, so that NaN is not hidden.
#[inline]
fn relu_derivative(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { 1.0 }
}

#[inline]
fn twice_u(x: f32) -> f32 {
    TWICE_SQRT_2_OVER_PI * (CUBIC * x * x).mul_add(x, x)
}

fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    blocks(x.len(), (out, BLOCK), |block, out| {
        for (y, &x) in out.iter_mut().zip(&x[block * BLOCK..]) {
            *y = f(x);
        }
    });
}

fn map2(x: &[f32], d: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    blocks(x.len(), (out, BLOCK), |block, out| {
        let inputs = x[block * BLOCK..].iter().zip(&d[block * BLOCK..]);
        for (y, (&x, &d)) in out.iter_mut().zip(inputs) {
            *y = f(x, d);
        }
    });
}
