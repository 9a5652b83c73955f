//! Rows moved between two packings: scattered to where an index says, or gathered from there.
//!
//! # On a GPU
//!
//! Memory bounds it: 16 bytes per unit. The same folder has the kernel of [`copy::add`](crate::copy::add).

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

/// `out[index[i]] = src[i]`; rows that no index names keep their values, and of several i with one index the last wins.
///
/// `src` (n, d) f32, `index` (n) i32, `out` (m, d) f32. With distinct indices [`gather`] of the gradient is its backward.
///
/// # Errors
/// When shapes or element types disagree, or an index is not below m.
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
        #[cfg(feature = "cuda")]
        Stream::Cuda(stream) => {
            let call = stream.call(NAME);
            let e = call.element(src.dtype(), "src")?;
            let buffers =
                [call.at(src, "src", e)?, call.i32(index, "index")?, call.at(out, "out", e)?];
            call.run(launch::scatter(buffers, e, [n, d])?)?;
        }
    }
    Ok(())
}

/// `out[i] = src[index[i]]`, written or added.
///
/// `src` (m, d) f32, `index` (n) i32, `out` (n, d) f32. With distinct indices [`scatter`] of the gradient into zeros is its backward.
///
/// # Errors
/// When shapes or element types disagree, or an index is not below m.
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
        #[cfg(feature = "cuda")]
        Stream::Cuda(stream) => {
            let call = stream.call(NAME);
            let e = call.element(src.dtype(), "src")?;
            let buffers =
                [call.at(src, "src", e)?, call.i32(index, "index")?, call.at(out, "out", e)?];
            call.run(launch::gather(buffers, write, e, [n, d])?)?;
        }
    }
    Ok(())
}
