//! The gate of a gated MLP, element by element over rows that hold gate and up side by side. See
//! `launch.rs` for the memory floor and the tiling.

use cubecl::prelude::*;

use super::Activation;
use crate::activation::{self, cube as plain};

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1.0f32) / (Vector::new(1.0f32) + (-x).exp())
}

#[cube]
fn value<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    match comptime!(activation) {
        Activation::Silu => x * sigmoid::<N>(x),
        Activation::GeluTanh => plain::value::<N>(x, activation::Activation::GeluTanh),
    }
}

#[cube]
fn derivative<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    match comptime!(activation) {
        Activation::Silu => {
            let s = sigmoid::<N>(x);
            s * (Vector::new(1.0f32) + x * (Vector::new(1.0f32) - s))
        }
        Activation::GeluTanh => plain::derivative::<N>(x, activation::Activation::GeluTanh),
    }
}

/// One vector of the output per thread: out = activation(gate)·up.
#[cube(launch)]
pub(super) fn gated_mlp_forward<F: Float, N: Size>(
    gate_up: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    count: u32,
    vectors: u32,
    #[comptime] activation: Activation,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let gate_at = (at / vectors * vectors + at) as usize;
        let gate = Vector::<f32, N>::cast_from(gate_up[gate_at]);
        let up = Vector::<f32, N>::cast_from(gate_up[gate_at + vectors as usize]);
        out[at as usize] = Vector::cast_from(value::<N>(gate, activation) * up);
    }
}

/// Writes d_gate = d_out·up·activation′(gate) and d_up = d_out·activation(gate).
#[cube(launch)]
pub(super) fn gated_mlp_backward<F: Float, N: Size>(
    gate_up: &[Vector<F, N>],
    d_out: &[Vector<F, N>],
    d_gate_up: &mut [Vector<F, N>],
    count: u32,
    vectors: u32,
    #[comptime] activation: Activation,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let gate_at = (at / vectors * vectors + at) as usize;
        let up_at = gate_at + vectors as usize;
        let gate = Vector::<f32, N>::cast_from(gate_up[gate_at]);
        let up = Vector::<f32, N>::cast_from(gate_up[up_at]);
        let d = Vector::<f32, N>::cast_from(d_out[at as usize]);
        d_gate_up[gate_at] = Vector::cast_from(d * up * derivative::<N>(gate, activation));
        d_gate_up[up_at] = Vector::cast_from(d * value::<N>(gate, activation));
    }
}
