//! Layer normalisation: out = (x − mean) · rstd · weight + bias, with mean and variance of each
//! row.

#[cfg(test)]
mod cases;
#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

#[cfg(feature = "cuda")]
use crate::DType;
use crate::{Result, Stream, View, ViewMut, Write, check};

/// Normalises each row, `(x − mean) / √(variance + eps) · weight + bias`, and keeps mean and
/// rstd = 1 / √(variance + eps) for [`backward`].
///
/// Source: Ba et al. 2016 (arXiv 1607.06450), in the form of `torch.nn.LayerNorm`
/// (biased variance). `x`, `out` (n, d); `weight`, `bias` (d); `mean`, `rstd` (n). On the host all
/// tensors are f32. On a GPU `x`, `weight`, `bias` and `out` may also be bf16. Statistics are f32,
/// by partial sums; the variance sums squared deviations from the mean.
///
/// # Errors
/// When shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, layer_norm};
///
/// let (mut out, mut mean, mut rstd) = ([0.0; 2], [0.0], [0.0]);
/// layer_norm::forward(
///     &Stream::Host,
///     View::from_f32(&[1.0, 3.0], &[1, 2]),
///     View::from_f32(&[1.0, 1.0], &[2]),
///     View::from_f32(&[0.0, 5.0], &[2]),
///     0.0,
///     ViewMut::from_f32(&mut out, &[1, 2]),
///     ViewMut::from_f32(&mut mean, &[1]),
///     ViewMut::from_f32(&mut rstd, &[1]),
/// )?;
/// assert_eq!(out, [-1.0, 6.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
#[expect(clippy::too_many_arguments, reason = "an operation names each tensor it reads and writes")]
pub fn forward(
    stream: &Stream,
    x: View<'_>,
    weight: View<'_>,
    bias: View<'_>,
    eps: f32,
    out: ViewMut<'_>,
    mean: ViewMut<'_>,
    rstd: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "layer_norm::forward";
    let [n, d] = check::rank(NAME, "x", x.shape())?;
    check::shape(NAME, "weight", weight.shape(), &[d])?;
    check::shape(NAME, "bias", bias.shape(), &[d])?;
    check::shape(NAME, "out", out.shape(), &[n, d])?;
    check::shape(NAME, "mean", mean.shape(), &[n])?;
    check::shape(NAME, "rstd", rstd.shape(), &[n])?;
    match stream {
        Stream::Host => {
            let input = Input {
                x: x.host_f32(NAME, "x")?,
                weight: weight.host_f32(NAME, "weight")?,
                width: d,
            };
            let out = out.host_f32_mut(NAME, "out")?;
            let mean = mean.host_f32_mut(NAME, "mean")?;
            let rstd = rstd.host_f32_mut(NAME, "rstd")?;
            host::forward(input, bias.host_f32(NAME, "bias")?, eps, out, mean, rstd);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(x.dtype(), "x")?;
            let buffers = launch::Forward {
                x: call.at(x, "x", e)?,
                weight: call.at(weight, "weight", e)?,
                bias: Some(call.at(bias, "bias", e)?),
                out: call.at(out, "out", e)?,
                mean: Some(call.f32(mean, "mean")?),
                rstd: call.f32(rstd, "rstd")?,
            };
            call.run(launch::forward(buffers, launch::Form::Layer, e, n, d, eps)?)?;
        }),
    }
    Ok(())
}

/// Gradients of [`forward`]: `d_x` (n, d) is written or added to, `d_weight` and `d_bias` (d) are
/// added to.
///
/// With x̂ = (x − mean)·rstd and g = `d_out`·weight: d_x = rstd · (g − mean(g) − x̂·mean(g·x̂)),
/// d_weight += Σ `d_out`·x̂ and d_bias += Σ `d_out`, summed over rows.
///
/// # Errors
/// When shapes or element types disagree.
#[expect(clippy::too_many_arguments, reason = "an operation names each tensor it reads and writes")]
pub fn backward(
    stream: &Stream,
    x: View<'_>,
    weight: View<'_>,
    mean: View<'_>,
    rstd: View<'_>,
    d_out: View<'_>,
    write: Write,
    d_x: ViewMut<'_>,
    d_weight: ViewMut<'_>,
    d_bias: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "layer_norm::backward";
    let [n, d] = check::rank(NAME, "x", x.shape())?;
    check::shape(NAME, "weight", weight.shape(), &[d])?;
    check::shape(NAME, "mean", mean.shape(), &[n])?;
    check::shape(NAME, "rstd", rstd.shape(), &[n])?;
    check::shape(NAME, "d_out", d_out.shape(), &[n, d])?;
    check::shape(NAME, "d_x", d_x.shape(), &[n, d])?;
    check::shape(NAME, "d_weight", d_weight.shape(), &[d])?;
    check::shape(NAME, "d_bias", d_bias.shape(), &[d])?;
    match stream {
        Stream::Host => {
            let input = Input {
                x: x.host_f32(NAME, "x")?,
                weight: weight.host_f32(NAME, "weight")?,
                width: d,
            };
            let saved =
                Saved { mean: mean.host_f32(NAME, "mean")?, rstd: rstd.host_f32(NAME, "rstd")? };
            let d_out = d_out.host_f32(NAME, "d_out")?;
            let d_x = d_x.host_f32_mut(NAME, "d_x")?;
            let d_weight = d_weight.host_f32_mut(NAME, "d_weight")?;
            let d_bias = d_bias.host_f32_mut(NAME, "d_bias")?;
            host::backward(input, saved, d_out, write, d_x, d_weight, d_bias);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(x.dtype(), "x")?;
            let len = launch::workspace(n, d);
            let partials = [call.workspace(DType::F32, len)?, call.workspace(DType::F32, len)?];
            let buffers = launch::Backward {
                x: call.at(x, "x", e)?,
                weight: call.at(weight, "weight", e)?,
                mean: Some(call.f32(mean, "mean")?),
                rstd: call.f32(rstd, "rstd")?,
                d_out: call.at(d_out, "d_out", e)?,
                d_x: call.at(d_x, "d_x", e)?,
                partials: [
                    call.f32(partials[0].view(), "partials")?,
                    call.f32(partials[1].view(), "partials")?,
                ],
                d_weight: call.f32(d_weight, "d_weight")?,
                d_bias: Some(call.f32(d_bias, "d_bias")?),
            };
            call.run(launch::backward(buffers, launch::Form::Layer, e, n, d, write)?)?;
        }),
    }
    Ok(())
}

/// Inputs of both passes: `x` (n, width) and `weight` (width).
#[derive(Clone, Copy)]
struct Input<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    width: usize,
}

/// Statistics per row that the forward pass saves.
#[derive(Clone, Copy)]
struct Saved<'a> {
    mean: &'a [f32],
    rstd: &'a [f32],
}
