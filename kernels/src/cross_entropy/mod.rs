//! Cross-entropy over a vocabulary, in chunks of tokens. It trains a decoder or a baseline that
//! generates text.
//!
//! With z the logits of a token, t its target and r = log Σ_j exp(z_j): loss = r − z_t and d_z_j =
//! factor · (exp(z_j − r) − δ_jt). The logits of a chunk are computed, turned into their gradient
//! in place, multiplied, and overwritten by those of the next chunk. The logits of all tokens (256
//! kB of bf16 per token for a vocabulary of 128,256) are therefore never in memory at once.
//!
//! A negative target marks a token that is not trained, such as a prompt's or padding: its loss and
//! gradient are 0.
//!
//! # On a GPU
//!
//! Memory-bound: forward reads the logits once, backward reads and writes them once. One block per
//! token walks over the vocabulary with 16 bytes per thread. Each thread keeps a maximum and a sum
//! of its own, and they are merged at the end.
//!
//! Source: VL-JEPA (arXiv 2512.10942) §4.3 compares with a model trained with this loss.

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

use crate::{Result, Stream, View, ViewMut, check};

/// Losses and log-sum-exps of a chunk of tokens.
///
/// `logits` (n, v) are f32, or on a GPU also bf16; `targets` (n) are i32. Writes `losses` (n), 0
/// for a negative target, and `lse` (n), both f32.
///
/// # Errors
/// If shapes or element types disagree, or on the host if a target is not below v.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, cross_entropy};
///
/// let (mut losses, mut lse) = ([f32::NAN; 2], [f32::NAN; 2]);
/// cross_entropy::forward(
///     &Stream::Host,
///     View::from_f32(&[0.0, 0.0, 5.0, 5.0], &[2, 2]),
///     View::from_i32(&[1, -1], &[2]),
///     ViewMut::from_f32(&mut losses, &[2]),
///     ViewMut::from_f32(&mut lse, &[2]),
/// )?;
/// assert_eq!(losses, [2.0_f32.ln(), 0.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(
    stream: &Stream,
    logits: View<'_>,
    targets: View<'_>,
    losses: ViewMut<'_>,
    lse: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "cross_entropy::forward";
    let [n, v] = check::rank(NAME, "logits", logits.shape())?;
    check::shape(NAME, "targets", targets.shape(), &[n])?;
    check::shape(NAME, "losses", losses.shape(), &[n])?;
    check::shape(NAME, "lse", lse.shape(), &[n])?;
    match stream {
        Stream::Host => {
            let (logits, targets) =
                (logits.host_f32(NAME, "logits")?, targets.host_i32(NAME, "targets")?);
            check_targets(NAME, targets, v)?;
            let lse = lse.host_f32_mut(NAME, "lse")?;
            host::forward(logits, targets, v, losses.host_f32_mut(NAME, "losses")?, lse);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(logits.dtype(), "logits")?;
            let chunk = launch::Chunk {
                logits: call.at(logits, "logits", element)?,
                targets: call.i32(targets, "targets")?,
                lse: call.f32(lse, "lse")?,
                element,
                tokens: n,
                vocabulary: v,
            };
            call.run(launch::forward(chunk, call.f32(losses, "losses")?)?)?;
        }),
    }
    Ok(())
}

/// Replaces the `logits` (n, v) of a chunk by their gradient of `factor` · Σ losses.
///
/// # Errors
/// If shapes or element types disagree, or on the host if a target is not below v.
pub fn backward(
    stream: &Stream,
    logits: ViewMut<'_>,
    targets: View<'_>,
    lse: View<'_>,
    factor: f32,
) -> Result<()> {
    const NAME: &str = "cross_entropy::backward";
    let [n, v] = check::rank(NAME, "logits", logits.shape())?;
    check::shape(NAME, "targets", targets.shape(), &[n])?;
    check::shape(NAME, "lse", lse.shape(), &[n])?;
    match stream {
        Stream::Host => {
            let targets = targets.host_i32(NAME, "targets")?;
            check_targets(NAME, targets, v)?;
            let lse = lse.host_f32(NAME, "lse")?;
            host::backward(logits.host_f32_mut(NAME, "logits")?, targets, lse, v, factor);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let element = call.element(logits.dtype(), "logits")?;
            let chunk = launch::Chunk {
                logits: call.at(logits, "logits", element)?,
                targets: call.i32(targets, "targets")?,
                lse: call.f32(lse, "lse")?,
                element,
                tokens: n,
                vocabulary: v,
            };
            call.run(launch::backward(chunk, factor)?)?;
        }),
    }
    Ok(())
}

/// Index of a target in its row, or `None` if the token has no target.
fn target_index(target: i32) -> Option<usize> {
    usize::try_from(target).ok()
}

/// Checks that every target is below `v`. A negative target means that the token has none.
fn check_targets(operation: &'static str, targets: &[i32], v: usize) -> Result<()> {
    let outside = |&t: &i32| usize::try_from(t).is_ok_and(|t| t >= v);
    match targets.iter().position(outside) {
        None => Ok(()),
        Some(at) => {
            let found = format!("{} at {at}", targets[at]);
            Err(check::value(operation, "targets", found, format!("targets must be below {v}")))
        }
    }
}
