//! The forward pass with products of warpgroups, for heads of 64.
//!
//! A block of two warpgroups owns 128 queries of one head, 64 per warpgroup, and walks over tiles
//! of 128 keys and values; `cp.async` loads one tile ahead. A warpgroup takes 64 keys at a time:
//! S = Q·Kᵀ with Q in registers, softmax, then P·V with P in registers. Products leave a warpgroup
//! idle until they end, so the four warpgroups of two blocks per multiprocessor fill in for each
//! other.
//!
//! Per 64 queries and 64 keys, four products of 64 × 64 × 16 for S and four for P·V occupy the
//! tensor cores for 256 clocks, and 4,096 exponentials occupy their units for 256 clocks too. The
//! right operand of a product is read at 64 bytes per clock, half of what shared memory delivers.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, and a kernel is one function"
)]

use cubecl::prelude::*;

use super::{
    FLOOR, HeadRows, Sight, TileEntry, end_seen, hide, load_tile, online_softmax, store_outputs,
};
use crate::cube::{
    Chunk, Packed4, Sums, TILE_ALIGNMENT, copies_commit, copies_wait, descriptor, group, left,
    multiply_64, operand, publish, shared_address,
};

/// Warps of a block.
pub(crate) const WARPS: u32 = 8;
/// Blocks that share a multiprocessor.
pub(crate) const BLOCKS: u32 = 2;
/// Keys of a tile, and queries of a block.
pub(crate) const ROWS: u32 = 128;
/// Keys that a warpgroup multiplies at a time, and its queries.
const STRIP: u32 = 64;
/// Chunks of a row.
const CHUNKS: u32 = 8;
/// Bytes of a strip in shared memory.
const STRIP_BYTES: u32 = STRIP * CHUNKS * 16;

/// out and log-sum-exp of 128 queries of one head.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(crate) fn attention_forward_warpgroups(
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
    #[comptime] sight: Sight,
) {
    let units = comptime!(WARPS * 32);
    let steps = comptime!(STRIP as usize / 8);
    let length = comptime!((ROWS * CHUNKS) as usize);
    let query_tile = Shared::<[Chunk]>::new_aligned_slice(length, TILE_ALIGNMENT);
    // Two stages of K and of V.
    let key_tiles = Shared::<[Chunk]>::new_aligned_slice(comptime!(2 * length), TILE_ALIGNMENT);
    let value_tiles = Shared::<[Chunk]>::new_aligned_slice(comptime!(2 * length), TILE_ALIGNMENT);
    let query_at = shared_address(&query_tile);
    let keys_at = shared_address(&key_tiles);
    let values_at = shared_address(&value_tiles);

    // Tile of this block, and the queries of this warp and warpgroup
    let entry = tile_table[CUBE_POS_X as usize];
    let start = entry.extract(0usize);
    let len = entry.extract(1usize);
    let first = entry.extract(2usize);
    let head = CUBE_POS_Y;
    let kv_head = head / (query_heads / kv_heads);
    let queries_of_head = HeadRows { start, len, heads: query_heads, head };
    let keys_of_head = HeadRows { start, len, heads: kv_heads, head: kv_head };
    let lane = UNIT_POS_X % 32;
    let row = UNIT_POS_X / 32 * 16;
    let own = first + row / STRIP * STRIP;

    // O = 0, running maximum = `FLOOR`, sum of exponentials = 0; maxima are of scores before
    // scaling.
    let mut sums = Array::<Sums>::new(steps);
    #[unroll]
    for i in 0..steps {
        sums[i] = Vector::new(0.0f32);
    }
    let mut maxima = Array::<f32>::new(2usize);
    let mut totals = Array::<f32>::new(2usize);
    #[unroll]
    for i in 0..2usize {
        maxima[i] = f32::new(FLOOR);
        totals[i] = f32::new(0.0);
    }

    // Keys that the block's queries see, and those that the warpgroup's see
    let end = end_seen(first, len, window, ROWS, sight);
    let own_end = select(own < len, end_seen(own, len, window, STRIP, sight), 0u32);
    // Load Q and the first tile of K and V, and keep the fragments of Q.
    load_tile(q, query_at, &queries_of_head, first, ROWS, CHUNKS, units);
    copies_commit();
    load_tile(k, keys_at, &keys_of_head, 0u32, ROWS, CHUNKS, units);
    load_tile(v, values_at, &keys_of_head, 0u32, ROWS, CHUNKS, units);
    copies_commit();
    copies_wait(1usize);
    sync_cube();
    let mut queries = Array::<Packed4>::new(4usize);
    #[unroll]
    for step in 0..4u32 {
        queries[step as usize] = left(query_at, row, step, CHUNKS);
    }

    let mut key = 0u32;
    let mut stage = 0u32;
    while key < end {
        // Wait for this tile of K and V. The other stage is free.
        copies_wait(0usize);
        publish();
        sync_cube();
        // Load the next tile.
        let to = (1 - stage) * comptime!(2 * STRIP_BYTES);
        if key + ROWS < end {
            load_tile(k, keys_at + to, &keys_of_head, key + ROWS, ROWS, CHUNKS, units);
            load_tile(v, values_at + to, &keys_of_head, key + ROWS, ROWS, CHUNKS, units);
        }
        copies_commit();

        let tile_end = min(key + ROWS, own_end);
        let mut at = stage * comptime!(2 * STRIP_BYTES);
        let mut from = key;
        while from < tile_end {
            // scores = Q·Kᵀ, masked only at an edge of the mask or the sequence
            let product = multiply_64(&queries, descriptor(keys_at + at), false);
            let mut scores = Array::<Sums>::new(steps);
            #[unroll]
            for n in 0..steps {
                scores[n] = group(product, n);
            }
            let whole = from + STRIP <= len
                && match comptime!(sight) {
                    Sight::Full | Sight::Window => true.runtime(),
                    Sight::Causal => from + STRIP <= own + 1,
                };
            if !whole {
                let query = first + row + lane / 4;
                #[unroll]
                for n in 0..steps {
                    let column = from + comptime!(8 * n as u32) + (lane % 4) * 2;
                    scores[n] = hide(scores[n], query, column, len, window, sight);
                }
            }
            // P = exp(scale · (scores − max)), O = keep · O + P·V
            let mut weights = Array::<u32>::new(comptime!(steps * 2));
            let keep = online_softmax(
                &scores,
                0usize,
                &mut weights,
                &mut maxima,
                &mut totals,
                scale_log2,
                steps,
                64u32,
            );
            let mut fragments = Array::<Packed4>::new(4usize);
            #[unroll]
            for i in 0..4usize {
                fragments[i] = operand(
                    weights[4 * i],
                    weights[4 * i + 1],
                    weights[4 * i + 2],
                    weights[4 * i + 3],
                );
            }
            let product = multiply_64(&fragments, descriptor(values_at + at), true);
            #[unroll]
            for n in 0..steps {
                sums[n] = sums[n] * keep + group(product, n);
            }
            from += STRIP;
            at += STRIP_BYTES;
        }
        key += ROWS;
        stage = 1 - stage;
    }

    copies_wait(0usize);
    store_outputs(
        &mut sums,
        0usize,
        &maxima,
        &totals,
        scale,
        &query_tile,
        query_at,
        row,
        out,
        lse,
        &queries_of_head,
        first,
        CHUNKS,
    );
}
