//! Products and exchanges within one block of the pass over keys.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, and a part of a kernel is one function"
)]

use cubecl::prelude::*;

use super::super::{Sight, sees};
use super::Shape;
use crate::cube::{
    Packed4, Sums, add_pair, exp2, left, left_transposed, load_sums, multiply_pair, operand,
    pack_pair, right, right_transposed, store_pair, store_sums, swizzled,
};

/// Loads the first `count` fragments of this warp's rows of a tile. Fragments of the same 16
/// columns are adjacent in `fragments`.
#[cube]
pub(super) fn hold(
    tile_at: u32,
    row: u32,
    fragments: &mut Array<Packed4>,
    #[comptime] count: u32,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for i in 0..count {
        let at = row + comptime!(i % shape.fragments * 16);
        fragments[i as usize] =
            left(tile_at, at, comptime!(i / shape.fragments), comptime!(shape.tile()));
    }
}

/// P and dS / scale of this warp's keys by one strip of queries, as packed pairs of neighbouring
/// queries.
#[cube]
#[expect(clippy::too_many_arguments, reason = "operands, statistics and positions of a tile")]
pub(super) fn strip_gradient(
    key_at: u32,
    value_at: u32,
    query_at: u32,
    key_fragments: &Array<Packed4>,
    value_fragments: &Array<Packed4>,
    tile_lse: &Shared<[f32]>,
    tile_delta: &Shared<[f32]>,
    statistics: u32,
    row: u32,
    first: u32,
    query: u32,
    len: u32,
    window: u32,
    scale_log2: f32,
    weights: &mut Array<u32>,
    d_scores: &mut Array<u32>,
    #[comptime] shape: Shape,
) {
    let Shape { sight, fragments, strip, .. } = shape;
    let tile = comptime!(shape.tile());
    let steps = comptime!(shape.steps());
    let lane = UNIT_POS_X % 32;
    let mut scores = Array::<Sums>::new(comptime!(fragments as usize * steps));
    let mut d_weights = Array::<Sums>::new(comptime!(fragments as usize * steps));
    #[unroll]
    for i in 0..comptime!(fragments as usize * steps) {
        scores[i] = Vector::new(0.0f32);
        d_weights[i] = Vector::new(0.0f32);
    }

    // scores = K·Qᵀ, dP = V·dOᵀ
    #[unroll]
    for step in 0..comptime!(shape.head_dim / 16) {
        let mut keys = Array::<Packed4>::new(comptime!(fragments as usize));
        let mut values = Array::<Packed4>::new(comptime!(fragments as usize));
        #[unroll]
        for i in 0..fragments {
            let at = comptime!((step * fragments + i) as usize);
            let row = row + comptime!(16 * i);
            keys[i as usize] = match comptime!(step < shape.held[0]) {
                true => key_fragments[at],
                false => left(key_at, row, step, tile),
            };
            values[i as usize] = match comptime!(step < shape.held[1]) {
                true => value_fragments[at],
                false => left(value_at, row, step, tile),
            };
        }
        #[unroll]
        for pair in 0..comptime!(strip / 16) {
            let b = right_transposed(query_at, pair * 16, step, tile);
            let d_out_row = comptime!(shape.d_out_row() + pair * 16);
            let d = right_transposed(query_at, d_out_row, step, tile);
            #[unroll]
            for i in 0..comptime!(fragments as usize) {
                let at = comptime!(i * steps + pair as usize * 2);
                let (key, value) = (keys[i], values[i]);
                multiply_pair(key, b, &mut scores, at);
                multiply_pair(value, d, &mut d_weights, at);
            }
        }
    }

    // P = exp(scale · scores − lse), dS / scale = P ∘ (dP − δ)
    let from = first + row;
    let to = first + row + comptime!(shape.warp_keys());
    let whole = to <= len
        && match comptime!(sight) {
            Sight::Full => true.runtime(),
            Sight::Causal => to <= query + 1,
            Sight::Window => to <= query + window && query + strip <= from + window,
        };
    #[unroll]
    for n in 0..steps {
        let offset = comptime!(8 * n as u32) + (lane % 4) * 2;
        let lse0 = tile_lse[(statistics + offset) as usize];
        let lse1 = tile_lse[(statistics + offset + 1) as usize];
        let delta0 = tile_delta[(statistics + offset) as usize];
        let delta1 = tile_delta[(statistics + offset + 1) as usize];
        #[unroll]
        for i in 0..comptime!(fragments as usize) {
            let at = comptime!(i * steps + n);
            let s = scores[at];
            let d = d_weights[at];
            let mut p0 = exp2(fma(s.extract(0usize), scale_log2, -lse0));
            let mut p1 = exp2(fma(s.extract(1usize), scale_log2, -lse1));
            let mut p2 = exp2(fma(s.extract(2usize), scale_log2, -lse0));
            let mut p3 = exp2(fma(s.extract(3usize), scale_log2, -lse1));
            if !whole {
                let of = query + offset;
                let key = from + comptime!(16 * i as u32) + lane / 4;
                let zero = f32::new(0.0);
                p0 = select(sees(of, key, len, window, sight), p0, zero);
                p1 = select(sees(of + 1, key, len, window, sight), p1, zero);
                p2 = select(sees(of, key + 8, len, window, sight), p2, zero);
                p3 = select(sees(of + 1, key + 8, len, window, sight), p3, zero);
            }
            weights[at * 2] = pack_pair(p0, p1);
            weights[at * 2 + 1] = pack_pair(p2, p3);
            d_scores[at * 2] =
                pack_pair(p0 * (d.extract(0usize) - delta0), p1 * (d.extract(1usize) - delta1));
            d_scores[at * 2 + 1] =
                pack_pair(p2 * (d.extract(2usize) - delta0), p3 * (d.extract(3usize) - delta1));
        }
    }
}

