//! The embedding table, which has one row per token id.
//!
//! # On a GPU
//!
//! Both passes are memory-bound. In the gradient, one block owns each id that occurs
//! (`launch::Runs`) and adds the positions of the id in order, without atomics.

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

#[cfg(feature = "cuda")]
use crate::device::HostSlice;
use crate::{Result, Stream, View, ViewMut, check};

/// Looks up rows by id: `out[i] = scale · table[ids[i]]`. Gemma scales by √d, other models by 1.
///
/// `table` (v, d) and `out` (n, d) are f32, or on a GPU both may be bf16; `ids` (n) are i32.
///
/// # Errors
/// If shapes or element types disagree, or on the host if an id is not below v.
///
/// ```
/// use vljepa_kernels::{Stream, View, ViewMut, embedding};
///
/// let (table, mut out) = ([1.0, 2.0, 3.0, 4.0], [f32::NAN; 2]);
/// let (table, ids) = (View::from_f32(&table, &[2, 2]), View::from_i32(&[1], &[1]));
/// embedding::forward(&Stream::Host, table, ids, 10.0, ViewMut::from_f32(&mut out, &[1, 2]))?;
/// assert_eq!(out, [30.0, 40.0]);
/// # Ok::<(), vljepa_kernels::KernelError>(())
/// ```
pub fn forward(
    stream: &Stream,
    table: View<'_>,
    ids: View<'_>,
    scale: f32,
    out: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "embedding::forward";
    let [v, d] = check::rank(NAME, "table", table.shape())?;
    let [n] = check::rank(NAME, "ids", ids.shape())?;
    check::shape(NAME, "out", out.shape(), &[n, d])?;
    match stream {
        Stream::Host => {
            let (table, ids) = (table.host_f32(NAME, "table")?, ids.host_i32(NAME, "ids")?);
            check::indices(NAME, "ids", ids, v)?;
            reference::forward(table, ids, scale, d, out.host_f32_mut(NAME, "out")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(table.dtype(), "table")?;
            let buffers =
                [call.at(table, "table", e)?, call.i32(ids, "ids")?, call.at(out, "out", e)?];
            call.run(launch::forward(buffers, scale, e, n, [v, d])?)?;
        }),
    }
    Ok(())
}

/// Adds the gradient of the table: `d_table[ids[i]] += scale · d_out[i]`, in the order of i. The
/// ids are in host memory because the host sorts them.
///
/// # Errors
/// If shapes or element types disagree, or if an id is not below v.
pub fn backward(
    stream: &Stream,
    ids: &[i32],
    d_out: View<'_>,
    scale: f32,
    d_table: ViewMut<'_>,
) -> Result<()> {
    const NAME: &str = "embedding::backward";
    let [v, d] = check::rank(NAME, "d_table", d_table.shape())?;
    check::shape(NAME, "d_out", d_out.shape(), &[ids.len(), d])?;
    check::indices(NAME, "ids", ids, v)?;
    match stream {
        Stream::Host => {
            let d_out = d_out.host_f32(NAME, "d_out")?;
            reference::backward(ids, d_out, scale, d, d_table.host_f32_mut(NAME, "d_table")?);
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(d_out.dtype(), "d_out")?;
            let runs = launch::Runs::new(ids);
            let uploaded = [&runs.order, &runs.starts, &runs.ids]
                .map(|values| call.uploaded(HostSlice::I32(values)));
            let [order, starts, found] = uploaded;
            let (order, starts, found) = (order?, starts?, found?);
            let buffers = launch::Backward {
                d_out: call.at(d_out, "d_out", e)?,
                runs: [
                    call.i32(order.view(), "order")?,
                    call.i32(starts.view(), "starts")?,
                    call.i32(found.view(), "ids")?,
                ],
                d_table: call.f32(d_table, "d_table")?,
            };
            call.run(launch::backward(buffers, &runs, scale, e, [v, d])?)?;
        }),
    }
    Ok(())
}
