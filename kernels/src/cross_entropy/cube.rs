//! Cross-entropy with one block per token: forward in one pass over its logits, backward in another
//! pass in place. See `launch.rs` for the memory floor and the alternatives considered. CubeCL
//! calls a block a cube, a warp a plane and a thread a unit.

#![expect(
    clippy::cast_possible_truncation,
    clippy::manual_is_multiple_of,
    reason = "small lane numbers, and CubeCL has no `is_multiple_of`"
)]

use cubecl::prelude::*;

/// Start value of running maxima, below every logit.
const FLOOR: f64 = -3.0e38;

/// Sum of exponentials relative to the larger of two maxima, from two such sums.
#[cube]
fn merged(max_a: f32, sum_a: f32, max_b: f32, sum_b: f32) -> f32 {
    let top = max(max_a, max_b);
    sum_a * (max_a - top).exp() + sum_b * (max_b - top).exp()
}

/// Writes the loss and the log-sum-exp of each token.
#[cube(launch)]
pub(super) fn cross_entropy_forward<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    targets: &[i32],
    losses: &mut [f32],
    lse: &mut [f32],
    vectors: u32,
    #[comptime] lanes: usize,
    #[comptime] planes: usize,
) {
    // one pass over the logits: running maximum and sum of each thread
    let first = CUBE_POS_X * vectors;
    let mut maximum = f32::new(FLOOR);
    let mut sum = f32::new(0.0);
    let mut at = UNIT_POS_X;
    while at < vectors {
        let z = Vector::<f32, N>::cast_from(logits[(first + at) as usize]);
        let mut top = maximum;
        #[unroll]
        for lane in 0..lanes {
            top = max(top, z.extract(lane));
        }
        sum *= (maximum - top).exp();
        #[unroll]
        for lane in 0..lanes {
            sum += (z.extract(lane) - top).exp();
        }
        maximum = top;
        at += CUBE_DIM_X;
    }
    // merge the threads of each warp
    #[unroll]
    for step in 0..5u32 {
        let other_max = plane_shuffle_xor(maximum, comptime!(16u32 >> step));
        let other_sum = plane_shuffle_xor(sum, comptime!(16u32 >> step));
        sum = merged(maximum, sum, other_max, other_sum);
        maximum = max(maximum, other_max);
    }
    // merge the warps, and write log-sum-exp and loss
    let mut maxima = Shared::<[f32]>::new_slice(planes);
    let mut sums = Shared::<[f32]>::new_slice(planes);
    if UNIT_POS_X % 32 == 0 {
        maxima[(UNIT_POS_X / 32) as usize] = maximum;
        sums[(UNIT_POS_X / 32) as usize] = sum;
    }
    sync_cube();
    if UNIT_POS_X == 0 {
        let mut top = maxima[0];
        let mut total = sums[0];
        #[unroll]
        for plane in 1..planes {
            total = merged(top, total, maxima[plane], sums[plane]);
            top = max(top, maxima[plane]);
        }
        let row = CUBE_POS_X as usize;
        let result = top + total.ln();
        let target = targets[row];
        let mut loss = f32::new(0.0);
        if target >= 0i32 {
            let target = u32::cast_from(target);
            let place = (first + target / lanes as u32) as usize;
            let z = Vector::<f32, N>::cast_from(logits[place]);
            #[unroll]
            for lane in 0..lanes {
                if target % lanes as u32 == lane as u32 {
                    loss = result - z.extract(lane);
                }
            }
        }
        lse[row] = result;
        losses[row] = loss;
    }
}

/// Replaces the logits by their gradient, in place.
#[cube(launch)]
pub(super) fn cross_entropy_backward<F: Float, N: Size>(
    logits: &mut [Vector<F, N>],
    targets: &[i32],
    lse: &[f32],
    factor: f32,
    vectors: u32,
    #[comptime] lanes: usize,
) {
    let row = CUBE_POS_X as usize;
    let first = CUBE_POS_X * vectors;
    let target = targets[row];
    let lse = lse[row];
    let mut at = UNIT_POS_X;
    while at < vectors {
        let i = (first + at) as usize;
        let mut d = Vector::<f32, N>::new(0.0f32);
        if target >= 0i32 {
            let z = Vector::<f32, N>::cast_from(logits[i]);
            #[unroll]
            for lane in 0..lanes {
                let mut p = (z.extract(lane) - lse).exp();
                if at * lanes as u32 + lane as u32 == u32::cast_from(target) {
                    p -= 1.0f32;
                }
                d.insert(lane, factor * p);
            }
        }
        logits[i] = Vector::cast_from(d);
        at += CUBE_DIM_X;
    }
}
