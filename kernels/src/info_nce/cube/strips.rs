//! The loss of a whole batch from strips of S/α, f32 (strip rows, batch), that a product has
//! written: one kernel computes statistics of rows and columns in one pass, the other dS.
//!
//! Floor: memory. Both kernels read a strip once; the second writes half as many bytes of dS. A
//! block reads 256 rows by 256 columns: each warp reads 32 rows, and each lane two vectors of four
//! columns per row, so that a load of the warp covers 512 contiguous bytes.

#![expect(clippy::cast_possible_truncation, reason = "compile-time tile counts fit `u32`")]

use cubecl::prelude::*;

use super::{FLOOR, Hash, LOG2_E, UNSEEN};
use crate::cube::{Sums, cube_total, exp2, pack_pair, plane_total};

/// Rows and columns of a block.
pub(in crate::info_nce) const BLOCK: u32 = 256;
/// Warps of a block.
pub(in crate::info_nce) const WARPS: u32 = 8;
/// Rows of a warp, and the rows that the statistics (`ROWS`) and the weights (`WEIGHT_ROWS`) load
/// at a time. With four rows the weights take 48 registers and spill two of them (NVRTC 12.9.86).
/// With two rows they take 40, and six blocks fit on a multiprocessor.
const WARP_ROWS: u32 = BLOCK / WARPS;
const ROWS: u32 = 4;
const WEIGHT_ROWS: u32 = 2;
/// Columns of a lane: two vectors of four.
const COLUMNS: usize = 8;

/// Position within the block of column `i` of this lane's eight columns.
#[cube]
fn column_of(#[comptime] i: usize) -> u32 {
    UNIT_POS_X % 32 * 4 + comptime!((i / 4 * 128 + i % 4) as u32)
}

/// Loads this lane's two vectors of each of `rows` rows from `first_row`. For rows and columns
/// outside the strip it loads other scores, which the caller ignores.
#[cube]
fn load_rows(
    scores: &[Sums],
    batch: u32,
    strip_rows: u32,
    first_row: u32,
    first_column: u32,
    #[comptime] rows: u32,
) -> Array<Sums> {
    let mut tile = Array::<Sums>::new(comptime!(2 * rows as usize));
    #[unroll]
    for i in 0..comptime!(2 * rows) {
        let row = first_row + comptime!(i / 2);
        let column = first_column + column_of(comptime!((i % 2 * 4) as usize));
        let row = select(row < strip_rows, row, 0u32);
        let column = select(column < batch, column, 0u32);
        tile[i as usize] = scores[((row * batch + column) / 4) as usize];
    }
    tile
}

/// Hashes of this lane's columns from `first`, if equal targets are masked.
#[cube]
fn column_hashes(hashes: &[Hash], first: u32, batch: u32, #[comptime] masked: bool) -> Array<Hash> {
    let mut own = Array::<Hash>::new(COLUMNS);
    if comptime!(masked) {
        #[unroll]
        for i in 0..COLUMNS {
            let column = first + column_of(i);
            own[i] = hashes[select(column < batch, column, 0u32) as usize];
        }
    }
    own
}

/// Whether the score of `row` and `column` counts: their targets differ, or the score is on the
/// diagonal.
#[cube]
fn differs(
    hashes: &[Hash],
    row: u32,
    column: u32,
    column_hash: Hash,
    #[comptime] masked: bool,
) -> bool {
    match comptime!(masked) {
        true => {
            let hash = hashes[row as usize];
            column == row
                || hash.extract(0usize) != column_hash.extract(0usize)
                || hash.extract(1usize) != column_hash.extract(1usize)
        }
        false => true.runtime(),
    }
}

