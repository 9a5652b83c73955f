//! Mean pooling of packed sequences, and its gradient.
//!
//! Floor, tiling and what was considered: `launch.rs`.

use cubecl::prelude::*;

/// The mean of each sequence's rows.
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

/// Each sequence's gradient over its length to each of its rows; zeros behind the last one, which one more cube writes.
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
