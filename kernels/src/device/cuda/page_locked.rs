//! Page-locked host memory that a GPU copies to or from while the host and the other streams go on.

use super::{Cuda, CudaStream, Driver, Lane, Region, check_sizes, hardware};
use crate::device::StorageRef;
use crate::{KernelError, Result, View, ViewMut};

/// Host memory that a stream fills or reads by itself.
#[derive(Debug)]
pub struct PageLocked {
    cuda: &'static Cuda,
    bytes: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Hardware(hardware::Locked),
    /// Of an emulated or recording GPU, which leaves zeros in it.
    Ordinary(Vec<u64>),
}

impl PageLocked {
    /// So many bytes of zeros.
    ///
    /// # Errors
    /// When the host has no more memory that can be locked.
    pub fn new(cuda: &'static Cuda, bytes: usize) -> Result<Self> {
        let memory = match &cuda.driver {
            Driver::Hardware(hardware) => Memory::Hardware(hardware.lock(bytes)?),
            Driver::Recording(_) => Memory::Ordinary(vec![0; bytes.div_ceil(8)]),
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => Memory::Ordinary(vec![0; bytes.div_ceil(8)]),
        };
        Ok(Self { cuda, bytes, memory })
    }

    /// A stream of its GPU.
    pub(crate) fn stream(&self, lane: Lane) -> CudaStream {
        CudaStream::new(self.cuda, lane)
    }

    /// Issues a copy of `from` to `stream` and returns; [`Self::bytes`] waits for it. `from` must not be written before that, or by
    /// what waits for `stream`.
    ///
    /// # Errors
    /// When `from` is not on this GPU or not as large as this memory, or the device fails.
    pub fn fill(&mut self, stream: CudaStream, from: View<'_>) -> Result<()> {
        let region = self.counterpart("PageLocked::fill", "from", stream, from)?;
        match (&mut self.memory, &self.cuda.driver) {
            (Memory::Hardware(memory), Driver::Hardware(hardware)) => {
                hardware.download_later(stream.lane, region, memory)
            }
            (Memory::Ordinary(_), Driver::Recording(recording)) => {
                recording.download_later(stream.lane, region)
            }
            #[cfg(any(test, feature = "emulator"))]
            (Memory::Ordinary(memory), Driver::Emulated(emulated)) => {
                let bytes = bytemuck::cast_slice_mut(memory);
                emulated.download(stream.lane, region, &mut bytes[..region.bytes])
            }
            _ => unreachable!("memory of one driver"),
        }
    }

    /// Issues a copy of this memory to `to` on `stream` and returns; [`Self::bytes_mut`] waits for it. `to` must not be used before
    /// that, or by what does not wait ([`Self::hold_up`]).
    ///
    /// # Errors
    /// When `to` is not on this GPU or not as large as this memory, or the device fails.
    pub fn send(&mut self, stream: CudaStream, to: ViewMut<'_>) -> Result<()> {
        let region = self.counterpart("PageLocked::send", "to", stream, to.as_view())?;
        match (&mut self.memory, &self.cuda.driver) {
            (Memory::Hardware(memory), Driver::Hardware(hardware)) => {
                hardware.upload_later(stream.lane, region, memory)
            }
            (Memory::Ordinary(_), Driver::Recording(recording)) => {
                recording.upload(stream.lane, region, &[])
            }
            #[cfg(any(test, feature = "emulator"))]
            (Memory::Ordinary(memory), Driver::Emulated(emulated)) => {
                let bytes = bytemuck::cast_slice(memory);
                emulated.upload(stream.lane, region, &bytes[..region.bytes])
            }
            _ => unreachable!("memory of one driver"),
        }
    }

    /// What is issued to `stream` from now on happens after the last copy.
    ///
    /// # Errors
    /// When the device fails.
    pub fn hold_up(&self, stream: CudaStream) -> Result<()> {
        match (&self.memory, &self.cuda.driver) {
            (Memory::Hardware(memory), Driver::Hardware(hardware)) => {
                hardware.wait_for_copy(stream.lane, memory)
            }
            (Memory::Ordinary(_), Driver::Recording(recording)) => {
                recording.wait(stream.lane, Lane::Copy)
            }
            #[cfg(any(test, feature = "emulator"))]
            (Memory::Ordinary(_), Driver::Emulated(_)) => Ok(()),
            _ => unreachable!("memory of one driver"),
        }
    }

    /// The range of this GPU that a copy of this memory has at its other end.
    fn counterpart(
        &self,
        operation: &'static str,
        what: &'static str,
        stream: CudaStream,
        view: View<'_>,
    ) -> Result<Region> {
        let StorageRef::Cuda(slice) = view.storage() else {
            return Err(KernelError::Device { operation, what });
        };
        if !std::ptr::eq(slice.cuda(), self.cuda) || !std::ptr::eq(stream.cuda, self.cuda) {
            return Err(KernelError::Device { operation, what });
        }
        check_sizes(operation, slice.region().bytes, self.bytes)?;
        Ok(slice.region())
    }

    /// What this memory holds, to be changed, when the last copy has happened.
    ///
    /// # Errors
    /// When the device failed in it.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        match (&mut self.memory, &self.cuda.driver) {
            (Memory::Hardware(memory), Driver::Hardware(hardware)) => hardware.locked_mut(memory),
            (Memory::Ordinary(memory), _) => {
                Ok(&mut bytemuck::cast_slice_mut(memory)[..self.bytes])
            }
            (Memory::Hardware(_), _) => unreachable!("memory of one driver"),
        }
    }

    /// What the last copy brought, when it has happened.
    ///
    /// # Errors
    /// When the device failed in it.
    pub fn bytes(&self) -> Result<&[u8]> {
        match (&self.memory, &self.cuda.driver) {
            (Memory::Hardware(memory), Driver::Hardware(hardware)) => hardware.locked(memory),
            (Memory::Ordinary(memory), _) => Ok(bytemuck::cast_slice(memory)),
            (Memory::Hardware(_), _) => unreachable!("memory of one driver"),
        }
    }
}
