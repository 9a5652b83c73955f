//! The backward pass with products of warpgroups, for heads of 64: d_k, d_v, and d_q by atomics.
//!
//! A block of two warpgroups owns 128 keys of one key/value head, 64 per warpgroup, and walks over
//! tiles of 128 queries of all heads that share it; `cp.async` loads one tile ahead. A warpgroup
//! keeps its K and V in registers and takes 64 queries at a time: S = K·Qᵀ and dP = V·dOᵀ, P and dS
//! in registers, then d_v += Pᵀ·dO and d_k += dSᵀ·Q with P and dS as left operands. dS also goes to
//! shared memory, and once per tile, after a barrier, each warpgroup adds dS·K of 64 queries to
//! d_q.
//!
//! Per 64 keys and 64 queries the five products occupy the tensor cores for 640 clocks and the
//! exponentials their units for 256. A product reads its right operand at 64 bytes per clock, half
//! of what shared memory delivers. One block per multiprocessor: 226 registers of a thread, of
//! which d_k, d_v, S and dP take 128, and K and V 32. S and dP of 128 queries at once would take 64
//! more, which spilled; with K and V in shared memory instead, a product would read 96 bytes per
//! clock.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, and a kernel is one function"
)]

use cubecl::prelude::*;

use super::{HeadRows, Sight, TileEntry, load_queries, load_tile, seen, sees, store_rows};
use crate::cube::{
    Chunk, Packed4, Sums, TILE_ALIGNMENT, TwoSums64, add_pair, add_two_64, copies_commit,
    copies_wait, descriptor, exp2, group, left, multiply_rows, multiply_two_64, operand, pack_pair,
    publish, shared_address, store_pair, swizzled,
};

/// Warps of a block.
pub(crate) const WARPS: u32 = 8;
/// Queries of a tile, and keys of a block.
pub(crate) const ROWS: u32 = 128;
/// Keys of a warpgroup.
const STRIP: u32 = 64;
/// Chunks of a row.
const CHUNKS: u32 = 8;
/// Bytes of 128 rows in shared memory.
const TILE_BYTES: u32 = ROWS * CHUNKS * 16;
/// Bytes of 64 rows in shared memory.
const STRIP_BYTES: u32 = STRIP * CHUNKS * 16;

