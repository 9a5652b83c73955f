//! The loss of a whole batch on one GPU, with four products of cuBLASLt instead of the six that two
//! directions take.
//!
//! A product writes a strip of S/α in f32: some rows of P by all of T. The pass for the statistics
//! reads each strip once and derives both log-sum-exps from it: partial maxima and sums per row and
//! block of 256 columns, and per column and block of 256 rows. A further kernel merges the partial
//! results in the order of the blocks. The pass for the gradients computes the strip again, turns
//! it into α·dS in bf16, and multiplies α·dS with T (rows of d_p) and, transposed, with the strip's
//! rows of P (added to d_t). No sum is atomic: every run gives the same bits if the products do.
//!
//! Prediction for a batch of 24,576 and a width of 1,536, with products at 700 TFLOP/s and memory
//! at 3.5 TB/s: products 4 × 2.65 ms; statistics from 2.4 GB of strips 0.7 ms; weights from as many
//! bytes 1.0 ms; d_t read and written for each of nine strips 0.7 ms; 13 ms in all. The kernels of
//! `launch.rs` on the same shape: each tile of 128×128 reads 32 kB from L2 for 2.1 MFLOP, so 5.5
//! TB/s of L2 allow 350 TFLOP/s; six products take 32 ms.
//!
//! Considered: statistics and weights in the tensor-core kernels of `cube.rs`, with scores that
//! never leave registers. This saves the 1.7 ms of the two passes, but S at 350 TFLOP/s
//! (450 in tiles of 256×128) costs 3 to 5 ms more.

use super::cube::strips::{BLOCK, WARPS};
use super::launch::{self, Kernel};
use crate::compile::{self, Element, Launch, Scalar, offset};
use crate::device::cuda::{Call, Product, Region};
use crate::parallel::round;
use crate::{DType, Result, Tensor, View, ViewMut};

/// Rows and columns of a tile of cuBLASLt's products. A multiprocessor computes one tile at a time.
const PRODUCT_TILE: [usize; 2] = [128, 256];
/// Multiprocessors of the GPU.
const MULTIPROCESSORS: usize = 132;
/// Scores of the largest strip: 288 MiB in f32, plus half of that for its weights in bf16.
const STRIP: usize = 72 << 20;
/// A batch must have fewer rows than this, so that its partial statistics, batch² / 256 numbers,
/// have 32-bit offsets.
const BATCH_LIMIT: usize = 1 << 20;
/// Rows and columns of a block of the kernels in `cube/strips.rs`.
const SIDE: usize = BLOCK as usize;

/// Threads of a block of the kernels in `cube/strips.rs`.
pub(super) const THREADS: u32 = WARPS * 32;

/// Division of a batch into strips of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Strips {
    /// g: rows of the batch, a multiple of 8.
    batch: usize,
    /// e: elements of an embedding, a multiple of 8.
    width: usize,
    /// Rows of every strip but the last.
    rows: usize,
}

impl Strips {
    /// Cuts a batch into strips of about the same height. The product of a strip with the
    /// embeddings fills the GPU once, and a strip's scores stay below [`STRIP`].
    ///
    /// `None` if the batch or the width is not a multiple of 8 (rows are read in vectors of 16
    /// bytes), or if the batch is too large for 32-bit offsets.
    pub(super) fn new(batch: usize, width: usize) -> Option<Self> {
        let [tall, wide] = PRODUCT_TILE;
        let vectors = batch.is_multiple_of(8) && width.is_multiple_of(8);
        if batch == 0 || width == 0 || !vectors || batch >= BATCH_LIMIT {
            return None;
        }
        let tiles = (MULTIPROCESSORS / width.div_ceil(wide)).min(STRIP / batch / tall).max(1);
        let strips = batch.div_ceil(tiles * tall);
        Some(Self { batch, width, rows: batch.div_ceil(strips).next_multiple_of(tall) })
    }

    /// Rows of every strip but the last.
    #[cfg(test)]
    pub(super) fn rows(self) -> usize {
        self.rows
    }

    /// This batch in strips of `rows` rows.
    #[cfg(test)]
    pub(super) fn of_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// First row and number of rows of each strip.
    fn each(self) -> impl Iterator<Item = (usize, usize)> {
        let Self { batch, rows, .. } = self;
        (0..batch).step_by(rows).map(move |start| (start, rows.min(batch - start)))
    }

    /// Blocks of rows in the strips before row `start`, the first row of a strip.
    fn row_blocks_before(self, start: usize) -> usize {
        start / self.rows * self.rows.div_ceil(SIDE)
    }

    /// Blocks of rows in all strips.
    fn row_blocks(self) -> usize {
        let blocks =
            |(start, rows): (usize, usize)| self.row_blocks_before(start) + rows.div_ceil(SIDE);
        self.each().map(blocks).last().unwrap_or(0)
    }

    fn column_blocks(self) -> usize {
        self.batch.div_ceil(SIDE)
    }

    /// Scores of the largest strip.
    fn scores(self) -> usize {
        self.rows.min(self.batch) * self.batch
    }

    /// Launch of `kernel` for the strip of `rows` rows from row `start`. `partial_at` is the index
    /// of the strip's first partial result.
    fn launch<B>(
        self,
        kernel: Kernel,
        (start, rows): (usize, usize),
        partial_at: usize,
        buffers: Vec<B>,
    ) -> Launch<B> {
        let integers = [self.batch, start, rows, partial_at].map(|x| Scalar::U32(offset(x)));
        let inverse_batch = Scalar::F32(round(1.0 / super::host::count(self.batch)));
        let has_inverse = matches!(kernel, Kernel::StripWeights { .. });
        Launch {
            kernel: compile::Kernel::InfoNce(kernel),
            cubes: [offset(self.column_blocks()), offset(rows.div_ceil(SIDE)), 1],
            buffers,
            scalars: has_inverse.then_some(inverse_batch).into_iter().chain(integers).collect(),
        }
    }
}

