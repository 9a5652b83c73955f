//! The backward pass by tiles of keys: d_k and d_v, and, where atomics are allowed, d_q.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "compile-time counts of a tile, kernels in the order they run"
)]

use cubecl::prelude::*;

use super::{
    Place, Sight, end_seen, first_seen, load_statistics, load_tile, pitch, sees, store_rows,
};
use crate::cube::{
    Chunk, Sums, add_pair, copies_commit, copies_wait, exp2, left, left_transposed, multiply,
    operand, pack_pair, right, right_transposed, shared_address, store_pair, swizzled,
};

/// d_k and d_v of one tile of keys of one key/value head, summed over its query heads; with `fast`, d_q is added up on the way.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(crate) fn attention_backward_keys(
    q: &[Chunk],
    k: &[Chunk],
    v: &[Chunk],
    d_out: &[Chunk],
    lse: &[f32],
    delta: &[f32],
    places: &[Place],
    d_k: &mut [Chunk],
    d_v: &mut [Chunk],
    d_q: &mut [f32],
    scale: f32,
    scale_log2: f32,
    window: u32,
    query_heads: u32,
    kv_heads: u32,
    #[comptime] head_dim: u32,
    #[comptime] sight: Sight,
    #[comptime] planes: u32,
    #[comptime] queries: u32,
    #[comptime] slice: u32,
    #[comptime] fast: bool,
) {
    let chunks = comptime!(head_dim / 8);
    let tile = comptime!(pitch(head_dim / 8));
    let units = comptime!(planes * 32);
    let rows = comptime!(planes * 16);
    let steps = comptime!(queries as usize / 8);
    let widths = comptime!(slice as usize / 8);
    let stage_chunks = comptime!(queries * tile);
    let key_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((rows * tile) as usize), 128usize);
    let value_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((rows * tile) as usize), 128usize);
    let query_tiles =
        Shared::<[Chunk]>::new_aligned_slice(comptime!(2 * stage_chunks as usize), 128usize);
    let d_out_tiles =
        Shared::<[Chunk]>::new_aligned_slice(comptime!(2 * stage_chunks as usize), 128usize);
    let d_score_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!(if fast { rows as usize * 8 } else { 8 }),
        128usize,
    );
    let mut tile_lse = Shared::<[f32]>::new_slice(comptime!(2 * queries as usize));
    let mut tile_delta = Shared::<[f32]>::new_slice(comptime!(2 * queries as usize));
    let key_at = shared_address(&key_tile);
    let value_at = shared_address(&value_tile);
    let queries_at = shared_address(&query_tiles);
    let d_outs_at = shared_address(&d_out_tiles);
    let d_score_at = shared_address(&d_score_tile);

    let place = places[CUBE_POS_X as usize];
    let start = place.extract(0usize);
    let len = place.extract(1usize);
    let first = place.extract(2usize);
    let kv_head = CUBE_POS_Y;
    let group = query_heads / kv_heads;
    let column = CUBE_POS_Z * comptime!(slice / 8);
    let lane = UNIT_POS_X % 32;
    let plane = UNIT_POS_X / 32;
    let row = plane * 16;

    let mut d_keys = Array::<Sums>::new(widths);
    let mut d_values = Array::<Sums>::new(widths);
    #[unroll]
    for i in 0..widths {
        d_keys[i] = Vector::new(0.0f32);
        d_values[i] = Vector::new(0.0f32);
    }

    let begin = match comptime!(sight) {
        Sight::Full => 0u32.runtime(),
        Sight::Causal => first / queries * queries,
        Sight::Window => first_seen(first, window, sight) / queries * queries,
    };
    let end = match comptime!(sight) {
        Sight::Full | Sight::Causal => len,
        Sight::Window => end_seen(first, len, window, rows, sight),
    };
    let tiles = (end - begin + comptime!(queries - 1)) / queries;
    let turns = tiles * group;
    load_tile(k, key_at, start, len, first, kv_heads, kv_head, rows, chunks, units);
    load_tile(v, value_at, start, len, first, kv_heads, kv_head, rows, chunks, units);
    load_tile(
        q,
        queries_at,
        start,
        len,
        begin,
        query_heads,
        kv_head * group,
        queries,
        chunks,
        units,
    );
    load_tile(
        d_out,
        d_outs_at,
        start,
        len,
        begin,
        query_heads,
        kv_head * group,
        queries,
        chunks,
        units,
    );
    load_statistics(
        lse,
        delta,
        &mut tile_lse,
        &mut tile_delta,
        0u32,
        start,
        len,
        begin,
        query_heads,
        kv_head * group,
        queries,
    );
    copies_commit();
    let mut turn = 0u32;
    while turn < turns {
        copies_wait(0usize);
        sync_cube();
        let head = kv_head * group + turn / tiles;
        let query = begin + turn % tiles * queries;
        let stage = turn % 2;
        let query_at = queries_at + stage * comptime!(stage_chunks * 16);
        let d_out_at = d_outs_at + stage * comptime!(stage_chunks * 16);
        let statistics = stage * queries;
        if turn + 1 < turns {
            let other = 1 - stage;
            let next = begin + (turn + 1) % tiles * queries;
            let next_head = kv_head * group + (turn + 1) / tiles;
            let to = other * comptime!(stage_chunks * 16);
            load_tile(
                q,
                queries_at + to,
                start,
                len,
                next,
                query_heads,
                next_head,
                queries,
                chunks,
                units,
            );
            load_tile(
                d_out,
                d_outs_at + to,
                start,
                len,
                next,
                query_heads,
                next_head,
                queries,
                chunks,
                units,
            );
            load_statistics(
                lse,
                delta,
                &mut tile_lse,
                &mut tile_delta,
                other * queries,
                start,
                len,
                next,
                query_heads,
                next_head,
                queries,
            );
        }
        copies_commit();

        let mut scores = Array::<Sums>::new(steps);
        let mut d_weights = Array::<Sums>::new(steps);
        #[unroll]
        for i in 0..steps {
            scores[i] = Vector::new(0.0f32);
            d_weights[i] = Vector::new(0.0f32);
        }
        #[unroll]
        for step in 0..comptime!(head_dim / 16) {
            let key = left(key_at, row, step, tile);
            let value = left(value_at, row, step, tile);
            #[unroll]
            for pair in 0..comptime!(queries / 16) {
                let at = comptime!(pair as usize * 2);
                let b = right_transposed(query_at, pair * 16, step, tile);
                scores[at] = multiply(key, b.extract(0usize), b.extract(1usize), scores[at]);
                scores[at + 1] =
                    multiply(key, b.extract(2usize), b.extract(3usize), scores[at + 1]);
                let b = right_transposed(d_out_at, pair * 16, step, tile);
                d_weights[at] =
                    multiply(value, b.extract(0usize), b.extract(1usize), d_weights[at]);
                d_weights[at + 1] =
                    multiply(value, b.extract(2usize), b.extract(3usize), d_weights[at + 1]);
            }
        }

        let whole = first + rows <= len
            && match comptime!(sight) {
                Sight::Full => true.runtime(),
                Sight::Causal => first + rows <= query + 1,
                Sight::Window => {
                    first + rows <= query + window && query + queries <= first + window
                }
            };
        let mut weights = Array::<u32>::new(comptime!(steps * 2));
        let mut d_scores = Array::<u32>::new(comptime!(steps * 2));
        #[unroll]
        for n in 0..steps {
            let s = scores[n];
            let d = d_weights[n];
            let offset = comptime!(8 * n as u32) + (lane % 4) * 2;
            let lse0 = tile_lse[(statistics + offset) as usize];
            let lse1 = tile_lse[(statistics + offset + 1) as usize];
            let delta0 = tile_delta[(statistics + offset) as usize];
            let delta1 = tile_delta[(statistics + offset + 1) as usize];
            let mut p0 = exp2(fma(s.extract(0usize), scale_log2, -lse0));
            let mut p1 = exp2(fma(s.extract(1usize), scale_log2, -lse1));
            let mut p2 = exp2(fma(s.extract(2usize), scale_log2, -lse0));
            let mut p3 = exp2(fma(s.extract(3usize), scale_log2, -lse1));
            if !whole {
                let of = query + offset;
                let key = first + row + lane / 4;
                let zero = f32::new(0.0);
                p0 = select(sees(of, key, len, window, sight), p0, zero);
                p1 = select(sees(of + 1, key, len, window, sight), p1, zero);
                p2 = select(sees(of, key + 8, len, window, sight), p2, zero);
                p3 = select(sees(of + 1, key + 8, len, window, sight), p3, zero);
            }
            weights[n * 2] = pack_pair(p0, p1);
            weights[n * 2 + 1] = pack_pair(p2, p3);
            let upper =
                pack_pair(p0 * (d.extract(0usize) - delta0), p1 * (d.extract(1usize) - delta1));
            let lower =
                pack_pair(p2 * (d.extract(2usize) - delta0), p3 * (d.extract(3usize) - delta1));
            d_scores[n * 2] = upper;
            d_scores[n * 2 + 1] = lower;
            if comptime!(fast) {
                let to = d_score_at + (lane % 4) * 4;
                store_pair(to + swizzled(row + lane / 4, comptime!(n as u32), 8u32), upper);
                store_pair(to + swizzled(row + lane / 4 + 8, comptime!(n as u32), 8u32), lower);
            }
        }

        #[unroll]
        for step in 0..comptime!(queries / 16) {
            let from = comptime!(step as usize * 4);
            let weight =
                operand(weights[from], weights[from + 1], weights[from + 2], weights[from + 3]);
            let d_score =
                operand(d_scores[from], d_scores[from + 1], d_scores[from + 2], d_scores[from + 3]);
            #[unroll]
            for pair in 0..comptime!(slice / 16) {
                let at = comptime!(pair as usize * 2);
                let b = right(d_out_at, step * 16, column + pair * 2, tile);
                d_values[at] = multiply(weight, b.extract(0usize), b.extract(1usize), d_values[at]);
                d_values[at + 1] =
                    multiply(weight, b.extract(2usize), b.extract(3usize), d_values[at + 1]);
                let b = right(query_at, step * 16, column + pair * 2, tile);
                d_keys[at] = multiply(d_score, b.extract(0usize), b.extract(1usize), d_keys[at]);
                d_keys[at + 1] =
                    multiply(d_score, b.extract(2usize), b.extract(3usize), d_keys[at + 1]);
            }
        }

        if comptime!(fast) {
            sync_cube();
            add_d_queries(
                d_score_at,
                key_at,
                d_q,
                start,
                len,
                query,
                query_heads,
                head,
                column,
                head_dim,
                planes,
                queries,
                slice,
            );
        }
        turn += 1;
    }

    copies_wait(0usize);
    sync_cube();
    #[unroll]
    for n in 0..widths {
        d_keys[n] *= Vector::new(scale);
    }
    let width = comptime!(slice / 8);
    store_rows(
        &d_keys, 0usize, &key_tile, key_at, row, d_k, start, len, first, kv_heads, kv_head, column,
        width, chunks,
    );
    store_rows(
        &d_values, 0usize, &key_tile, key_at, row, d_v, start, len, first, kv_heads, kv_head,
        column, width, chunks,
    );
}

