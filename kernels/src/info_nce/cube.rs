//! `InfoNCE` on tensor cores: scores are computed tile by tile, used, and never stored.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit. The floor, the tiling and the
//! alternatives are in `launch.rs`.

#![expect(
    clippy::cast_possible_truncation,
    clippy::collapsible_if,
    clippy::manual_is_multiple_of,
    clippy::too_many_lines,
    reason = "compile-time tile counts fit `u32`, CubeCL integers have no `is_multiple_of`, and a \
              kernel is one function"
)]

pub(super) mod strips;

use cubecl::prelude::*;

use crate::cube::{
    Chunk, Sums, copies_commit, copies_wait, copy_chunk, cube_total, exp2, left, multiply_pair,
    pack_pair, right, right_transposed, shared_address,
};

/// Rows and columns of a block's tile.
pub(super) const TILE: u32 = 128;
/// Warps of a block: four along the rows (32 each) by two along the columns (64 each).
pub(super) const PLANES: u32 = 8;
/// Column halves of a tile; each half has its own statistics.
pub(super) const HALVES: u32 = 2;
/// Elements of the embedding in one slice: eight chunks of eight.
const SLICE: u32 = 64;
/// Slices that shared memory holds at a time.
const STAGES: u32 = 3;
/// Bytes of a slice of one operand.
const STAGE_BYTES: u32 = TILE * SLICE * 2;
/// Products of 16×8 scores that a warp computes: two along the rows by eight along the columns.
const BLOCKS: usize = 2;
const STEPS: usize = 8;
/// Score that does not count; its exponential is zero.
const UNSEEN: f64 = -3.0e38;
/// Initial value of a running maximum, below every score.
const FLOOR: f64 = -1.0e30;
const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Hash of a target text, in two halves of 32 bits.
type Hash = Vector<u32, Const<2>>;

/// Starts to copy `rows` rows from `first`, and `width` chunks of each from `chunk`, into a
/// swizzled tile. Elements outside the matrix become zeros.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a matrix, a position in it, and shared memory")]
fn load_block(
    from: &[Chunk],
    to: u32,
    first: u32,
    row_end: u32,
    chunk: u32,
    chunk_end: u32,
    pitch: u32,
    #[comptime] rows: u32,
    #[comptime] width: u32,
) {
    #[unroll]
    for i in 0..comptime!(rows * width / (PLANES * 32)) {
        let at = UNIT_POS_X + i * comptime!(PLANES * 32);
        let row = at / width;
        let column = at % width;
        let inside = first + row < row_end && chunk + column < chunk_end;
        let index = select(inside, (first + row) * pitch + chunk + column, 0u32);
        let to = to + crate::cube::swizzled(row, column, width);
        copy_chunk(from, index, to, select(inside, 16u32, 0u32));
    }
}

/// Scores over α of one tile: 128 rows from `first_row` by 128 columns of `all` from
/// `first_column`. Each warp computes 32×64 of them.
#[cube]
#[expect(clippy::too_many_arguments, reason = "two matrices, positions in them, shared memory")]
fn tile_scores(
    rows: &[Chunk],
    all: &[Chunk],
    left_at: u32,
    right_at: u32,
    first_row: u32,
    row_end: u32,
    first_column: u32,
    column_end: u32,
    chunks: u32,
    sums: &mut Array<Sums>,
) {
    let plane = UNIT_POS_X / 32;
    let row = plane / HALVES * 32;
    let column = plane % HALVES * 64;
    // scores = 0
    #[unroll]
    for i in 0..comptime!(BLOCKS * STEPS) {
        sums[i] = Vector::new(0.0f32);
    }
    let slices = chunks.div_ceil(comptime!(SLICE / 8));
    // Wait until every warp has left the stages of the previous tile.
    sync_cube();
    // Load the first slices of both operands.
    #[unroll]
    for stage in 0..comptime!(STAGES - 1) {
        let chunk = comptime!(stage * (SLICE / 8)).runtime();
        let to = comptime!(stage * STAGE_BYTES);
        load_block(rows, left_at + to, first_row, row_end, chunk, chunks, chunks, TILE, 8u32);
        load_block(all, right_at + to, first_column, column_end, chunk, chunks, chunks, TILE, 8u32);
        copies_commit();
    }
    let mut slice = 0u32.runtime();
    while slice < slices {
        // Wait for this slice.
        copies_wait(1usize);
        sync_cube();
        // Load the slice two ahead into the stage that the previous slice has left.
        let ahead = slice + comptime!(STAGES - 1);
        if ahead < slices {
            let chunk = ahead * comptime!(SLICE / 8);
            let to = ahead % STAGES * STAGE_BYTES;
            load_block(rows, left_at + to, first_row, row_end, chunk, chunks, chunks, TILE, 8u32);
            load_block(
                all,
                right_at + to,
                first_column,
                column_end,
                chunk,
                chunks,
                chunks,
                TILE,
                8u32,
            );
        }
        copies_commit();
        // scores += rows·allᵀ over this slice
        let from = slice % STAGES * STAGE_BYTES;
        #[unroll]
        for step in 0..comptime!(SLICE / 16) {
            #[unroll]
            for pair in 0..comptime!(STEPS as u32 / 2) {
                let b = right_transposed(right_at + from, column + pair * 16, step, 8u32);
                #[unroll]
                for block in 0..BLOCKS {
                    let a = left(left_at + from, row + comptime!(16 * block as u32), step, 8u32);
                    let at = comptime!(block * STEPS + pair as usize * 2);
                    multiply_pair(a, b, sums, at);
                }
            }
        }
        slice += 1;
    }
}

