//! Pairwise distances between predicted and target embeddings, for training without negatives.
//!
//! Cosine: 1 − p·t (both already normalised). L1: mean over e of |p − t|. L2: mean over e of (p − t)².
//!
//! # On a GPU
//!
//! One plane per row, then one cube over the rows, both in a fixed order; gradients element by element in f32. A rank's share is 2 MB: launches
//! cost more than bytes.
//!
//! Source: VL-JEPA (arXiv 2512.10942) §4.4 compares these with `InfoNCE`.

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

/// Which distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// 1 − p·t.
    Cosine,
    /// mean |p − t|.
    L1,
    /// mean (p − t)².
    L2,
}

/// The sum over rows of the distance between `pred` (b, e) and `target` (b, e), summed in f64.
///
/// # Errors
/// When shapes or element types disagree.
pub fn forward(stream: &Stream, pred: View<'_>, target: View<'_>, kind: Distance) -> Result<f64> {
    const NAME: &str = "distance::forward";
    check_pair(NAME, pred, target)?;
    match stream {
        Stream::Host => {
            let (p, t) = (pred.host_f32(NAME, "pred")?, target.host_f32(NAME, "target")?);
            Ok(reference::forward(p, t, pred.shape()[1], kind))
        }
        #[cfg(feature = "cuda")]
        Stream::Cuda(stream) => {
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
        }
    }
}

/// Gradients of `factor` · [`forward`], written to `d_pred` (b, e) and `d_target` (b, e). |x| has gradient 0 at 0.
///
/// # Errors
/// When shapes or element types disagree.
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
        #[cfg(feature = "cuda")]
        Stream::Cuda(stream) => {
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
        }
    }
    Ok(())
}

fn check_pair(name: &'static str, pred: View<'_>, target: View<'_>) -> Result<()> {
    let [b, e] = check::rank(name, "pred", pred.shape())?;
    check::shape(name, "target", target.shape(), &[b, e])
}
