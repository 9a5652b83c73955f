//! The global norm of all gradients. From it the optimizer gets a clip factor and a flag that is 1
//! if every gradient is finite.
//!
//! # On a GPU
//!
//! The gradient is read once, 4 bytes per parameter. Every block writes a partial sum. One block
//! adds the partial sums in order and writes factor and flag where AdamW reads them, so that a step
//! never waits for the host.

#[cfg(feature = "cuda")]
mod cube;
mod host;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

#[cfg(feature = "cuda")]
use crate::DType;
use crate::{Result, Stream, View, ViewMut, check};

/// Added to the norm before the division, as `torch.nn.utils.clip_grad_norm_` does.
const NORM_EPS: f64 = 1e-6;

/// Writes the sum of squares of all elements of `x` (any shape, f32) to `out` (1), f32. On the host
/// the sum is in f64 over fixed chunks and is rounded once; on a GPU it is in f32.
///
/// Sums of several ranges or ranks may be added before [`control`]. If an element of `x` is not
/// finite, the sum is not finite either.
///
/// # Errors
/// If shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, global_norm};
///
/// let (x, mut out) = ([3.0, 4.0], [f32::NAN]);
/// let out_view = ViewMut::from_f32(&mut out, &[1]);
/// global_norm::squared_sum(&Stream::Host, View::from_f32(&x, &[2]), out_view)?;
/// assert_eq!(out, [25.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn squared_sum(stream: &Stream, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "global_norm::squared_sum";
    check::shape(NAME, "out", out.shape(), &[1])?;
    match stream {
        Stream::Host => {
            out.host_f32_mut(NAME, "out")?[0] = host::squared_sum(x.host_f32(NAME, "x")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let (count, parts) = (x.len(), launch::parts(x.len()));
            let partials = call.workspace(DType::F32, parts)?;
            let unused = call.workspace(DType::F32, 2)?;
            let (partials, unused) =
                (call.f32(partials.view(), "partials")?, call.f32(unused.view(), "control")?);
            call.run(launch::squares(call.f32(x, "x")?, partials, count, 0)?)?;
            call.run([launch::control(partials, call.f32(out, "out")?, unused, parts, 1.0)?])?;
        }),
    }
    Ok(())
}

/// Computes `out` (2) from a `squared_sum` (1): the clip factor `min(1, max_norm / (norm + 1e-6))`
/// and the flag 1, or 0 and 0 if the sum is not finite.
///
/// Source: `torch.nn.utils.clip_grad_norm_`. An infinite `max_norm` never clips.
///
/// # Errors
/// If shapes or element types disagree, or `max_norm` is not positive.
pub fn control(
    stream: &Stream,
    squared_sum: View<'_>,
    max_norm: f32,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "global_norm::control";
    check::shape(NAME, "squared_sum", squared_sum.shape(), &[1])?;
    check::shape(NAME, "out", out.shape(), &[2])?;
    if max_norm.is_nan() || max_norm <= 0.0 {
        let needed = "must be positive (infinite: never clip)";
        return Err(check::value(NAME, "max_norm", max_norm.to_string(), needed));
    }
    match stream {
        Stream::Host => {
            let sum = squared_sum.host_f32(NAME, "squared_sum")?[0];
            out.host_f32_mut(NAME, "out")?.copy_from_slice(&host::control(sum, max_norm));
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let unused = call.workspace(DType::F32, 1)?;
            let (sum, unused) =
                (call.f32(squared_sum, "squared_sum")?, call.f32(unused.view(), "workspace")?);
            call.run([launch::control(sum, unused, call.f32(out, "out")?, 1, max_norm)?])?;
        }),
    }
    Ok(())
}
