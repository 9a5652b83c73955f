//! Distances of rows, and their sum in a fixed order. See `launch.rs` for the memory floor and the
//! tiling. CubeCL calls a block a cube, a warp a plane and a thread a unit.

use cubecl::prelude::*;

use super::Distance;
use crate::cube::{cube_total, plane_total};

/// Computes the distance of each row, one row per warp.
#[cube(launch)]
pub(super) fn distance_rows<F: Float>(
    pred: &[F],
    target: &[F],
    out: &mut [f32],
    inverse_width: f32,
    rows: u32,
    width: u32,
    #[comptime] kind: Distance,
) {
    let row = CUBE_POS_X * (CUBE_DIM_X / 32) + UNIT_POS_X / 32;
    let lane = UNIT_POS_X % 32;
    let mut sum = f32::new(0.0);
    if row < rows {
        let mut at = lane;
        while at < width {
            let i = (row * width + at) as usize;
            let (p, t) = (f32::cast_from(pred[i]), f32::cast_from(target[i]));
            match comptime!(kind) {
                Distance::Cosine => sum += p * t,
                Distance::L1 => sum += (p - t).abs(),
                Distance::L2 => sum += (p - t) * (p - t),
            }
            at += 32;
        }
    }
    let total = plane_total(sum);
    if row < rows && lane == 0 {
        match comptime!(kind) {
            Distance::Cosine => out[row as usize] = 1.0f32 - total,
            Distance::L1 | Distance::L2 => out[row as usize] = total * inverse_width,
        }
    }
}

/// Sums `count` numbers in one block, in a fixed order.
#[cube(launch)]
pub(super) fn distance_sum(values: &[f32], out: &mut [f32], count: u32, #[comptime] planes: usize) {
    let mut sum = f32::new(0.0);
    let mut at = UNIT_POS_X;
    while at < count {
        sum += values[at as usize];
        at += CUBE_DIM_X;
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    let total = cube_total(sum, &mut scratch, planes);
    if UNIT_POS_X == 0 {
        out[0] = total;
    }
}

/// Gradients of factor · Σ distances. |x| has gradient 0 at 0, and NaN propagates.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn distance_backward<F: Float>(
    pred: &[F],
    target: &[F],
    d_pred: &mut [f32],
    d_target: &mut [f32],
    factor: f32,
    each: f32,
    count: u32,
    #[comptime] kind: Distance,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let i = at as usize;
        let (p, t) = (f32::cast_from(pred[i]), f32::cast_from(target[i]));
        let difference = p - t;
        match comptime!(kind) {
            Distance::Cosine => {
                d_pred[i] = -factor * t;
                d_target[i] = -factor * p;
            }
            Distance::L1 => {
                let mut d = difference;
                if difference > 0.0f32 {
                    d = each;
                } else if difference < 0.0f32 {
                    d = -each;
                }
                d_pred[i] = d;
                d_target[i] = -d;
            }
            Distance::L2 => {
                let d = 2.0f32 * each * difference;
                d_pred[i] = d;
                d_target[i] = -d;
            }
        }
    }
}
