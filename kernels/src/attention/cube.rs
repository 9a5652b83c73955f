//! Attention on tensor cores: the forward pass, the kernels before and after the backward passes,
//! and the helpers that all of them share.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor, the tiling and the
//! alternatives are in `launch.rs`.

#![expect(
    clippy::cast_possible_truncation,
    clippy::manual_is_multiple_of,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, CubeCL integers have no `is_multiple_of`, and a \
              kernel is one function"
)]

pub(super) mod backward_keys;
pub(super) mod backward_queries;

use cubecl::prelude::*;

use crate::cube::{
    Chunk, Sums, by_row, copies_commit, copies_wait, copy_chunk, exp2, left, multiply_pair,
    operand, pack_pair, right, right_transposed, shared_address, store_pair, swizzled,
};

/// The kind of mask, which selects a kernel's code; the width of a window is a run-time argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sight {
    /// Every token of the sequence.
    Full,
    /// The token itself and every token before it.
    Causal,
    /// Tokens at a distance below the window.
    Window,
}

/// Entry of the tile table: first token of the sequence, length of the sequence, the tile's first
/// token within the sequence, and zero.
type TileEntry = Vector<u32, Const<4>>;

/// Score of a key that the query does not see; its exponential is zero.
const UNSEEN: f64 = -3.0e38;
/// Initial value of a running maximum, below every score.
const FLOOR: f64 = -1.0e30;

/// Chunks between the starts of two rows of a tile, at least the eight that swizzling permutes.
fn pitch(chunks: u32) -> u32 {
    chunks.max(8)
}

/// The rows of one head of one sequence in a packed buffer (tokens, heads, head width).
#[derive(CubeType, Clone, Copy)]
struct HeadRows {
    /// First token of the sequence in the buffer.
    start: u32,
    /// Number of tokens of the sequence.
    len: u32,
    /// Number of heads in the buffer.
    heads: u32,
    /// The head.
    head: u32,
}

#[cube]
impl HeadRows {
    /// Row of the buffer, viewed as (tokens · heads, head width), of a token of the sequence.
    fn row(&self, token: u32) -> u32 {
        (self.start + token) * self.heads + self.head
    }
}

/// Starts to copy `rows` tokens of one head, beginning at `first`, into a swizzled tile. Tokens
/// past the end of the sequence become zeros.
#[cube]
fn load_tile(
    from: &[Chunk],
    to: u32,
    of: &HeadRows,
    first: u32,
    #[comptime] rows: u32,
    #[comptime] chunks: u32,
    #[comptime] units: u32,
) {
    #[unroll]
    for i in 0..comptime!((rows * chunks).div_ceil(units)) {
        let at = UNIT_POS_X + i * units;
        let row = at / chunks;
        let token = first + row;
        let inside = token < of.len;
        let index = of.row(select(inside, token, 0u32)) * chunks + at % chunks;
        let to = to + swizzled(row, at % chunks, comptime!(pitch(chunks)));
        if comptime!((rows * chunks).is_multiple_of(units)) || at < rows * chunks {
            copy_chunk(from, index, to, select(inside, 16u32, 0u32));
        }
    }
}

/// Whether `query` sees `key`, both given as positions in a sequence of `len` tokens.
#[cube]
fn sees(query: u32, key: u32, len: u32, window: u32, #[comptime] sight: Sight) -> bool {
    let inside = key < len;
    match comptime!(sight) {
        Sight::Full => inside,
        Sight::Causal => inside && key <= query,
        Sight::Window => inside && key < query + window && query < key + window,
    }
}

/// `score` if the query sees the key, otherwise a number whose exponential is zero.
#[cube]
fn seen(score: f32, sees: bool) -> f32 {
    select(sees, score, f32::new(UNSEEN))
}

/// Sum of `value` over the four lanes that share a row.
#[cube]
fn row_sum(value: f32) -> f32 {
    let pair = value + plane_shuffle_xor(value, 1u32);
    pair + plane_shuffle_xor(pair, 2u32)
}

/// Maximum of `value` over the four lanes that share a row.
#[cube]
fn row_max(value: f32) -> f32 {
    let pair = max(value, plane_shuffle_xor(value, 1u32));
    max(pair, plane_shuffle_xor(pair, 2u32))
}

/// First key that at least one query from `first` sees.
#[cube]
fn first_seen(first: u32, window: u32, #[comptime] sight: Sight) -> u32 {
    let out = RuntimeCell::<u32>::new(0u32);
    if comptime!(matches!(sight, Sight::Window)) {
        out.store(select(first + 1 > window, first + 1 - window, 0u32));
    }
    out.read()
}

