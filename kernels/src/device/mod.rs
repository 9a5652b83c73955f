//! Devices: where tensors live, the streams operations run on, and the arena that a step's tensors come from.
//!
//! The host is the only device of a build without feature `cuda`. Every `match` on [`Device`] or [`Storage`] names the place
//! where another device plugs in; operations never see more of a device than a [`Stream`].

mod arena;
mod host;
pub mod host_gemm;

pub use arena::Arena;
pub use host::{HostBuffer, HostSlice, HostSliceMut};

/// A machine that holds tensors and computes on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// This process's memory and its rayon threads.
    Host,
}

impl Device {
    /// The device's name as messages print it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
        }
    }

    /// The stream that a step computes on.
    #[must_use]
    pub fn compute_stream(self) -> Stream {
        match self {
            Self::Host => Stream::Host,
        }
    }
}

/// An ordered queue of operations on one device. Operations on one stream happen in the order they were issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stream {
    /// The host computes at once: an operation has happened when its call returns.
    Host,
}

impl Stream {
    /// The device this stream belongs to.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::Host => Device::Host,
        }
    }

    /// Waits until every operation issued so far has happened.
    ///
    /// # Errors
    /// A device that failed in one of them (the host never does).
    pub fn synchronize(&self) -> crate::Result<()> {
        match self {
            Self::Host => Ok(()),
        }
    }
}

/// The memory behind a tensor.
#[derive(Debug)]
pub enum Storage {
    /// Host memory.
    Host(HostBuffer),
}

/// A borrowed range of a tensor's memory.
#[derive(Debug, Clone, Copy)]
pub enum StorageRef<'a> {
    /// Host memory.
    Host(HostSlice<'a>),
}

/// A mutably borrowed range of a tensor's memory.
#[derive(Debug)]
pub enum StorageMut<'a> {
    /// Host memory.
    Host(HostSliceMut<'a>),
}
