//! Sums over the rows of a matrix, such as the gradient of a bias.
//!
//! # On a GPU
//!
//! The matrix is read once. Every block writes the sums of its share of the rows. A second launch
//! adds these partial sums in a fixed order, so that every run gives the same bits.

#[cfg(feature = "cuda")]
mod cube;
#[cfg(feature = "cuda")]
pub mod launch;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests_cube;

#[cfg(feature = "cuda")]
use crate::DType;
use crate::{Result, Stream, View, ViewMut, check, parallel};

/// `out` (d) += Σ over the rows of `x` (n, d). `out` is f32; `x` is f32, or on a GPU also bf16;
/// sums are in f32.
///
/// # Errors
/// If shapes or element types disagree.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, column_sums};
///
/// let mut out = [10.0, 20.0];
/// let x = View::from_f32(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
/// column_sums::add(&Stream::Host, x, ViewMut::from_f32(&mut out, &[2]))?;
/// assert_eq!(out, [14.0, 26.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn add(stream: &Stream, x: View<'_>, out: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "column_sums::add";
    let shape: [usize; 2] = check::rank(NAME, "x", x.shape())?;
    check::shape(NAME, "out", out.shape(), &shape[1..])?;
    match stream {
        Stream::Host => {
            parallel::add_column_sums(out.host_f32_mut(NAME, "out")?, x.host_f32(NAME, "x")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let (call, [n, d]) = (stream.call(NAME), shape);
            let element = call.element(x.dtype(), "x")?;
            let partial = call.workspace(DType::F32, launch::workspace(n, d))?;
            let buffers = [
                call.at(x, "x", element)?,
                call.f32(partial.view(), "partial")?,
                call.f32(out, "out")?,
            ];
            call.run(launch::add(buffers, element, n, d)?)?;
        }),
    }
    Ok(())
}