/// End (exclusive) of the keys that at least one of `rows` queries from `first` sees. A window is
/// symmetric, so with a window this is also the end of the queries that see any of `rows` keys.
#[cube]
fn end_seen(
    first: u32,
    len: u32,
    window: u32,
    #[comptime] rows: u32,
    #[comptime] sight: Sight,
) -> u32 {
    match comptime!(sight) {
        Sight::Full => len,
        Sight::Causal => min(len, first + rows),
        Sight::Window => min(len, first + rows - 1 + window),
    }
}

/// Writes 16 rows of one warp from `sums` to `out` in bf16. The rows pass through the warp's part
/// of `tile` (shared address `address`), so that each thread stores 16 bytes at a time.
#[cube]
#[expect(clippy::too_many_arguments, reason = "source, destination and shape of a tile")]
fn store_rows(
    sums: &Array<Sums>,
    offset: usize,
    tile: &Shared<[Chunk]>,
    address: u32,
    row: u32,
    out: &mut [Chunk],
    of: &HeadRows,
    first: u32,
    column: u32,
    #[comptime] width: u32,
    #[comptime] chunks: u32,
) {
    let lane = UNIT_POS_X % 32;
    // Pack the sums into the shared tile.
    #[unroll]
    for n in 0..width {
        let sum = sums[offset + n as usize];
        let upper = row + lane / 4;
        let to = address + (lane % 4) * 4;
        let top = pack_pair(sum.extract(0usize), sum.extract(1usize));
        let bottom = pack_pair(sum.extract(2usize), sum.extract(3usize));
        store_pair(to + swizzled(upper, n, comptime!(pitch(chunks))), top);
        store_pair(to + swizzled(upper + 8, n, comptime!(pitch(chunks))), bottom);
    }
    sync_plane();
    // Store whole chunks of the rows inside the sequence.
    #[unroll]
    for i in 0..comptime!(16 * width / 32) {
        let at = lane + i * 32;
        let tile_row = row + at / width;
        let chunk = at % width;
        let token = first + tile_row;
        if token < of.len {
            let index = of.row(token) * chunks + column + chunk;
            out[index as usize] =
                tile[(swizzled(tile_row, chunk, comptime!(pitch(chunks))) / 16) as usize];
        }
    }
    sync_plane();
}

/// out and log-sum-exp of one tile of queries of one head. A warp owns `blocks` fragments of 16
/// queries.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn attention_forward(
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
    let widths = comptime!(head_dim as usize / 8);
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
        for step in 0..comptime!(head_dim / 16) {
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
                    let mut new = Sums::empty();
                    new.insert(
                        0usize,
                        seen(old.extract(0usize), sees(query, column, len, window, sight)),
                    );
                    new.insert(
                        1usize,
                        seen(old.extract(1usize), sees(query, column + 1, len, window, sight)),
                    );
                    new.insert(
                        2usize,
                        seen(old.extract(2usize), sees(query + 8, column, len, window, sight)),
                    );
                    new.insert(
                        3usize,
                        seen(old.extract(3usize), sees(query + 8, column + 1, len, window, sight)),
                    );
                    scores[block * steps + n] = new;
                }
            }
        }

        // online softmax: P = exp(scale · (scores − max)), packed as bf16 operands
        let mut weights = Array::<u32>::new(comptime!(blocks * steps * 2));
        #[unroll]
        for block in 0..blocks {
            // New maximum of the upper and lower row, over this tile and the tiles before.
            let mut upper = maxima[block * 2];
            let mut lower = maxima[block * 2 + 1];
            #[unroll]
            for n in 0..steps {
                let s = scores[block * steps + n];
                upper = max(upper, max(s.extract(0usize), s.extract(1usize)));
                lower = max(lower, max(s.extract(2usize), s.extract(3usize)));
            }
            upper = row_max(upper);
            lower = row_max(lower);
            // Factors exp(scale · (old max − new max)) that bring O and the sums to the new
            // maximum.
            let keep_upper = exp2((maxima[block * 2] - upper) * scale_log2);
            let keep_lower = exp2((maxima[block * 2 + 1] - lower) * scale_log2);
            if comptime!(head_dim == 256) {
                // The sums take nearly all registers. Without this barrier the compiler moves work
                // across and spills.
                sync_plane();
            }
            maxima[block * 2] = upper;
            maxima[block * 2 + 1] = lower;
            let base_upper = upper * scale_log2;
            let base_lower = lower * scale_log2;
            let mut total_upper = totals[block * 2] * keep_upper;
            let mut total_lower = totals[block * 2 + 1] * keep_lower;
            #[unroll]
            for n in 0..steps {
                let s = scores[block * steps + n];
                let p0 = exp2(fma(s.extract(0usize), scale_log2, -base_upper));
                let p1 = exp2(fma(s.extract(1usize), scale_log2, -base_upper));
                let p2 = exp2(fma(s.extract(2usize), scale_log2, -base_lower));
                let p3 = exp2(fma(s.extract(3usize), scale_log2, -base_lower));
                total_upper += p0 + p1;
                total_lower += p2 + p3;
                weights[(block * steps + n) * 2] = pack_pair(p0, p1);
                weights[(block * steps + n) * 2 + 1] = pack_pair(p2, p3);
            }
            totals[block * 2] = total_upper;
            totals[block * 2 + 1] = total_lower;
            // O *= exp(scale · (old max − new max))
            let keep = by_row(keep_upper, keep_lower);
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
            for pair in 0..comptime!(chunks / 2) {
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
        let upper = row_sum(totals[block * 2]);
        let lower = row_sum(totals[block * 2 + 1]);
        let inverse = by_row(1.0f32 / upper, 1.0f32 / lower);
        #[unroll]
        for n in 0..widths {
            sums[block * widths + n] *= inverse;
        }
        // Store lse = scale · max + ln(sum of exponentials).
        let block_row = row + comptime!(16 * block as u32);
        let token = first + block_row + lane / 4;
        if lane % 4 == 0 {
            if token < len {
                lse[queries_of_head.row(token) as usize] = maxima[block * 2] * scale + upper.ln();
            }
            if token + 8 < len {
                lse[queries_of_head.row(token + 8) as usize] =
                    maxima[block * 2 + 1] * scale + lower.ln();
            }
        }
        // Store O through the warp's own rows of the Q tile.
        store_rows(
            &sums,
            comptime!(block * widths),
            &query_tile,
            query_at,
            block_row,
            out,
            &queries_of_head,
            first,
            0u32,
            chunks,
            chunks,
        );
    }
}

