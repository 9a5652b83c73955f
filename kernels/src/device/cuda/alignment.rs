//! Checks that each buffer of a launch begins at an address that the kernel's vector accesses
//! allow. A GPU reports a wrong one as the failure of a later call, and computes nothing more.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::{Region, failed};
use crate::Result;
use crate::compile::{Kernel, Launch};

/// Bytes of which the address of each buffer of a kernel must be a multiple.
fn alignments(kernel: Kernel) -> Result<Arc<[u64]>> {
    static KNOWN: LazyLock<Mutex<HashMap<Kernel, Arc<[u64]>>>> = LazyLock::new(Mutex::default);
    let lock = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lock().get(&kernel) {
        return Ok(Arc::clone(known));
    }
    let source = kernel.source().map_err(|error| failed("launch", error.to_string(), ""))?;
    let alignments: Arc<[u64]> = source.parameters.alignments().into();
    lock().insert(kernel, Arc::clone(&alignments));
    Ok(alignments)
}

/// Fails if a buffer of `launch` begins at an address that the kernel's accesses do not allow.
pub(super) fn check(launch: &Launch<Region>) -> Result<()> {
    let alignments = alignments(launch.kernel)?;
    for (i, (region, &bytes)) in launch.buffers.iter().zip(&*alignments).enumerate() {
        if region.bytes > 0 && !region.address.is_multiple_of(bytes) {
            let name = launch.kernel.name();
            let message = format!(
                "buffer {i} of {name} begins at {:#x}, which is no multiple of its {bytes} bytes",
                region.address
            );
            let hint = "a part of a tensor begins there; parts must begin at whole vectors";
            return Err(failed("launch", message, hint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::attention::launch::Mode;
    use crate::device::cuda::Cuda;
    use crate::{DType, Device, Tensor, copy};

    #[test]
    fn a_part_that_begins_within_a_vector_is_refused() {
        for cuda in [Cuda::for_tests(Mode::Fast), Cuda::recording(1 << 30, Mode::Fast)] {
            let device = Device::Cuda(cuda);
            let stream = device.compute_stream();
            // Rows of `width` f32; the part without the first row has eight elements.
            let cast = |width: usize| {
                let rows = 8 / width;
                let x = Tensor::zeros(device, DType::F32, &[rows + 1, width])?;
                let mut out = Tensor::zeros(device, DType::Bf16, &[rows, width])?;
                copy::cast(&stream, x.view().rows(1, rows + 1), out.view_mut())
            };
            cast(4).unwrap();
            let error = cast(1).unwrap_err().to_string();
            assert!(error.contains("is no multiple of its 16 bytes"), "{error}");
        }
    }
}
