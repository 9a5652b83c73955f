//! Kernels that move rows between two packings, add and average tensors and round them. See
//! `launch.rs` for the memory floor.

use cubecl::prelude::*;
use half::bf16;

/// One vector per thread: out[index[i]] = src[i].
#[cube(launch)]
pub(super) fn rows_scatter<F: Float, N: Size>(
    src: &[Vector<F, N>],
    index: &[i32],
    out: &mut [Vector<F, N>],
    count: u32,
    vectors: u32,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let row = u32::cast_from(index[(at / vectors) as usize]);
        out[(row * vectors + at % vectors) as usize] = src[at as usize];
    }
}

/// One vector per thread: out[i] = src[index[i]], overwritten or added.
#[cube(launch)]
pub(super) fn rows_gather<F: Float, N: Size>(
    src: &[Vector<F, N>],
    index: &[i32],
    out: &mut [Vector<F, N>],
    count: u32,
    vectors: u32,
    #[comptime] add: bool,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let row = u32::cast_from(index[(at / vectors) as usize]);
        let mut value = src[(row * vectors + at % vectors) as usize];
        if comptime!(add) {
            let old = Vector::<f32, N>::cast_from(out[at as usize]);
            value = Vector::cast_from(old + Vector::cast_from(value));
        }
        out[at as usize] = value;
    }
}

/// One vector per thread: to += from.
#[cube(launch)]
pub(super) fn rows_add<F: Float, N: Size>(
    from: &[Vector<F, N>],
    to: &mut [Vector<F, N>],
    count: u32,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let i = at as usize;
        let sum = Vector::<f32, N>::cast_from(to[i]) + Vector::<f32, N>::cast_from(from[i]);
        to[i] = Vector::cast_from(sum);
    }
}

/// One vector per thread: to = decay·to + (1 − decay)·from.
#[cube(launch)]
pub(super) fn rows_average<F: Float, N: Size>(
    from: &[Vector<F, N>],
    to: &mut [Vector<F, N>],
    decay: f32,
    count: u32,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let i = at as usize;
        let kept = Vector::<f32, N>::cast_from(to[i]) * Vector::new(decay);
        let new = Vector::<f32, N>::cast_from(from[i]) * Vector::new(1.0 - decay);
        to[i] = Vector::cast_from(kept + new);
    }
}

/// One vector per thread: to = from, rounded to bf16.
#[cube(launch)]
pub(super) fn rows_cast<N: Size>(from: &[Vector<f32, N>], to: &mut [Vector<bf16, N>], count: u32) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        to[at as usize] = Vector::cast_from(from[at as usize]);
    }
}
