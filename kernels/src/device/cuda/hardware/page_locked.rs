//! Page-locked memory of the host: what copies of a stream need to happen beside the host's work.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use cudarc::driver::{result as cu, sys as cu_sys};

use super::{Event, LATER, driver};
use crate::Result;
use crate::device::cuda::Region;

/// Page-locked memory that streams copy to or from, and the event behind the last copy.
#[derive(Debug)]
pub(in super::super) struct Locked {
    memory: *mut u8,
    bytes: usize,
    context: cu_sys::CUcontext,
    copied: Event,
}

// SAFETY: the memory is this value's alone, and its event may be used from any thread.
unsafe impl Send for Locked {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Locked {}

impl Locked {
    /// All zeros.
    pub(super) fn new(context: cu_sys::CUcontext, bytes: usize) -> Result<Self> {
        // SAFETY: the memory is given back once, when `Locked` is dropped.
        let memory: *mut u8 = unsafe { cu::malloc_host(bytes.max(1), 0) }
            .map_err(driver("cuMemHostAlloc", LOCK))?
            .cast();
        // SAFETY: that many bytes were just allocated.
        unsafe { memory.write_bytes(0, bytes.max(1)) };
        Ok(Self { memory, bytes, context, copied: Event::plain()? })
    }

    /// The event behind the last copy.
    pub(super) fn copied(&self) -> &Event {
        &self.copied
    }

    /// Issues a copy of a range of as many bytes as this memory has.
    pub(super) fn fill(&mut self, from: Region, stream: cu_sys::CUstream) -> Result<()> {
        // SAFETY: the range is allocated; the memory is borrowed for writing here, and read or written by the host (`bytes`) and given
        // back (`drop`) only after its event.
        unsafe {
            let to = std::slice::from_raw_parts_mut(self.memory, self.bytes);
            cu::memcpy_dtoh_async(to, from.address, stream)
                .map_err(driver("cuMemcpyDtoHAsync", LATER))?;
        }
        self.copied.record(stream)
    }

    /// Issues a copy to a range of as many bytes as this memory has.
    pub(super) fn send(&mut self, to: Region, stream: cu_sys::CUstream) -> Result<()> {
        // SAFETY: the range is allocated; the memory is changed by the host (`bytes_mut`) and given back (`drop`) only after its event.
        unsafe {
            let from = std::slice::from_raw_parts(self.memory, self.bytes);
            cu::memcpy_htod_async(to.address, from, stream)
                .map_err(driver("cuMemcpyHtoDAsync", LATER))?;
        }
        self.copied.record(stream)
    }

    /// What it holds, after the last copy.
    pub(super) fn bytes(&self) -> Result<&[u8]> {
        self.copied.wait()?;
        // SAFETY: it holds that many bytes, and no copy is under way: issuing one takes it mutably.
        Ok(unsafe { std::slice::from_raw_parts(self.memory, self.bytes) })
    }

    /// The same, to be changed.
    pub(super) fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        self.copied.wait()?;
        // SAFETY: as above, and nobody else has it.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) })
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the context is never released; the memory came from cuMemHostAlloc and is given back once, after the copies.
        // A device that failed does not use it any more, and nothing can be done about an error here.
        unsafe {
            cu::ctx::set_current(self.context).ok();
            self.copied.wait().ok();
            cu::free_host(self.memory.cast()).ok();
        }
    }
}

/// What page-locked memory may fail by.
const LOCK: &str = "page-locked memory may be limited: see `ulimit -l`";

/// Uploads up to this size take a small slot: indices and lengths.
const SMALL_BYTES: usize = 64 << 10;

/// Page-locked memory that uploads pass through: a copy from memory of any other kind would make the host wait for the stream.
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

/// Page-locked memory, and the event behind the last copy out of it.
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
    /// Copies `bytes` and issues their upload.
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
            // SAFETY: the memory is never given back.
            let memory = unsafe { cu::malloc_host(self.bytes, 0) }
                .map_err(driver("cuMemHostAlloc", LOCK))?
                .cast();
            self.slots.push(Slot { memory, copied: Event::plain()? });
        }
        let slot = &self.slots[at];
        slot.copied.wait()?;
        // SAFETY: the slot is as long as the part, nobody else writes to it under the lock, and the device reads it before its event.
        unsafe {
            let staged = std::slice::from_raw_parts_mut(slot.memory, part.len());
            staged.copy_from_slice(part);
            cu::memcpy_htod_async(to, staged, stream)
                .map_err(driver("cuMemcpyHtoDAsync", LATER))?;
        }
        slot.copied.record(stream)
    }
}
