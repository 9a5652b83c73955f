//! The kernels of `InfoNCE` for one side and some rows, and their launches. A batch that one GPU
//! holds as a whole goes through `strips.rs`.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit.
//!
//! Floor: operations. With b rows of this rank, g rows of all ranks and width e, one pass over the
//! scores takes 2·b·g·e operations. Per side, the statistics take one pass and the gradient two
//! (scores again, then d_rows). If one rank holds all rows, both sides together take 6 products of
//! the size of S: 4 are necessary, and 2 are due to each direction computing its own scores. Bytes
//! are the gathered embeddings, read once from memory and then from L2.
//!
//! Tiling: a block multiplies 128 rows by 128 columns, in eight warps of 32×64 each, over slices of
//! 64 elements of the embedding that `cp.async` loads in three stages. A warp needs 6 `ldmatrix`
//! for 16 products, and the stages take 96 kB of shared memory, so two blocks fit on a
//! multiprocessor (one for masked statistics, which need more registers). Statistics keep a running
//! maximum and sum per row in registers over the column tiles of a block's split. The two column
//! halves of a tile count as separate splits, so warps exchange nothing before the last kernel,
//! which merges a row's splits. The gradient turns a tile of scores into w = (exp(s − r) + exp(s −
//! c)) / 2 − δ in bf16, one strip of rows at a time (a bounded strip keeps memory at O(B·e)). A
//! product of strip and embeddings, split over columns if rows are few, makes d_rows. Splits are
//! added in their order: no atomics, and the same bits in every run.
//!
//! Considered: one kernel that keeps d_rows in registers beside recomputed scores, as attention
//! does. A row of 1,536 sums leaves room for 32 rows per block, which reads the embeddings four
//! times as often as 128 rows do, so L2 becomes the limit at a quarter of the tensor cores' rate.
//! The strip costs 4 bytes of traffic per score, and the products 6,144 operations per score.

use super::cube::nce_finish::NceFinish;
use super::cube::nce_loss::NceLoss;
use super::cube::nce_merge::NceMerge;
use super::cube::nce_product::NceProduct;
use super::cube::nce_scale_gradient::NceScaleGradient;
use super::cube::nce_statistics::NceStatistics;
use super::cube::nce_weights::NceWeights;
use super::cube::strips::nce_strip_statistics::NceStripStatistics;
use super::cube::strips::nce_strip_weights::NceStripWeights;
use super::cube::{HALVES, PLANES, TILE};
use super::{host, strips};
use crate::compile::{self, CompileError, Emit, Launch, Scalar, Source, cubes, emit, offset};
use crate::parallel::round;
use crate::{Result, check};

/// Rows and columns of a tile.
const ROWS: usize = TILE as usize;
/// Columns of a strip in one slice of a product.
const SLICE: usize = 64;
/// Threads per block of the kernels without products.
const THREADS: usize = 256;
/// Blocks that fill the GPU: two on each of 132 multiprocessors.
const BLOCKS: usize = 264;
/// Weights of the gradient in memory at a time: 128 MiB of bf16.
const STRIP: usize = 1 << 26;

/// Parameters that select one compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// Maximum and sum of exponentials of each row over a split of the columns.
    Statistics {
        /// Whether equal targets are left out.
        masked: bool,
    },
    /// Merges the splits of [`Self::Statistics`] into log-sum-exps.
    Merge,
    /// w = B·dS of a strip of rows.
    Weights {
        /// Whether equal targets are left out.
        masked: bool,
    },
    /// The product of a strip of w with the embeddings, in splits.
    Product,
    /// Adds up the splits of [`Self::Product`] to d_rows.
    Finish,
    /// The gradient of `logit_scale`, from sums of w·s/α.
    ScaleGradient,
    /// This rank's share of the loss.
    Loss,
    /// Partial statistics of a strip of scores, if one GPU holds the whole batch.
    StripStatistics {
        /// Whether equal targets are left out.
        masked: bool,
    },
    /// α·dS of a strip of scores, if one GPU holds the whole batch.
    StripWeights {
        /// Whether equal targets are left out.
        masked: bool,
    },
}