/// d_k and d_v of 128 keys of one key/value head, summed over its query heads, and their part of
/// d_q.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(crate) fn attention_backward_warpgroups(
    q: &[Chunk],
    k: &[Chunk],
    v: &[Chunk],
    d_out: &[Chunk],
    lse: &[f32],
    delta: &[f32],
    tile_table: &[TileEntry],
    d_k: &mut [Chunk],
    d_v: &mut [Chunk],
    d_q: &mut [f32],
    scale: f32,
    scale_log2: f32,
    window: u32,
    query_heads: u32,
    kv_heads: u32,
    #[comptime] sight: Sight,
) {
    let units = comptime!(WARPS * 32);
    let length = comptime!((ROWS * CHUNKS) as usize);
    let key_tile = Shared::<[Chunk]>::new_aligned_slice(length, TILE_ALIGNMENT);
    let value_tile = Shared::<[Chunk]>::new_aligned_slice(length, TILE_ALIGNMENT);
    // Two stages of Q, followed by two stages of dO.
    let stages = Shared::<[Chunk]>::new_aligned_slice(comptime!(4 * length), TILE_ALIGNMENT);
    // Rows are keys; the first tile holds 64 queries, the second the other 64.
    let d_score_tiles = Shared::<[Chunk]>::new_aligned_slice(comptime!(2 * length), TILE_ALIGNMENT);
    let mut tile_lse = Shared::<[f32]>::new_slice(comptime!(2 * ROWS as usize));
    let mut tile_delta = Shared::<[f32]>::new_slice(comptime!(2 * ROWS as usize));
    let key_at = shared_address(&key_tile);
    let value_at = shared_address(&value_tile);
    let queries_at = shared_address(&stages);
    let d_outs_at = queries_at + comptime!(2 * TILE_BYTES);
    let d_score_at = shared_address(&d_score_tiles);

    // Tile of this block, and the keys of this warp and warpgroup
    let entry = tile_table[CUBE_POS_X as usize];
    let start = entry.extract(0usize);
    let len = entry.extract(1usize);
    let first = entry.extract(2usize);
    let kv_head = CUBE_POS_Y;
    let heads = query_heads / kv_heads;
    let lane = UNIT_POS_X % 32;
    let row = UNIT_POS_X / 32 * 16;
    let warpgroup = UNIT_POS_X / 128;
    let own = first + warpgroup * STRIP;

    // d_v = 0, d_k = 0
    let mut gradients: TwoSums64 = Vector::new(0.0f32);

    // First query that sees any of the keys
    let begin = match comptime!(sight) {
        Sight::Full | Sight::Window => 0u32.runtime(),
        Sight::Causal => first,
    };
    let keys_of_head = HeadRows { start, len, heads: kv_heads, head: kv_head };
    // Load K, V and the first tile of Q and dO.
    load_tile(k, key_at, &keys_of_head, first, ROWS, CHUNKS, units);
    load_tile(v, value_at, &keys_of_head, first, ROWS, CHUNKS, units);
    let mut head = kv_head * heads;
    let queries_of_head = HeadRows { start, len, heads: query_heads, head };
    load_queries(
        q,
        d_out,
        lse,
        delta,
        queries_at,
        d_outs_at,
        &mut tile_lse,
        &mut tile_delta,
        0u32,
        &queries_of_head,
        begin,
        ROWS,
        CHUNKS,
        units,
    );
    copies_commit();

    // Keep the fragments of K and V.
    copies_wait(0usize);
    sync_cube();
    let mut keys = Array::<Packed4>::new(4usize);
    let mut values = Array::<Packed4>::new(4usize);
    #[unroll]
    for step in 0..4u32 {
        keys[step as usize] = left(key_at, row, step, CHUNKS);
        values[step as usize] = left(value_at, row, step, CHUNKS);
    }

    // Walk over the tiles of queries of each query head that shares the keys.
    let head_end = (kv_head + 1) * heads;
    let mut query = begin;
    let mut stage = 0u32;
    while head < head_end {
        // Wait for this tile of Q and dO. The other stage and the tiles of dS are free.
        copies_wait(0usize);
        publish();
        sync_cube();

        // Load the next tile of Q and dO: the next queries of this head, or the first of the next
        // head.
        let last = query + ROWS >= len;
        let next = select(last, begin, query + ROWS);
        let next_head = select(last, head + 1, head);
        if next_head < head_end {
            let other = 1 - stage;
            let to = other * TILE_BYTES;
            let next_of_head = HeadRows { start, len, heads: query_heads, head: next_head };
            load_queries(
                q,
                d_out,
                lse,
                delta,
                queries_at + to,
                d_outs_at + to,
                &mut tile_lse,
                &mut tile_delta,
                other * ROWS,
                &next_of_head,
                next,
                ROWS,
                CHUNKS,
                units,
            );
        }
        copies_commit();

        // Two strips of 64 queries
        let mut strip = 0u32;
        while strip < 2 && query + strip * STRIP < len {
            let at = stage * TILE_BYTES + strip * STRIP_BYTES;
            let query_at = descriptor(queries_at + at);
            let d_out_at = descriptor(d_outs_at + at);
            // scores = K·Qᵀ, dP = V·dOᵀ
            let products = multiply_two_64(&keys, query_at, &values, d_out_at);
            // P and dS / scale
            let mut weights = Array::<u32>::new(16usize);
            let mut d_scores = Array::<u32>::new(16usize);
            strip_gradient(
                products,
                &tile_lse,
                &tile_delta,
                stage * ROWS + strip * STRIP,
                query + strip * STRIP,
                own,
                own + row % STRIP + lane / 4,
                len,
                window,
                scale_log2,
                &mut weights,
                &mut d_scores,
                sight,
            );
            // Store dS, which every warp reads for d_q.
            #[unroll]
            for n in 0..8usize {
                let tile = d_score_at + strip * TILE_BYTES + (lane % 4) * 4;
                let upper = row + lane / 4;
                let chunk = comptime!(n as u32);
                store_pair(tile + swizzled(upper, chunk, CHUNKS), d_scores[n * 2]);
                store_pair(tile + swizzled(upper + 8, chunk, CHUNKS), d_scores[n * 2 + 1]);
            }
            // d_v += Pᵀ·dO, d_k += dSᵀ·Q
            let weights = operands(&weights);
            let d_scores = operands(&d_scores);
            gradients = add_two_64(gradients, &weights, d_out_at, &d_scores, query_at);
            strip += 1;
        }
        publish();

        // d_q += dS·K, once every warp has stored its dS
        sync_cube();
        let from = query + warpgroup * STRIP;
        if from < len {
            let sums =
                multiply_rows(descriptor(d_score_at + warpgroup * TILE_BYTES), descriptor(key_at));
            let token = from + row % STRIP + lane / 4;
            #[unroll]
            for n in 0..8usize {
                let sum = group(sums, n);
                let column = comptime!(8 * n as u32) + (lane % 4) * 2;
                let at = ((start + token) * query_heads + head) * comptime!(CHUNKS * 8) + column;
                if token < len {
                    add_pair(d_q, at, sum.extract(0usize), sum.extract(1usize));
                }
                if token + 8 < len {
                    let at = at + 8 * query_heads * comptime!(CHUNKS * 8);
                    add_pair(d_q, at, sum.extract(2usize), sum.extract(3usize));
                }
            }
        }
        query = next;
        head = next_head;
        stage = 1 - stage;
    }

    // Store d_k times the scale and d_v, through the warp's own rows of the tiles of K and V.
    copies_wait(0usize);
    sync_cube();
    let mut sums = Array::<Sums>::new(8usize);
    #[unroll]
    for n in 0..8usize {
        sums[n] = group(gradients, comptime!(n + 8)) * Vector::new(scale);
    }
    store_rows(
        &sums,
        0usize,
        &key_tile,
        key_at,
        row,
        d_k,
        &keys_of_head,
        first,
        0u32,
        CHUNKS,
        CHUNKS,
    );
    #[unroll]
    for n in 0..8usize {
        sums[n] = group(gradients, n);
    }
    store_rows(
        &sums,
        0usize,
        &value_tile,
        value_at,
        row,
        d_v,
        &keys_of_head,
        first,
        0u32,
        CHUNKS,
        CHUNKS,
    );
}

