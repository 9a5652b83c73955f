//! Mean pooling: one vector per packed sequence.
//!
//! # On a GPU
//!
//! Memory bounds the operation: forward reads the tokens once, backward writes them once. A thread
//! owns 16 bytes of the width and walks over a sequence.

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

use crate::{Lengths, Result, Stream, View, ViewMut, check};

/// Mean of each sequence's rows: `x` (n, d) with `lengths` of b sequences, `out` (b, d). Both are
/// f32 on the host; on a GPU they may also be bf16. Sums are f32.
///
/// Source: `VL-JEPA` (arXiv 2512.10942) §3.1, average pooling over the tokens that are not padding.
/// Rows of `x` after the last sequence contribute nothing.
///
/// # Errors
/// When shapes or element types disagree, or a sequence is empty (it has no mean).
///
/// ```
/// use vljepa_kernels::{Device, Lengths, Stream, View, ViewMut, pooling};
///
/// let lengths = Lengths::new(Device::Host, vec![0, 1, 3])?;
/// let (x, mut out) = ([5.0, 1.0, 2.0], [f32::NAN; 2]);
/// let out_view = ViewMut::from_f32(&mut out, &[2, 1]);
/// pooling::forward(&Stream::Host, View::from_f32(&x, &[3, 1]), &lengths, out_view)?;
/// assert_eq!(out, [5.0, 1.5]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(stream: &Stream, x: View<'_>, lengths: &Lengths, out: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "pooling::forward";
    let d = check_rows(NAME, "x", x.shape(), lengths)?;
    check::shape(NAME, "out", out.shape(), &[lengths.rows(), d])?;
    match stream {
        Stream::Host => {
            let x = x.host_f32(NAME, "x")?;
            reference::forward(x, lengths, d, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(x.dtype(), "x")?;
            let sizes = launch::Sizes { sequences: lengths.rows(), tokens: x.shape()[0], width: d };
            let offsets = call.i32(lengths.view(), "lengths")?;
            let (x, out) = (call.at(x, "x", e)?, call.at(out, "out", e)?);
            call.run(launch::forward(x, offsets, out, e, sizes)?)?;
        }),
    }
    Ok(())
}

/// Gradient of [`forward`]: each row of `d_x` (n, d) is the `d_out` (b, d) of its sequence divided
/// by the sequence's length. Rows after the last sequence are zero.
///
/// # Errors
/// When shapes or element types disagree, or a sequence is empty.
pub fn backward(
    stream: &Stream,
    d_out: View<'_>,
    lengths: &Lengths,
    d_x: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "pooling::backward";
    let d = check_rows(NAME, "d_x", d_x.shape(), lengths)?;
    check::shape(NAME, "d_out", d_out.shape(), &[lengths.rows(), d])?;
    match stream {
        Stream::Host => {
            let d_out = d_out.host_f32(NAME, "d_out")?;
            reference::backward(d_out, lengths, d, d_x.host_f32_mut(NAME, "d_x")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(d_x.dtype(), "d_x")?;
            let sizes =
                launch::Sizes { sequences: lengths.rows(), tokens: d_x.shape()[0], width: d };
            let offsets = call.i32(lengths.view(), "lengths")?;
            let (d_out, d_x) = (call.at(d_out, "d_out", e)?, call.at(d_x, "d_x", e)?);
            call.run(launch::backward(d_out, offsets, d_x, e, sizes)?)?;
        }),
    }
    Ok(())
}

fn check_rows(
    name: &'static str,
    what: &'static str,
    shape: &[usize],
    lengths: &Lengths,
) -> Result<usize> {
    let [n, d] = check::rank(name, what, shape)?;
    if n < lengths.tokens() {
        check::shape(name, what, shape, &[lengths.tokens(), d])?;
    }
    match (0..lengths.rows()).find(|&row| lengths.range(row).is_empty()) {
        None => Ok(d),
        Some(row) => {
            let found = format!("empty at sequence {row}");
            Err(check::value(name, "lengths", found, "every pooled sequence needs a token"))
        }
    }
}