impl Kernel {
    /// All kernels of a loss with or without masking.
    #[must_use]
    pub fn all(masked: bool) -> [Self; 9] {
        [
            Self::Statistics { masked },
            Self::Merge,
            Self::Weights { masked },
            Self::Product,
            Self::Finish,
            Self::ScaleGradient,
            Self::Loss,
            Self::StripStatistics { masked },
            Self::StripWeights { masked },
        ]
    }

    pub(crate) fn name(self) -> String {
        let masked = |name: &str, masked| format!("{name}{}", if masked { "_masked" } else { "" });
        match self {
            Self::Statistics { masked: m } => masked("nce_statistics", m),
            Self::Merge => "nce_merge".to_owned(),
            Self::Weights { masked: m } => masked("nce_weights", m),
            Self::Product => "nce_product".to_owned(),
            Self::Finish => "nce_finish".to_owned(),
            Self::ScaleGradient => "nce_scale_gradient".to_owned(),
            Self::Loss => "nce_loss".to_owned(),
            Self::StripStatistics { masked: m } => masked("nce_strip_statistics", m),
            Self::StripWeights { masked: m } => masked("nce_strip_weights", m),
        }
    }

    pub(crate) fn sums_atomically(self) -> bool {
        false
    }

    pub(crate) fn emit(self, name: &str) -> Result<Source, CompileError> {
        let threads = match self {
            Self::Statistics { .. } | Self::Weights { .. } | Self::Product => PLANES * 32,
            Self::Merge | Self::Finish | Self::ScaleGradient | Self::Loss => offset(THREADS),
            Self::StripStatistics { .. } | Self::StripWeights { .. } => strips::THREADS,
        };
        let blocks = match self {
            Self::Statistics { masked: false } | Self::Weights { .. } | Self::Product => 2,
            // With half of the registers they would spill.
            Self::Statistics { masked: true } => 1,
            Self::Merge
            | Self::Finish
            | Self::ScaleGradient
            | Self::Loss
            | Self::StripStatistics { .. }
            | Self::StripWeights { .. } => 1,
        };
        let e = Emit::new(threads).blocks(blocks);
        match self {
            Self::Statistics { masked } => emit!(
                e, name, NceStatistics: [rows all alpha row_hashes all_hashes maxima totals diagonal]
                [row_count column_count first_row chunks tiles],
                masked,
            ),
            Self::Merge => {
                emit!(e, name, NceMerge: [maxima totals alpha lse] [row_count parts])
            }
            Self::Weights { masked } => emit!(
                e, name, NceWeights: [rows all alpha row_hashes all_hashes rows_lse all_lse strip products]
                [row_count column_count first_row chunks strip_row products_at],
                masked,
            ),
            Self::Product => emit!(
                e, name, NceProduct: [strip all partial] [strip_rows column_count chunks slices],
            ),
            Self::Finish => {
                emit!(e, name, NceFinish: [partial alpha d_rows] [inverse_batch count parts start])
            }
            Self::ScaleGradient => emit!(
                e, name, NceScaleGradient: [products alpha d_logit_scale] [inverse_batch count],
                THREADS / 32,
            ),
            Self::Loss => emit!(
                e, name, NceLoss: [rows_lse other_lse diagonal loss] [half_inverse_batch count],
                THREADS / 32,
            ),
            Self::StripStatistics { masked } => emit!(
                e, name, NceStripStatistics:
                [scores alpha hashes row_maxima row_totals column_maxima column_totals diagonal]
                [batch strip_row strip_rows row_block],
                masked,
            ),
            Self::StripWeights { masked } => emit!(
                e, name, NceStripWeights: [scores alpha hashes row_lse column_lse strip products]
                [inverse_batch batch strip_row strip_rows products_at],
                masked,
            ),
        }
    }
}

