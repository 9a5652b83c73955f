//! Attention on tensor cores: the kernels before and after the backward passes, and what the
//! kernels of the passes share.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor, the tiling and the
//! alternatives are in `launch.rs`.

#![expect(clippy::manual_is_multiple_of, reason = "CubeCL integers have no `is_multiple_of`")]

pub(super) mod backward_keys;
pub(super) mod backward_queries;
pub(super) mod forward;
pub(super) mod warpgroup_backward;
pub(super) mod warpgroup_forward;

use cubecl::prelude::*;

use crate::cube::{Chunk, Sums, by_row, copy_chunk, exp2, pack_pair, store_pair, swizzled};

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

/// Chunks between the starts of two rows of a tile: a power of two, at least the eight that
/// swizzling permutes.
fn pitch(chunks: u32) -> u32 {
    chunks.next_power_of_two().max(8)
}

/// Chunks of a row of a tile that products read: two for each 16 columns. An odd number of chunks
/// is followed by zeros.
fn padded(chunks: u32) -> u32 {
    chunks.next_multiple_of(2)
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
    let wide = comptime!(padded(chunks));
    #[unroll]
    for i in 0..comptime!((rows * wide).div_ceil(units)) {
        let at = UNIT_POS_X + i * units;
        let row = at / wide;
        let token = first + row;
        let inside = match comptime!(wide == chunks) {
            true => token < of.len,
            false => token < of.len && at % wide < chunks,
        };
        let column = match comptime!(wide == chunks) {
            true => at % wide,
            false => min(at % wide, chunks - 1),
        };
        let index = of.row(select(inside, token, 0u32)) * chunks + column;
        let to = to + swizzled(row, at % wide, comptime!(pitch(chunks)));
        if comptime!((rows * wide).is_multiple_of(units)) || at < rows * wide {
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
    for i in 0..comptime!((16 * width).div_ceil(32)) {
        let at = lane + i * 32;
        let tile_row = row + at / width;
        let chunk = at % width;
        let token = first + tile_row;
        if token < of.len && (comptime!((16 * width).is_multiple_of(32)) || at < 16 * width) {
            let index = of.row(token) * chunks + column + chunk;
            out[index as usize] =
                tile[(swizzled(tile_row, chunk, comptime!(pitch(chunks))) / 16) as usize];
        }
    }
    sync_plane();
}

/// Replaces the scores of keys that their query does not see. `query` and `key` are the positions
/// of the upper row and of the first column.
#[cube]
fn hide(
    scores: Sums,
    query: u32,
    key: u32,
    len: u32,
    window: u32,
    #[comptime] sight: Sight,
) -> Sums {
    let mut out = Sums::empty();
    out.insert(0usize, seen(scores.extract(0usize), sees(query, key, len, window, sight)));
    out.insert(1usize, seen(scores.extract(1usize), sees(query, key + 1, len, window, sight)));
    out.insert(2usize, seen(scores.extract(2usize), sees(query + 8, key, len, window, sight)));
    out.insert(3usize, seen(scores.extract(3usize), sees(query + 8, key + 1, len, window, sight)));
    out
}

/// One step of the online softmax for 16 queries, whose scores are `steps` sums from
/// `block * steps`: writes P = exp(scale · (scores − max)) to `weights`, packed as bf16 operands,
/// and updates maxima and sums of exponentials of the upper and lower rows. Returns the factors
/// exp(scale · (old max − new max)) that bring O to the new maximum.
#[cube]
#[expect(clippy::too_many_arguments, reason = "scores, state and shape of a tile")]
fn online_softmax(
    scores: &Array<Sums>,
    block: usize,
    weights: &mut Array<u32>,
    maxima: &mut Array<f32>,
    totals: &mut Array<f32>,
    scale_log2: f32,
    #[comptime] steps: usize,
    #[comptime] head_dim: u32,
) -> Sums {
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
    let keep_upper = exp2((maxima[block * 2] - upper) * scale_log2);
    let keep_lower = exp2((maxima[block * 2 + 1] - lower) * scale_log2);
    if comptime!(head_dim == 256) {
        // The sums take nearly all registers. Without this barrier the compiler moves work across
        // and spills.
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
    by_row(keep_upper, keep_lower)
}

/// Divides O of 16 queries by their sums of exponentials and stores it, with the log-sum-exps
/// scale · max + ln(sum). O passes through the warp's own rows of `tile`.
#[cube]
#[expect(clippy::too_many_arguments, reason = "state, destination and shape of a tile")]
fn store_outputs(
    sums: &mut Array<Sums>,
    block: usize,
    maxima: &Array<f32>,
    totals: &Array<f32>,
    scale: f32,
    tile: &Shared<[Chunk]>,
    address: u32,
    row: u32,
    out: &mut [Chunk],
    lse: &mut [f32],
    of: &HeadRows,
    first: u32,
    #[comptime] chunks: u32,
) {
    let widths = comptime!(padded(chunks) as usize);
    let lane = UNIT_POS_X % 32;
    let upper = row_sum(totals[block * 2]);
    let lower = row_sum(totals[block * 2 + 1]);
    let inverse = by_row(1.0f32 / upper, 1.0f32 / lower);
    #[unroll]
    for n in 0..widths {
        sums[block * widths + n] *= inverse;
    }
    let token = first + row + lane / 4;
    if lane % 4 == 0 {
        if token < of.len {
            lse[of.row(token) as usize] = maxima[block * 2] * scale + upper.ln();
        }
        if token + 8 < of.len {
            lse[of.row(token + 8) as usize] = maxima[block * 2 + 1] * scale + lower.ln();
        }
    }
    let from = block * widths;
    store_rows(&*sums, from, tile, address, row, out, of, first, 0u32, chunks, chunks);
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

/// Starts to copy one tile of Q and dO of a head, and copies its log-sum-exps and δ.
#[cube]
#[expect(clippy::too_many_arguments, reason = "sources, destinations and shape of a tile")]
fn load_queries(
    q: &[Chunk],
    d_out: &[Chunk],
    lse: &[f32],
    delta: &[f32],
    query_at: u32,
    d_out_at: u32,
    tile_lse: &mut Shared<[f32]>,
    tile_delta: &mut Shared<[f32]>,
    statistics: u32,
    of: &HeadRows,
    first: u32,
    #[comptime] rows: u32,
    #[comptime] chunks: u32,
    #[comptime] units: u32,
) {
    load_tile(q, query_at, of, first, rows, chunks, units);
    load_tile(d_out, d_out_at, of, first, rows, chunks, units);
    load_statistics(lse, delta, tile_lse, tile_delta, statistics, of, first, rows);
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
