//! Page-locked host memory, which the copies of a stream need to overlap with work of the host.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use cudarc::driver::{result as cu, sys as cu_sys};

use super::{ASYNC_HINT, Event, driver};
use crate::Result;
use crate::device::cuda::Region;

/// Page-locked memory that streams copy to or from, and the event after the last copy.
#[derive(Debug)]
pub(in super::super) struct Locked {
    memory: *mut u8,
    bytes: usize,
    context: cu_sys::CUcontext,
    copied: Event,
}

// SAFETY: this value owns the memory, and the event may be used from any thread.
unsafe impl Send for Locked {}
// SAFETY: shared references only read the memory.
unsafe impl Sync for Locked {}

impl Locked {
    /// Allocates `bytes` zeroed bytes. If `bytes` is 0 it allocates one, because the driver refuses
    /// to lock empty memory.
    pub(super) fn new(context: cu_sys::CUcontext, bytes: usize) -> Result<Self> {
        // SAFETY: the memory is freed once, when `Locked` is dropped.
        let memory: *mut u8 = unsafe { cu::malloc_host(bytes.max(1), 0) }
            .map_err(driver("cuMemHostAlloc", LOCK_HINT))?
            .cast();
        // SAFETY: that many bytes were just allocated.
        unsafe { memory.write_bytes(0, bytes.max(1)) };
        Ok(Self { memory, bytes, context, copied: Event::plain()? })
    }

    /// The event after the last copy.
    pub(super) fn copied(&self) -> &Event {
        &self.copied
    }

    /// Issues a copy of `from`, which has as many bytes as this memory.
    pub(super) fn fill(&mut self, from: Region, stream: cu_sys::CUstream) -> Result<()> {
        // SAFETY: the range is allocated. The memory is borrowed for writing here; the host reads
        // or writes it (`bytes`) and frees it (`drop`) only after its event.
        unsafe {
            let to = std::slice::from_raw_parts_mut(self.memory, self.bytes);
            cu::memcpy_dtoh_async(to, from.address, stream)
                .map_err(driver("cuMemcpyDtoHAsync", ASYNC_HINT))?;
        }
        self.copied.record(stream)
    }

    /// Issues a copy to `to`, which has as many bytes as this memory.
    pub(super) fn send(&mut self, to: Region, stream: cu_sys::CUstream) -> Result<()> {
        // SAFETY: the range is allocated; the host changes the memory (`bytes_mut`) and frees it
        // (`drop`) only after its event.
        unsafe {
            let from = std::slice::from_raw_parts(self.memory, self.bytes);
            cu::memcpy_htod_async(to.address, from, stream)
                .map_err(driver("cuMemcpyHtoDAsync", ASYNC_HINT))?;
        }
        self.copied.record(stream)
    }

    /// Contents of the memory, after the last copy is complete.
    pub(super) fn bytes(&self) -> Result<&[u8]> {
        self.copied.wait()?;
        // SAFETY: the memory has that many bytes, and no copy is running: issuing one needs `&mut
        // self`.
        Ok(unsafe { std::slice::from_raw_parts(self.memory, self.bytes) })
    }

    /// Mutable contents of the memory, after the last copy is complete.
    pub(super) fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        self.copied.wait()?;
        // SAFETY: as above, and `&mut self` excludes every other reference.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) })
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the context is never released; the memory came from cuMemHostAlloc and is freed
        // once, after the copies. A device that failed does not use it any more, and an error here
        // cannot be handled.
        unsafe {
            cu::ctx::set_current(self.context).ok();
            self.copied.wait().ok();
            cu::free_host(self.memory.cast()).ok();
        }
    }
}

/// Hint of a failed allocation of page-locked memory.
const LOCK_HINT: &str = "page-locked memory may be limited: see `ulimit -l`";

/// Largest upload, in bytes, that takes a small slot: indices and lengths.
const SMALL_BYTES: usize = 64 << 10;

/// Page-locked memory that uploads pass through. A copy from pageable memory would make the host
/// wait for the stream.
#[derive(Debug)]
pub(super) struct Staging {
    small: Ring,
    large: Ring,
}

/// Slots of one size, used in turn.
#[derive(Debug)]
struct Ring {
    slots: Vec<Slot>,
    next: usize,
    capacity: usize,
    bytes: usize,
}

/// Page-locked memory, and the event after the last copy from it.
#[derive(Debug)]
struct Slot {
    memory: *mut u8,
    copied: Event,
}

impl Default for Staging {
    fn default() -> Self {
        let ring = |capacity, bytes| Ring { slots: Vec::new(), next: 0, capacity, bytes };
        Self { small: ring(256, SMALL_BYTES), large: ring(8, 16 << 20) }
    }
}

impl Staging {
    /// Copies `bytes` to page-locked memory and issues their upload.
    pub(super) fn upload(&mut self, to: u64, bytes: &[u8], stream: cu_sys::CUstream) -> Result<()> {
        let Self { small, large } = self;
        let ring = if bytes.len() <= SMALL_BYTES { small } else { large };
        let mut address = to;
        for part in bytes.chunks(ring.bytes) {
            ring.upload(address, part, stream)?;
            address += part.len() as u64;
        }
        Ok(())
    }
}

impl Ring {
    /// Copies `part`, which fits into a slot, and issues its upload.
    fn upload(&mut self, to: u64, part: &[u8], stream: cu_sys::CUstream) -> Result<()> {
        let at = self.next;
        self.next = (at + 1) % self.capacity;
        if at == self.slots.len() {
            // SAFETY: the memory is never freed.
            let memory = unsafe { cu::malloc_host(self.bytes, 0) }
                .map_err(driver("cuMemHostAlloc", LOCK_HINT))?
                .cast();
            self.slots.push(Slot { memory, copied: Event::plain()? });
        }
        let slot = &self.slots[at];
        slot.copied.wait()?;
        // SAFETY: the slot is at least as long as the part, the lock excludes other writers, and
        // the next write to the slot waits for the event after this copy.
        unsafe {
            let staged = std::slice::from_raw_parts_mut(slot.memory, part.len());
            staged.copy_from_slice(part);
            cu::memcpy_htod_async(to, staged, stream)
                .map_err(driver("cuMemcpyHtoDAsync", ASYNC_HINT))?;
        }
        slot.copied.record(stream)
    }
}
