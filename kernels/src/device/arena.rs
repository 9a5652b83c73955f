//! The arena: a memory budget on one device that provides the tensors of a step.
//!
//! A tensor from the arena returns its memory when it is dropped, so after the first steps no
//! memory is requested from the system. On the host, the next tensor of the same type and size
//! class takes the memory; on a GPU, the heap of the device serves all tensors. Reuse is safe
//! because the operations of one stream are ordered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Device, Storage};
use crate::{DType, KernelError, Result, Tensor};

/// A memory budget on one device. Clones share the budget.
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
    /// An empty arena on `device` with a budget of `budget_bytes` of host memory. On a GPU the
    /// limit is the memory of the device instead.
    #[must_use]
    pub fn new(device: Device, budget_bytes: usize) -> Self {
        let pool = Pool { free: BTreeMap::new(), held_bytes: 0, budget_bytes };
        Self { device, shared: Arc::new(Mutex::new(pool)) }
    }

    /// The device that holds the tensors of this arena.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Bytes that the arena has taken from the system, in use or free for reuse. On a GPU: all
    /// bytes that the process holds there.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        if let Device::Cuda(cuda) = self.device {
            return cuda.held_bytes();
        }
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).held_bytes
    }

    /// A tensor with undefined elements. The caller must write every element before reading any.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] if the budget is spent, or [`KernelError::Cuda`] if the GPU is
    /// out of memory.
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

    /// A tensor whose elements are zero.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] if the budget is spent, or [`KernelError::Cuda`] if the GPU is
    /// out of memory or fails.
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let mut tensor = self.take(dtype, shape)?;
        tensor.view_mut().fill_zero(&self.device.compute_stream())?;
        Ok(tensor)
    }

    /// Returns unused memory to the system. On a GPU this waits for everything issued so far.
    ///
    /// # Errors
    /// If the device failed in something issued before.
    pub fn trim(&self) -> Result<()> {
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

/// Rounds a length up to one of 8 sizes per power of two, so that batches with slightly different
/// token counts share memory.
pub(crate) fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(64);
    len.div_ceil(step).max(1) * step
}
