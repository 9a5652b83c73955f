//! The arena: a budget of device memory that a step's tensors come from and go back to.
//!
//! A tensor taken from the arena returns its memory when it is dropped, so that after the first
//! steps nothing is asked of the system. On the host the next tensor of that type and size class
//! takes it; on a GPU the device's heap serves all tensors. Reuse is safe because operations of one
//! stream are ordered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Device, Storage};
use crate::{DType, KernelError, Result, Tensor};

/// A budget of memory on one device. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Arena {
    device: Device,
    shared: Arc<Mutex<Pool>>,
}

#[derive(Debug)]
struct Pool {
    free: BTreeMap<(DType, usize), Vec<Storage>>,
    held_bytes: usize,
    budget_bytes: usize,
}

impl Arena {
    /// An empty arena on `device` that will hold at most `budget_bytes` of host memory; a GPU's
    /// memory is its own limit.
    #[must_use]
    pub fn new(device: Device, budget_bytes: usize) -> Self {
        let pool = Pool { free: BTreeMap::new(), held_bytes: 0, budget_bytes };
        Self { device, shared: Arc::new(Mutex::new(pool)) }
    }

    /// The device this arena's tensors live on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Bytes taken from the system and not given back, in use or free for reuse; on a GPU all that
    /// the process holds there.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = self.device {
            return cuda.held_bytes();
        }
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).held_bytes
    }

    /// A tensor whose elements are undefined: whoever takes it writes all of them before reading any.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] when the budget is spent.
    pub fn take(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        if self.device != Device::Host {
            return Tensor::new(self.device, dtype, shape);
        }
        let len: usize = shape.iter().product();
        let class = size_class(len);
        let mut pool = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let storage = match pool.free.get_mut(&(dtype, class)).and_then(Vec::pop) {
            Some(storage) => storage,
            None => {
                let wanted = class * dtype.bytes();
                if pool.held_bytes + wanted > pool.budget_bytes {
                    return Err(KernelError::OutOfMemory {
                        device: self.device.name(),
                        wanted: pool.held_bytes + wanted - pool.budget_bytes,
                        budget: pool.budget_bytes,
                    });
                }
                let storage = Storage::new(self.device, dtype, class)?;
                pool.held_bytes += wanted;
                storage
            }
        };
        drop(pool);
        Ok(Tensor::from_arena(storage, shape, self.clone()))
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] when the budget is spent.
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let mut tensor = self.take(dtype, shape)?;
        tensor.view_mut().fill_zero(&self.device.compute_stream())?;
        Ok(tensor)
    }

    /// Gives memory that no tensor uses back to the system; on a GPU after everything issued so
    /// far.
    ///
    /// # Errors
    /// When the device failed in any of it.
    pub fn trim(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = self.device {
            return cuda.trim();
        }
        let mut pool = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let free = std::mem::take(&mut pool.free);
        let classes = free
            .into_iter()
            .map(|((dtype, class), storages)| class * dtype.bytes() * storages.len());
        pool.held_bytes -= classes.sum::<usize>();
        Ok(())
    }

    pub(crate) fn give_back(&self, storage: Storage, len: usize) {
        let mut pool = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        pool.free.entry((storage.dtype(), size_class(len))).or_default().push(storage);
    }
}

/// Lengths are rounded up to 8 steps per power of two, so that batches of slightly different token counts share memory.
pub(crate) fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(64);
    len.div_ceil(step).max(1) * step
}
