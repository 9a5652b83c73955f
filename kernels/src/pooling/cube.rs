//! Mean pooling of packed sequences, and its gradient.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor and the tiling are in
//! `launch.rs`.

use cubecl::prelude::*;

/// Mean of each sequence's rows. A thread sums one vector of columns over the tokens of a sequence.
#[cube(launch)]
pub(super) fn pooling_forward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    offsets: &[i32],
    out: &mut [Vector<F, N>],
    vectors: u32,
) {
    let sequence = CUBE_POS_X;
    let column = CUBE_POS_Y * CUBE_DIM_X + UNIT_POS_X;
    let begin = u32::cast_from(offsets[sequence as usize]);
    let end = u32::cast_from(offsets[(sequence + 1) as usize]);
    if column < vectors {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for token in begin..end {
            sum += Vector::cast_from(x[(token * vectors + column) as usize]);
        }
        let mean = sum / Vector::new(f32::cast_from(end - begin));
        out[(sequence * vectors + column) as usize] = Vector::cast_from(mean);
    }
}

/// Gradient of each sequence divided by its length, for each of its rows. One more block per column
/// range writes zeros to the rows after the last sequence.
#[cube(launch)]
pub(super) fn pooling_backward<F: Float, N: Size>(
    d_out: &[Vector<F, N>],
    offsets: &[i32],
    d_x: &mut [Vector<F, N>],
    sequences: u32,
    tokens: u32,
    vectors: u32,
) {
    let sequence = CUBE_POS_X;
    let column = CUBE_POS_Y * CUBE_DIM_X + UNIT_POS_X;
    let begin = u32::cast_from(offsets[sequence as usize]);
    let mut end = tokens;
    if column < vectors {
        let mut d = Vector::<f32, N>::new(0.0f32);
        if sequence < sequences {
            end = u32::cast_from(offsets[(sequence + 1) as usize]);
            d = Vector::cast_from(d_out[(sequence * vectors + column) as usize]);
            d /= Vector::new(f32::cast_from(end - begin));
        }
        let d = Vector::<F, N>::cast_from(d);
        for token in begin..end {
            d_x[(token * vectors + column) as usize] = d;
        }
    }
}