/// Maximum and sum of exponentials of each row over this block's columns and of each column over
/// this block's rows, and the diagonal s_ii.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(in crate::info_nce) fn nce_strip_statistics(
    scores: &[Sums],
    alpha: &[f32],
    hashes: &[Hash],
    row_maxima: &mut [f32],
    row_totals: &mut [f32],
    column_maxima: &mut [f32],
    column_totals: &mut [f32],
    diagonal: &mut [f32],
    batch: u32,
    strip_row: u32,
    strip_rows: u32,
    row_block: u32,
    #[comptime] masked: bool,
) {
    let mut warp_maxima = Shared::<[f32]>::new_slice(comptime!((WARPS * BLOCK) as usize));
    let mut warp_totals = Shared::<[f32]>::new_slice(comptime!((WARPS * BLOCK) as usize));
    let lane = UNIT_POS_X % 32;
    let warp = UNIT_POS_X / 32;
    let first_column = CUBE_POS_X * BLOCK;
    let first_row = CUBE_POS_Y * BLOCK + warp * WARP_ROWS;
    let alpha = alpha[0];
    let alpha_log2 = alpha * LOG2_E;
    let column_hashes = column_hashes(hashes, first_column, batch, masked);

    // Running maximum and sum of each of this lane's columns
    let mut maxima = Array::<f32>::new(COLUMNS);
    let mut totals = Array::<f32>::new(COLUMNS);
    #[unroll]
    for i in 0..COLUMNS {
        maxima[i] = f32::new(FLOOR);
        totals[i] = f32::new(0.0);
    }
    for group in 0..comptime!(WARP_ROWS / ROWS) {
        // Load the scores of `ROWS` rows; scores that do not count become `UNSEEN`.
        let group_row = first_row + group * ROWS;
        let loaded = load_rows(scores, batch, strip_rows, group_row, first_column, ROWS);
        let mut tile = Array::<f32>::new(comptime!(ROWS as usize * COLUMNS));
        #[unroll]
        for r in 0..ROWS {
            let row = strip_row + group_row + r;
            #[unroll]
            for i in 0..COLUMNS {
                let score = loaded[comptime!(r as usize * 2 + i / 4)].extract(comptime!(i % 4));
                let column = first_column + column_of(i);
                let mut counts = group_row + r < strip_rows && column < batch;
                if counts {
                    if column == row {
                        diagonal[row as usize] = score * alpha;
                    }
                    counts = differs(hashes, row, column, column_hashes[i], masked);
                }
                tile[comptime!(r as usize * COLUMNS + i)] = select(counts, score, f32::new(UNSEEN));
            }
        }

        // Rows: maximum and sum over this block's columns
        #[unroll]
        for r in 0..ROWS {
            let mut maximum = f32::new(FLOOR);
            #[unroll]
            for i in 0..COLUMNS {
                maximum = max(maximum, tile[comptime!(r as usize * COLUMNS + i)]);
            }
            #[unroll]
            for step in 0..5u32 {
                maximum = max(maximum, plane_shuffle_xor(maximum, comptime!(16u32 >> step)));
            }
            let mut sum = f32::new(0.0);
            #[unroll]
            for i in 0..COLUMNS {
                sum += exp2((tile[comptime!(r as usize * COLUMNS + i)] - maximum) * alpha_log2);
            }
            let sum = plane_total(sum);
            let in_strip = first_row + group * ROWS + r;
            if lane == 0 && in_strip < strip_rows {
                let at = (CUBE_POS_X * batch + strip_row + in_strip) as usize;
                row_maxima[at] = maximum;
                row_totals[at] = sum;
            }
        }

        // Columns: running maximum and sum over this warp's rows
        #[unroll]
        for i in 0..COLUMNS {
            let mut maximum = maxima[i];
            #[unroll]
            for r in 0..comptime!(ROWS as usize) {
                maximum = max(maximum, tile[comptime!(r * COLUMNS + i)]);
            }
            let mut sum = totals[i] * exp2((maxima[i] - maximum) * alpha_log2);
            #[unroll]
            for r in 0..comptime!(ROWS as usize) {
                sum += exp2((tile[comptime!(r * COLUMNS + i)] - maximum) * alpha_log2);
            }
            maxima[i] = maximum;
            totals[i] = sum;
        }
    }

    // Columns: merge the warps, with one thread per column.
    #[unroll]
    for i in 0..COLUMNS {
        let at = (warp * BLOCK + column_of(i)) as usize;
        warp_maxima[at] = maxima[i];
        warp_totals[at] = totals[i];
    }
    sync_cube();
    let column = first_column + UNIT_POS_X;
    let mut maximum = f32::new(FLOOR);
    #[unroll]
    for w in 0..WARPS {
        maximum = max(maximum, warp_maxima[(comptime!(w * BLOCK) + UNIT_POS_X) as usize]);
    }
    let mut sum = f32::new(0.0);
    #[unroll]
    for w in 0..WARPS {
        let at = (comptime!(w * BLOCK) + UNIT_POS_X) as usize;
        sum += warp_totals[at] * exp2((warp_maxima[at] - maximum) * alpha_log2);
    }
    if column < batch {
        let at = ((row_block + CUBE_POS_Y) * batch + column) as usize;
        column_maxima[at] = maximum;
        column_totals[at] = sum;
    }
}

