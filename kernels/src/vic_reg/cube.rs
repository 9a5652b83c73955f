//! The kernels of `VICReg` beside its products. See `launch.rs` for the memory floor. CubeCL calls
//! a block a cube, a warp a plane and a thread a unit.

use cubecl::prelude::*;

use super::EPSILON;
use crate::cube::cube_total;

/// Subtracts the mean of each column.
#[cube(launch)]
pub(super) fn vic_reg_centre<F: Float>(
    x: &[F],
    sums: &[f32],
    out: &mut [F],
    inverse: f32,
    count: u32,
    width: u32,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let mean = sums[(at % width) as usize] * inverse;
        out[at as usize] = F::cast_from(f32::cast_from(x[at as usize]) - mean);
    }
}

/// Computes a row of the weights and its part of the terms, one row per block.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn vic_reg_weights<F: Float>(
    products: &[f32],
    weights: &mut [F],
    terms: &mut [f32],
    inverse: f32,
    variance: f32,
    covariance: f32,
    width: u32,
    #[comptime] planes: usize,
) {
    let row = CUBE_POS_X;
    let mut term = f32::new(0.0);
    let mut column = UNIT_POS_X;
    while column < width {
        let i = (row * width + column) as usize;
        let c = products[i] * inverse;
        let mut weight = 4.0f32 * covariance * inverse * c;
        if column == row {
            // A NaN is not at least 1, and must stay.
            let deviation = (c + f32::new(EPSILON)).sqrt();
            weight = -variance * inverse / deviation;
            let mut hinge = 1.0f32 - deviation;
            if deviation >= 1.0f32 {
                weight = f32::new(0.0);
                hinge = f32::new(0.0);
            }
            term += variance * hinge;
        } else {
            term += covariance * c * c;
        }
        weights[i] = F::cast_from(weight);
        column += CUBE_DIM_X;
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    let total = cube_total(term, &mut scratch, planes);
    if UNIT_POS_X == 0 {
        terms[row as usize] = total;
    }
}
