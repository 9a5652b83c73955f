//! Devices hold tensors and compute on them. A device has streams, which run operations, and an
//! arena, which provides the tensors of a step.
//!
//! Without the feature `cuda`, the host is the only device. Operations see no more of a device than
//! a [`Stream`].

mod arena;
#[cfg_attr(not(feature = "cuda"), path = "no_cuda.rs")]
pub mod cuda;
mod gpu_types;
mod host;
pub mod host_gemm;
mod snapshot;
mod upload;

pub use arena::Arena;
pub use host::{HostBuffer, HostSlice, HostSliceMut};
pub use snapshot::Snapshot;
pub use upload::{Upload, UploadBuffer};

use cuda::{Cuda, CudaBuffer, CudaSlice, CudaSliceMut, CudaStream, Lane};

use crate::{DType, Result};

/// Hardware that holds tensors and computes on them.
#[derive(Debug, Clone, Copy)]
pub enum Device {
    /// The memory of this process and its rayon threads.
    Host,
    /// A GPU, which stays open until the process ends.
    Cuda(&'static Cuda),
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host, Self::Host) => true,
            (Self::Cuda(a), Self::Cuda(b)) => std::ptr::eq(*a, *b),
            _ => false,
        }
    }
}

impl Eq for Device {}

impl Device {
    /// Name of the device in messages: `host` or `GPU`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cuda(_) => "GPU",
        }
    }

    /// Element type of activations and of the weights that products read: f32 on the host, bf16 on
    /// a GPU.
    #[must_use]
    pub fn activations(self) -> DType {
        match self {
            Self::Host => DType::F32,
            Self::Cuda(_) => DType::Bf16,
        }
    }

    /// The stream that runs the operations of a step.
    #[must_use]
    pub fn compute_stream(self) -> Stream {
        match self {
            Self::Host => Stream::Host,
            Self::Cuda(cuda) => Stream::Cuda(CudaStream::new(cuda, Lane::Compute)),
        }
    }
}

/// An ordered queue of operations on one device. A stream executes operations in the order in which
/// they were issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stream {
    /// The host computes at once: an operation is complete when its call returns.
    Host,
    /// A stream of a GPU, which executes operations after their calls have returned.
    Cuda(CudaStream),
}

impl Stream {
    /// The device that executes the operations.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::Host => Device::Host,
            Self::Cuda(stream) => Device::Cuda(stream.cuda()),
        }
    }

    /// Waits until every operation issued so far is complete.
    ///
    /// # Errors
    /// If the device failed in one of them. The host never fails.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Host => Ok(()),
            Self::Cuda(stream) => stream.synchronize(),
        }
    }
}

/// Owned memory of a tensor.
#[derive(Debug)]
pub enum Storage {
    /// A vector in host memory.
    Host(HostBuffer),
    /// A range of the memory of a GPU.
    Cuda(CudaBuffer),
}

impl Storage {
    /// Memory for `len` elements: zeros on the host, undefined on a GPU.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(device: Device, dtype: DType, len: usize) -> Result<Self> {
        Ok(match device {
            Device::Host => {
                HostBuffer::reserve(dtype, len)?;
                Self::Host(HostBuffer::zeros(dtype, len))
            }
            Device::Cuda(cuda) => Self::Cuda(CudaBuffer::new(cuda, dtype, len)?),
        })
    }

    /// Element type of the memory.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::Host(buffer) => buffer.dtype(),
            Self::Cuda(buffer) => buffer.dtype(),
        }
    }

    /// Borrows the elements `start..end` for reading.
    #[must_use]
    pub fn slice(&self, start: usize, end: usize) -> StorageRef<'_> {
        match self {
            Self::Host(buffer) => StorageRef::Host(buffer.slice(start, end)),
            Self::Cuda(buffer) => StorageRef::Cuda(buffer.slice(start, end)),
        }
    }

    /// Borrows the elements `start..end` for writing.
    #[must_use]
    pub fn slice_mut(&mut self, start: usize, end: usize) -> StorageMut<'_> {
        match self {
            Self::Host(buffer) => StorageMut::Host(buffer.slice_mut(start, end)),
            Self::Cuda(buffer) => StorageMut::Cuda(buffer.slice_mut(start, end)),
        }
    }
}

/// A range of a tensor's memory, borrowed for reading.
#[derive(Debug, Clone, Copy)]
pub enum StorageRef<'a> {
    /// A slice of host memory.
    Host(HostSlice<'a>),
    /// A range of the memory of a GPU.
    Cuda(CudaSlice<'a>),
}

impl<'a> StorageRef<'a> {
    /// Element type of the range.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::Host(slice) => slice.dtype(),
            Self::Cuda(slice) => slice.dtype(),
        }
    }

    /// Elements `start..end` of this range.
    #[must_use]
    pub fn range(self, start: usize, end: usize) -> Self {
        match self {
            Self::Host(slice) => Self::Host(slice.range(start, end)),
            Self::Cuda(slice) => Self::Cuda(slice.range(start, end)),
        }
    }
}

/// A range of a tensor's memory, borrowed for writing.
#[derive(Debug)]
pub enum StorageMut<'a> {
    /// A mutable slice of host memory.
    Host(HostSliceMut<'a>),
    /// A range of the memory of a GPU.
    Cuda(CudaSliceMut<'a>),
}

impl<'a> StorageMut<'a> {
    /// Converts the borrow into one for reading, with the same lifetime.
    #[must_use]
    pub fn into_ref(self) -> StorageRef<'a> {
        match self {
            Self::Host(slice) => StorageRef::Host(slice.into_ref()),
            Self::Cuda(slice) => StorageRef::Cuda(slice.into_ref()),
        }
    }

    /// Borrows the same memory for reading.
    #[must_use]
    pub fn as_ref(&self) -> StorageRef<'_> {
        match self {
            Self::Host(slice) => StorageRef::Host(slice.as_ref()),
            Self::Cuda(slice) => StorageRef::Cuda(slice.as_ref()),
        }
    }

    /// Borrows the same memory for writing, with a shorter lifetime.
    #[must_use]
    pub fn reborrow(&mut self) -> StorageMut<'_> {
        match self {
            Self::Host(slice) => StorageMut::Host(slice.reborrow()),
            Self::Cuda(slice) => StorageMut::Cuda(slice.reborrow()),
        }
    }

    /// Elements `start..end` of this range.
    #[must_use]
    pub fn range(self, start: usize, end: usize) -> Self {
        match self {
            Self::Host(slice) => Self::Host(slice.range(start, end)),
            Self::Cuda(slice) => Self::Cuda(slice.range(start, end)),
        }
    }

    /// Splits the range into the elements before `middle` and the rest.
    #[must_use]
    pub fn split_at(self, middle: usize) -> (StorageMut<'a>, StorageMut<'a>) {
        match self {
            Self::Host(slice) => {
                let (before, after) = slice.split_at(middle);
                (StorageMut::Host(before), StorageMut::Host(after))
            }
            Self::Cuda(slice) => {
                let (before, after) = slice.split_at(middle);
                (StorageMut::Cuda(before), StorageMut::Cuda(after))
            }
        }
    }
}
