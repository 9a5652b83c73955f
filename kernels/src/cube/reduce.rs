//! Sums and maxima over the 32 units of a plane and over a cube, in a fixed order.

#![expect(clippy::manual_is_multiple_of, reason = "what CubeCL knows of integers")]

use cubecl::prelude::*;

/// Sum over the plane; every unit gets it. Butterfly: the same bits in every unit and every run.
#[cube]
pub(crate) fn plane_total(value: f32) -> f32 {
    let mut sum = value;
    #[unroll]
    for step in 0..5u32 {
        sum += plane_shuffle_xor(sum, comptime!(16u32 >> step));
    }
    sum
}

/// Sum over a cube of `planes` planes; every unit gets it. `scratch` holds `planes` numbers and may be used again after.
#[cube]
pub(crate) fn cube_total(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] planes: usize,
) -> f32 {
    let sum = plane_total(value);
    if UNIT_POS_X % 32 == 0 {
        scratch[(UNIT_POS_X / 32) as usize] = sum;
    }
    sync_cube();
    let mut total = f32::new(0.0);
    #[unroll]
    for plane in 0..planes {
        total += scratch[plane];
    }
    sync_cube();
    total
}

/// Sum of a vector's elements.
#[cube]
pub(crate) fn vector_total<N: Size>(value: Vector<f32, N>, #[comptime] lanes: usize) -> f32 {
    let mut sum = f32::new(0.0);
    #[unroll]
    for lane in 0..lanes {
        sum += value.extract(lane);
    }
    sum
}