/// Stores dS of this warp's keys by the strip of queries from `sub` in shared memory, from where
/// every warp reads it.
#[cube]
pub(super) fn store_d_scores(
    d_score_at: u32,
    row: u32,
    sub: u32,
    d_scores: &Array<u32>,
    #[comptime] shape: Shape,
) {
    let steps = comptime!(shape.steps());
    let pitch = comptime!(shape.d_score_pitch());
    let lane = UNIT_POS_X % 32;
    let to = d_score_at + (lane % 4) * 4;
    #[unroll]
    for i in 0..comptime!(shape.fragments as usize * steps) {
        let upper = row + comptime!((i / steps * 16) as u32) + lane / 4;
        let chunk = sub / 8 + comptime!((i % steps) as u32);
        store_pair(to + swizzled(upper, chunk, pitch), d_scores[i * 2]);
        store_pair(to + swizzled(upper + 8, chunk, pitch), d_scores[i * 2 + 1]);
    }
}

/// sums += a·b, where a is packed pairs of this warp's keys by a strip of queries, and b the
/// strip's rows of a tile.
#[cube]
pub(super) fn add_product(
    a: &Array<u32>,
    tile_at: u32,
    #[comptime] row: u32,
    column: u32,
    sums: &mut Array<Sums>,
    #[comptime] shape: Shape,
) {
    let steps = comptime!(shape.steps());
    let widths = comptime!(shape.widths());
    #[unroll]
    for step in 0..comptime!(shape.strip / 16) {
        #[unroll]
        for pair in 0..comptime!(shape.slice / 16) {
            let from = comptime!(row + step * 16);
            let b = right(tile_at, from, column + pair * 2, comptime!(shape.tile()));
            #[unroll]
            for i in 0..comptime!(shape.fragments as usize) {
                let from = comptime!((i * steps + step as usize * 2) * 2);
                let left = operand(a[from], a[from + 1], a[from + 2], a[from + 3]);
                let at = comptime!(i * widths + pair as usize * 2);
                multiply_pair(left, b, sums, at);
            }
        }
    }
}