/// Inputs of both passes: P and T, bf16 (g, e); α, f32 (1); and hashes of the targets, u64 (g), if
/// equal targets are left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) predicted: View<'a>,
    pub(super) target: View<'a>,
    pub(super) alpha: Region,
    pub(super) hashes: Option<Region>,
}

impl Inputs<'_> {
    /// Issues the product that writes S/α of one strip to `scores`.
    fn multiply(
        &self,
        call: Call,
        strips: Strips,
        (start, rows): (usize, usize),
        scores: Region,
    ) -> Result<()> {
        call.stream.multiply(Product {
            rows,
            columns: strips.batch,
            inner: strips.width,
            left: call.at(self.predicted.rows(start, start + rows), "predicted", DType::Bf16)?,
            left_transposed: false,
            right: call.at(self.target, "target", DType::Bf16)?,
            right_transposed: true,
            bias: None,
            out: scores,
            out_element: Element::F32,
            addend: None,
        })
    }
}

/// Writes the log-sum-exps of the rows and the columns of S, and its diagonal, f32 (g) each.
pub(super) fn statistics(
    call: Call,
    strips: Strips,
    inputs: &Inputs<'_>,
    [row_lse, column_lse, diagonal]: [Region; 3],
) -> Result<()> {
    let (batch, column_blocks, row_blocks) =
        (strips.batch, strips.column_blocks(), strips.row_blocks());
    let scores = call.workspace(DType::F32, strips.scores())?;
    let partial = |blocks: usize| -> Result<[Tensor; 2]> {
        let one = || call.workspace(DType::F32, blocks * batch);
        Ok([one()?, one()?])
    };
    let (rows, columns) = (partial(column_blocks)?, partial(row_blocks)?);
    let region = |tensor: &Tensor| call.f32(tensor.view(), "partial statistics");
    let [row_maxima, row_totals] = [region(&rows[0])?, region(&rows[1])?];
    let [column_maxima, column_totals] = [region(&columns[0])?, region(&columns[1])?];
    for strip in strips.each() {
        let scores = call.f32(scores.view().rows(0, strip.1 * batch), "scores")?;
        inputs.multiply(call, strips, strip, scores)?;
        let buffers = vec![
            scores,
            inputs.alpha,
            inputs.hashes.unwrap_or(inputs.alpha),
            row_maxima,
            row_totals,
            column_maxima,
            column_totals,
            diagonal,
        ];
        let kernel = Kernel::StripStatistics { masked: inputs.hashes.is_some() };
        call.run([strips.launch(kernel, strip, strips.row_blocks_before(strip.0), buffers)])?;
    }
    let merge = |maxima, totals, lse, parts| {
        launch::merge([maxima, totals, inputs.alpha, lse], batch, parts)
    };
    call.run([
        merge(row_maxima, row_totals, row_lse, column_blocks),
        merge(column_maxima, column_totals, column_lse, row_blocks),
    ])
}

/// Writes d_p and d_t, f32 (g, e) each, and Σ dS ∘ S to `d_logit_scale`, f32 (1).
pub(super) fn backward(
    call: Call,
    strips: Strips,
    inputs: &Inputs<'_>,
    [row_lse, column_lse]: [Region; 2],
    d_predicted: ViewMut<'_>,
    d_target: ViewMut<'_>,
    d_logit_scale: Region,
) -> Result<()> {
    let (batch, width) = (strips.batch, strips.width);
    let scores = call.workspace(DType::F32, strips.scores())?;
    let weights = call.workspace(DType::Bf16, strips.scores())?;
    let blocks = strips.row_blocks() * strips.column_blocks();
    let products = call.workspace(DType::F32, blocks)?;
    let products = call.f32(products.view(), "products")?;
    let target = call.at(inputs.target, "target", DType::Bf16)?;
    let d_target = call.f32(d_target, "d_target")?;
    let d_predicted = d_predicted.as_view();
    // Each strip: S/α, then α·dS, then rows of d_p = α·dS·T and d_t += (α·dS)ᵀ·P.
    for strip @ (start, rows) in strips.each() {
        let scores = call.f32(scores.view().rows(0, rows * batch), "scores")?;
        let weights = call.at(weights.view().rows(0, rows * batch), "weights", DType::Bf16)?;
        inputs.multiply(call, strips, strip, scores)?;
        let buffers = vec![
            scores,
            inputs.alpha,
            inputs.hashes.unwrap_or(inputs.alpha),
            row_lse,
            column_lse,
            weights,
            products,
        ];
        let kernel = Kernel::StripWeights { masked: inputs.hashes.is_some() };
        let partial_at = strips.row_blocks_before(start) * strips.column_blocks();
        call.run([strips.launch(kernel, strip, partial_at, buffers)])?;
        let d_rows = Product {
            rows,
            columns: width,
            inner: batch,
            left: weights,
            left_transposed: false,
            right: target,
            right_transposed: false,
            bias: None,
            out: call.f32(d_predicted.rows(start, start + rows), "d_predicted")?,
            out_element: Element::F32,
            addend: None,
        };
        call.stream.multiply(d_rows)?;
        let own = inputs.predicted.rows(start, start + rows);
        call.stream.multiply(Product {
            rows: batch,
            inner: rows,
            left_transposed: true,
            right: call.at(own, "predicted", DType::Bf16)?,
            out: d_target,
            addend: (start > 0).then_some(d_target),
            ..d_rows
        })?;
    }
    call.run([launch::scale_gradient([products, inputs.alpha, d_logit_scale], batch, blocks)])
}
