//! L2 normalisation, with one warp per row.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor is in `launch.rs`.

use cubecl::prelude::*;

use crate::cube::plane_total;

/// out = x / max(‖x‖, eps). `norm` is the divisor, negated if it is eps.
#[cube(launch)]
pub(super) fn normalize_forward<F: Float>(
    x: &[F],
    out: &mut [F],
    norm: &mut [f32],
    eps: f32,
    rows: u32,
    width: u32,
) {
    let row = CUBE_POS_X * (CUBE_DIM_X / 32) + UNIT_POS_X / 32;
    let lane = UNIT_POS_X % 32;
    let inside = row < rows;
    let first = select(inside, row, 0u32) * width;
    // ‖x‖
    let mut squares = f32::new(0.0);
    let mut at = lane;
    while at < width {
        let value = f32::cast_from(x[(first + at) as usize]);
        squares += value * value;
        at += 32;
    }
    let length = plane_total(squares).sqrt();
    let short = length < eps;
    // out = x / max(‖x‖, eps)
    if inside {
        let divisor = select(short, eps, length);
        let mut at = lane;
        while at < width {
            let i = (first + at) as usize;
            out[i] = F::cast_from(f32::cast_from(x[i]) / divisor);
            at += 32;
        }
        if lane == 0 {
            norm[row as usize] = select(short, -eps, length);
        }
    }
}

/// d_x = (d_out − out·(out·d_out)) / |norm|, without the projection if the divisor was eps.
#[cube(launch)]
pub(super) fn normalize_backward<F: Float>(
    out: &[F],
    norm: &[f32],
    d_out: &[f32],
    d_x: &mut [F],
    rows: u32,
    width: u32,
) {
    let row = CUBE_POS_X * (CUBE_DIM_X / 32) + UNIT_POS_X / 32;
    let lane = UNIT_POS_X % 32;
    let inside = row < rows;
    let row = select(inside, row, 0u32);
    let first = row * width;
    let length = norm[row as usize];
    // out·d_out, or zero if the divisor was eps
    let mut product = f32::new(0.0);
    let mut at = lane;
    while at < width {
        let i = (first + at) as usize;
        product += f32::cast_from(out[i]) * d_out[i];
        at += 32;
    }
    let mut projection = plane_total(product);
    if length < 0.0f32 {
        projection = f32::new(0.0);
    }
    // d_x = (d_out − out·projection) / |norm|
    if inside {
        let mut at = lane;
        while at < width {
            let i = (first + at) as usize;
            let d = d_out[i] - f32::cast_from(out[i]) * projection;
            d_x[i] = F::cast_from(d / length.abs());
            at += 32;
        }
    }
}
