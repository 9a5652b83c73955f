//! L2 normalisation of embeddings: out = x / max(‖x‖, eps).
//!
//! # On a GPU
//!
//! A warp computes one row, with sums in f32. A rank's embeddings are 0.4 MB, so the launch costs
//! more than the memory traffic.

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

use crate::{Result, Stream, View, ViewMut, check};

/// Scales each row to length 1, `x / max(‖x‖₂, eps)`, and keeps the divisor for [`backward`].
///
/// `x`, `out` (b, e) and `norm` (b), f32 with sums in f64 on the host; on a GPU `x` and `out` may
/// also be bf16, with sums in f32. `norm` is the divisor, with a minus sign if `eps` replaced a
/// smaller length; the divisor then does not depend on x. Same as `torch.nn.functional.normalize`.
///
/// # Errors
/// When shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, normalize};
///
/// let (x, mut out, mut norm) = ([3.0, 4.0], [f32::NAN; 2], [f32::NAN]);
/// let out_view = ViewMut::from_f32(&mut out, &[1, 2]);
/// let norm_view = ViewMut::from_f32(&mut norm, &[1]);
/// normalize::forward(&Stream::Host, View::from_f32(&x, &[1, 2]), 1e-12, out_view, norm_view)?;
/// assert_eq!((out, norm), ([0.6, 0.8], [5.0]));
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(
    stream: &Stream,
    x: View<'_>,
    eps: f32,
    out: ViewMut<'_>,
    norm: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "normalize::forward";
    let [b, e] = check::rank(NAME, "x", x.shape())?;
    check::shape(NAME, "out", out.shape(), &[b, e])?;
    check::shape(NAME, "norm", norm.shape(), &[b])?;
    match stream {
        Stream::Host => {
            let (x, out) = (x.host_f32(NAME, "x")?, out.host_f32_mut(NAME, "out")?);
            reference::forward(x, e, eps, out, norm.host_f32_mut(NAME, "norm")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(x.dtype(), "x")?;
            let buffers =
                [call.at(x, "x", element)?, call.at(out, "out", element)?, call.f32(norm, "norm")?];
            call.run(launch::forward(buffers, eps, element, [b, e])?)?;
        }),
    }
    Ok(())
}

/// Gradient of [`forward`]: `d_x = (d_out − out·⟨out, d_out⟩) / |norm|`, all (b, e). Rows with a
/// negative `norm` have no projection `out·⟨out, d_out⟩`.
///
/// # Errors
/// When shapes or element types disagree.
pub fn backward(
    stream: &Stream,
    out: View<'_>,
    norm: View<'_>,
    d_out: View<'_>,
    d_x: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "normalize::backward";
    let [b, e] = check::rank(NAME, "out", out.shape())?;
    check::shape(NAME, "norm", norm.shape(), &[b])?;
    check::shape(NAME, "d_out", d_out.shape(), &[b, e])?;
    check::shape(NAME, "d_x", d_x.shape(), &[b, e])?;
    match stream {
        Stream::Host => {
            let (out, norm) = (out.host_f32(NAME, "out")?, norm.host_f32(NAME, "norm")?);
            let d_out = d_out.host_f32(NAME, "d_out")?;
            reference::backward(out, norm, d_out, e, d_x.host_f32_mut(NAME, "d_x")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(out.dtype(), "out")?;
            let (out, norm) = (call.at(out, "out", element)?, call.f32(norm, "norm")?);
            let buffers = [out, norm, call.f32(d_out, "d_out")?, call.at(d_x, "d_x", element)?];
            call.run(launch::backward(buffers, element, [b, e])?)?;
        }),
    }
    Ok(())
}
