//! `InfoNCE` over a global batch that is spread over ranks: exact, and without a (batch, batch)
//! matrix.
//!
//! s = α·P·Tᵀ with α = exp(logit_scale), where P holds the predicted and T the target embeddings,
//! both normalised. With r the log-sum-exps of the rows of s and c the log-sum-exps of its columns,
//! loss = Σ_i (r_i + c_i − 2·s_ii) / 2B and dS_ij = (exp(s_ij − r_i) + exp(s_ij − c_j)) / 2B −
//! δ_ij / B.
//!
//! Every rank holds its own rows of P and T and the gathered rows of all ranks. Both directions are
//! the same computation with the roles of P and T exchanged: `rows` are this rank's rows of one
//! side, `all` the other side of every rank. Log-sum-exps are gathered between [`statistics`] and
//! [`backward`], so the gradient is exact without a reduction.
//!
//! Shapes: b rows of this rank, which begin at row `first_row` of the batch; g = B rows of all
//! ranks; e elements per embedding.
//!
//! # On a GPU
//!
//! Embeddings are bf16 and products are summed in f32. `cube.rs` computes 128×128 tiles of scores
//! on tensor cores. One pass turns them into running maxima and sums; the other turns them into a
//! bounded strip of dS, whose product with the embeddings is the gradient. Operations: 2·b·g·e for
//! statistics and 4·b·g·e for the gradient, per side. Memory: the embeddings, at most 128 MiB of
//! dS, and partial sums. A (b, g) matrix is never stored in full once it exceeds this bound.
//!
//! If one GPU holds the whole batch (b = g, a multiple of 8), [`both_statistics`] and
//! [`both_gradients`] compute both sides from strips of S that cuBLASLt writes: in all, 2·g·g·e
//! operations for statistics and 6·g·g·e for gradients, instead of 4·g·g·e and 8·g·g·e
//! (`strips.rs`). Any other share of the batch runs the one-sided kernels twice: at 128 of 24,576
//! rows the statistics of columns belong to other ranks, so the two sides have no pass over S to
//! share.
//!
//! Sources: CLIP (arXiv 2103.00020) figure 3; VL-JEPA (arXiv 2512.10942) §2.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod reference;
#[cfg(feature = "cuda")]
mod strips;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_strips;

use std::ops::Range;

#[cfg(feature = "cuda")]
use crate::{DType, Tensor, copy, device::HostSlice, device::cuda::Call, device::cuda::Region};
use crate::{Result, Stream, View, ViewMut, check};

/// Hashes of the target texts, by which equal targets are left out of the negatives.
///
/// If j is not i but has i's target, s_ij counts as −∞ in the log-sum-exps and in the gradient.
#[derive(Debug, Clone, Copy)]
pub struct EqualTargets<'a> {
    /// Hashes of this rank's rows, u64 (b).
    pub rows: View<'a>,
    /// Hashes of the rows of all ranks, u64 (g).
    pub all: View<'a>,
}

/// Log-sum-exp of each row of s = α·rows·allᵀ, and the row's diagonal element.
///
/// # Shapes
/// `rows` (b, e), `all` (g, e); writes `lse` (b) and `diagonal` (b), s_ii. Tiles are summed in f32
/// with a running maximum.
///
/// # Errors
/// When shapes or element types disagree, or the rows do not lie within the batch.
#[expect(clippy::too_many_arguments, reason = "the tensors and parameters of one formula")]
pub fn statistics(
    stream: &Stream,
    rows: View<'_>,
    all: View<'_>,
    alpha: f32,
    first_row: usize,
    equal: Option<EqualTargets<'_>>,
    lse: ViewMut<'_>,
    diagonal: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "info_nce::statistics";
    let b = check_inputs(NAME, rows, all, first_row, equal)?;
    check::shape(NAME, "lse", lse.shape(), &[b])?;
    check::shape(NAME, "diagonal", diagonal.shape(), &[b])?;
    match stream {
        Stream::Host => {
            let inputs = host_inputs(NAME, rows, all, alpha, first_row, equal)?;
            let lse = lse.host_f32_mut(NAME, "lse")?;
            host::statistics(&inputs, lse, diagonal.host_f32_mut(NAME, "diagonal")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let alpha = call.uploaded(HostSlice::F32(&[alpha]))?;
            let (inputs, sizes) = gpu_inputs(call, rows, all, &alpha, first_row, equal)?;
            let len = launch::statistics_workspace(sizes);
            let (maxima, totals) =
                (call.workspace(DType::F32, len)?, call.workspace(DType::F32, len)?);
            let workspace =
                [call.f32(maxima.view(), "maxima")?, call.f32(totals.view(), "totals")?];
            let (lse, diagonal) = (call.f32(lse, "lse")?, call.f32(diagonal, "diagonal")?);
            call.run(launch::statistics(inputs, sizes, workspace, lse, diagonal)?)?;
        }),
    }
    Ok(())
}

