//! Root-mean-square normalisation: out = x · rstd · factor, with rstd = 1 / √(mean(x²) + eps) of
//! each row.

#[cfg(test)]
mod cases;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
use crate::{DType, layer_norm};
use crate::{Result, Stream, View, ViewMut, Write, check};

/// How the stored weight gives the factor of a normalised element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// The factor is the weight itself (Llama, Qwen).
    Plain,
    /// The factor is 1 + weight (Gemma).
    OnePlus,
}

impl Scale {
    /// Number that is added to the stored weight.
    fn offset(self) -> f32 {
        match self {
            Self::Plain => 0.0,
            Self::OnePlus => 1.0,
        }
    }

    /// The form of the GPU kernels that has this factor.
    #[cfg(feature = "cuda")]
    fn form(self) -> layer_norm::launch::Form {
        match self {
            Self::Plain => layer_norm::launch::Form::Rms,
            Self::OnePlus => layer_norm::launch::Form::RmsOnePlus,
        }
    }
}

/// Normalises each row, `x / √(mean(x²) + eps) · factor`, and keeps rstd = 1 / √(mean(x²) + eps)
/// for [`backward`]. The factor is `weight` or `1 + weight`.
///
/// Source: Zhang and Sennrich 2019 (arXiv 1910.07467), in the form of `LlamaRMSNorm` and
/// `Gemma3RMSNorm` of transformers. `x`, `out` (n, d); `weight` (d); `rstd` (n). On the host all
/// tensors are f32. On a GPU `x`, `weight` and `out` may also be bf16. Sums are f32.
///
/// # Errors
/// When shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, rms_norm};
///
/// let (mut out, mut rstd) = ([0.0; 2], [0.0]);
/// rms_norm::forward(
///     &Stream::Host,
///     View::from_f32(&[2.0, -2.0], &[1, 2]),
///     View::from_f32(&[0.0, 1.0], &[2]),
///     rms_norm::Scale::OnePlus,
///     0.0,
///     ViewMut::from_f32(&mut out, &[1, 2]),
///     ViewMut::from_f32(&mut rstd, &[1]),
/// )?;
/// assert_eq!((out, rstd), ([1.0, -2.0], [0.5]));
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(
    stream: &Stream,
    x: View<'_>,
    weight: View<'_>,
    scale: Scale,
    eps: f32,
    out: ViewMut<'_>,
    rstd: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "rms_norm::forward";
    let [n, d] = check::rank(NAME, "x", x.shape())?;
    check::shape(NAME, "weight", weight.shape(), &[d])?;
    check::shape(NAME, "out", out.shape(), &[n, d])?;
    check::shape(NAME, "rstd", rstd.shape(), &[n])?;
    match stream {
        Stream::Host => {
            let input = Input {
                x: x.host_f32(NAME, "x")?,
                weight: weight.host_f32(NAME, "weight")?,
                offset: scale.offset(),
                width: d,
            };
            let out = out.host_f32_mut(NAME, "out")?;
            host::forward(input, eps, out, rstd.host_f32_mut(NAME, "rstd")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(x.dtype(), "x")?;
            let buffers = layer_norm::launch::Forward {
                x: call.at(x, "x", e)?,
                weight: call.at(weight, "weight", e)?,
                bias: None,
                out: call.at(out, "out", e)?,
                mean: None,
                rstd: call.f32(rstd, "rstd")?,
            };
            call.run(layer_norm::launch::forward(buffers, scale.form(), e, n, d, eps)?)?;
        }),
    }
    Ok(())
}

/// Gradients of [`forward`]: `d_x` (n, d) is written or added to, `d_weight` (d) is added to.
///
/// With x̂ = x·rstd and g = `d_out`·factor: d_x = rstd · (g − x̂·mean(g·x̂)) and d_weight += Σ
/// `d_out`·x̂ over rows.
///
/// # Errors
/// When shapes or element types disagree.
#[expect(clippy::too_many_arguments, reason = "an operation names each tensor it reads and writes")]
pub fn backward(
    stream: &Stream,
    x: View<'_>,
    weight: View<'_>,
    scale: Scale,
    rstd: View<'_>,
    d_out: View<'_>,
    write: Write,
    d_x: ViewMut<'_>,
    d_weight: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "rms_norm::backward";
    let [n, d] = check::rank(NAME, "x", x.shape())?;
    check::shape(NAME, "weight", weight.shape(), &[d])?;
    check::shape(NAME, "rstd", rstd.shape(), &[n])?;
    check::shape(NAME, "d_out", d_out.shape(), &[n, d])?;
    check::shape(NAME, "d_x", d_x.shape(), &[n, d])?;
    check::shape(NAME, "d_weight", d_weight.shape(), &[d])?;
    match stream {
        Stream::Host => {
            let input = Input {
                x: x.host_f32(NAME, "x")?,
                weight: weight.host_f32(NAME, "weight")?,
                offset: scale.offset(),
                width: d,
            };
            let (rstd, d_out) = (rstd.host_f32(NAME, "rstd")?, d_out.host_f32(NAME, "d_out")?);
            let d_x = d_x.host_f32_mut(NAME, "d_x")?;
            let d_weight = d_weight.host_f32_mut(NAME, "d_weight")?;
            host::backward(input, rstd, d_out, write, d_x, d_weight);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(x.dtype(), "x")?;
            let len = layer_norm::launch::workspace(n, d);
            let partials = [call.workspace(DType::F32, len)?, call.workspace(DType::F32, len)?];
            let buffers = layer_norm::launch::Backward {
                x: call.at(x, "x", e)?,
                weight: call.at(weight, "weight", e)?,
                mean: None,
                rstd: call.f32(rstd, "rstd")?,
                d_out: call.at(d_out, "d_out", e)?,
                d_x: call.at(d_x, "d_x", e)?,
                partials: [
                    call.f32(partials[0].view(), "partials")?,
                    call.f32(partials[1].view(), "partials")?,
                ],
                d_weight: call.f32(d_weight, "d_weight")?,
                d_bias: None,
            };
            call.run(layer_norm::launch::backward(buffers, scale.form(), e, n, d, write)?)?;
        }),
    }
    Ok(())
}

/// The reference's forward pass, for the tests of the kernels that both normalisations share.
#[cfg(test)]
#[cfg(feature = "cuda")]
pub(crate) fn reference_forward(
    x: &[f32],
    weight: &[f32],
    one_plus: bool,
    width: usize,
    eps: f32,
    out: &mut [f32],
    rstd: &mut [f32],
) {
    let offset = if one_plus { 1.0 } else { 0.0 };
    reference::forward(Input { x, weight, offset, width }, eps, out, rstd);
}

/// The reference's backward pass, for the same tests.
#[cfg(test)]
#[cfg(feature = "cuda")]
#[expect(clippy::too_many_arguments, reason = "the tensors of one formula")]
pub(crate) fn reference_backward(
    x: &[f32],
    weight: &[f32],
    one_plus: bool,
    width: usize,
    rstd: &[f32],
    d_out: &[f32],
    write: Write,
    (d_x, d_weight): (&mut [f32], &mut [f32]),
) {
    let offset = if one_plus { 1.0 } else { 0.0 };
    reference::backward(Input { x, weight, offset, width }, rstd, d_out, write, d_x, d_weight);
}

/// Inputs of both passes: `x` (n, width) and the factor `offset + weight` (width).
#[derive(Clone, Copy)]
struct Input<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    offset: f32,
    width: usize,
}
