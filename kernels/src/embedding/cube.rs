//! Lookup of rows by id, and the gradient of the table without contention. See `launch.rs` for the
//! memory floor, the tiling and the alternatives considered.

use cubecl::prelude::*;

/// One vector per thread: out[i] = scale·table[ids[i]].
#[cube(launch)]
pub(super) fn embedding_forward<F: Float, N: Size>(
    table: &[Vector<F, N>],
    ids: &[i32],
    out: &mut [Vector<F, N>],
    scale: f32,
    count: u32,
    vectors: u32,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let id = u32::cast_from(ids[(at / vectors) as usize]);
        let row = Vector::<f32, N>::cast_from(table[(id * vectors + at % vectors) as usize]);
        out[at as usize] = Vector::cast_from(row * Vector::new(scale));
    }
}

/// One id per block in x: d_table[id] += scale·Σ d_out over the positions of the id.
#[cube(launch)]
pub(super) fn embedding_backward<F: Float, N: Size>(
    d_out: &[Vector<F, N>],
    order: &[i32],
    starts: &[i32],
    ids: &[i32],
    d_table: &mut [Vector<f32, N>],
    scale: f32,
    vectors: u32,
) {
    let run = CUBE_POS_X as usize;
    let column = CUBE_POS_Y * CUBE_DIM_X + UNIT_POS_X;
    if column < vectors {
        let begin = u32::cast_from(starts[run]);
        let end = u32::cast_from(starts[run + 1]);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for i in begin..end {
            let position = u32::cast_from(order[i as usize]);
            sum += Vector::cast_from(d_out[(position * vectors + column) as usize]);
        }
        let at = (u32::cast_from(ids[run]) * vectors + column) as usize;
        d_table[at] += sum * Vector::new(scale);
    }
}