/// α·dS of a strip in bf16, and Σ B·dS·s/α of each block.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and scalars of one formula")]
pub(in crate::info_nce) fn nce_strip_weights(
    scores: &[Sums],
    alpha: &[f32],
    hashes: &[Hash],
    row_lse: &[f32],
    column_lse: &[f32],
    strip: &mut [Vector<u32, Const<2>>],
    products: &mut [f32],
    inverse_batch: f32,
    batch: u32,
    strip_row: u32,
    strip_rows: u32,
    products_at: u32,
    #[comptime] masked: bool,
) {
    let warp = UNIT_POS_X / 32;
    let first_column = CUBE_POS_X * BLOCK;
    let first_row = CUBE_POS_Y * BLOCK + warp * WARP_ROWS;
    let alpha_log2 = alpha[0] * LOG2_E;
    let scale = alpha[0] * inverse_batch;
    let column_hashes = column_hashes(hashes, first_column, batch, masked);
    // Log-sum-exps (in base 2) of this lane's columns
    let mut columns_log2 = Array::<f32>::new(COLUMNS);
    #[unroll]
    for i in 0..COLUMNS {
        let column = first_column + column_of(i);
        columns_log2[i] = column_lse[select(column < batch, column, 0u32) as usize] * LOG2_E;
    }

    let mut product = f32::new(0.0);
    for group in 0..comptime!(WARP_ROWS / WEIGHT_ROWS) {
        // Load the scores of `WEIGHT_ROWS` rows.
        let group_row = first_row + group * WEIGHT_ROWS;
        let tile = load_rows(scores, batch, strip_rows, group_row, first_column, WEIGHT_ROWS);
        #[unroll]
        for i in 0..comptime!(2 * WEIGHT_ROWS) {
            let half = comptime!((i % 2) as usize);
            let in_strip = group_row + comptime!(i / 2);
            let first = first_column + column_of(comptime!(half * 4));
            if in_strip < strip_rows && first < batch {
                // w = B·dS
                let row = strip_row + in_strip;
                let row_log2 = row_lse[row as usize] * LOG2_E;
                let mut weights = Array::<f32>::new(4usize);
                #[unroll]
                for e in 0..4usize {
                    let column = first + comptime!(e as u32);
                    let score = tile[i as usize].extract(e);
                    let column_log2 = columns_log2[comptime!(half * 4 + e)];
                    let by_row = exp2(fma(score, alpha_log2, -row_log2));
                    let by_column = exp2(fma(score, alpha_log2, -column_log2));
                    let mut w = 0.5f32 * (by_row + by_column);
                    if column == row {
                        w -= 1.0f32;
                    }
                    let hash = column_hashes[comptime!(half * 4 + e)];
                    let counts = differs(hashes, row, column, hash, masked);
                    let w = select(counts, w, f32::new(0.0));
                    product += w * score;
                    weights[e] = w * scale;
                }
                // Store α·dS.
                let mut packed = Vector::<u32, Const<2>>::empty();
                packed.insert(0usize, pack_pair(weights[0], weights[1]));
                packed.insert(1usize, pack_pair(weights[2], weights[3]));
                strip[((in_strip * batch + first) / 4) as usize] = packed;
            }
        }
    }
    // Σ w·s/α over the block
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(WARPS as usize));
    let sum = cube_total(product, &mut scratch, comptime!(WARPS as usize));
    if UNIT_POS_X == 0 {
        products[(products_at + CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize] = sum;
    }
}
