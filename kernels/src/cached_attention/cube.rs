//! Cached attention: streams of lanes walk over the rows of a list with the online softmax, and are
//! merged at the end.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor and the tiling are in
//! `launch.rs`.

#![expect(
    clippy::cast_possible_truncation,
    clippy::manual_div_ceil,
    clippy::too_many_lines,
    reason = "small head numbers, CubeCL integers have no `div_ceil`, and a kernel is one function"
)]

use cubecl::prelude::*;

use crate::cube::{Chunk, vector_total};

/// Eight f32 elements: a chunk of q, or of the sum of values.
type Wide = Vector<f32, Const<8>>;

/// Initial value of a running maximum, below every score.
const FLOOR: f64 = -1.0e30;

/// Sizes that determine the code of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Chunks of eight elements in a head, a power of two up to 32: lanes that share a row.
    pub chunks: u32,
    /// Query heads of a block. They share a key/value head.
    pub heads: usize,
    /// Warps of a block.
    pub warps: u32,
}

/// Attended values of the heads of a block: blocks (query, key/value head, part of its group).
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn cached_attention_forward(
    q: &[Chunk],
    k: &[Chunk],
    v: &[Chunk],
    rows: &[i32],
    ends: &[i32],
    out: &mut [Chunk],
    scale: f32,
    query_heads: u32,
    kv_heads: u32,
    #[comptime] shape: Shape,
) {
    let Shape { chunks, heads, warps } = comptime!(shape);
    let streams = comptime!(warps * 32 / chunks);
    let chunk = UNIT_POS_X % chunks;
    let stream = UNIT_POS_X / chunks;
    let group = query_heads / kv_heads;
    let first_head = CUBE_POS_X * query_heads + CUBE_POS_Y * group + CUBE_POS_Z * heads as u32;

    // load Q, and start each head's softmax
    let mut queries = Array::<Wide>::new(heads);
    let mut sums = Array::<Wide>::new(heads);
    let mut maxima = Array::<f32>::new(heads);
    let mut totals = Array::<f32>::new(heads);
    #[unroll]
    for head in 0..heads {
        let at = (first_head + head as u32) * chunks + chunk;
        queries[head] = Wide::cast_from(q[at as usize]) * Wide::new(scale);
        sums[head] = Wide::new(0.0f32);
        maxima[head] = f32::new(FLOOR);
        totals[head] = f32::new(0.0);
    }

    // each stream takes every `streams`-th row of the list; all lanes reach every shuffle
    let begin = u32::cast_from(ends[CUBE_POS_X as usize]);
    let count = u32::cast_from(ends[(CUBE_POS_X + 1) as usize]) - begin;
    let rounds = (count + streams - 1) / streams;
    for round in 0..rounds {
        let at = round * streams + stream;
        let inside = at < count;
        let row = u32::cast_from(rows[(begin + select(inside, at, 0u32)) as usize]);
        let index = ((row * kv_heads + CUBE_POS_Y) * chunks + chunk) as usize;
        let key = Wide::cast_from(k[index]);
        let value = Wide::cast_from(v[index]);
        #[unroll]
        for head in 0..heads {
            // score = scale · q·k
            let mut score = vector_total(queries[head] * key, 8usize);
            #[unroll]
            for step in 0..comptime!(chunks.ilog2()) {
                score += plane_shuffle_xor(score, comptime!(1u32 << step));
            }
            // online softmax, and O += p·V
            if inside {
                let top = max(maxima[head], score);
                let shrink = (maxima[head] - top).exp();
                let p = (score - top).exp();
                totals[head] = totals[head] * shrink + p;
                sums[head] = sums[head] * Wide::new(shrink) + value * Wide::new(p);
                maxima[head] = top;
            }
        }
    }

    // merge the streams of each warp
    let mut lane = u32::new(chunks as i64);
    while lane < 32 {
        #[unroll]
        for head in 0..heads {
            let other_max = plane_shuffle_xor(maxima[head], lane);
            let other_total = plane_shuffle_xor(totals[head], lane);
            let mut other_sum = Wide::new(0.0f32);
            #[unroll]
            for i in 0..8usize {
                other_sum.insert(i, plane_shuffle_xor(sums[head].extract(i), lane));
            }
            let top = max(maxima[head], other_max);
            let own = (maxima[head] - top).exp();
            let other = (other_max - top).exp();
            totals[head] = totals[head] * own + other_total * other;
            sums[head] = sums[head] * Wide::new(own) + other_sum * Wide::new(other);
            maxima[head] = top;
        }
        lane *= 2;
    }

    // merge the warps, and store
    let count_of_warps = comptime!(warps as usize);
    let vectors = comptime!(heads * chunks as usize);
    let mut shared_maxima = Shared::<[f32]>::new_slice(comptime!(count_of_warps * heads));
    let mut shared_totals = Shared::<[f32]>::new_slice(comptime!(count_of_warps * heads));
    let mut shared_sums = Shared::<[Wide]>::new_slice(comptime!(count_of_warps * vectors));
    let warp = (UNIT_POS_X / 32) as usize;
    if UNIT_POS_X % 32 < chunks {
        #[unroll]
        for head in 0..heads {
            shared_sums[warp * vectors + head * chunks as usize + chunk as usize] = sums[head];
            if chunk == 0 {
                shared_maxima[warp * heads + head] = maxima[head];
                shared_totals[warp * heads + head] = totals[head];
            }
        }
    }
    sync_cube();
    let mut at = UNIT_POS_X as usize;
    while at < vectors {
        let head = at / chunks as usize;
        let mut top = shared_maxima[head];
        #[unroll]
        for other in 1..count_of_warps {
            top = max(top, shared_maxima[other * heads + head]);
        }
        let mut total = f32::new(0.0);
        let mut sum = Wide::new(0.0f32);
        #[unroll]
        for other in 0..count_of_warps {
            let weight = (shared_maxima[other * heads + head] - top).exp();
            total += shared_totals[other * heads + head] * weight;
            sum += shared_sums[other * vectors + at] * Wide::new(weight);
        }
        let to = first_head as usize * chunks as usize + at;
        out[to] = Chunk::cast_from(sum / Wide::new(total));
        at += CUBE_DIM_X as usize;
    }
}