/// Numbers of rows and their width in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// b: rows of this rank.
    pub rows: usize,
    /// g: rows of all ranks.
    pub batch: usize,
    /// e: elements of an embedding, a multiple of 8.
    pub width: usize,
    /// Index of this rank's first row in the batch.
    pub first_row: usize,
}

/// Inputs of both passes.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<B> {
    /// This rank's rows of one side, bf16 (b, e).
    pub rows: B,
    /// All rows of the other side, bf16 (g, e).
    pub all: B,
    /// α = exp(logit_scale), f32 (1).
    pub alpha: B,
    /// Hashes of targets, u64 (b) and (g), if equal targets are left out of the negatives.
    pub hashes: Option<[B; 2]>,
}

/// Number of splits of the columns, and column tiles per split.
fn column_splits(sizes: Sizes) -> (usize, usize) {
    let tiles = sizes.batch.div_ceil(ROWS);
    let splits = (BLOCKS / sizes.rows.div_ceil(ROWS).max(1)).clamp(1, tiles.max(1));
    let each = tiles.div_ceil(splits).max(1);
    (tiles.div_ceil(each), each)
}

/// f32 numbers in each of the two workspaces of [`statistics`].
#[must_use]
pub fn statistics_workspace(sizes: Sizes) -> usize {
    column_splits(sizes).0 * HALVES as usize * sizes.rows
}

/// Launches that write log-sum-exp and diagonal, f32 (b) each, of s = α·rows·allᵀ.
///
/// # Errors
/// When the width is not a positive multiple of 8, rows lie outside the batch, or offsets do not
/// fit into 32 bits.
pub fn statistics<B: Copy>(
    inputs: Inputs<B>,
    sizes: Sizes,
    [maxima, totals]: [B; 2],
    lse: B,
    diagonal: B,
) -> Result<Vec<Launch<B>>> {
    check_sizes("info_nce::statistics", sizes)?;
    if sizes.rows == 0 {
        return Ok(Vec::new());
    }
    let Inputs { rows, all, alpha, hashes } = inputs;
    let (splits, tiles) = column_splits(sizes);
    let [row_hashes, all_hashes] = hashes.unwrap_or([alpha; 2]);
    let statistics = Launch {
        kernel: compile::Kernel::InfoNce(Kernel::Statistics { masked: hashes.is_some() }),
        cubes: [cubes(sizes.rows, ROWS), offset(splits), 1],
        buffers: vec![rows, all, alpha, row_hashes, all_hashes, maxima, totals, diagonal],
        scalars: vec![
            Scalar::U32(offset(sizes.rows)),
            Scalar::U32(offset(sizes.batch)),
            Scalar::U32(offset(sizes.first_row)),
            Scalar::U32(offset(sizes.width / 8)),
            Scalar::U32(offset(tiles)),
        ],
    };
    let parts = splits * HALVES as usize;
    Ok(vec![statistics, merge([maxima, totals, alpha, lse], sizes.rows, parts)])
}

/// Log-sum-exps of `rows` rows from their `parts` partial maxima and sums, (parts, rows) each.
pub(super) fn merge<B>(
    [maxima, totals, alpha, lse]: [B; 4],
    rows: usize,
    parts: usize,
) -> Launch<B> {
    Launch {
        kernel: compile::Kernel::InfoNce(Kernel::Merge),
        cubes: [cubes(rows, THREADS), 1, 1],
        buffers: vec![maxima, totals, alpha, lse],
        scalars: vec![Scalar::U32(offset(rows)), Scalar::U32(offset(parts))],
    }
}

/// Sizes of the workspaces of [`backward`], in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// Elements in bf16 for w of a strip of rows.
    pub strip: usize,
    /// Elements in f32 for sums of w·s/α, one per tile.
    pub products: usize,
    /// Elements in f32 for d_rows of a strip, by splits.
    pub partial: usize,
}