/// δ = Σ out·d_out per token and head. `clear` also zeroes the f32 sums in which the fast mode adds
/// up d_q.
#[cube(launch)]
pub(super) fn attention_prepare(
    out: &[Chunk],
    d_out: &[Chunk],
    delta: &mut [f32],
    d_q: &mut [Sums],
    rows: u32,
    #[comptime] chunks: u32,
    #[comptime] clear: bool,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    let row = at / chunks;
    let inside = row < rows;
    let index = select(inside, at, 0u32) as usize;
    // Products of one chunk of eight elements per thread
    let products = Vector::<f32, Const<8>>::cast_from(out[index])
        * Vector::<f32, Const<8>>::cast_from(d_out[index]);
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..8usize {
        sum += products.extract(i);
    }
    // Sum over the threads of one head.
    #[unroll]
    for step in 0..comptime!(chunks.ilog2()) {
        sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
    }
    if inside {
        if at % chunks == 0 {
            delta[row as usize] = sum;
        }
        if comptime!(clear) {
            d_q[index * 2] = Vector::new(0.0f32);
            d_q[index * 2 + 1] = Vector::new(0.0f32);
        }
    }
}

/// d_q in bf16 from its f32 sums, times the scale.
#[cube(launch)]
pub(super) fn attention_finish(
    sums: &[Vector<f32, Const<8>>],
    d_q: &mut [Chunk],
    scale: f32,
    chunks: u32,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < chunks {
        d_q[at as usize] = Vector::cast_from(sums[at as usize] * Vector::new(scale));
    }
}

/// Copies log-sum-exp (in base 2) and δ of `rows` tokens of one head into shared memory. Tokens
/// past the end of the sequence get a log-sum-exp that makes their probabilities zero.
#[cube]
#[expect(clippy::too_many_arguments, reason = "source, destination and shape of a tile")]
fn load_statistics(
    lse: &[f32],
    delta: &[f32],
    tile_lse: &mut Shared<[f32]>,
    tile_delta: &mut Shared<[f32]>,
    to: u32,
    of: &HeadRows,
    first: u32,
    #[comptime] rows: u32,
) {
    if UNIT_POS_X < rows {
        let token = first + UNIT_POS_X;
        let inside = token < of.len;
        let at = of.row(select(inside, token, 0u32)) as usize;
        let to = (to + UNIT_POS_X) as usize;
        tile_lse[to] =
            select(inside, lse[at] * f32::new(std::f64::consts::LOG2_E), f32::new(-FLOOR));
        tile_delta[to] = select(inside, delta[at], f32::new(0.0));
    }
}
