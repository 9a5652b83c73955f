//! Activations, element by element. See `launch.rs` for the memory floor and the alternatives
//! considered.

use cubecl::prelude::*;

use super::Activation;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// 1/√(2π), the height of the normal density.
const DENSITY: f32 = 0.398_942_3;
/// Coefficient of x³ in the tanh form.
const CUBIC: f32 = 0.044_715;
/// Factor of x in the quick form.
const QUICK: f32 = 1.702;

/// The factor g of out = x·g(x).
#[cube]
fn factor<N: Size>(x: Vector<f32, N>, #[comptime] kind: Activation) -> Vector<f32, N> {
    match comptime!(kind) {
        Activation::Gelu => {
            let root_half = Vector::new(std::f32::consts::FRAC_1_SQRT_2);
            Vector::new(0.5f32) * (Vector::new(1.0f32) + (x * root_half).erf())
        }
        Activation::GeluTanh => Vector::new(0.5f32) * (Vector::new(1.0f32) + inner(x).tanh()),
        Activation::GeluQuick => {
            let one = Vector::new(1.0f32);
            one / (one + (Vector::new(comptime!(-QUICK)) * x).exp())
        }
        Activation::Relu => {
            let (zero, one) = (Vector::new(0.0f32), Vector::new(1.0f32));
            select_many(x.less_equal(&zero), zero, one)
        }
    }
}

/// The argument of the tanh: √(2/π)·(x + 0.044715·x³).
#[cube]
fn inner<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(SQRT_2_OVER_PI) * (x + Vector::new(CUBIC) * x * x * x)
}

/// The activation of each element: x·g(x).
#[cube]
pub(crate) fn value<N: Size>(x: Vector<f32, N>, #[comptime] kind: Activation) -> Vector<f32, N> {
    x * factor::<N>(x, kind)
}

/// The derivative of the activation: d(x·g(x))/dx.
#[cube]
pub(crate) fn derivative<N: Size>(
    x: Vector<f32, N>,
    #[comptime] kind: Activation,
) -> Vector<f32, N> {
    let slope = match comptime!(kind) {
        Activation::Gelu => Vector::new(DENSITY) * (Vector::new(-0.5f32) * x * x).exp(),
        Activation::GeluTanh => {
            let t = inner::<N>(x).tanh();
            let inner_slope = Vector::new(SQRT_2_OVER_PI)
                * (Vector::new(1.0f32) + Vector::new(comptime!(3.0 * CUBIC)) * x * x);
            Vector::new(0.5f32) * (Vector::new(1.0f32) - t * t) * inner_slope
        }
        Activation::GeluQuick => {
            let s = factor::<N>(x, kind);
            Vector::new(QUICK) * s * (Vector::new(1.0f32) - s)
        }
        Activation::Relu => Vector::new(0.0f32),
    };
    factor::<N>(x, kind) + x * slope
}

/// One vector per thread: out = x·g(x).
#[cube(launch)]
pub(super) fn activation_forward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    count: u32,
    #[comptime] kind: Activation,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let i = at as usize;
        out[i] = Vector::cast_from(value::<N>(Vector::cast_from(x[i]), kind));
    }
}

/// One vector per thread: d_x = d_out·d(x·g(x))/dx.
#[cube(launch)]
pub(super) fn activation_backward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    d_out: &[Vector<F, N>],
    d_x: &mut [Vector<F, N>],
    count: u32,
    #[comptime] kind: Activation,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let i = at as usize;
        let d = Vector::<f32, N>::cast_from(d_out[i]);
        d_x[i] = Vector::cast_from(d * derivative::<N>(Vector::cast_from(x[i]), kind));
    }
}
