//! Sums over the 32 lanes of a warp (CubeCL's plane) and over a block (CubeCL's cube), in a fixed
//! order.

#![expect(clippy::manual_is_multiple_of, reason = "CubeCL integers have no `is_multiple_of`")]

use cubecl::prelude::*;

/// Sum of `value` over the warp, returned to every lane. A butterfly reduction: every lane and
/// every run get the same bits.
#[cube]
pub(crate) fn plane_total(value: f32) -> f32 {
    let mut sum = value;
    #[unroll]
    for step in 0..5u32 {
        sum += plane_shuffle_xor(sum, comptime!(16u32 >> step));
    }
    sum
}

/// Sum of `value` over a block of `planes` warps, returned to every thread. `scratch` holds
/// `planes` numbers and is free for reuse when the function returns.
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

/// Sum of the `lanes` elements of a vector.
#[cube]
pub(crate) fn vector_total<N: Size>(value: Vector<f32, N>, #[comptime] lanes: usize) -> f32 {
    let mut sum = f32::new(0.0);
    #[unroll]
    for lane in 0..lanes {
        sum += value.extract(lane);
    }
    sum
}
