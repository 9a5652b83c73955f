//! Moves rows between two packings: scatters them to the positions of an index, or gathers them
//! from there.
//!
//! # On a GPU
//!
//! Memory-bound, 16 bytes per thread. This folder also has the kernels of
//! [`copy::add`](crate::copy::add) and [`copy::cast`](crate::copy::cast).

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

use crate::{Result, Stream, View, ViewMut, Write, check};

/// Scatters rows: `out[index[i]] = src[i]`. Rows that no index names keep their values. If several
/// i have the same index, the last one wins on the host; on a GPU the indices must be distinct.
///
/// `src` (n, d) and `out` (m, d) are f32, or on a GPU both may be bf16; `index` (n) is i32. With
/// distinct indices, [`gather`] of the gradient is the backward pass.
///
/// # Errors
/// If shapes or element types disagree, or on the host if an index is not below m.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, rows};
///
/// let mut out = [0.0; 3];
/// let (src, index) = (View::from_f32(&[5.0, 6.0], &[2, 1]), View::from_i32(&[2, 0], &[2]));
/// rows::scatter(&Stream::Host, src, index, ViewMut::from_f32(&mut out, &[3, 1]))?;
/// assert_eq!(out, [6.0, 0.0, 5.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn scatter(stream: &Stream, src: View<'_>, index: View<'_>, out: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "rows::scatter";
    let [n, d] = check::rank(NAME, "src", src.shape())?;
    let [m, _] = check::rank(NAME, "out", out.shape())?;
    check::shape(NAME, "index", index.shape(), &[n])?;
    check::shape(NAME, "out", out.shape(), &[m, d])?;
    match stream {
        Stream::Host => {
            let (src, index) = (src.host_f32(NAME, "src")?, index.host_i32(NAME, "index")?);
            check::indices(NAME, "index", index, m)?;
            reference::scatter(src, index, d, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(src.dtype(), "src")?;
            let buffers =
                [call.at(src, "src", e)?, call.i32(index, "index")?, call.at(out, "out", e)?];
            call.run(launch::scatter(buffers, e, [n, d])?)?;
        }),
    }
    Ok(())
}

/// Gathers rows: `out[i] = src[index[i]]`, overwritten or added.
///
/// `src` (m, d) and `out` (n, d) are f32, or on a GPU both may be bf16; `index` (n) is i32. With
/// distinct indices, [`scatter`] of the gradient into zeros is the backward pass.
///
/// # Errors
/// If shapes or element types disagree, or on the host if an index is not below m.
pub fn gather(
    stream: &Stream,
    src: View<'_>,
    index: View<'_>,
    write: Write,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "rows::gather";
    let [n, d] = check::rank(NAME, "out", out.shape())?;
    let [m, _] = check::rank(NAME, "src", src.shape())?;
    check::shape(NAME, "index", index.shape(), &[n])?;
    check::shape(NAME, "src", src.shape(), &[m, d])?;
    match stream {
        Stream::Host => {
            let (src, index) = (src.host_f32(NAME, "src")?, index.host_i32(NAME, "index")?);
            check::indices(NAME, "index", index, m)?;
            reference::gather(src, index, d, write, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(src.dtype(), "src")?;
            let buffers =
                [call.at(src, "src", e)?, call.i32(index, "index")?, call.at(out, "out", e)?];
            call.run(launch::gather(buffers, write, e, [n, d])?)?;
        }),
    }
    Ok(())
}