/// Whether the score of a row with hash `row_hash` and of column `column` counts: the column
/// exists, and it is the row's own (`own`) or has another target.
#[cube]
fn counts(
    row_hash: Hash,
    all_hashes: &[Hash],
    own: u32,
    column: u32,
    columns: u32,
    #[comptime] masked: bool,
) -> bool {
    let mut counts = column < columns;
    if comptime!(masked) {
        if counts && column != own {
            let hash = all_hashes[column as usize];
            counts = hash.extract(0usize) != row_hash.extract(0usize)
                || hash.extract(1usize) != row_hash.extract(1usize);
        }
    }
    counts
}

/// Hash of a row if equal targets are masked, otherwise zero.
#[cube]
fn hash_of(hashes: &[Hash], row: u32, rows: u32, #[comptime] masked: bool) -> Hash {
    let mut hash = Hash::new(0u32);
    if comptime!(masked) {
        hash = hashes[select(row < rows, row, 0u32) as usize];
    }
    hash
}

/// Maximum and sum of exponentials of each row over one split of the columns, and s_ii if the split
/// contains it.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn nce_statistics(
    rows: &[Chunk],
    all: &[Chunk],
    alpha: &[f32],
    row_hashes: &[Hash],
    all_hashes: &[Hash],
    maxima: &mut [f32],
    totals: &mut [f32],
    diagonal: &mut [f32],
    row_count: u32,
    column_count: u32,
    first_row: u32,
    chunks: u32,
    tiles: u32,
    #[comptime] masked: bool,
) {
    let left_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!((STAGES * STAGE_BYTES / 16) as usize),
        128usize,
    );
    let right_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!((STAGES * STAGE_BYTES / 16) as usize),
        128usize,
    );
    let left_at = shared_address(&left_tile);
    let right_at = shared_address(&right_tile);
    let lane = UNIT_POS_X % 32;
    let plane = UNIT_POS_X / 32;
    let first = CUBE_POS_X * TILE;
    let row = first + plane / HALVES * 32 + lane / 4;
    let alpha = alpha[0];
    let alpha_log2 = alpha * LOG2_E;

    // Running maximum and sum of each of this thread's four rows
    let mut maximum = Array::<f32>::new(comptime!(BLOCKS * 2));
    let mut total = Array::<f32>::new(comptime!(BLOCKS * 2));
    #[unroll]
    for i in 0..comptime!(BLOCKS * 2) {
        maximum[i] = f32::new(FLOOR);
        total[i] = f32::new(0.0);
    }
    let mut sums = Array::<Sums>::new(comptime!(BLOCKS * STEPS));
    let mut tile = CUBE_POS_Y * tiles;
    let end = min(tile + tiles, column_count.div_ceil(TILE));
    // Walk over the column tiles of the split.
    while tile < end {
        // scores / α of the tile
        tile_scores(
            rows,
            all,
            left_at,
            right_at,
            first,
            row_count,
            tile * TILE,
            column_count,
            chunks,
            &mut sums,
        );
        // Mask, store the diagonal, online softmax.
        let column = tile * TILE + plane % HALVES * 64 + lane % 4 * 2;
        // Row i of the four: fragment i / 2, upper or lower row.
        #[unroll]
        for i in 0..comptime!(BLOCKS * 2) {
            let at_row = row + comptime!(8 * i as u32);
            let own = first_row + at_row;
            let hash = hash_of(row_hashes, at_row, row_count, masked);
            // Scores of the row that count, and the new maximum
            let mut scores = Array::<f32>::new(comptime!(STEPS * 2));
            let mut new = maximum[i];
            #[unroll]
            for n in 0..STEPS {
                #[unroll]
                for e in 0..2usize {
                    let at = column + comptime!((8 * n + e) as u32);
                    let score = sums[i / 2 * STEPS + n].extract(i % 2 * 2 + e);
                    if at == own && at_row < row_count {
                        diagonal[at_row as usize] = score * alpha;
                    }
                    let counts = counts(hash, all_hashes, own, at, column_count, masked);
                    let score = select(counts, score, f32::new(UNSEEN));
                    scores[n * 2 + e] = score;
                    new = max(new, score);
                }
            }
            // sum = sum · exp(α · (old max − new max)) + Σ exp(α · (score − new max))
            let mut sum = total[i] * exp2((maximum[i] - new) * alpha_log2);
            #[unroll]
            for n in 0..comptime!(STEPS * 2) {
                sum += exp2((scores[n] - new) * alpha_log2);
            }
            maximum[i] = new;
            total[i] = sum;
        }
        tile += 1;
    }
    copies_wait(0usize);

    // Merge the four lanes that share a row.
    #[unroll]
    for i in 0..comptime!(BLOCKS * 2) {
        let at_row = row + comptime!(8 * i as u32);
        let mut all_max = max(maximum[i], plane_shuffle_xor(maximum[i], 1u32));
        all_max = max(all_max, plane_shuffle_xor(all_max, 2u32));
        let mut sum = total[i] * exp2((maximum[i] - all_max) * alpha_log2);
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        // Store the partial maximum and sum of this split and column half.
        if lane % 4 == 0 && at_row < row_count {
            let part = CUBE_POS_Y * HALVES + plane % HALVES;
            maxima[(part * row_count + at_row) as usize] = all_max;
            totals[(part * row_count + at_row) as usize] = sum;
        }
    }
}

