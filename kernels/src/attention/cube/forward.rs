//! The forward pass with products of single warps.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, and a kernel is one function"
)]

use cubecl::prelude::*;

use super::{
    FLOOR, HeadRows, Sight, TileEntry, end_seen, first_seen, hide, load_tile, online_softmax,
    padded, pitch, store_outputs,
};
use crate::cube::{
    Chunk, Sums, copies_commit, copies_wait, left, multiply_pair, operand, right, right_transposed,
    shared_address,
};

/// out and log-sum-exp of one tile of queries of one head. A warp owns `blocks` fragments of 16
/// queries.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(crate) fn attention_forward(
    q: &[Chunk],
    k: &[Chunk],
    v: &[Chunk],
    tile_table: &[TileEntry],
    out: &mut [Chunk],
    lse: &mut [f32],
    scale: f32,
    scale_log2: f32,
    window: u32,
    query_heads: u32,
    kv_heads: u32,
    #[comptime] head_dim: u32,
    #[comptime] sight: Sight,
    #[comptime] planes: u32,
    #[comptime] blocks: usize,
    #[comptime] keys: u32,
) {
    let chunks = comptime!(head_dim / 8);
    let tile = comptime!(pitch(head_dim / 8));
    let units = comptime!(planes * 32);
    let plane_rows = comptime!(16 * blocks as u32);
    let rows = comptime!(planes * 16 * blocks as u32);
    let steps = comptime!(keys as usize / 8);
    let widths = comptime!(padded(chunks) as usize);
    let query_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((rows * tile) as usize), 128usize);
    let key_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((keys * tile) as usize), 128usize);
    let value_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((keys * tile) as usize), 128usize);
    let query_at = shared_address(&query_tile);
    let key_at = shared_address(&key_tile);
    let value_at = shared_address(&value_tile);

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
    let row = (UNIT_POS_X / 32) * plane_rows;

    // O = 0, running maximum = `FLOOR`, sum of exponentials = 0; maxima are of scores before
    // scaling.
    let mut sums = Array::<Sums>::new(comptime!(blocks * widths));
    #[unroll]
    for i in 0..comptime!(blocks * widths) {
        sums[i] = Vector::new(0.0f32);
    }
    let mut maxima = Array::<f32>::new(comptime!(blocks * 2));
    let mut totals = Array::<f32>::new(comptime!(blocks * 2));
    #[unroll]
    for i in 0..comptime!(blocks * 2) {
        maxima[i] = f32::new(FLOOR);
        totals[i] = f32::new(0.0);
    }

    // Load Q and the first tile of K.
    let begin = first_seen(first, window, sight) / keys * keys;
    let end = end_seen(first, len, window, rows, sight);
    load_tile(q, query_at, &queries_of_head, first, rows, chunks, units);
    load_tile(k, key_at, &keys_of_head, begin, keys, chunks, units);
    copies_commit();
    let mut key = begin;
    while key < end {
        // Wait for K, and before the first tile for Q. The tile of V is free: every warp has passed
        // the previous P·V.
        copies_wait(0usize);
        sync_cube();
        // Load V, in flight while the scores are computed.
        load_tile(v, value_at, &keys_of_head, key, keys, chunks, units);
        copies_commit();

        // scores = Q·Kᵀ
        let mut scores = Array::<Sums>::new(comptime!(blocks * steps));
        #[unroll]
        for i in 0..comptime!(blocks * steps) {
            scores[i] = Vector::new(0.0f32);
        }
        #[unroll]
        for step in 0..comptime!(widths as u32 / 2) {
            #[unroll]
            for pair in 0..comptime!(keys / 16) {
                let b = right_transposed(key_at, pair * 16, step, tile);
                #[unroll]
                for block in 0..blocks {
                    let a = left(query_at, row + comptime!(16 * block as u32), step, tile);
                    let at = comptime!(block * steps + pair as usize * 2);
                    multiply_pair(a, b, &mut scores, at);
                }
            }
        }

        // Mask the scores, only in tiles at an edge of the mask or the sequence.
        let whole = key + keys <= len
            && match comptime!(sight) {
                Sight::Full => true.runtime(),
                Sight::Causal => key + keys <= first + 1,
                Sight::Window => key + keys <= first + window && first + rows <= key + window,
            };
        if !whole {
            #[unroll]
            for block in 0..blocks {
                #[unroll]
                for n in 0..steps {
                    let query = first + row + comptime!(16 * block as u32) + lane / 4;
                    let column = key + comptime!(8 * n as u32) + (lane % 4) * 2;
                    let old = scores[block * steps + n];
                    scores[block * steps + n] = hide(old, query, column, len, window, sight);
                }
            }
        }

        // online softmax: P = exp(scale · (scores − max)), packed as bf16 operands
        let mut weights = Array::<u32>::new(comptime!(blocks * steps * 2));
        #[unroll]
        for block in 0..blocks {
            let keep = online_softmax(
                &scores,
                block,
                &mut weights,
                &mut maxima,
                &mut totals,
                scale_log2,
                steps,
                head_dim,
            );
            // O *= exp(scale · (old max − new max))
            #[unroll]
            for n in 0..widths {
                sums[block * widths + n] *= keep;
            }
        }

        // Wait for V. The tile of K is free: every warp has computed its scores.
        copies_wait(0usize);
        sync_cube();
        // Load the next K, in flight during P·V.
        if key + keys < end {
            load_tile(k, key_at, &keys_of_head, key + keys, keys, chunks, units);
        }
        copies_commit();
        // O += P·V
        #[unroll]
        for step in 0..comptime!(keys / 16) {
            #[unroll]
            for pair in 0..comptime!(widths as u32 / 2) {
                let b = right(value_at, step * 16, pair * 2, tile);
                #[unroll]
                for block in 0..blocks {
                    let from = comptime!((block * steps + step as usize * 2) * 2);
                    let a = operand(
                        weights[from],
                        weights[from + 1],
                        weights[from + 2],
                        weights[from + 3],
                    );
                    let at = comptime!(block * widths + pair as usize * 2);
                    multiply_pair(a, b, &mut sums, at);
                }
            }
        }
        key += keys;
    }

    // O /= sum of exponentials
    copies_wait(0usize);
    #[unroll]
    for block in 0..blocks {
        store_outputs(
            &mut sums,
            block,
            &maxima,
            &totals,
            scale,
            &query_tile,
            query_at,
            row + comptime!(16 * block as u32),
            out,
            lse,
            &queries_of_head,
            first,
            chunks,
        );
    }
}
