//! The second backward pass of the deterministic mode, by tiles of queries: d_q.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, and a kernel is one function"
)]

use cubecl::prelude::*;

use super::{HeadRows, Sight, TileEntry, end_seen, first_seen, load_tile, pitch, sees, store_rows};
use crate::cube::{
    Chunk, Sums, copies_commit, copies_wait, exp2, left, multiply_pair, operand, pack_pair, right,
    right_transposed, shared_address,
};

/// d_q of one tile of queries of one head. A warp owns 16 queries.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(crate) fn attention_backward_queries(
    q: &[Chunk],
    k: &[Chunk],
    v: &[Chunk],
    d_out: &[Chunk],
    lse: &[f32],
    delta: &[f32],
    tile_table: &[TileEntry],
    d_q: &mut [Chunk],
    scale: f32,
    scale_log2: f32,
    window: u32,
    query_heads: u32,
    kv_heads: u32,
    #[comptime] head_dim: u32,
    #[comptime] sight: Sight,
    #[comptime] planes: u32,
    #[comptime] keys: u32,
) {
    let chunks = comptime!(head_dim / 8);
    let tile = comptime!(pitch(head_dim / 8));
    let units = comptime!(planes * 32);
    let rows = comptime!(planes * 16);
    let steps = comptime!(keys as usize / 8);
    let widths = comptime!(head_dim as usize / 8);
    let stage_chunks = comptime!(keys * tile);
    let query_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((rows * tile) as usize), 128usize);
    let d_out_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((rows * tile) as usize), 128usize);
    let key_tiles =
        Shared::<[Chunk]>::new_aligned_slice(comptime!(2 * stage_chunks as usize), 128usize);
    let value_tiles =
        Shared::<[Chunk]>::new_aligned_slice(comptime!(2 * stage_chunks as usize), 128usize);
    let query_at = shared_address(&query_tile);
    let d_out_at = shared_address(&d_out_tile);
    let keys_at = shared_address(&key_tiles);
    let values_at = shared_address(&value_tiles);

    // Tile of this block
    let entry = tile_table[CUBE_POS_X as usize];
    let start = entry.extract(0usize);
    let len = entry.extract(1usize);
    let first = entry.extract(2usize);
    let head = CUBE_POS_Y;
    let kv_head = head / (query_heads / kv_heads);
    let queries_of_head = HeadRows { start, len, heads: query_heads, head };
    let keys_of_head = HeadRows { start, len, heads: kv_heads, head: kv_head };
    let lane = UNIT_POS_X % 32;
    let row = (UNIT_POS_X / 32) * 16;

    // Load log-sum-exp (in base 2) and δ of the upper and lower row.
    let upper = first + row + lane / 4;
    let at_upper = queries_of_head.row(select(upper < len, upper, 0u32)) as usize;
    let at_lower = queries_of_head.row(select(upper + 8 < len, upper + 8, 0u32)) as usize;
    let lse_upper = lse[at_upper] * f32::new(std::f64::consts::LOG2_E);
    let lse_lower = lse[at_lower] * f32::new(std::f64::consts::LOG2_E);
    let delta_upper = delta[at_upper];
    let delta_lower = delta[at_lower];
    // d_q = 0
    let mut d_queries = Array::<Sums>::new(widths);
    #[unroll]
    for i in 0..widths {
        d_queries[i] = Vector::new(0.0f32);
    }

    // Load Q, dO and the first tile of K and V.
    let begin = first_seen(first, window, sight) / keys * keys;
    let end = end_seen(first, len, window, rows, sight);
    load_tile(q, query_at, &queries_of_head, first, rows, chunks, units);
    load_tile(d_out, d_out_at, &queries_of_head, first, rows, chunks, units);
    load_tile(k, keys_at, &keys_of_head, begin, keys, chunks, units);
    load_tile(v, values_at, &keys_of_head, begin, keys, chunks, units);
    copies_commit();
    let mut key = begin;
    let mut stage = 0u32;
    while key < end {
        // Wait for this tile of K and V. The other stage is free.
        copies_wait(0usize);
        sync_cube();
        let key_at = keys_at + stage * comptime!(stage_chunks * 16);
        let value_at = values_at + stage * comptime!(stage_chunks * 16);
        stage = 1 - stage;
        // Load the next tile of K and V.
        if key + keys < end {
            let to = stage * comptime!(stage_chunks * 16);
            load_tile(k, keys_at + to, &keys_of_head, key + keys, keys, chunks, units);
            load_tile(v, values_at + to, &keys_of_head, key + keys, keys, chunks, units);
        }
        copies_commit();

        // scores = Q·Kᵀ, dP = dO·Vᵀ
        let mut scores = Array::<Sums>::new(steps);
        let mut d_weights = Array::<Sums>::new(steps);
        #[unroll]
        for i in 0..steps {
            scores[i] = Vector::new(0.0f32);
            d_weights[i] = Vector::new(0.0f32);
        }
        #[unroll]
        for step in 0..comptime!(head_dim / 16) {
            let query = left(query_at, row, step, tile);
            let d = left(d_out_at, row, step, tile);
            #[unroll]
            for pair in 0..comptime!(keys / 16) {
                let at = comptime!(pair as usize * 2);
                let b = right_transposed(key_at, pair * 16, step, tile);
                multiply_pair(query, b, &mut scores, at);
                let b = right_transposed(value_at, pair * 16, step, tile);
                multiply_pair(d, b, &mut d_weights, at);
            }
        }

        // P = exp(scale · scores − lse), dS / scale = P ∘ (dP − δ)
        let whole = key + keys <= len
            && match comptime!(sight) {
                Sight::Full => true.runtime(),
                Sight::Causal => key + keys <= first + 1,
                Sight::Window => key + keys <= first + window && first + rows <= key + window,
            };
        let mut d_scores = Array::<u32>::new(comptime!(steps * 2));
        #[unroll]
        for n in 0..steps {
            let s = scores[n];
            let d = d_weights[n];
            let mut p0 = exp2(fma(s.extract(0usize), scale_log2, -lse_upper));
            let mut p1 = exp2(fma(s.extract(1usize), scale_log2, -lse_upper));
            let mut p2 = exp2(fma(s.extract(2usize), scale_log2, -lse_lower));
            let mut p3 = exp2(fma(s.extract(3usize), scale_log2, -lse_lower));
            if !whole {
                let of = key + comptime!(8 * n as u32) + (lane % 4) * 2;
                let zero = f32::new(0.0);
                p0 = select(sees(upper, of, len, window, sight), p0, zero);
                p1 = select(sees(upper, of + 1, len, window, sight), p1, zero);
                p2 = select(sees(upper + 8, of, len, window, sight), p2, zero);
                p3 = select(sees(upper + 8, of + 1, len, window, sight), p3, zero);
            }
            d_scores[n * 2] = pack_pair(
                p0 * (d.extract(0usize) - delta_upper),
                p1 * (d.extract(1usize) - delta_upper),
            );
            d_scores[n * 2 + 1] = pack_pair(
                p2 * (d.extract(2usize) - delta_lower),
                p3 * (d.extract(3usize) - delta_lower),
            );
        }
        // d_q += dS·K
        #[unroll]
        for step in 0..comptime!(keys / 16) {
            let from = comptime!(step as usize * 4);
            let d_score =
                operand(d_scores[from], d_scores[from + 1], d_scores[from + 2], d_scores[from + 3]);
            #[unroll]
            for pair in 0..comptime!(chunks / 2) {
                let at = comptime!(pair as usize * 2);
                let b = right(key_at, step * 16, pair * 2, tile);
                multiply_pair(d_score, b, &mut d_queries, at);
            }
        }
        key += keys;
    }

    // d_q *= scale, then store through the warp's own rows of the Q tile.
    copies_wait(0usize);
    #[unroll]
    for n in 0..widths {
        d_queries[n] *= Vector::new(scale);
    }
    store_rows(
        &d_queries,
        0usize,
        &query_tile,
        query_at,
        row,
        d_q,
        &queries_of_head,
        first,
        0u32,
        chunks,
        chunks,
    );
}
