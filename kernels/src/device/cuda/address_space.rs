//! A range of GPU addresses whose beginning is backed by memory. The backed part grows and shrinks
//! at its end, and nothing in it moves.
//!
//! CUDA's virtual memory calls create and map the physical memory in chunks.

#![expect(unsafe_code, reason = "calls of the driver, which is loaded at run time")]

use cudarc::driver::result::DriverError;
use cudarc::driver::sys as cu;

/// The reserved addresses and the chunks that back them. They live as long as the process.
#[derive(Debug)]
pub(super) struct AddressSpace {
    base: cu::CUdeviceptr,
    reserved: usize,
    device: cu::CUdevice,
    /// Length and handle of each chunk, in address order.
    chunks: Vec<(usize, cu::CUmemGenericAllocationHandle)>,
}

impl AddressSpace {
    /// Reserves `bytes` addresses of `device`, a multiple of the page size, without memory.
    pub(super) fn reserve(device: cu::CUdevice, bytes: usize) -> Result<Self, DriverError> {
        let mut base = 0;
        // SAFETY: the driver writes one address.
        unsafe { cu::cuMemAddressReserve(&raw mut base, bytes, 0, 0, 0) }.result()?;
        Ok(Self { base, reserved: bytes, device, chunks: Vec::new() })
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    fn backed(&self) -> usize {
        self.chunks.iter().map(|(bytes, _)| bytes).sum()
    }

    /// Backs `bytes` more bytes, a multiple of the page size.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), DriverError> {
        let start = self.backed();
        if start + bytes > self.reserved {
            return Err(DriverError(cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        }
        let location = cu::CUmemLocation {
            type_: cu::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: self.device,
        };
        // SAFETY: all fields are plain numbers, for which zeros are valid.
        let mut properties: cu::CUmemAllocationProp = unsafe { std::mem::zeroed() };
        properties.type_ = cu::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location = location;
        let mut handle = 0;
        // SAFETY: the driver reads the properties and writes one handle.
        unsafe { cu::cuMemCreate(&raw mut handle, bytes, &raw const properties, 0) }.result()?;
        let address = self.base + start as u64;
        let access = cu::CUmemAccessDesc {
            location,
            flags: cu::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range lies inside the reservation and is not mapped; the handle was just
        // created.
        let mapped = unsafe { cu::cuMemMap(address, bytes, 0, handle, 0) }.result();
        let accessible = mapped.and_then(|()| {
            // SAFETY: the range was just mapped; the driver reads one description.
            unsafe { cu::cuMemSetAccess(address, bytes, &raw const access, 1) }.result()
        });
        if let Err(error) = accessible {
            // SAFETY: the handle was just created; if it is mapped, the mapping is not in use yet.
            unsafe {
                if mapped.is_ok() {
                    cu::cuMemUnmap(address, bytes).result()?;
                }
                cu::cuMemRelease(handle).result()?;
            }
            return Err(error);
        }
        self.chunks.push((bytes, handle));
        Ok(())
    }

    /// Releases the chunks that lie entirely beyond the first `end` bytes, and returns how many
    /// bytes remain backed. The caller has waited for all work that used them.
    pub(super) fn shrink(&mut self, end: usize) -> Result<usize, DriverError> {
        let mut backed = self.backed();
        while let Some((bytes, handle)) = self.chunks.last().copied()
            && backed - bytes >= end
        {
            backed -= bytes;
            // SAFETY: the whole chunk is mapped at this address, and no work uses it.
            unsafe {
                cu::cuMemUnmap(self.base + backed as u64, bytes).result()?;
                cu::cuMemRelease(handle).result()?;
            }
            self.chunks.pop();
        }
        Ok(backed)
    }
}
