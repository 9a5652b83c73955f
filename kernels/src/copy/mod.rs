//! Copies of tensors, also between host and GPU or into another precision, and sums onto them: what the residual stream needs where
//! no product can write it.

#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
use crate::DType;
use crate::device::{StorageMut, StorageRef};
use crate::{KernelError, Result, Stream, View, ViewMut, check, parallel};
use half::slice::HalfFloatSliceExt;

/// to = from, for any element type; the shapes must have as many elements. With a GPU's stream either may be in host memory: the call
/// returns when host memory has been read or written.
///
/// # Errors
/// When lengths or element types disagree, or the device fails.
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
            #[cfg(feature = "cuda")]
            _ => return Err(KernelError::Device { operation: NAME, what: "a tensor" }),
        },
        #[cfg(feature = "cuda")]
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

/// to = from, rounded to the nearest even where f32 becomes bf16; the shapes must have as many elements. As in [`copy`], either may be
/// in host memory.
///
/// # Errors
/// When lengths disagree, `from` is not f32 or `to` neither f32 nor bf16, or the device fails.
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

/// to += from, both f32 or both bf16 on a GPU; the shapes must have as many elements.
///
/// # Errors
/// When lengths or element types disagree.
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
        #[cfg(feature = "cuda")]
        Stream::Cuda(stream) => {
            let call = stream.call(NAME);
            let e = call.element(to.dtype(), "to")?;
            let count = to.len();
            let (from, to) = (call.at(from, "from", e)?, call.at(to, "to", e)?);
            call.run(crate::rows::launch::add(from, to, e, count)?)?;
        }
    }
    Ok(())
}
