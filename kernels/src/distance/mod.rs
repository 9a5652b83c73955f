//! Pairwise distances between predicted and target embeddings, for training without negatives.
//!
//! Cosine: 1 − p·t (both already normalised). L1: mean over e of |p − t|. L2: mean over e of (p −
//! t)².
//!
//! # On a GPU
//!
//! One warp computes a row, then one block adds the rows, both in a fixed order. Gradients are
//! computed element by element in f32. The share of a rank is 2 MB, so launches cost more than
//! memory traffic.
//!
//! Source: VL-JEPA (arXiv 2512.10942) §4.4 compares these distances with `InfoNCE`.

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

#[cfg(feature = "cuda")]
use crate::{DType, Tensor};
use crate::{Result, Stream, View, ViewMut, check};

/// Kind of distance between a prediction p and a target t.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// Cosine distance of normalised rows: 1 − p·t.
    Cosine,
    /// Mean absolute difference: mean |p − t|.
    L1,
    /// Mean squared difference: mean (p − t)².
    L2,
}

/// Sum over rows of the distance between `pred` (b, e) and `target` (b, e). The sum is in f64 on
/// the host and in f32 on a GPU.
///
/// # Errors
/// If shapes or element types disagree.
pub fn forward(stream: &Stream, pred: View<'_>, target: View<'_>, kind: Distance) -> Result<f64> {
    const NAME: &str = "distance::forward";
    check_pair(NAME, pred, target)?;
    match stream {
        Stream::Host => {
            let (p, t) = (pred.host_f32(NAME, "pred")?, target.host_f32(NAME, "target")?);
            Ok(reference::forward(p, t, pred.shape()[1], kind))
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(pred.dtype(), "pred")?;
            let [rows, width] = check::rank(NAME, "pred", pred.shape())?;
            let inputs = launch::Inputs {
                pred: call.at(pred, "pred", element)?,
                target: call.at(target, "target", element)?,
                element,
                rows,
                width,
            };
            let (distances, sum) =
                (call.workspace(DType::F32, rows)?, call.workspace(DType::F32, 1)?);
            let at = |tensor: &Tensor| call.f32(tensor.view(), "workspace");
            call.run(launch::forward(inputs, kind, at(&distances)?, at(&sum)?)?)?;
            Ok(f64::from(sum.to_f32()?[0]))
        }),
    }
}

/// Writes the gradients of `factor` · [`forward`] to `d_pred` (b, e) and `d_target` (b, e), both
/// f32. |x| has gradient 0 at 0.
///
/// # Errors
/// If shapes or element types disagree.
pub fn backward(
    stream: &Stream,
    pred: View<'_>,
    target: View<'_>,
    kind: Distance,
    factor: f32,
    d_pred: ViewMut<'_>,
    d_target: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "distance::backward";
    check_pair(NAME, pred, target)?;
    check::shape(NAME, "d_pred", d_pred.shape(), pred.shape())?;
    check::shape(NAME, "d_target", d_target.shape(), pred.shape())?;
    match stream {
        Stream::Host => {
            let (p, t) = (pred.host_f32(NAME, "pred")?, target.host_f32(NAME, "target")?);
            let d_p = d_pred.host_f32_mut(NAME, "d_pred")?;
            let d_t = d_target.host_f32_mut(NAME, "d_target")?;
            reference::backward(p, t, pred.shape()[1], kind, factor, d_p, d_t);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(pred.dtype(), "pred")?;
            let [rows, width] = check::rank(NAME, "pred", pred.shape())?;
            let inputs = launch::Inputs {
                pred: call.at(pred, "pred", element)?,
                target: call.at(target, "target", element)?,
                element,
                rows,
                width,
            };
            let (d_pred, d_target) = (call.f32(d_pred, "d_pred")?, call.f32(d_target, "d_target")?);
            call.run(launch::backward(inputs, kind, factor, d_pred, d_target)?)?;
        }),
    }
    Ok(())
}

fn check_pair(name: &'static str, pred: View<'_>, target: View<'_>) -> Result<()> {
    let [b, e] = check::rank(name, "pred", pred.shape())?;
    check::shape(name, "target", target.shape(), &[b, e])
}
