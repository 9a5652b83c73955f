//! The sum of squares of all gradients in one pass over memory, and the clip factor and finite flag
//! derived from it. See `launch.rs` for the memory floor and the tiling.

use cubecl::prelude::*;

use crate::cube::{cube_total, vector_total};

/// Added to the norm before the division, as PyTorch does.
const NORM_EPS: f32 = 1e-6;
/// The largest finite f32 number.
const LARGEST: f32 = f32::MAX;

/// Writes the share of each block in Σ x².
#[cube(launch)]
pub(super) fn norm_squares<N: Size>(
    x: &[Vector<f32, N>],
    partials: &mut [f32],
    count: u32,
    first: u32,
    #[comptime] lanes: usize,
    #[comptime] planes: usize,
) {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    while at < count {
        let value = x[at as usize];
        sum += value * value;
        at += CUBE_COUNT_X * CUBE_DIM_X;
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    let total = cube_total(vector_total::<N>(sum, lanes), &mut scratch, planes);
    if UNIT_POS_X == 0 {
        partials[(first + CUBE_POS_X) as usize] = total;
    }
}

/// Adds the partial sums, and computes the clip factor and the finite flag.
#[cube(launch)]
pub(super) fn norm_control(
    partials: &[f32],
    squared_sum: &mut [f32],
    control: &mut [f32],
    max_norm: f32,
    count: u32,
    #[comptime] planes: usize,
) {
    let mut sum = f32::new(0.0);
    let mut at = UNIT_POS_X;
    while at < count {
        sum += partials[at as usize];
        at += CUBE_DIM_X;
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    let total = cube_total(sum, &mut scratch, planes);
    if UNIT_POS_X == 0 {
        squared_sum[0] = total;
        // The comparison is false for NaN as well.
        if total <= LARGEST {
            control[0] = min(max_norm / (total.sqrt() + NORM_EPS), 1.0f32);
            control[1] = 1.0f32;
        } else {
            control[0] = 0.0f32;
            control[1] = 0.0f32;
        }
    }
}