/// P = exp(scale · scores − lse) and dS / scale = P ∘ (dP − δ) of a thread's two keys by 64 queries
/// from `query`, as packed pairs of neighbouring queries. `own` is the first key of the warpgroup,
/// `key` the thread's upper one.
#[cube]
#[expect(clippy::too_many_arguments, reason = "products, statistics and positions of a tile")]
fn strip_gradient(
    products: TwoSums64,
    tile_lse: &Shared<[f32]>,
    tile_delta: &Shared<[f32]>,
    statistics: u32,
    query: u32,
    own: u32,
    key: u32,
    len: u32,
    window: u32,
    scale_log2: f32,
    weights: &mut Array<u32>,
    d_scores: &mut Array<u32>,
    #[comptime] sight: Sight,
) {
    let lane = UNIT_POS_X % 32;
    let mut scores = Array::<Sums>::new(8usize);
    #[unroll]
    for n in 0..8usize {
        scores[n] = group(products, n);
    }
    // Mask the scores, only in tiles at an edge of the mask or the sequence.
    let whole = own + STRIP <= len
        && match comptime!(sight) {
            Sight::Full | Sight::Window => true.runtime(),
            Sight::Causal => own + STRIP <= query + 1,
        };
    if !whole {
        #[unroll]
        for n in 0..8usize {
            let of = query + comptime!(8 * n as u32) + (lane % 4) * 2;
            let s = scores[n];
            let mut new = Sums::empty();
            new.insert(0usize, seen(s.extract(0usize), sees(of, key, len, window, sight)));
            new.insert(1usize, seen(s.extract(1usize), sees(of + 1, key, len, window, sight)));
            new.insert(2usize, seen(s.extract(2usize), sees(of, key + 8, len, window, sight)));
            new.insert(3usize, seen(s.extract(3usize), sees(of + 1, key + 8, len, window, sight)));
            scores[n] = new;
        }
    }
    #[unroll]
    for n in 0..8usize {
        let at = (statistics + comptime!(8 * n as u32) + (lane % 4) * 2) as usize;
        let (lse0, lse1) = (tile_lse[at], tile_lse[at + 1]);
        let (delta0, delta1) = (tile_delta[at], tile_delta[at + 1]);
        let s = scores[n];
        let d = group(products, comptime!(n + 8));
        let p0 = exp2(fma(s.extract(0usize), scale_log2, -lse0));
        let p1 = exp2(fma(s.extract(1usize), scale_log2, -lse1));
        let p2 = exp2(fma(s.extract(2usize), scale_log2, -lse0));
        let p3 = exp2(fma(s.extract(3usize), scale_log2, -lse1));
        weights[n * 2] = pack_pair(p0, p1);
        weights[n * 2 + 1] = pack_pair(p2, p3);
        d_scores[n * 2] =
            pack_pair(p0 * (d.extract(0usize) - delta0), p1 * (d.extract(1usize) - delta1));
        d_scores[n * 2 + 1] =
            pack_pair(p2 * (d.extract(2usize) - delta0), p3 * (d.extract(3usize) - delta1));
    }
}

/// Left operands from packed pairs of 64 rows by 64 columns.
#[cube]
fn operands(pairs: &Array<u32>) -> Array<Packed4> {
    let mut out = Array::<Packed4>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        out[i] = operand(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]);
    }
    out
}
