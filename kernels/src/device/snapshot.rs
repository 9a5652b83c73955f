//! Copies of tensors to host memory that overlap with the device's computation.

use super::cuda::{CudaStream, Lane, PageLocked};
use super::{Device, Stream};
use crate::{Result, View, check, parallel};

/// A reusable host buffer for a copy of an f32 tensor.
#[derive(Debug)]
pub struct Snapshot {
    len: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Host(Vec<f32>),
    Cuda(PageLocked),
}

impl Snapshot {
    /// A buffer for `len` elements of a tensor on `device`. All pages are mapped when this function
    /// returns, so that the first copy takes no longer than the others.
    ///
    /// # Errors
    /// If the host cannot lock more memory.
    pub fn new(device: Device, len: usize) -> Result<Self> {
        let memory = match device {
            // Ones force the pages to be written; zeros would only be reserved.
            Device::Host => Memory::Host(vec![1.0; len]),
            Device::Cuda(cuda) => Memory::Cuda(PageLocked::new(cuda, len * size_of::<f32>())?),
        };
        Ok(Self { len, memory })
    }

    /// Copies `from` (len, f32). On a GPU this only issues the copy, after everything issued to the
    /// compute stream so far. [`Self::values`] waits for the copy. Before the caller changes `from`
    /// on the compute stream, it must call [`Stream::after_snapshots`].
    ///
    /// # Errors
    /// If `from` has another length or type or is on another device, or if the device fails.
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

    /// Elements of the last copy. Before the first copy the values are arbitrary. Waits until the
    /// copy is complete.
    ///
    /// # Errors
    /// If the device failed in the copy.
    pub fn values(&self) -> Result<&[f32]> {
        match &self.memory {
            Memory::Host(values) => Ok(values),
            Memory::Cuda(memory) => Ok(&bytemuck::cast_slice(memory.bytes()?)[..self.len]),
        }
    }
}

/// Elements that a thread copies at once: 1 MiB of f32.
const COPY_BLOCK: usize = 1 << 18;

impl Stream {
    /// Makes this compute stream wait for the snapshot copies issued so far. Work issued after this
    /// call may change their source.
    ///
    /// # Errors
    /// If the device fails.
    pub fn after_snapshots(&self) -> Result<()> {
        match self {
            Self::Host => Ok(()),
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
    use crate::{DType, Device, Tensor, copy};

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
    fn a_rank_without_parameters_of_its_own_takes_empty_snapshots() {
        for device in devices() {
            let mut snapshot = Snapshot::new(device, 0).unwrap();
            snapshot.take(Tensor::zeros(device, DType::F32, &[0]).unwrap().view()).unwrap();
            assert!(snapshot.values().unwrap().is_empty());
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
