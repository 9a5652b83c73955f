//! GELU, element by element. See `launch.rs` for the memory floor and the alternatives considered.

use cubecl::prelude::*;

use super::Gelu;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// 1/√(2π), the height of the normal density.
const DENSITY: f32 = 0.398_942_3;
/// Coefficient of x³ in the tanh form.
const CUBIC: f32 = 0.044_715;
/// Factor of x in the quick form.
const QUICK: f32 = 1.702;

/// Φ(x), or its approximation in another form.
#[cube]
fn cumulative<N: Size>(x: Vector<f32, N>, #[comptime] kind: Gelu) -> Vector<f32, N> {
    match comptime!(kind) {
        Gelu::Erf => {
            let root_half = Vector::new(std::f32::consts::FRAC_1_SQRT_2);
            Vector::new(0.5f32) * (Vector::new(1.0f32) + (x * root_half).erf())
        }
        Gelu::Tanh => Vector::new(0.5f32) * (Vector::new(1.0f32) + inner(x).tanh()),
        Gelu::Quick => {
            let one = Vector::new(1.0f32);
            one / (one + (Vector::new(comptime!(-QUICK)) * x).exp())
        }
    }
}

/// The argument of the tanh: √(2/π)·(x + 0.044715·x³).
#[cube]
fn inner<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(SQRT_2_OVER_PI) * (x + Vector::new(CUBIC) * x * x * x)
}

/// GELU of each element: x·Φ(x).
#[cube]
pub(crate) fn gelu_value<N: Size>(x: Vector<f32, N>, #[comptime] kind: Gelu) -> Vector<f32, N> {
    x * cumulative::<N>(x, kind)
}

/// The derivative of GELU: d(x·Φ(x))/dx.
#[cube]
pub(crate) fn gelu_derivative<N: Size>(
    x: Vector<f32, N>,
    #[comptime] kind: Gelu,
) -> Vector<f32, N> {
    let density = match comptime!(kind) {
        Gelu::Erf => Vector::new(DENSITY) * (Vector::new(-0.5f32) * x * x).exp(),
        Gelu::Tanh => {
            let t = inner::<N>(x).tanh();
            let slope = Vector::new(SQRT_2_OVER_PI)
                * (Vector::new(1.0f32) + Vector::new(comptime!(3.0 * CUBIC)) * x * x);
            Vector::new(0.5f32) * (Vector::new(1.0f32) - t * t) * slope
        }
        Gelu::Quick => {
            let s = cumulative::<N>(x, kind);
            Vector::new(QUICK) * s * (Vector::new(1.0f32) - s)
        }
    };
    cumulative::<N>(x, kind) + x * density
}

/// One vector per thread: out = x·Φ(x).
#[cube(launch)]
pub(super) fn gelu_forward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    count: u32,
    #[comptime] kind: Gelu,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let i = at as usize;
        out[i] = Vector::cast_from(gelu_value::<N>(Vector::cast_from(x[i]), kind));
    }
}

/// One vector per thread: d_x = d_out·d(x·Φ(x))/dx.
#[cube(launch)]
pub(super) fn gelu_backward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    d_out: &[Vector<F, N>],
    d_x: &mut [Vector<F, N>],
    count: u32,
    #[comptime] kind: Gelu,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let i = at as usize;
        let d = Vector::<f32, N>::cast_from(d_out[i]);
        d_x[i] = Vector::cast_from(d * gelu_derivative::<N>(Vector::cast_from(x[i]), kind));
    }
}
