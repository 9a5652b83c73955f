//! Copies of tensors in host memory, taken while the device works on.

#[cfg(feature = "cuda")]
use super::cuda::{CudaStream, Lane, PageLocked};
use super::{Device, Stream};
use crate::{Result, View, check, parallel};

/// Room for a copy of an f32 tensor, made once and used again.
#[derive(Debug)]
pub struct Snapshot {
    len: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Host(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(PageLocked),
}

impl Snapshot {
    /// Room for `len` elements of a tensor on `device`. All of it is in memory when this returns, so that the first copy takes no
    /// longer than the others.
    ///
    /// # Errors
    /// When the host has no more memory that can be locked.
    pub fn new(device: Device, len: usize) -> Result<Self> {
        let memory = match device {
            // Ones are written, where zeros would only be promised.
            Device::Host => Memory::Host(vec![1.0; len]),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => Memory::Cuda(PageLocked::new(cuda, len * size_of::<f32>())?),
        };
        Ok(Self { len, memory })
    }

    /// Copies `from` (len, f32). On a GPU this only issues the copy, behind everything issued to the compute stream so far:
    /// [`Self::values`] waits for it, and whoever changes `from` on the compute stream calls [`Stream::after_snapshots`] before.
    ///
    /// # Errors
    /// When `from` is of another length, type or device, or the device fails.
    pub fn take(&mut self, from: View<'_>) -> Result<()> {
        const NAME: &str = "Snapshot::take";
        check::shape(NAME, "from", &[from.len()], &[self.len])?;
        match &mut self.memory {
            Memory::Host(values) => {
                let from = from.host_f32(NAME, "from")?;
                parallel::blocks(from.len(), (&mut values[..], COPY_BLOCK), |i, to| {
                    to.copy_from_slice(&from[i * COPY_BLOCK..][..to.len()]);
                });
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Memory::Cuda(memory) => {
                let Device::Cuda(cuda) = from.device() else {
                    return Err(crate::KernelError::Device { operation: NAME, what: "from" });
                };
                let copies = CudaStream::new(cuda, Lane::Copy);
                copies.wait_for(CudaStream::new(cuda, Lane::Compute))?;
                memory.fill(copies, from)
            }
        }
    }

    /// What was copied last; before the first copy, anything.
    ///
    /// # Errors
    /// When the device failed in the copy.
    pub fn values(&self) -> Result<&[f32]> {
        match &self.memory {
            Memory::Host(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Memory::Cuda(memory) => Ok(&bytemuck::cast_slice(memory.bytes()?)[..self.len]),
        }
    }
}

/// Elements that a thread copies at once: 1 MiB.
const COPY_BLOCK: usize = 1 << 18;

impl Stream {
    /// What is issued to this compute stream from now on happens after the copies that snapshots have begun, and may change what they
    /// copy.
    ///
    /// # Errors
    /// When the device fails.
    pub fn after_snapshots(&self) -> Result<()> {
        match self {
            Self::Host => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(stream) => stream.wait_for(CudaStream::new(stream.cuda(), Lane::Copy)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Snapshot;
    #[cfg(feature = "cuda")]
    use crate::attention::launch::Mode;
    #[cfg(feature = "cuda")]
    use crate::device::cuda::Cuda;
    use crate::testing::normal;
    use crate::{Device, Tensor, copy};

    fn devices() -> Vec<Device> {
        vec![
            Device::Host,
            #[cfg(feature = "cuda")]
            Device::Cuda(Cuda::for_tests(Mode::Fast)),
        ]
    }

    #[test]
    fn a_snapshot_keeps_what_stood_there_when_the_tensor_changes() {
        for device in devices() {
            let len = 70_001;
            let before = normal(1, len);
            let mut tensor = Tensor::from_f32(before.clone(), &[len]).on(device).unwrap();
            let mut snapshot = Snapshot::new(device, len).unwrap();
            snapshot.take(tensor.view()).unwrap();
            let stream = device.compute_stream();
            stream.after_snapshots().unwrap();
            let after = Tensor::from_f32(normal(2, len), &[len]);
            copy::copy(&stream, after.view(), tensor.view_mut()).unwrap();
            assert!(snapshot.values().unwrap() == before);
            snapshot.take(tensor.view()).unwrap();
            assert!(snapshot.values().unwrap() != before);
        }
    }

    #[test]
    fn another_length_is_refused() {
        for device in devices() {
            let mut snapshot = Snapshot::new(device, 3).unwrap();
            let tensor = Tensor::from_f32(vec![1.0; 4], &[4]).on(device).unwrap();
            assert!(snapshot.take(tensor.view()).is_err());
        }
    }
}
