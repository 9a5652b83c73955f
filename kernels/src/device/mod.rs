//! Devices: where tensors live, the streams operations run on, and the arena that a step's tensors come from.
//!
//! The host is the only device of a build without feature `cuda`. Operations never see more of a device than a [`Stream`].

mod arena;
#[cfg(feature = "cuda")]
pub mod cuda;
mod host;
pub mod host_gemm;
mod snapshot;
mod upload;

pub use arena::Arena;
pub use host::{HostBuffer, HostSlice, HostSliceMut};
pub use snapshot::Snapshot;
pub use upload::{Upload, UploadBuffer};

#[cfg(feature = "cuda")]
use cuda::{Cuda, CudaBuffer, CudaSlice, CudaSliceMut, CudaStream, Lane};

use crate::{DType, Result};

/// A machine that holds tensors and computes on them.
#[derive(Debug, Clone, Copy)]
pub enum Device {
    /// This process's memory and its rayon threads.
    Host,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(&'static Cuda),
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host, Self::Host) => true,
            #[cfg(feature = "cuda")]
            (Self::Cuda(a), Self::Cuda(b)) => std::ptr::eq(*a, *b),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }
}

impl Eq for Device {}

impl Device {
    /// The device's name as messages print it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "GPU",
        }
    }

    /// The element type of activations, and of the weights that products read: f32 on the host, bf16 on a GPU.
    #[must_use]
    pub fn activations(self) -> DType {
        match self {
            Self::Host => DType::F32,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => DType::Bf16,
        }
    }

    /// The stream that a step computes on.
    #[must_use]
    pub fn compute_stream(self) -> Stream {
        match self {
            Self::Host => Stream::Host,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Stream::Cuda(CudaStream::new(cuda, Lane::Compute)),
        }
    }
}

/// An ordered queue of operations on one device. Operations on one stream happen in the order they were issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stream {
    /// The host computes at once: an operation has happened when its call returns.
    Host,
    /// A stream of a GPU.
    #[cfg(feature = "cuda")]
    Cuda(CudaStream),
}

impl Stream {
    /// The device this stream belongs to.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::Host => Device::Host,
            #[cfg(feature = "cuda")]
            Self::Cuda(stream) => Device::Cuda(stream.cuda()),
        }
    }

    /// Waits until every operation issued so far has happened.
    ///
    /// # Errors
    /// A device that failed in one of them (the host never does).
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Host => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(stream) => stream.synchronize(),
        }
    }
}

/// The memory behind a tensor.
#[derive(Debug)]
pub enum Storage {
    /// Host memory.
    Host(HostBuffer),
    /// A GPU's memory.
    #[cfg(feature = "cuda")]
    Cuda(CudaBuffer),
}

impl Storage {
    /// Memory for `len` elements: zeros on the host, undefined on a GPU.
    ///
    /// # Errors
    /// When the device has no more.
    pub fn new(device: Device, dtype: DType, len: usize) -> Result<Self> {
        Ok(match device {
            Device::Host => Self::Host(HostBuffer::zeros(dtype, len)),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => Self::Cuda(CudaBuffer::new(cuda, dtype, len)?),
        })
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::Host(buffer) => buffer.dtype(),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => buffer.dtype(),
        }
    }

    /// Elements from `start` to `end`.
    #[must_use]
    pub fn slice(&self, start: usize, end: usize) -> StorageRef<'_> {
        match self {
            Self::Host(buffer) => StorageRef::Host(buffer.slice(start, end)),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => StorageRef::Cuda(buffer.slice(start, end)),
        }
    }

    /// Elements from `start` to `end`, to be written.
    #[must_use]
    pub fn slice_mut(&mut self, start: usize, end: usize) -> StorageMut<'_> {
        match self {
            Self::Host(buffer) => StorageMut::Host(buffer.slice_mut(start, end)),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => StorageMut::Cuda(buffer.slice_mut(start, end)),
        }
    }
}

/// A borrowed range of a tensor's memory.
#[derive(Debug, Clone, Copy)]
pub enum StorageRef<'a> {
    /// Host memory.
    Host(HostSlice<'a>),
    /// A GPU's memory.
    #[cfg(feature = "cuda")]
    Cuda(CudaSlice<'a>),
}

impl<'a> StorageRef<'a> {
    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::Host(slice) => slice.dtype(),
            #[cfg(feature = "cuda")]
            Self::Cuda(slice) => slice.dtype(),
        }
    }

    /// Elements from `start` to `end` of this range.
    #[must_use]
    pub fn range(self, start: usize, end: usize) -> Self {
        match self {
            Self::Host(slice) => Self::Host(slice.range(start, end)),
            #[cfg(feature = "cuda")]
            Self::Cuda(slice) => Self::Cuda(slice.range(start, end)),
        }
    }
}

/// A mutably borrowed range of a tensor's memory.
#[derive(Debug)]
pub enum StorageMut<'a> {
    /// Host memory.
    Host(HostSliceMut<'a>),
    /// A GPU's memory.
    #[cfg(feature = "cuda")]
    Cuda(CudaSliceMut<'a>),
}

impl<'a> StorageMut<'a> {
    /// The same memory, to be read from now on.
    #[must_use]
    pub fn into_ref(self) -> StorageRef<'a> {
        match self {
            Self::Host(slice) => StorageRef::Host(slice.into_ref()),
            #[cfg(feature = "cuda")]
            Self::Cuda(slice) => StorageRef::Cuda(slice.into_ref()),
        }
    }

    /// The same memory, to be read.
    #[must_use]
    pub fn as_ref(&self) -> StorageRef<'_> {
        match self {
            Self::Host(slice) => StorageRef::Host(slice.as_ref()),
            #[cfg(feature = "cuda")]
            Self::Cuda(slice) => StorageRef::Cuda(slice.as_ref()),
        }
    }

    /// The same memory, borrowed for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> StorageMut<'_> {
        match self {
            Self::Host(slice) => StorageMut::Host(slice.reborrow()),
            #[cfg(feature = "cuda")]
            Self::Cuda(slice) => StorageMut::Cuda(slice.reborrow()),
        }
    }

    /// Elements from `start` to `end` of this range.
    #[must_use]
    pub fn range(self, start: usize, end: usize) -> Self {
        match self {
            Self::Host(slice) => Self::Host(slice.range(start, end)),
            #[cfg(feature = "cuda")]
            Self::Cuda(slice) => Self::Cuda(slice.range(start, end)),
        }
    }

    /// Elements before `middle`, and those from there on.
    #[must_use]
    pub fn split_at(self, middle: usize) -> (StorageMut<'a>, StorageMut<'a>) {
        match self {
            Self::Host(slice) => {
                let (before, after) = slice.split_at(middle);
                (StorageMut::Host(before), StorageMut::Host(after))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(slice) => {
                let (before, after) = slice.split_at(middle);
                (StorageMut::Cuda(before), StorageMut::Cuda(after))
            }
        }
    }
}
