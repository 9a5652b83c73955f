//! The backward pass by tiles of keys: d_k and d_v, and in the fast mode also d_q by atomics.
//!
//! A block owns a tile of keys and walks over the queries that see them. Each warp owns 16 or 32 of
//! the keys; with [`Shape::groups`] = 2, two warps own the same keys, and each of them takes every
//! second strip of queries. A fragment of Q or dO is then used in the products of two fragments of
//! keys. [`Shape::held`] keeps fragments of K and V in registers, so that the walk over the queries
//! does not load them again. The groups add up their d_k and d_v through shared memory at the end.
//!
//! At a width of 64 a block of 8 warps owns 128 keys, and a tile has 128 queries. Occupancy: one
//! block per multiprocessor, two warps per scheduler (255 registers per thread; 133,120 bytes of
//! shared memory). Of the registers, d_k and d_v take 128 and the fragments of K and V 56; P and dS
//! of 32 keys by 16 queries take 32 temporarily.
//!
//! The table lists versions at a width of 64 in the fast mode, with `ldmatrix` per 160 `mma.sync`
//! of a warp (NVRTC 12.9.86, none timed). An `ldmatrix` occupies shared memory for 4 clocks. If 8
//! `mma.sync` take 52 clocks, 62 % of the tensor cores' rate, the products of a tile of 128 queries
//! take 4,160 clocks. The `ldmatrix` take 6,140 clocks in version 1 and 3,330 in version 5; copies
//! and dS take about 500.
//!
//! | version | `ldmatrix` | registers | bytes spilled |
//! |---|---|---|---|
//! | 1. 16 keys per warp, K and V loaded for each tile of 64 queries | 96 | 220 | 0 |
//! | 2. 32 keys per warp, two groups, all of K and V held | 48 | 255 | 48 |
//! | 3. like 2, strips unrolled (3,150 instructions instead of 2,090) | 48 | 255 | 16 |
//! | 4. like 2, Q and dO with one address | 48 | 255 | 32 |
//! | 5. like 4, the last quarter of V loaded for each strip | 52 | 255 | 0 |
//!
//! Version 5 has the fewest `ldmatrix` of the versions that spill nothing, and is the one below.
//! With a window, half of V is loaded for each strip (56 `ldmatrix`). dS·K gives each warp 32
//! queries by 32 columns, from 32 `ldmatrix`; 16 queries by 64 columns took 40.

#![expect(
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, and a kernel is one function"
)]

mod products;

use cubecl::prelude::*;

use super::{
    HeadRows, Sight, TileEntry, end_seen, first_seen, load_queries, load_tile, pitch, store_rows,
};
use crate::cube::{Chunk, Packed4, Sums, copies_commit, copies_wait, shared_address};
use products::{add_d_queries, add_groups, add_product, hold, store_d_scores, strip_gradient};

/// Sizes that select the code of [`attention_backward_keys`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) head_dim: u32,
    /// Columns of d_k and d_v that a block owns.
    pub(crate) slice: u32,
    /// The kind of mask.
    pub(crate) sight: Sight,
    pub(crate) warps: u32,
    /// Groups of warps that own the same keys and alternate over the queries: 1 or 2.
    pub(crate) groups: u32,
    /// Fragments of 16 keys that a warp owns.
    pub(crate) fragments: u32,
    /// Queries per tile in shared memory.
    pub(crate) queries: u32,
    /// Queries that a warp multiplies at a time.
    pub(crate) strip: u32,
    /// Steps of 16 columns of K and of V whose fragments stay in registers.
    pub(crate) held: [u32; 2],
    /// Whether d_q is summed by atomics during this pass.
    pub(crate) fast: bool,
}

impl Shape {
    /// Keys that a warp owns.
    fn warp_keys(self) -> u32 {
        16 * self.fragments
    }

    /// Keys that a block owns.
    pub(crate) fn keys(self) -> u32 {
        self.warp_keys() * self.warps / self.groups
    }

    /// Chunks between the starts of two rows of a tile of Q, K, V or dO.
    fn tile(self) -> u32 {
        pitch(self.head_dim / 8)
    }

    /// Chunks between the rows of two keys of dS.
    fn d_score_pitch(self) -> u32 {
        pitch(self.queries / 8)
    }

