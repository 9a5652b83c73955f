//! Variance and covariance terms of `VICReg`, which keep embeddings from collapsing without
//! negatives.
//!
//! With the embeddings z (g, e) of the global batch, their mean m and C = (z − m)ᵀ(z − m) / (g −
//! 1), the terms of one branch are
//!
//! variance · Σ_j max(0, 1 − √(C_jj + 1e-4)) + covariance · Σ_{i≠j} C_ij².
//!
//! Their gradient is (z − m)·W, with a symmetric matrix W: W_ij = 4·covariance·C_ij / (g − 1)
//! beside the diagonal, and W_jj = −variance / (√(C_jj + 1e-4)·(g − 1)) where the square root is
//! below 1, else 0. (The gradient passes through m unchanged, because the rows of z − m sum to
//! zero.) The products (z − m)ᵀ(z − m) and (z − m)·W are those of [`linear`](crate::linear). This
//! module has the steps around them.
//!
//! # On a GPU
//!
//! [`centre`] reads and writes the embeddings of a rank once, [`weights`] reads e² products in f32
//! and writes e² weights in bf16: 14 MB for a width of 1,536. The products take far longer.
//!
//! Source: Bardes, Ponce, `LeCun` (arXiv 2105.04906), and `main_vicreg.py` of
//! facebookresearch/vicreg.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
#[cfg(feature = "cuda")]
pub mod launch;
mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

use crate::parallel::round;
use crate::{Result, Stream, View, ViewMut, check};

/// Number that is added to a variance before its square root (ε of the source).
const EPSILON: f64 = 1e-4;

/// Factors of the two terms of a branch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Factor of Σ_j max(0, 1 − √(C_jj + 1e-4)).
    pub variance: f32,
    /// Factor of Σ_{i≠j} C_ij².
    pub covariance: f32,
}

/// Writes `x` − `sums` / `global` to `out`. `x` and `out` (b, e) have the same type; `sums`, f32
/// (e), holds the sum of each column over the `global` rows of all ranks.
///
/// # Errors
/// If shapes or element types disagree.
pub fn centre(
    stream: &Stream,
    x: View<'_>,
    sums: View<'_>,
    global: usize,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "vic_reg::centre";
    let [rows, width] = check::rank(NAME, "x", x.shape())?;
    check::shape(NAME, "sums", sums.shape(), &[width])?;
    check::shape(NAME, "out", out.shape(), &[rows, width])?;
    let inverse = reciprocal(global);
    match stream {
        Stream::Host => {
            let (x, sums) = (x.host_f32(NAME, "x")?, sums.host_f32(NAME, "sums")?);
            reference::centre(x, sums, inverse, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(x.dtype(), "x")?;
            let buffers =
                [call.at(x, "x", element)?, call.f32(sums, "sums")?, call.at(out, "out", element)?];
            call.run(launch::centre(buffers, element, inverse, [rows, width])?)?;
        }),
    }
    Ok(())
}

/// Writes the matrix W of the module's description to `weights` (e, e), and each dimension's part
/// of the terms to `terms`, f32 (e). `products`, f32 (e, e), is (z − m)ᵀ(z − m) over the `global`
/// rows of all ranks. `weights` is f32, or on a GPU also bf16.
///
/// # Errors
/// If shapes or element types disagree, or `global` is below 2.
pub fn weights(
    stream: &Stream,
    products: View<'_>,
    global: usize,
    factors: Factors,
    weights: ViewMut<'_>,
    terms: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "vic_reg::weights";
    let [width, _] = check::rank(NAME, "products", products.shape())?;
    check::shape(NAME, "products", products.shape(), &[width, width])?;
    check::shape(NAME, "weights", weights.shape(), &[width, width])?;
    check::shape(NAME, "terms", terms.shape(), &[width])?;
    if global < 2 {
        let needed = "a variance needs at least 2 rows";
        return Err(check::value(NAME, "global", global.to_string(), needed));
    }
    let inverse = reciprocal(global - 1);
    match stream {
        Stream::Host => {
            let products = products.host_f32(NAME, "products")?;
            let (weights, terms) =
                (weights.host_f32_mut(NAME, "weights")?, terms.host_f32_mut(NAME, "terms")?);
            reference::weights(products, inverse, factors, weights, terms);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(weights.dtype(), "weights")?;
            let buffers = [
                call.f32(products, "products")?,
                call.at(weights, "weights", element)?,
                call.f32(terms, "terms")?,
            ];
            call.run(launch::weights(buffers, element, inverse, factors, width)?)?;
        }),
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "batches are below 2^24 rows")]
fn reciprocal(rows: usize) -> f32 {
    round(1.0 / rows.max(1) as f64)
}
