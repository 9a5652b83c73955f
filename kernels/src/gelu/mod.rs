//! The Gaussian error linear unit: out = x · Φ(x), exactly or by one of two approximations.
//!
//! # On a GPU
//!
//! Memory-bound: 2 passes over memory forward, 3 backward, 16 bytes per thread, arithmetic in f32.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
pub(crate) mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

use crate::{Result, Stream, View, ViewMut, check};

/// Form of GELU, exact or approximate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gelu {
    /// x/2 · (1 + erf(x/√2)): V-JEPA 2 and CLIP-like models.
    Erf,
    /// x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))): Gemma and `SigLIP` 2.
    Tanh,
    /// x · σ(1.702·x), called `quick_gelu`: CLIP as `OpenAI` trained it.
    Quick,
}

/// Applies GELU to every element of `x`; `out` has the same shape. Both are f32, or on a GPU both
/// may be bf16.
///
/// Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415), as `torch.nn.functional.gelu`.
///
/// # Errors
/// If shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, gelu};
///
/// let (x, mut out) = ([0.0, 1.0], [f32::NAN; 2]);
/// let out_view = ViewMut::from_f32(&mut out, &[2]);
/// gelu::forward(&Stream::Host, View::from_f32(&x, &[2]), gelu::Gelu::Erf, out_view)?;
/// assert!(out[0] == 0.0 && (out[1] - 0.841_344_7).abs() < 1e-6);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(stream: &Stream, x: View<'_>, kind: Gelu, out: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "gelu::forward";
    check::shape(NAME, "out", out.shape(), x.shape())?;
    match stream {
        Stream::Host => {
            host::forward(x.host_f32(NAME, "x")?, kind, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(x.dtype(), "x")?;
            let count = x.len();
            call.run(launch::forward(
                call.at(x, "x", e)?,
                call.at(out, "out", e)?,
                kind,
                e,
                count,
            )?)?;
        }),
    }
    Ok(())
}

/// The gradient of [`forward`]: `d_x` = `d_out` · d(x·Φ(x))/dx, all of the same shape.
///
/// # Errors
/// If shapes or element types disagree.
pub fn backward(
    stream: &Stream,
    x: View<'_>,
    kind: Gelu,
    d_out: View<'_>,
    d_x: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "gelu::backward";
    check::shape(NAME, "d_out", d_out.shape(), x.shape())?;
    check::shape(NAME, "d_x", d_x.shape(), x.shape())?;
    match stream {
        Stream::Host => {
            let (x, d_out) = (x.host_f32(NAME, "x")?, d_out.host_f32(NAME, "d_out")?);
            host::backward(x, kind, d_out, d_x.host_f32_mut(NAME, "d_x")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(x.dtype(), "x")?;
            let count = x.len();
            let (x, d_out) = (call.at(x, "x", e)?, call.at(d_out, "d_out", e)?);
            call.run(launch::backward(x, d_out, call.at(d_x, "d_x", e)?, kind, e, count)?)?;
        }),
    }
    Ok(())
}

pub(crate) use host::{tanh_derivative, tanh_value};