/// Gradient of the loss with respect to this rank's rows: `d_rows`_i = α Σ_j dS_ij all_j.
///
/// If `d_logit_scale`, f32 (1), is given, adds Σ dS ∘ S over these rows to it. Summed over the rows
/// of P of all ranks, this is the gradient of `logit_scale`. The rows of T give the same number
/// again, so the caller leaves it out there.
///
/// # Shapes
/// `rows` (b, e), `all` (g, e), `rows_lse` (b) of these rows, `all_lse` (g) of the rows of `all`;
/// writes `d_rows` (b, e). For the rows of P, `rows_lse` is r and `all_lse` is c; for the rows of T
/// the two are exchanged.
///
/// # Errors
/// When shapes or element types disagree, or the rows do not lie within the batch.
#[expect(clippy::too_many_arguments, reason = "the tensors and parameters of one formula")]
pub fn backward(
    stream: &Stream,
    rows: View<'_>,
    all: View<'_>,
    rows_lse: View<'_>,
    all_lse: View<'_>,
    alpha: f32,
    first_row: usize,
    equal: Option<EqualTargets<'_>>,
    d_rows: ViewMut<'_>,
    d_logit_scale: Option<ViewMut<'_>>,
) -> Result<()> {
    const NAME: &str = "info_nce::backward";
    let b = check_inputs(NAME, rows, all, first_row, equal)?;
    check::shape(NAME, "rows_lse", rows_lse.shape(), &[b])?;
    check::shape(NAME, "all_lse", all_lse.shape(), &[all.shape()[0]])?;
    check::shape(NAME, "d_rows", d_rows.shape(), rows.shape())?;
    if let Some(d_logit_scale) = &d_logit_scale {
        check::shape(NAME, "d_logit_scale", d_logit_scale.shape(), &[1])?;
    }
    match stream {
        Stream::Host => {
            let inputs = host_inputs(NAME, rows, all, alpha, first_row, equal)?;
            let rows_lse = rows_lse.host_f32(NAME, "rows_lse")?;
            let all_lse = all_lse.host_f32(NAME, "all_lse")?;
            let d_rows = d_rows.host_f32_mut(NAME, "d_rows")?;
            let sum = host::backward(&inputs, rows_lse, all_lse, d_rows);
            if let Some(d_logit_scale) = d_logit_scale {
                #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
                let sum = sum as f32;
                d_logit_scale.host_f32_mut(NAME, "d_logit_scale")?[0] += sum;
            }
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let alpha = call.uploaded(HostSlice::F32(&[alpha]))?;
            let (inputs, sizes) = gpu_inputs(call, rows, all, &alpha, first_row, equal)?;
            let launch::Workspace { strip, products, partial } = launch::workspace(sizes);
            let strip = call.workspace(DType::Bf16, strip)?;
            let products = call.workspace(DType::F32, products)?;
            let partial = call.workspace(DType::F32, partial)?;
            let share = call.workspace(DType::F32, 1)?;
            let buffers = launch::Backward {
                rows_lse: call.f32(rows_lse, "rows_lse")?,
                all_lse: call.f32(all_lse, "all_lse")?,
                workspace: [
                    call.at(strip.view(), "strip", DType::Bf16)?,
                    call.f32(products.view(), "products")?,
                    call.f32(partial.view(), "partial")?,
                ],
                d_rows: call.f32(d_rows, "d_rows")?,
                d_logit_scale: call.f32(share.view(), "share")?,
            };
            call.run(launch::backward(inputs, sizes, buffers)?)?;
            if let Some(d_logit_scale) = d_logit_scale {
                copy::add(&Stream::Cuda(*stream), share.view(), d_logit_scale)?;
            }
        }),
    }
    Ok(())
}

/// Embeddings of all ranks and this rank's share of them.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    /// Predicted embeddings P of all ranks, (g, e).
    pub predicted: View<'a>,
    /// Target embeddings T of all ranks, (g, e).
    pub target: View<'a>,
    /// Hashes of the target texts, u64 (g), if equal targets are left out of the negatives.
    pub hashes: Option<View<'a>>,
    /// This rank's b rows of the batch.
    pub rows: Range<usize>,
}

impl<'a> Batch<'a> {
    fn own(&self, all: View<'a>) -> View<'a> {
        all.rows(self.rows.start, self.rows.end)
    }

    fn equal(&self) -> Option<EqualTargets<'a>> {
        self.hashes.map(|all| EqualTargets { rows: self.own(all), all })
    }