/// d_q += dS·K for one tile of queries. Each warp computes some fragments of 16 queries and some
/// columns.
#[cube]
#[expect(clippy::too_many_arguments, reason = "source, destination and shape of a tile")]
pub(super) fn add_d_queries(
    d_score_at: u32,
    key_at: u32,
    d_q: &mut [f32],
    start: u32,
    end: u32,
    query: u32,
    heads: u32,
    head: u32,
    column: u32,
    #[comptime] shape: Shape,
) {
    let fragments = comptime!(shape.fragments);
    let in_rows = comptime!(shape.queries / shape.warp_keys());
    let widths = comptime!(shape.d_query_columns() as usize / 8);
    let lane = UNIT_POS_X % 32;
    let warp = UNIT_POS_X / 32;
    let row = warp % in_rows * comptime!(shape.warp_keys());
    let chunk = column + warp / in_rows * comptime!(shape.d_query_columns() / 8);
    if query + row < end {
        let mut sums = Array::<Sums>::new(comptime!(fragments as usize * widths));
        #[unroll]
        for i in 0..comptime!(fragments as usize * widths) {
            sums[i] = Vector::new(0.0f32);
        }
        // sums = dS·K over the block's keys
        #[unroll]
        for step in 0..comptime!(shape.keys() / 16) {
            let mut a = Array::<Packed4>::new(comptime!(fragments as usize));
            #[unroll]
            for i in 0..fragments {
                let from = row / 8 + comptime!(2 * i);
                a[i as usize] =
                    left_transposed(d_score_at, step * 16, from, comptime!(shape.d_score_pitch()));
            }
            #[unroll]
            for pair in 0..comptime!(widths as u32 / 2) {
                let b = right(key_at, step * 16, chunk + pair * 2, comptime!(shape.tile()));
                #[unroll]
                for i in 0..comptime!(fragments as usize) {
                    let at = comptime!(i * widths + pair as usize * 2);
                    let d = a[i];
                    multiply_pair(d, b, &mut sums, at);
                }
            }
        }
        // d_q += sums, by atomics
        #[unroll]
        for i in 0..comptime!(fragments as usize * widths) {
            let sum = sums[i];
            let token = query + row + comptime!((i / widths * 16) as u32) + lane / 4;
            let column = (chunk + comptime!((i % widths) as u32)) * 8 + (lane % 4) * 2;
            let at = ((start + token) * heads + head) * comptime!(shape.head_dim) + column;
            if token < end {
                add_pair(d_q, at, sum.extract(0usize), sum.extract(1usize));
            }
            if token + 8 < end {
                let at = at + 8 * heads * comptime!(shape.head_dim);
                add_pair(d_q, at, sum.extract(2usize), sum.extract(3usize));
            }
        }
    }
}

/// Adds up the sums of the two groups through shared memory: d_k in the first group of warps, d_v
/// in the second.
#[cube]
pub(super) fn add_groups(
    queries_at: u32,
    d_outs_at: u32,
    group: u32,
    d_keys: &mut Array<Sums>,
    d_values: &mut Array<Sums>,
    #[comptime] shape: Shape,
) {
    let count = comptime!(shape.fragments * shape.slice / 8);
    let bytes = comptime!(shape.warps / 2 * 32 * 16);
    let unit = UNIT_POS_X % comptime!(shape.warps / 2 * 32) * 16;
    // Store the sums that the other group collects.
    #[unroll]
    for i in 0..count {
        let at = unit + comptime!(i * bytes);
        if group == 0 {
            store_sums(d_outs_at + at, d_values[i as usize]);
        } else {
            store_sums(queries_at + at, d_keys[i as usize]);
        }
    }
    sync_cube();
    // Add the other group's sums.
    #[unroll]
    for i in 0..count {
        let at = unit + comptime!(i * bytes);
        if group == 0 {
            d_keys[i as usize] += load_sums(queries_at + at);
        } else {
            d_values[i as usize] += load_sums(d_outs_at + at);
        }
    }
}