    /// Bytes of one stage of Q or dO.
    fn stage_bytes(self) -> u32 {
        self.queries * self.tile() * 16
    }

    /// Distance in shared memory from a row of Q to the same row of dO, in rows.
    fn d_out_row(self) -> u32 {
        2 * self.queries
    }

    /// Accumulators (`Sums`) of 16 keys by one strip of queries.
    fn steps(self) -> usize {
        self.strip as usize / 8
    }

    /// Accumulators (`Sums`) of 16 rows of d_k or d_v by the block's columns.
    fn widths(self) -> usize {
        self.slice as usize / 8
    }

    /// Fragments of K (`of` = 0) or V (`of` = 1) that a warp keeps in registers.
    fn held_fragments(self, of: usize) -> u32 {
        self.fragments * self.held[of]
    }

    /// Columns of d_q that a warp computes, for as many fragments of 16 queries as it owns of keys.
    fn d_query_columns(self) -> u32 {
        self.slice * self.queries / (self.warp_keys() * self.warps)
    }
}

/// d_k and d_v of one tile of keys of one key/value head, summed over its query heads. With
/// [`Shape::fast`], also d_q.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(crate) fn attention_backward_keys(
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
    #[comptime] shape: Shape,
) {
    let Shape { slice, sight, warps, groups, queries, strip, fast, .. } = shape;
    let chunks = comptime!(shape.head_dim / 8);
    let units = comptime!(warps * 32);
    let keys = comptime!(shape.keys());
    let widths = comptime!(shape.widths());
    let key_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((keys * shape.tile()) as usize), 128usize);
    let value_tile =
        Shared::<[Chunk]>::new_aligned_slice(comptime!((keys * shape.tile()) as usize), 128usize);
    // Two stages of Q, followed by two stages of dO.
    let stages = Shared::<[Chunk]>::new_aligned_slice(
        comptime!((shape.stage_bytes() / 4) as usize),
        128usize,
    );
    let d_score_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!(if fast { (keys * shape.d_score_pitch()) as usize } else { 8 }),
        128usize,
    );
    let mut tile_lse = Shared::<[f32]>::new_slice(comptime!(2 * queries as usize));
    let mut tile_delta = Shared::<[f32]>::new_slice(comptime!(2 * queries as usize));
    let key_at = shared_address(&key_tile);
    let value_at = shared_address(&value_tile);
    let queries_at = shared_address(&stages);
    let d_outs_at = queries_at + comptime!(2 * shape.stage_bytes());
    let d_score_at = shared_address(&d_score_tile);

    // Tile of this block, and the keys of this warp
    let entry = tile_table[CUBE_POS_X as usize];
    let start = entry.extract(0usize);
    let len = entry.extract(1usize);
    let first = entry.extract(2usize);
    let kv_head = CUBE_POS_Y;
    let heads = query_heads / kv_heads;
    let column = match comptime!(slice == shape.head_dim) {
        true => 0u32.runtime(),
        false => CUBE_POS_Z * comptime!(slice / 8),
    };
    let warp = UNIT_POS_X / 32;
    let row = warp % comptime!(warps / groups) * comptime!(shape.warp_keys());
    let group = warp / comptime!(warps / groups);

    // d_k = 0, d_v = 0
    let mut d_keys = Array::<Sums>::new(comptime!(shape.fragments as usize * widths));
    let mut d_values = Array::<Sums>::new(comptime!(shape.fragments as usize * widths));
    #[unroll]
    for i in 0..comptime!(shape.fragments as usize * widths) {
        d_keys[i] = Vector::new(0.0f32);
        d_values[i] = Vector::new(0.0f32);
    }

    // Queries that see any of the keys
    let begin = match comptime!(sight) {
        Sight::Full => 0u32.runtime(),
        Sight::Causal => first,
        Sight::Window => first_seen(first, window, sight),
    };
    let end = match comptime!(sight) {
        Sight::Full | Sight::Causal => len,
        Sight::Window => end_seen(first, len, window, keys, sight),
    };

    let keys_of_head = HeadRows { start, len, heads: kv_heads, head: kv_head };
    // Load K, V and the first tile of Q and dO.
    load_tile(k, key_at, &keys_of_head, first, keys, chunks, units);
    load_tile(v, value_at, &keys_of_head, first, keys, chunks, units);
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
        queries,
        chunks,
        units,
    );
    copies_commit();

    // Keep fragments of K and V in registers.
    let mut key_fragments = Array::<Packed4>::new(comptime!(shape.held_fragments(0) as usize));
    let mut value_fragments = Array::<Packed4>::new(comptime!(shape.held_fragments(1) as usize));
    if comptime!(shape.held != [0, 0]) {
        copies_wait(0usize);
        sync_cube();
        hold(key_at, row, &mut key_fragments, shape.held_fragments(0), shape);
        hold(value_at, row, &mut value_fragments, shape.held_fragments(1), shape);
    }

    // Walk over the tiles of queries of each query head that shares the keys.
    let head_end = (kv_head + 1) * heads;
    let mut query = begin;
    let mut stage = 0u32;
    while head < head_end {
        // Wait for this tile of Q and dO. The other stage and the tile of dS are free.
        copies_wait(0usize);
        sync_cube();

        // Load the next tile of Q and dO: the next queries of this head, or the first of the next
        // head.
        let last = query + queries >= end;
        let next = select(last, begin, query + queries);
        let next_head = select(last, head + 1, head);
        if next_head < head_end {
            let other = 1 - stage;
            let to = other * comptime!(shape.stage_bytes());
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
                other * queries,
                &next_of_head,
                next,
                queries,
                chunks,
                units,
            );
        }
        copies_commit();

        // Strips of queries, of which each group of warps takes every `groups`-th
        let mut sub = group * strip;
        while sub < queries && query + sub < end {
            let row_bytes = comptime!(shape.tile() * 16);
            let query_at = queries_at + stage * comptime!(shape.stage_bytes()) + sub * row_bytes;
            let mut weights =
                Array::<u32>::new(comptime!(shape.fragments as usize * shape.steps() * 2));
            let mut d_scores =
                Array::<u32>::new(comptime!(shape.fragments as usize * shape.steps() * 2));
            // P and dS of the strip
            strip_gradient(
                key_at,
                value_at,
                query_at,
                &key_fragments,
                &value_fragments,
                &tile_lse,
                &tile_delta,
                stage * queries + sub,
                row,
                first,
                query + sub,
                len,
                window,
                scale_log2,
                &mut weights,
                &mut d_scores,
                shape,
            );
            if comptime!(fast) {
                store_d_scores(d_score_at, row, sub, &d_scores, shape);
            }
            // d_v += Pᵀ·dO, d_k += dSᵀ·Q
            add_product(&weights, query_at, shape.d_out_row(), column, &mut d_values, shape);
            add_product(&d_scores, query_at, 0u32, column, &mut d_keys, shape);
            sub += comptime!(strip * groups);
        }

        // d_q += dS·K, once every warp has stored its dS
        if comptime!(fast) {
            sync_cube();
            add_d_queries(
                d_score_at,
                key_at,
                d_q,
                start,
                end,
                query,
                query_heads,
                head,
                column,
                shape,
            );
        }
        query = next;
        head = next_head;
        stage = 1 - stage;
    }

    // Add up the groups, whose sums pass through the stages of Q and dO.
    copies_wait(0usize);
    sync_cube();
    if comptime!(groups == 2) {
        add_groups(queries_at, d_outs_at, group, &mut d_keys, &mut d_values, shape);
    }
    // d_k *= scale
    #[unroll]
    for i in 0..comptime!(shape.fragments as usize * widths) {
        d_keys[i] *= Vector::new(scale);
    }
    // Store d_k from the first group of warps and d_v from the last, each through a tile of its
    // own.
    let width = comptime!(slice / 8);
    #[unroll]
    for fragment in 0..comptime!(shape.fragments as usize) {
        let offset = comptime!(fragment * widths);
        let row = row + comptime!(16 * fragment as u32);
        if comptime!(groups == 1) || group == 0 {
            store_rows(
                &d_keys,
                offset,
                &key_tile,
                key_at,
                row,
                d_k,
                &keys_of_head,
                first,
                column,
                width,
                chunks,
            );
        }
        if comptime!(groups == 1) || group == 1 {
            store_rows(
                &d_values,
                offset,
                &value_tile,
                value_at,
                row,
                d_v,
                &keys_of_head,
                first,
                column,
                width,
                chunks,
            );
        }
    }
}
