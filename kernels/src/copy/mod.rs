//! Copies of tensors within and between devices, casts to bf16, sums and moving averages. The
//! residual stream needs copies and sums wherever no product can write it.

#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
use crate::DType;
use crate::device::{StorageMut, StorageRef};
use crate::{KernelError, Result, Stream, View, ViewMut, check, parallel};
use half::slice::HalfFloatSliceExt;

/// Copies `from` to `to`, for any element type. The shapes may differ if they have the same number
/// of elements. With a GPU's stream, either tensor may be in host memory: the call returns when
/// host memory has been read or written.
///
/// # Errors
/// If lengths or element types disagree, or the device fails.
pub fn copy(stream: &Stream, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "copy::copy";
    check::shape(NAME, "to", &[to.len()], &[from.len()])?;
    let (found, needed) = (to.dtype().name(), from.dtype().name());
    if found != needed {
        return Err(KernelError::DType { operation: NAME, what: "to", found, needed });
    }
    match stream {
        Stream::Host => match (from.storage(), to.storage()) {
            (StorageRef::Host(from), StorageMut::Host(to)) => to.copy_from(from),
            _ => return Err(KernelError::Device { operation: NAME, what: "a tensor" }),
        },
        Stream::Cuda(stream) => match (from.storage(), to.storage()) {
            (StorageRef::Host(from), StorageMut::Host(to)) => to.copy_from(from),
            (StorageRef::Host(from), StorageMut::Cuda(to)) => {
                stream.upload(to.as_ref().region(), from.bytes())?;
            }
            (StorageRef::Cuda(from), StorageMut::Host(to)) => {
                stream.download(from.region(), to.bytes())?;
            }
            (StorageRef::Cuda(from), StorageMut::Cuda(to)) => {
                stream.copy(from.region(), to.as_ref().region())?;
            }
        },
    }
    Ok(())
}

/// Copies `from` to `to` and rounds to the nearest even if f32 becomes bf16. The shapes may differ
/// if they have the same number of elements. As with [`copy`], either tensor may be in host memory.
///
/// # Errors
/// If lengths disagree, if the types differ and the cast is not from f32 to bf16, or if the device
/// fails.
pub fn cast(stream: &Stream, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "copy::cast";
    check::shape(NAME, "to", &[to.len()], &[from.len()])?;
    if from.dtype() == to.dtype() {
        return copy(stream, from, to);
    }
    #[cfg(feature = "cuda")]
    if let (Stream::Cuda(stream), StorageRef::Cuda(_)) = (stream, from.storage()) {
        let call = stream.call(NAME);
        let count = to.len();
        let (from, to) = (call.f32(from, "from")?, call.at(to, "to", DType::Bf16)?);
        return call.run(crate::rows::launch::cast(from, to, count)?);
    }
    let (from, shape) = (from.host_f32(NAME, "from")?, [to.len()]);
    let mut rounded = vec![half::bf16::ZERO; from.len()];
    parallel::blocks(from.len(), (&mut rounded[..], parallel::BLOCK), |i, rounded| {
        rounded.convert_from_f32_slice(&from[i * parallel::BLOCK..][..rounded.len()]);
    });
    copy(stream, View::from_bf16(&rounded, &shape), to)
}

/// Adds `from` to `to`: to += from. Both are f32, or on a GPU both may be bf16. The shapes may
/// differ if they have the same number of elements.
///
/// # Errors
/// If lengths or element types disagree.
pub fn add(stream: &Stream, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "copy::add";
    check::shape(NAME, "to", &[to.len()], &[from.len()])?;
    match stream {
        Stream::Host => {
            let (from, to) = (from.host_f32(NAME, "from")?, to.host_f32_mut(NAME, "to")?);
            parallel::blocks(to.len(), (to, parallel::BLOCK), |i, to| {
                parallel::add_into(to, &from[i * parallel::BLOCK..][..to.len()]);
            });
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(to.dtype(), "to")?;
            let count = to.len();
            let (from, to) = (call.at(from, "from", e)?, call.at(to, "to", e)?);
            call.run(crate::rows::launch::add(from, to, e, count)?)?;
        }),
    }
    Ok(())
}

/// Moves an average toward new values: `both` (2, n), f32, holds the average and then the values,
/// and average = `decay`·average + (1 − `decay`)·values.
///
/// # Errors
/// If `both` does not hold two equal parts of f32, or the device fails.
pub fn moving_average(stream: &Stream, both: ViewMut<'_>, decay: f32) -> Result<()> {
    const NAME: &str = "copy::moving_average";
    let [parts, count] = check::rank(NAME, "both", both.shape())?;
    check::shape(NAME, "both", &[parts], &[2])?;
    match stream {
        Stream::Host => {
            let (average, values) = both.host_f32_mut(NAME, "both")?.split_at_mut(count);
            parallel::blocks(count, (average, parallel::BLOCK), |i, average| {
                let values = &values[i * parallel::BLOCK..][..average.len()];
                for (average, value) in average.iter_mut().zip(values) {
                    *average = decay * *average + (1.0 - decay) * value;
                }
            });
        }
        Stream::Cuda(stream) => on_gpu!(stream, {
            let call = stream.call(NAME);
            let e = call.element(both.dtype(), "both")?;
            let mut both = both;
            let mut part = |row| call.at(both.reborrow().rows(row, row + 1), "both", e);
            let (average, values) = (part(0)?, part(1)?);
            call.run(crate::rows::launch::average(values, average, decay, count)?)?;
        }),
    }
    Ok(())
}
