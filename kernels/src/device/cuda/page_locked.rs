//! Page-locked host memory: a GPU copies to or from it while the host and the other streams
//! continue.

use super::{Cuda, CudaStream, Driver, Lane, Region, check_sizes, hardware};
use crate::device::StorageRef;
use crate::{KernelError, Result, View, ViewMut};

/// Host memory that a stream fills or reads asynchronously.
#[derive(Debug)]
pub struct PageLocked {
    cuda: &'static Cuda,
    bytes: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Hardware(hardware::Locked),
    /// Memory for an emulated or recording GPU. A recording GPU leaves it zero.
    Ordinary(Vec<u64>),
}

impl PageLocked {
    /// `bytes` bytes of zeros.
    ///
    /// # Errors
    /// If the host cannot lock more memory.
    pub fn new(cuda: &'static Cuda, bytes: usize) -> Result<Self> {
        let memory = match &cuda.driver {
            Driver::Hardware(hardware) => Memory::Hardware(hardware.lock(bytes)?),
            Driver::Recording(_) => Memory::Ordinary(vec![0; bytes.div_ceil(8)]),
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => Memory::Ordinary(vec![0; bytes.div_ceil(8)]),
        };
        Ok(Self { cuda, bytes, memory })
    }

    /// A stream of the GPU that this memory belongs to.
    pub(crate) fn stream(&self, lane: Lane) -> CudaStream {
        CudaStream::new(self.cuda, lane)
    }

    /// Issues a copy of `from` to `stream` and returns; [`Self::bytes`] waits for it. Until the
    /// copy is complete, `from` may be written only by work that waits for `stream`.
    ///
    /// # Errors
    /// If `from` is not on this GPU or differs in size from this memory, or if the device fails.
    pub fn fill(&mut self, stream: CudaStream, from: View<'_>) -> Result<()> {
        let region = self.counterpart("PageLocked::fill", "from", stream, from)?;
        if region.bytes == 0 {
            return Ok(());
        }
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

    /// Issues a copy of this memory to `to` on `stream` and returns; [`Self::bytes_mut`] waits for
    /// it. Until the copy is complete, `to` may be used only by work that waits for it
    /// ([`Self::hold_up`]).
    ///
    /// # Errors
    /// If `to` is not on this GPU or differs in size from this memory, or if the device fails.
    pub fn send(&mut self, stream: CudaStream, to: ViewMut<'_>) -> Result<()> {
        let region = self.counterpart("PageLocked::send", "to", stream, to.as_view())?;
        if region.bytes == 0 {
            return Ok(());
        }
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

    /// Makes `stream` wait for the last copy before it executes work issued after this call.
    ///
    /// # Errors
    /// If the device fails.
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

    /// The device range at the other end of a copy of this memory, after checks of device and size.
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

    /// Mutable contents of the memory. Waits until the last copy is complete.
    ///
    /// # Errors
    /// If the device failed in that copy.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        let memory = match (&mut self.memory, &self.cuda.driver) {
            (Memory::Hardware(memory), Driver::Hardware(hardware)) => {
                hardware.locked_mut(memory)?
            }
            (Memory::Ordinary(memory), _) => bytemuck::cast_slice_mut(memory),
            (Memory::Hardware(_), _) => unreachable!("memory of one driver"),
        };
        Ok(&mut memory[..self.bytes])
    }

    /// Contents of the memory. Waits until the last copy is complete.
    ///
    /// # Errors
    /// If the device failed in that copy.
    pub fn bytes(&self) -> Result<&[u8]> {
        let memory = match (&self.memory, &self.cuda.driver) {
            (Memory::Hardware(memory), Driver::Hardware(hardware)) => hardware.locked(memory)?,
            (Memory::Ordinary(memory), _) => bytemuck::cast_slice(memory),
            (Memory::Hardware(_), _) => unreachable!("memory of one driver"),
        };
        Ok(&memory[..self.bytes])
    }
}