/// Rows of a strip.
fn strip_rows(sizes: Sizes) -> usize {
    let line = sizes.batch.next_multiple_of(ROWS).max(ROWS);
    (STRIP / line / ROWS).max(1) * ROWS
}

/// Number of splits of a product's columns, and slices per split.
fn product_splits(sizes: Sizes, strip: usize) -> (usize, usize) {
    let slices = sizes.batch.div_ceil(SLICE).max(1);
    let tiles = strip.min(sizes.rows).div_ceil(ROWS) * sizes.width.div_ceil(ROWS);
    // At least eight slices per split: with fewer, the loads of the first two are not hidden.
    let splits = (BLOCKS / tiles.max(1)).clamp(1, slices.div_ceil(8));
    let each = slices.div_ceil(splits);
    (slices.div_ceil(each), each)
}

/// Sizes of the workspaces that [`backward`] needs for `sizes`.
#[must_use]
pub fn workspace(sizes: Sizes) -> Workspace {
    workspace_in(sizes, strip_rows(sizes))
}

pub(super) fn workspace_in(sizes: Sizes, strip: usize) -> Workspace {
    let rows = strip.min(sizes.rows);
    Workspace {
        strip: rows * sizes.batch.next_multiple_of(ROWS),
        products: sizes.rows.div_ceil(ROWS) * sizes.batch.div_ceil(ROWS),
        partial: product_splits(sizes, strip).0 * rows * sizes.width,
    }
}

/// Buffers of one call of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward<B> {
    /// Log-sum-exps of these rows, f32 (b).
    pub rows_lse: B,
    /// Log-sum-exps of the rows of `all`, f32 (g).
    pub all_lse: B,
    /// Workspaces of the sizes that [`workspace`] returns: strip, products, partial.
    pub workspace: [B; 3],
    /// Written: gradient of the rows, f32 (b, e).
    pub d_rows: B,
    /// Written: Σ dS ∘ S over these rows, f32 (1).
    pub d_logit_scale: B,
}

/// Launches for the gradient of the loss with respect to `rows`, and for this rank's share of the
/// gradient of `logit_scale`.
///
/// # Errors
/// Same as [`statistics`].
pub fn backward<B: Copy>(
    inputs: Inputs<B>,
    sizes: Sizes,
    buffers: Backward<B>,
) -> Result<Vec<Launch<B>>> {
    backward_in(inputs, sizes, buffers, strip_rows(sizes))
}

/// [`backward`] in strips of `strip` rows, a multiple of a tile's rows.
pub(super) fn backward_in<B: Copy>(
    inputs: Inputs<B>,
    sizes: Sizes,
    buffers: Backward<B>,
    strip: usize,
) -> Result<Vec<Launch<B>>> {
    check_sizes("info_nce::backward", sizes)?;
    if sizes.rows == 0 {
        return Ok(Vec::new());
    }
    let Backward { workspace: [_, products, _], d_logit_scale, .. } = buffers;
    let mut launches = Vec::new();
    for start in (0..sizes.rows).step_by(strip) {
        launches.extend(strip_launches(inputs, sizes, buffers, start, strip));
    }
    let count = workspace_in(sizes, strip).products;
    launches.push(scale_gradient([products, inputs.alpha, d_logit_scale], sizes.batch, count));
    Ok(launches)
}

/// Gradient of `logit_scale` from `count` sums of w·s/α.
pub(super) fn scale_gradient<B>(
    [products, alpha, d_logit_scale]: [B; 3],
    batch: usize,
    count: usize,
) -> Launch<B> {
    Launch {
        kernel: compile::Kernel::InfoNce(Kernel::ScaleGradient),
        cubes: [1, 1, 1],
        buffers: vec![products, alpha, d_logit_scale],
        scalars: vec![Scalar::F32(round(1.0 / host::count(batch))), Scalar::U32(offset(count))],
    }
}

