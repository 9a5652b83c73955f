//! Page-locked host memory that a GPU copies to while the host and the other streams go on.

use super::{Cuda, CudaStream, Driver, check_sizes, hardware};
use crate::device::StorageRef;
use crate::{KernelError, Result, View};

/// Host memory that a stream fills by itself.
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

    /// Issues a copy of `from` to `stream` and returns; [`Self::bytes`] waits for it. `from` must not be written before that, or by
    /// what waits for `stream`.
    ///
    /// # Errors
    /// When `from` is not on this GPU or not as large as this memory, or the device fails.
    pub fn fill(&mut self, stream: CudaStream, from: View<'_>) -> Result<()> {
        const NAME: &str = "PageLocked::fill";
        let StorageRef::Cuda(slice) = from.storage() else {
            return Err(KernelError::Device { operation: NAME, what: "from" });
        };
        if !std::ptr::eq(slice.cuda(), self.cuda) || !std::ptr::eq(stream.cuda, self.cuda) {
            return Err(KernelError::Device { operation: NAME, what: "from" });
        }
        let region = slice.region();
        check_sizes(NAME, region.bytes, self.bytes)?;
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