/// d_q += d_score·K for one tile of queries: each plane owns 16 queries and a part of the columns.
#[cube]
#[expect(clippy::too_many_arguments, reason = "where from, where to, and the tile's shape")]
fn add_d_queries(
    d_score_at: u32,
    key_at: u32,
    d_q: &mut [f32],
    start: u32,
    len: u32,
    query: u32,
    heads: u32,
    head: u32,
    column: u32,
    #[comptime] head_dim: u32,
    #[comptime] planes: u32,
    #[comptime] queries: u32,
    #[comptime] slice: u32,
) {
    let blocks = comptime!(queries / 16);
    let share = comptime!(slice * (queries / 16) / planes);
    let lane = UNIT_POS_X % 32;
    let plane = UNIT_POS_X / 32;
    let block = plane % blocks;
    let chunk = column + plane / blocks * comptime!(share / 8);
    let mut sums = Array::<Sums>::new(comptime!(share as usize / 8));
    #[unroll]
    for i in 0..comptime!(share as usize / 8) {
        sums[i] = Vector::new(0.0f32);
    }
    #[unroll]
    for step in 0..planes {
        let a = left_transposed(d_score_at, step * 16, block * 2, 8u32);
        #[unroll]
        for pair in 0..comptime!(share / 16) {
            let b = right(key_at, step * 16, chunk + pair * 2, comptime!(pitch(head_dim / 8)));
            let at = comptime!(pair as usize * 2);
            sums[at] = multiply(a, b.extract(0usize), b.extract(1usize), sums[at]);
            sums[at + 1] = multiply(a, b.extract(2usize), b.extract(3usize), sums[at + 1]);
        }
    }
    #[unroll]
    for n in 0..comptime!(share / 8) {
        let sum = sums[n as usize];
        let token = query + block * 16 + lane / 4;
        let at = ((start + token) * heads + head) * head_dim + (chunk + n) * 8 + (lane % 4) * 2;
        if token < len {
            add_pair(d_q, at, sum.extract(0usize), sum.extract(1usize));
        }
        if token + 8 < len {
            add_pair(d_q, at + 8 * heads * head_dim, sum.extract(2usize), sum.extract(3usize));
        }
    }
}