fn strip_launches<B: Copy>(
    inputs: Inputs<B>,
    sizes: Sizes,
    buffers: Backward<B>,
    start: usize,
    strip: usize,
) -> [Launch<B>; 3] {
    let Inputs { rows, all, alpha, hashes } = inputs;
    let Backward { rows_lse, all_lse, workspace: [weights, products, partial], d_rows, .. } =
        buffers;
    let [row_hashes, all_hashes] = hashes.unwrap_or([alpha; 2]);
    let strip_count = strip.min(sizes.rows - start);
    let row_tiles = cubes(strip_count, ROWS);
    let (splits, slices) = product_splits(sizes, strip);
    let batch = Scalar::U32(offset(sizes.batch));
    let chunks = Scalar::U32(offset(sizes.width / 8));
    let vectors = strip_count * sizes.width / 4;
    [
        Launch {
            kernel: compile::Kernel::InfoNce(Kernel::Weights { masked: hashes.is_some() }),
            cubes: [row_tiles, cubes(sizes.batch, ROWS), 1],
            buffers: vec![
                rows, all, alpha, row_hashes, all_hashes, rows_lse, all_lse, weights, products,
            ],
            scalars: vec![
                Scalar::U32(offset(sizes.rows)),
                batch,
                Scalar::U32(offset(sizes.first_row)),
                chunks,
                Scalar::U32(offset(start)),
                Scalar::U32(offset(start / ROWS * sizes.batch.div_ceil(ROWS))),
            ],
        },
        Launch {
            kernel: compile::Kernel::InfoNce(Kernel::Product),
            cubes: [row_tiles, cubes(sizes.width, ROWS), offset(splits)],
            buffers: vec![weights, all, partial],
            scalars: vec![
                Scalar::U32(offset(strip_count)),
                batch,
                chunks,
                Scalar::U32(offset(slices)),
            ],
        },
        Launch {
            kernel: compile::Kernel::InfoNce(Kernel::Finish),
            cubes: [cubes(vectors, THREADS), 1, 1],
            buffers: vec![partial, alpha, d_rows],
            scalars: vec![
                Scalar::F32(round(1.0 / host::count(sizes.batch))),
                Scalar::U32(offset(vectors)),
                Scalar::U32(offset(splits)),
                Scalar::U32(offset(start * sizes.width / 4)),
            ],
        },
    ]
}

/// Launch that writes this rank's share of the loss to `loss`, f32 (1), from the outputs of
/// [`statistics`] for its `rows` rows of P and of T.
#[must_use]
pub fn loss<B: Copy>(
    rows_lse: B,
    other_lse: B,
    diagonal: B,
    loss: B,
    rows: usize,
    batch: usize,
) -> Launch<B> {
    Launch {
        kernel: compile::Kernel::InfoNce(Kernel::Loss),
        cubes: [1, 1, 1],
        buffers: vec![rows_lse, other_lse, diagonal, loss],
        scalars: vec![
            Scalar::F32(round(0.5 / host::count(batch.max(1)))),
            Scalar::U32(offset(rows)),
        ],
    }
}

fn check_sizes(operation: &'static str, sizes: Sizes) -> Result<()> {
    let Sizes { rows, batch, width, first_row } = sizes;
    if !width.is_multiple_of(8) || width == 0 {
        let needed = "the width of an embedding must be a positive multiple of 8, because kernels \
                      load 16 bytes of bf16 at a time";
        return Err(check::value(operation, "width", width.to_string(), needed));
    }
    if first_row.checked_add(rows).is_none_or(|end| end > batch) {
        let needed =
            format!("the {rows} rows from there must lie within the batch of {batch} rows");
        return Err(check::value(operation, "first_row", first_row.to_string(), needed));
    }
    if batch.next_multiple_of(ROWS).saturating_mul(width.max(ROWS)) >= 1 << 32 {
        let needed = format!("batch times width {width} must stay below 2^32 (32-bit offsets)");
        return Err(check::value(operation, "batch", batch.to_string(), needed));
    }
    Ok(())
}