/// Log-sum-exp of each row, merged from the maxima and sums of its splits.
#[cube(launch)]
pub(super) fn nce_merge(
    maxima: &[f32],
    totals: &[f32],
    alpha: &[f32],
    lse: &mut [f32],
    row_count: u32,
    parts: u32,
) {
    let row = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if row < row_count {
        let alpha = alpha[0];
        // Maximum over the splits
        let mut maximum = f32::new(FLOOR);
        for part in 0..parts {
            maximum = max(maximum, maxima[(part * row_count + row) as usize]);
        }
        // Sum of exponentials, brought to this maximum
        let mut sum = f32::new(0.0);
        for part in 0..parts {
            let at = (part * row_count + row) as usize;
            sum += totals[at] * exp2((maxima[at] - maximum) * (alpha * LOG2_E));
        }
        lse[row as usize] = maximum * alpha + sum.ln();
    }
}

/// w = B·dS of a strip of rows in bf16, zero up to the end of the strip's last tile of columns, and
/// Σ w·s/α of each block.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(super) fn nce_weights(
    rows: &[Chunk],
    all: &[Chunk],
    alpha: &[f32],
    row_hashes: &[Hash],
    all_hashes: &[Hash],
    rows_lse: &[f32],
    all_lse: &[f32],
    strip: &mut [u32],
    products: &mut [f32],
    row_count: u32,
    column_count: u32,
    first_row: u32,
    chunks: u32,
    strip_row: u32,
    products_at: u32,
    #[comptime] masked: bool,
) {
    let left_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!((STAGES * STAGE_BYTES / 16) as usize),
        128usize,
    );
    let right_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!((STAGES * STAGE_BYTES / 16) as usize),
        128usize,
    );
    let left_at = shared_address(&left_tile);
    let right_at = shared_address(&right_tile);
    let lane = UNIT_POS_X % 32;
    let plane = UNIT_POS_X / 32;
    let first = CUBE_POS_X * TILE;
    let alpha_log2 = alpha[0] * LOG2_E;
    let pitch = column_count.div_ceil(TILE) * comptime!(TILE / 2);

    // scores / α of the tile
    let mut sums = Array::<Sums>::new(comptime!(BLOCKS * STEPS));
    tile_scores(
        rows,
        all,
        left_at,
        right_at,
        strip_row + first,
        row_count,
        CUBE_POS_Y * TILE,
        column_count,
        chunks,
        &mut sums,
    );
    copies_wait(0usize);
    // w = (exp(s − r) + exp(s − c)) / 2 − δ, zero for scores that do not count
    let column = CUBE_POS_Y * TILE + plane % HALVES * 64 + lane % 4 * 2;
    let mut product = f32::new(0.0);
    #[unroll]
    for i in 0..comptime!(BLOCKS * 2) {
        let in_strip = first + plane / HALVES * 32 + lane / 4 + comptime!(8 * i as u32);
        let row = strip_row + in_strip;
        if row < row_count {
            let own = first_row + row;
            let hash = hash_of(row_hashes, row, row_count, masked);
            let row_log2 = rows_lse[row as usize] * LOG2_E;
            #[unroll]
            for n in 0..STEPS {
                let mut pair = Array::<f32>::new(2usize);
                #[unroll]
                for e in 0..2usize {
                    let at = column + comptime!((8 * n + e) as u32);
                    let score = sums[i / 2 * STEPS + n].extract(i % 2 * 2 + e);
                    let mut w = f32::new(0.0);
                    if counts(hash, all_hashes, own, at, column_count, masked) {
                        let column_log2 = all_lse[at as usize] * LOG2_E;
                        let by_row = exp2(fma(score, alpha_log2, -row_log2));
                        let by_column = exp2(fma(score, alpha_log2, -column_log2));
                        w = 0.5f32 * (by_row + by_column);
                        if at == own {
                            w -= 1.0f32;
                        }
                    }
                    product += w * score;
                    pair[e] = w;
                }
                // Store w.
                let at = in_strip * pitch + (column + comptime!(8 * n as u32)) / 2;
                strip[at as usize] = pack_pair(pair[0], pair[1]);
            }
        }
    }
    // Σ w·s/α over the block
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(PLANES as usize));
    let sum = cube_total(product, &mut scratch, comptime!(PLANES as usize));
    if UNIT_POS_X == 0 {
        products[(products_at + CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize] = sum;
    }
}

