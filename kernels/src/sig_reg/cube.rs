//! The kernels of `SIGReg`. See `launch.rs` for the memory floor and the tiling. CubeCL calls a
//! block a cube, a warp a plane and a thread a unit.

use cubecl::prelude::*;

use super::SPACING;

/// π·r, half of the angle 2π·`turns` without its whole turns: |r| ≤ 1/2. The arithmetic is that of
/// `math::sin_cos_turns`. CUDA's `sinf` and `cosf` would need a stack to reduce large angles.
#[cube]
fn half_angle(turns: f32) -> f32 {
    f32::new(std::f64::consts::PI) * (turns - (turns + 0.5f32).floor())
}

/// Sine of an angle of at most π/2.
#[cube]
fn sine(angle: f32) -> f32 {
    let s = angle * angle;
    let mut p = s * -2.505_210_8e-8f32 + 2.755_732e-6f32;
    p = p * s - 1.984_127e-4f32;
    p = p * s + 8.333_334e-3f32;
    p = p * s - 1.666_666_7e-1f32;
    p * s * angle + angle
}

/// Cosine of an angle of at most π/2.
#[cube]
fn cosine(angle: f32) -> f32 {
    let s = angle * angle;
    let mut q = s * 2.087_675_7e-9f32 - 2.755_732e-7f32;
    q = q * s + 2.480_158_7e-5f32;
    q = q * s - 1.388_888_9e-3f32;
    q = q * s + 4.166_666_8e-2f32;
    q = q * s - 0.5f32;
    q * s + 1.0f32
}

/// Sums the cosines and sines of a direction's projections in a share of the rows, one direction
/// per thread.
#[cube(launch)]
pub(super) fn sig_reg_sums(
    projections: &[f32],
    partial: &mut [f32],
    turns: f32,
    rows: u32,
    directions: u32,
    rows_of_part: u32,
    #[comptime] knots: u32,
) {
    let direction = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if direction < directions {
        let mut cosines = Array::<f32>::new(comptime!(knots as usize));
        let mut sines = Array::<f32>::new(comptime!(knots as usize));
        #[unroll]
        for k in 0..knots {
            cosines[k as usize] = f32::new(0.0);
            sines[k as usize] = f32::new(0.0);
        }
        let mut row = CUBE_POS_Y * rows_of_part;
        let end = min(row + rows_of_part, rows);
        while row < end {
            let half = half_angle(projections[(row * directions + direction) as usize] * turns);
            let (s, c) = (sine(half), cosine(half));
            let (sin_1, cos_1) = (2.0f32 * s * c, 1.0f32 - 2.0f32 * s * s);
            let mut sin_k = sin_1;
            let mut cos_k = cos_1;
            #[unroll]
            for k in 0..knots {
                cosines[k as usize] += cos_k;
                sines[k as usize] += sin_k;
                let next = sin_k * cos_1 + cos_k * sin_1;
                cos_k = cos_k * cos_1 - sin_k * sin_1;
                sin_k = next;
            }
            row += 1;
        }
        let first = CUBE_POS_Y * 2 * knots * directions + direction;
        #[unroll]
        for k in 0..knots {
            partial[(first + k * directions) as usize] = cosines[k as usize];
            partial[(first + (knots + k) * directions) as usize] = sines[k as usize];
        }
    }
}

/// Replaces sums by coefficients and writes the statistics, one direction per thread.
#[cube(launch)]
pub(super) fn sig_reg_coefficients(
    sums: &mut [f32],
    terms: &mut [f32],
    global: f32,
    factor: f32,
    directions: u32,
    #[comptime] knots: u32,
) {
    let direction = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if direction < directions {
        let mut statistic = f32::new(0.0);
        #[unroll]
        for k in 0..knots {
            let t = f32::new(SPACING) * f32::cast_from(k + 1);
            let window = (-0.5f32 * t * t).exp();
            let mut weight = f32::new(2.0 * SPACING) * window;
            if comptime!(k + 1 == knots) {
                weight = f32::new(SPACING) * window;
            }
            let c = (k * directions + direction) as usize;
            let s = ((knots + k) * directions + direction) as usize;
            let (real, imaginary) = (sums[c] / global - window, sums[s] / global);
            statistic += weight * (real * real + imaginary * imaginary);
            sums[c] = -2.0f32 * factor * weight * t * real;
            sums[s] = 2.0f32 * factor * weight * t * imaginary;
        }
        terms[direction as usize] = factor * global * statistic;
    }
}

/// Computes the gradients of a direction's projections in a share of the rows, one direction per
/// thread.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn sig_reg_gradients<F: Float>(
    projections: &[f32],
    coefficients: &[f32],
    out: &mut [F],
    turns: f32,
    rows: u32,
    directions: u32,
    rows_of_part: u32,
    #[comptime] knots: u32,
) {
    let direction = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if direction < directions {
        let mut of_sines = Array::<f32>::new(comptime!(knots as usize));
        let mut of_cosines = Array::<f32>::new(comptime!(knots as usize));
        #[unroll]
        for k in 0..knots {
            of_sines[k as usize] = coefficients[(k * directions + direction) as usize];
            of_cosines[k as usize] = coefficients[((knots + k) * directions + direction) as usize];
        }
        let mut row = CUBE_POS_Y * rows_of_part;
        let end = min(row + rows_of_part, rows);
        while row < end {
            let i = (row * directions + direction) as usize;
            let half = half_angle(projections[i] * turns);
            let (s, c) = (sine(half), cosine(half));
            let (sin_1, cos_1) = (2.0f32 * s * c, 1.0f32 - 2.0f32 * s * s);
            let mut sin_k = sin_1;
            let mut cos_k = cos_1;
            let mut sum = f32::new(0.0);
            #[unroll]
            for k in 0..knots {
                sum += of_sines[k as usize] * sin_k + of_cosines[k as usize] * cos_k;
                let next = sin_k * cos_1 + cos_k * sin_1;
                cos_k = cos_k * cos_1 - sin_k * sin_1;
                sin_k = next;
            }
            out[i] = F::cast_from(sum);
            row += 1;
        }
    }
}
