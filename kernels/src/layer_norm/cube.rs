//! Layer and root-mean-square normalisation: the same kernels, with and without a mean.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor, the tiling and the
//! alternatives are in `launch.rs`.

#![expect(clippy::too_many_lines, reason = "a kernel is one function")]

use cubecl::prelude::*;

use crate::cube::{plane_total, vector_total};

/// Kind of a normalisation, with or without a mean and with one of two factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// Layer norm: (x − mean) / √(variance + eps) · weight + bias.
    Layer,
    /// Root-mean-square norm: x / √(mean(x²) + eps) · weight.
    Rms,
    /// Root-mean-square norm with the factor 1 + weight.
    RmsOnePlus,
}

/// Factor of a row's normalised elements.
#[cube]
fn factor<F: Float, N: Size>(weight: Vector<F, N>, #[comptime] form: Form) -> Vector<f32, N> {
    let weight = Vector::<f32, N>::cast_from(weight);
    match comptime!(form) {
        Form::Layer | Form::Rms => weight,
        Form::RmsOnePlus => weight + Vector::new(1.0f32),
    }
}

/// out, rstd and, for a layer norm, mean of each row. A warp computes one row.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn norm_forward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    mean: &mut [f32],
    rstd: &mut [f32],
    eps: f32,
    inverse_width: f32,
    rows: u32,
    #[comptime] form: Form,
    #[comptime] width: usize,
    #[comptime] lanes: usize,
) {
    let vectors = comptime!(width / lanes);
    let turns = comptime!((width / lanes).div_ceil(32));
    let lane = (UNIT_POS_X % 32) as usize;
    let row = (CUBE_POS_X * (CUBE_DIM_X / 32) + UNIT_POS_X / 32) as usize;
    let inside = row < rows as usize;
    let first = select(inside, row, 0usize) * vectors;
    // Load the row into registers.
    let mut values = Array::<Vector<f32, N>>::new(turns);
    let mut total = f32::new(0.0);
    #[unroll]
    for turn in 0..turns {
        let at = lane + turn * 32;
        let mut value = Vector::<f32, N>::new(0.0f32);
        if at < vectors {
            value = Vector::cast_from(x[first + at]);
        }
        total += vector_total::<N>(value, lanes);
        values[turn] = value;
    }
    // mean
    let mut average = f32::new(0.0);
    if comptime!(matches!(form, Form::Layer)) {
        average = plane_total(total) * inverse_width;
    }
    // rstd = 1 / √(mean((x − mean)²) + eps)
    let mut squares = f32::new(0.0);
    #[unroll]
    for turn in 0..turns {
        if lane + turn * 32 < vectors {
            let deviation = values[turn] - Vector::new(average);
            squares += vector_total::<N>(deviation * deviation, lanes);
        }
    }
    let scale = 1.0f32 / (plane_total(squares) * inverse_width + eps).sqrt();
    // Store out and the statistics.
    if inside {
        #[unroll]
        for turn in 0..turns {
            let at = lane + turn * 32;
            if at < vectors {
                let mut y = (values[turn] - Vector::new(average))
                    * Vector::new(scale)
                    * factor::<F, N>(weight[at], form);
                if comptime!(matches!(form, Form::Layer)) {
                    y += Vector::cast_from(bias[at]);
                }
                out[first + at] = Vector::cast_from(y);
            }
        }
        if lane == 0 {
            rstd[row] = scale;
            if comptime!(matches!(form, Form::Layer)) {
                mean[row] = average;
            }
        }
    }
}

