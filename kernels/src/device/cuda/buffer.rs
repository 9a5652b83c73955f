//! Memory of a GPU that a tensor owns, and ranges of it that are borrowed.

use std::marker::PhantomData;

use super::{Cuda, Region};
use crate::{DType, Result};

/// Owned memory of a device. Dropping it returns the memory to the heap of the device.
#[derive(Debug)]
pub struct CudaBuffer {
    cuda: &'static Cuda,
    dtype: DType,
    region: Region,
}

impl CudaBuffer {
    /// Memory for `len` elements with undefined values.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(cuda: &'static Cuda, dtype: DType, len: usize) -> Result<Self> {
        let bytes = len.max(1) * dtype.bytes();
        Ok(Self { cuda, dtype, region: Region { address: cuda.allocate(bytes)?, bytes } })
    }

    /// Element type of the memory.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn slice(&self, start: usize, end: usize) -> CudaSlice<'_> {
        let all = CudaSlice {
            cuda: self.cuda,
            dtype: self.dtype,
            region: self.region,
            memory: PhantomData,
        };
        all.range(start, end)
    }

    pub(crate) fn slice_mut(&mut self, start: usize, end: usize) -> CudaSliceMut<'_> {
        CudaSliceMut(self.slice(start, end))
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.cuda.free(self.region);
    }
}

/// A range of device memory, borrowed for reading.
#[derive(Debug, Clone, Copy)]
pub struct CudaSlice<'a> {
    cuda: &'static Cuda,
    dtype: DType,
    region: Region,
    memory: PhantomData<&'a CudaBuffer>,
}

/// A range of device memory, borrowed for writing.
#[derive(Debug)]
pub struct CudaSliceMut<'a>(CudaSlice<'a>);

impl CudaSlice<'_> {
    /// Element type of the range.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn cuda(&self) -> &'static Cuda {
        self.cuda
    }

    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// Elements `start..end` of this range.
    ///
    /// # Panics
    /// If `end` exceeds the range or is before `start`.
    pub(crate) fn range(mut self, start: usize, end: usize) -> Self {
        let bytes = self.dtype.bytes();
        assert!(start <= end && end * bytes <= self.region.bytes, "a part lies inside");
        self.region.address += (start * bytes) as u64;
        self.region.bytes = (end - start) * bytes;
        self
    }
}

impl<'a> CudaSliceMut<'a> {
    pub(crate) fn as_ref(&self) -> CudaSlice<'_> {
        self.0
    }

    pub(crate) fn into_ref(self) -> CudaSlice<'a> {
        self.0
    }

    pub(crate) fn reborrow(&mut self) -> CudaSliceMut<'_> {
        CudaSliceMut(self.0)
    }

    pub(crate) fn range(self, start: usize, end: usize) -> Self {
        Self(self.0.range(start, end))
    }

    pub(crate) fn split_at(self, middle: usize) -> (Self, Self) {
        let end = self.0.region.bytes / self.0.dtype.bytes();
        (Self(self.0.range(0, middle)), Self(self.0.range(middle, end)))
    }
}