/// One split's share of strip·all: 128 rows of the strip by 128 columns of the embedding, summed
/// over a range of the strip's columns.
#[cube(launch)]
pub(super) fn nce_product(
    strip: &[Chunk],
    all: &[Chunk],
    partial: &mut [Vector<f32, Const<2>>],
    strip_rows: u32,
    column_count: u32,
    chunks: u32,
    slices: u32,
) {
    let left_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!((STAGES * STAGE_BYTES / 16) as usize),
        128usize,
    );
    let right_tile = Shared::<[Chunk]>::new_aligned_slice(
        comptime!((STAGES * STAGE_BYTES / 16) as usize),
        128usize,
    );
    let left_at = shared_address(&left_tile);
    let right_at = shared_address(&right_tile);
    let lane = UNIT_POS_X % 32;
    let plane = UNIT_POS_X / 32;
    let row = plane / HALVES * 32;
    let column = plane % HALVES * 8;
    let first = CUBE_POS_X * TILE;
    let first_chunk = CUBE_POS_Y * comptime!(TILE / 8);
    let pitch = column_count.div_ceil(TILE) * comptime!(TILE / 8);

    // sums = 0
    let mut sums = Array::<Sums>::new(comptime!(BLOCKS * STEPS));
    #[unroll]
    for i in 0..comptime!(BLOCKS * STEPS) {
        sums[i] = Vector::new(0.0f32);
    }
    // Load the first slices of the strip and of the embeddings.
    let begin = CUBE_POS_Z * slices;
    let end = min(begin + slices, column_count.div_ceil(SLICE));
    #[unroll]
    for stage in 0..comptime!(STAGES - 1) {
        let slice = begin + stage;
        let to = comptime!(stage * STAGE_BYTES);
        if slice < end {
            let chunk = slice * comptime!(SLICE / 8);
            load_block(strip, left_at + to, first, strip_rows, chunk, pitch, pitch, TILE, 8u32);
            load_block(
                all,
                right_at + to,
                slice * SLICE,
                column_count,
                first_chunk,
                chunks,
                chunks,
                SLICE,
                16u32,
            );
        }
        copies_commit();
    }
    let mut slice = begin;
    while slice < end {
        // Wait for this slice.
        copies_wait(1usize);
        sync_cube();
        // Load the slice two ahead into the stage that the previous slice has left.
        let ahead = slice + comptime!(STAGES - 1);
        if ahead < end {
            let chunk = ahead * comptime!(SLICE / 8);
            let to = (ahead - begin) % STAGES * STAGE_BYTES;
            load_block(strip, left_at + to, first, strip_rows, chunk, pitch, pitch, TILE, 8u32);
            load_block(
                all,
                right_at + to,
                ahead * SLICE,
                column_count,
                first_chunk,
                chunks,
                chunks,
                SLICE,
                16u32,
            );
        }
        copies_commit();
        // sums += w·all over this slice
        let from = (slice - begin) % STAGES * STAGE_BYTES;
        #[unroll]
        for step in 0..comptime!(SLICE / 16) {
            #[unroll]
            for pair in 0..comptime!(STEPS as u32 / 2) {
                let b = right(right_at + from, comptime!(step * 16), column + pair * 2, 16u32);
                #[unroll]
                for block in 0..BLOCKS {
                    let a = left(left_at + from, row + comptime!(16 * block as u32), step, 8u32);
                    let at = comptime!(block * STEPS + pair as usize * 2);
                    multiply_pair(a, b, &mut sums, at);
                }
            }
        }
        slice += 1;
    }
    copies_wait(0usize);
    // Store the split's share of d_rows.
    #[unroll]
    for i in 0..comptime!(BLOCKS * 2) {
        let at_row = first + row + lane / 4 + comptime!(8 * i as u32);
        #[unroll]
        for n in 0..STEPS {
            let chunk = first_chunk + column + comptime!(n as u32);
            if at_row < strip_rows && chunk < chunks {
                let at = ((CUBE_POS_Z * strip_rows + at_row) * chunks + chunk) * 4 + lane % 4;
                let mut pair = Vector::<f32, Const<2>>::empty();
                pair.insert(0usize, sums[i / 2 * STEPS + n].extract(i % 2 * 2));
                pair.insert(1usize, sums[i / 2 * STEPS + n].extract(i % 2 * 2 + 1));
                partial[at as usize] = pair;
            }
        }
    }
}