/// d_x of every row, and each block's share of d_weight and d_bias.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn norm_backward<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    mean: &[f32],
    rstd: &[f32],
    d_out: &[Vector<F, N>],
    d_x: &mut [Vector<F, N>],
    partial_weight: &mut [Vector<f32, N>],
    partial_bias: &mut [Vector<f32, N>],
    inverse_width: f32,
    rows: u32,
    planes: u32,
    #[comptime] form: Form,
    #[comptime] width: usize,
    #[comptime] lanes: usize,
    #[comptime] add: bool,
    #[comptime] planes_of_cube: u32,
) {
    let vectors = comptime!(width / lanes);
    let turns = comptime!((width / lanes).div_ceil(32));
    let centred = comptime!(matches!(form, Form::Layer));
    let lane = (UNIT_POS_X % 32) as usize;
    let plane = UNIT_POS_X / 32;
    // This warp's shares: d_weight = 0, d_bias = 0
    let mut d_weight = Array::<Vector<f32, N>>::new(turns);
    let mut d_bias = Array::<Vector<f32, N>>::new(turns);
    #[unroll]
    for turn in 0..turns {
        d_weight[turn] = Vector::new(0.0f32);
        d_bias[turn] = Vector::new(0.0f32);
    }
    let mut row = CUBE_POS_X * planes_of_cube + plane;
    while row < rows {
        // x̂ = (x − mean)·rstd, g = d_out·factor; d_weight += d_out·x̂, d_bias += d_out
        let first = row as usize * vectors;
        let scale = rstd[row as usize];
        let mut average = f32::new(0.0);
        if comptime!(centred) {
            average = mean[row as usize];
        }
        let mut normalised = Array::<Vector<f32, N>>::new(turns);
        let mut weighted = Array::<Vector<f32, N>>::new(turns);
        let mut sum = f32::new(0.0);
        let mut product = f32::new(0.0);
        #[unroll]
        for turn in 0..turns {
            let at = lane + turn * 32;
            normalised[turn] = Vector::new(0.0f32);
            weighted[turn] = Vector::new(0.0f32);
            if at < vectors {
                let d = Vector::<f32, N>::cast_from(d_out[first + at]);
                let value = (Vector::<f32, N>::cast_from(x[first + at]) - Vector::new(average))
                    * Vector::new(scale);
                let g = d * factor::<F, N>(weight[at], form);
                d_weight[turn] += d * value;
                if comptime!(centred) {
                    d_bias[turn] += d;
                    sum += vector_total::<N>(g, lanes);
                }
                product += vector_total::<N>(g * value, lanes);
                normalised[turn] = value;
                weighted[turn] = g;
            }
        }
        // d_x = rstd · (g − mean(g) − x̂·mean(g·x̂))
        let mut sum_mean = f32::new(0.0);
        if comptime!(centred) {
            sum_mean = plane_total(sum) * inverse_width;
        }
        let product_mean = plane_total(product) * inverse_width;
        #[unroll]
        for turn in 0..turns {
            let at = lane + turn * 32;
            if at < vectors {
                let inner = weighted[turn]
                    - Vector::new(sum_mean)
                    - normalised[turn] * Vector::new(product_mean);
                let mut d = inner * Vector::new(scale);
                if comptime!(add) {
                    d += Vector::cast_from(d_x[first + at]);
                }
                d_x[first + at] = Vector::cast_from(d);
            }
        }
        row += planes;
    }

    // Add up the shares of the block's warps, one warp after the other.
    let mut shared_weight = Shared::<[Vector<f32, N>]>::new_slice(vectors);
    let mut shared_bias =
        Shared::<[Vector<f32, N>]>::new_slice(comptime!(if centred { vectors } else { 1 }));
    #[unroll]
    for turn_of_plane in 0..planes_of_cube {
        if plane == turn_of_plane {
            #[unroll]
            for turn in 0..turns {
                let at = lane + turn * 32;
                if at < vectors {
                    if comptime!(turn_of_plane == 0) {
                        shared_weight[at] = d_weight[turn];
                    } else {
                        shared_weight[at] += d_weight[turn];
                    }
                    if comptime!(centred && turn_of_plane == 0) {
                        shared_bias[at] = d_bias[turn];
                    } else if comptime!(centred) {
                        shared_bias[at] += d_bias[turn];
                    }
                }
            }
        }
        sync_cube();
    }
    // Store the block's shares.
    let mut at = UNIT_POS_X as usize;
    while at < vectors {
        partial_weight[CUBE_POS_X as usize * vectors + at] = shared_weight[at];
        if comptime!(centred) {
            partial_bias[CUBE_POS_X as usize * vectors + at] = shared_bias[at];
        }
        at += comptime!(planes_of_cube as usize * 32);
    }
}