    /// Strips of the batch, if this rank holds all of its rows.
    #[cfg(feature = "cuda")]
    fn strips(&self) -> Option<strips::Strips> {
        let [g, e] = check::rank("info_nce", "predicted", self.predicted.shape()).ok()?;
        if self.rows == (0..g) { strips::Strips::new(g, e) } else { None }
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        let [g, _] = check::rank(operation, "predicted", self.predicted.shape())?;
        check::shape(operation, "target", self.target.shape(), self.predicted.shape())?;
        if let Some(hashes) = self.hashes {
            check::shape(operation, "hashes", hashes.shape(), &[g])?;
        }
        if self.rows.start > self.rows.end || self.rows.end > g {
            let needed = format!("they must lie within the batch of {g} rows");
            return Err(check::value(operation, "rows", format!("{:?}", self.rows), needed));
        }
        Ok(())
    }

    /// Inputs of the passes over strips, with α on the device.
    #[cfg(feature = "cuda")]
    fn strip_inputs(&self, call: Call, alpha: &Tensor) -> Result<strips::Inputs<'a>> {
        let hashes = self.hashes.map(|h| call.at(h, "hashes", DType::U64)).transpose()?;
        let alpha = call.f32(alpha.view(), "alpha")?;
        Ok(strips::Inputs { predicted: self.predicted, target: self.target, alpha, hashes })
    }
}

/// [`statistics`] of this rank's rows of both sides.
///
/// # Shapes
/// Writes f32 (b) each: `predicted_lse`, of the rows of P over all of T; `target_lse`, of the rows
/// of T over all of P; and `diagonal`, s_ii.
///
/// # Errors
/// When shapes or element types disagree, or the rows do not lie within the batch.
pub fn both_statistics(
    stream: &Stream,
    batch: &Batch<'_>,
    alpha: f32,
    mut predicted_lse: ViewMut<'_>,
    mut target_lse: ViewMut<'_>,
    mut diagonal: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "info_nce::both_statistics";
    batch.check(NAME)?;
    let b = batch.rows.len();
    check::shape(NAME, "predicted_lse", predicted_lse.shape(), &[b])?;
    check::shape(NAME, "target_lse", target_lse.shape(), &[b])?;
    check::shape(NAME, "diagonal", diagonal.shape(), &[b])?;
    #[cfg(feature = "cuda")]
    if let (Stream::Cuda(stream), Some(strips)) = (stream, batch.strips()) {
        let call = stream.call(NAME);
        let alpha = call.uploaded(HostSlice::F32(&[alpha]))?;
        let out = [
            call.f32(predicted_lse, "predicted_lse")?,
            call.f32(target_lse, "target_lse")?,
            call.f32(diagonal, "diagonal")?,
        ];
        return strips::statistics(call, strips, &batch.strip_inputs(call, &alpha)?, out);
    }
    let (p, t, equal, first) = (batch.predicted, batch.target, batch.equal(), batch.rows.start);
    let (lse, s) = (target_lse.reborrow(), diagonal.reborrow());
    statistics(stream, batch.own(t), p, alpha, first, equal, lse, s)?;
    let (lse, s) = (predicted_lse.reborrow(), diagonal.reborrow());
    statistics(stream, batch.own(p), t, alpha, first, equal, lse, s)
}

/// [`backward`] of this rank's rows of both sides. Adds this rank's share of Σ dS ∘ S to
/// `d_logit_scale`, f32 (1), if it is given.
///
/// # Shapes
/// `predicted_lse` and `target_lse`, f32 (g), of the rows of all ranks; writes `d_predicted` and
/// `d_target` (b, e).
///
/// # Errors
/// When shapes or element types disagree, or the rows do not lie within the batch.
#[expect(clippy::too_many_arguments, reason = "the tensors and parameters of one formula")]
pub fn both_gradients(
    stream: &Stream,
    batch: &Batch<'_>,
    predicted_lse: View<'_>,
    target_lse: View<'_>,
    alpha: f32,
    d_predicted: ViewMut<'_>,
    d_target: ViewMut<'_>,
    d_logit_scale: Option<ViewMut<'_>>,
) -> Result<()> {
    const NAME: &str = "info_nce::both_gradients";
    batch.check(NAME)?;
    let (p, t, equal) = (batch.predicted, batch.target, batch.equal());
    let (own_p, own_t) = (batch.own(p), batch.own(t));
    check::shape(NAME, "predicted_lse", predicted_lse.shape(), &p.shape()[..1])?;
    check::shape(NAME, "target_lse", target_lse.shape(), &p.shape()[..1])?;
    check::shape(NAME, "d_predicted", d_predicted.shape(), own_p.shape())?;
    check::shape(NAME, "d_target", d_target.shape(), own_t.shape())?;
    if let Some(d_logit_scale) = &d_logit_scale {
        check::shape(NAME, "d_logit_scale", d_logit_scale.shape(), &[1])?;
    }
    #[cfg(feature = "cuda")]
    if let (Stream::Cuda(stream), Some(strips)) = (stream, batch.strips()) {
        let call = stream.call(NAME);
        let alpha = call.uploaded(HostSlice::F32(&[alpha]))?;
        let share = call.workspace(DType::F32, 1)?;
        let inputs = batch.strip_inputs(call, &alpha)?;
        let lse = [call.f32(predicted_lse, "predicted_lse")?, call.f32(target_lse, "target_lse")?];
        let sum = call.f32(share.view(), "share")?;
        strips::backward(call, strips, &inputs, lse, d_predicted, d_target, sum)?;
        if let Some(d_logit_scale) = d_logit_scale {
            copy::add(&Stream::Cuda(*stream), share.view(), d_logit_scale)?;
        }
        return Ok(());
    }
    let Range { start, end } = batch.rows;
    let (r, c) = (predicted_lse.rows(start, end), target_lse.rows(start, end));
    let (lse, d) = (target_lse, d_predicted);
    backward(stream, own_p, t, r, lse, alpha, start, equal, d, d_logit_scale)?;
    let (lse, d) = (predicted_lse, d_target);
    backward(stream, own_t, p, c, lse, alpha, start, equal, d, None)
}