/// d_rows of a strip: α/B times the sum of its splits, added in their order.
#[cube(launch)]
pub(super) fn nce_finish(
    partial: &[Vector<f32, Const<4>>],
    alpha: &[f32],
    d_rows: &mut [Vector<f32, Const<4>>],
    inverse_batch: f32,
    count: u32,
    parts: u32,
    start: u32,
) {
    let at = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if at < count {
        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
        for part in 0..parts {
            sum += partial[(part * count + at) as usize];
        }
        d_rows[(start + at) as usize] = sum * Vector::new(alpha[0] * inverse_batch);
    }
}

/// Gradient of `logit_scale`: α/B · Σ products, in one block and a fixed order.
#[cube(launch)]
pub(super) fn nce_scale_gradient(
    products: &[f32],
    alpha: &[f32],
    d_logit_scale: &mut [f32],
    inverse_batch: f32,
    count: u32,
    #[comptime] planes: usize,
) {
    let mut sum = f32::new(0.0);
    let mut at = UNIT_POS_X;
    while at < count {
        sum += products[at as usize];
        at += CUBE_DIM_X;
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    let total = cube_total(sum, &mut scratch, planes);
    if UNIT_POS_X == 0 {
        d_logit_scale[0] = total * alpha[0] * inverse_batch;
    }
}

/// Σ (r + c − 2·s_ii) / 2B over this rank's rows, in one block and a fixed order.
#[cube(launch)]
pub(super) fn nce_loss(
    rows_lse: &[f32],
    other_lse: &[f32],
    diagonal: &[f32],
    loss: &mut [f32],
    half_inverse_batch: f32,
    count: u32,
    #[comptime] planes: usize,
) {
    let mut sum = f32::new(0.0);
    let mut at = UNIT_POS_X;
    while at < count {
        let i = at as usize;
        sum += (rows_lse[i] - diagonal[i]) + (other_lse[i] - diagonal[i]);
        at += CUBE_DIM_X;
    }
    let mut scratch = Shared::<[f32]>::new_slice(planes);
    let total = cube_total(sum, &mut scratch, planes);
    if UNIT_POS_X == 0 {
        loss[0] = total * half_inverse_batch;
    }
}
