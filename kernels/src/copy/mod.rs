//! Copies of tensors and sums onto them: what the residual stream needs where no product can write it.

#[cfg(test)]
mod tests;

use crate::device::{HostSlice, HostSliceMut};
use crate::{KernelError, Result, Stream, View, ViewMut, check, parallel};

/// to = from, for any element type; the shapes must have as many elements.
///
/// # Errors
/// When lengths or element types disagree.
pub fn copy(stream: &Stream, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    const NAME: &str = "copy::copy";
    check::shape(NAME, "to", &[to.len()], &[from.len()])?;
    match stream {
        Stream::Host => {
            let (found, needed) = (to.dtype().name(), from.dtype().name());
            match (from.on_host(), to.on_host()) {
                (HostSlice::F32(from), HostSliceMut::F32(to)) => to.copy_from_slice(from),
                (HostSlice::I32(from), HostSliceMut::I32(to)) => to.copy_from_slice(from),
                (HostSlice::U8(from), HostSliceMut::U8(to)) => to.copy_from_slice(from),
                (HostSlice::U64(from), HostSliceMut::U64(to)) => to.copy_from_slice(from),
                (
                    HostSlice::F32(_) | HostSlice::I32(_) | HostSlice::U8(_) | HostSlice::U64(_),
                    _,
                ) => return Err(KernelError::DType { operation: NAME, what: "to", found, needed }),
            }
        }
    }
    Ok(())
}

/// to += from, both f32; the shapes must have as many elements.
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
    }
    Ok(())
}