/// Share of this rank's rows in the loss, Σ_i (r_i + c_i − 2·s_ii) / 2B in f64. The arguments are
/// the outputs of [`statistics`] for the same rows of P and of T. The shares of all ranks add up to
/// the loss.
///
/// # Panics
/// When the three slices differ in length.
#[must_use]
pub fn loss(rows_lse: &[f32], other_lse: &[f32], diagonal: &[f32], global_batch: usize) -> f64 {
    assert_eq!(rows_lse.len(), diagonal.len(), "one log-sum-exp per row of P");
    assert_eq!(other_lse.len(), diagonal.len(), "one log-sum-exp per row of T");
    let terms = rows_lse.iter().zip(other_lse).zip(diagonal);
    let sum: f64 =
        terms.map(|((&r, &c), &s)| f64::from(r) + f64::from(c) - 2.0 * f64::from(s)).sum();
    sum / (2.0 * host::count(global_batch))
}

/// Inputs of both passes on a GPU, with α in device memory.
#[cfg(feature = "cuda")]
fn gpu_inputs(
    call: Call,
    rows: View<'_>,
    all: View<'_>,
    alpha: &Tensor,
    first_row: usize,
    equal: Option<EqualTargets<'_>>,
) -> Result<(launch::Inputs<Region>, launch::Sizes)> {
    let [batch, width] = check::rank(call.operation, "all", all.shape())?;
    let hashes = |e: EqualTargets<'_>| {
        let own = call.at(e.rows, "hashes of rows", DType::U64)?;
        Ok([own, call.at(e.all, "hashes of all", DType::U64)?])
    };
    let inputs = launch::Inputs {
        rows: call.at(rows, "rows", DType::Bf16)?,
        all: call.at(all, "all", DType::Bf16)?,
        alpha: call.f32(alpha.view(), "alpha")?,
        hashes: equal.map(hashes).transpose()?,
    };
    Ok((inputs, launch::Sizes { rows: rows.shape()[0], batch, width, first_row }))
}

fn check_inputs(
    operation: &'static str,
    rows: View<'_>,
    all: View<'_>,
    first_row: usize,
    equal: Option<EqualTargets<'_>>,
) -> Result<usize> {
    let [b, e] = check::rank(operation, "rows", rows.shape())?;
    let [g, _] = check::rank(operation, "all", all.shape())?;
    check::shape(operation, "all", all.shape(), &[g, e])?;
    if first_row.checked_add(b).is_none_or(|end| end > g) {
        let needed = format!("the {b} rows from there must lie within the batch of {g} rows");
        return Err(check::value(operation, "first_row", first_row.to_string(), needed));
    }
    if let Some(equal) = equal {
        check::shape(operation, "hashes of rows", equal.rows.shape(), &[b])?;
        check::shape(operation, "hashes of all", equal.all.shape(), &[g])?;
    }
    Ok(b)
}

fn host_inputs<'a>(
    operation: &'static str,
    rows: View<'a>,
    all: View<'a>,
    alpha: f32,
    first_row: usize,
    equal: Option<EqualTargets<'a>>,
) -> Result<host::Inputs<'a>> {
    let hashes = |equal: EqualTargets<'a>| -> Result<(&'a [u64], &'a [u64])> {
        let rows = equal.rows.host_u64(operation, "hashes of rows")?;
        Ok((rows, equal.all.host_u64(operation, "hashes of all")?))
    };
    Ok(host::Inputs {
        rows: rows.host_f32(operation, "rows")?,
        all: all.host_f32(operation, "all")?,
        width: rows.shape()[1],
        batch: all.shape()[0],
        alpha,
        first_row,
        equal: equal.map(hashes).transpose()?,
    })
}
