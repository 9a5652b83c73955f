//! Activation of a plain MLP: out = x · g(x). For GELU, g is Φ, the distribution function of the
//! normal distribution, or an approximation of it. For ReLU, g is 1 above zero and 0 elsewhere.
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

/// Function that an MLP applies to each element of its hidden layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activation {
    /// GELU, x/2 · (1 + erf(x/√2)): V-JEPA 2 and CLIP-like models.
    Gelu,
    /// GELU approximated by x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))): Gemma and `SigLIP` 2.
    GeluTanh,
    /// GELU approximated by x · σ(1.702·x), called `quick_gelu`: CLIP as `OpenAI` trained it.
    GeluQuick,
    /// max(x, 0): SONAR. The derivative at 0 is 0, as in PyTorch.
    Relu,
}

/// Applies the activation `kind` to every element of `x`; `out` has the same shape. Both are f32,
/// or on a GPU both may be bf16.
///
/// Source of GELU: Hendrycks and Gimpel 2016 (arXiv 1606.08415), as `torch.nn.functional.gelu`.
///
/// # Errors
/// If shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::activation::{self, Activation};
/// use vljepa_kernels::{Stream, View, ViewMut};
///
/// let (x, mut out) = ([0.0, 1.0], [f32::NAN; 2]);
/// let (x, out_view) = (View::from_f32(&x, &[2]), ViewMut::from_f32(&mut out, &[2]));
/// activation::forward(&Stream::Host, x, Activation::Gelu, out_view)?;
/// assert!(out[0] == 0.0 && (out[1] - 0.841_344_7).abs() < 1e-6);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(stream: &Stream, x: View<'_>, kind: Activation, out: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "activation::forward";
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

/// The gradient of [`forward`]: `d_x` = `d_out` · d(x·g(x))/dx, all of the same shape.
///
/// # Errors
/// If shapes or element types disagree.
pub fn backward(
    stream: &Stream,
    x: View<'_>,
    kind: Activation,
    d_out: View<'_>,
    d_x: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "activation::backward";
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
