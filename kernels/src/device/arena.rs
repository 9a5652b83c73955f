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
    /// Bytes of the elements of all tensors in use.
    used_bytes: usize,
    /// Largest value of `used_bytes` so far.
    most_used_bytes: usize,
    budget_bytes: usize,
}

impl Arena {
    /// An empty arena on `device` with a budget of `budget_bytes` of host memory. On a GPU the
    /// limit is the memory of the device instead.
    #[must_use]
    pub fn new(device: Device, budget_bytes: usize) -> Self {
        let free = BTreeMap::new();
        let pool = Pool { free, held_bytes: 0, used_bytes: 0, most_used_bytes: 0, budget_bytes };
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

    /// Largest number of bytes that tensors of this arena have used at the same time, without what
    /// is lost to size classes and kept for reuse. `None` on a GPU, where other tensors lie on the
    /// same heap.
    #[must_use]
    pub fn most_used_bytes(&self) -> Option<usize> {
        let pool = || self.shared.lock().unwrap_or_else(PoisonError::into_inner).most_used_bytes;
        (self.device == Device::Host).then(pool)
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
        pool.used_bytes += len * dtype.bytes();
        pool.most_used_bytes = pool.most_used_bytes.max(pool.used_bytes);
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
        pool.used_bytes -= len * storage.dtype().bytes();
        pool.free.entry((storage.dtype(), size_class(len))).or_default().push(storage);
    }
}

/// Rounds a length up to one of 8 sizes per power of two, so that batches with slightly different
/// token counts share memory.
pub(crate) fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(64);
    len.div_ceil(step).max(1) * step
}

#[cfg(test)]
mod tests {
    use super::{Arena, Device};
    use crate::DType;

    #[test]
    fn tensors_that_are_in_use_at_the_same_time_count_by_their_elements() {
        let arena = Arena::new(Device::Host, usize::MAX);
        let first = arena.take(DType::F32, &[100]).unwrap();
        drop(arena.take(DType::Bf16, &[3, 100]).unwrap());
        assert_eq!(arena.most_used_bytes(), Some(400 + 600));
        drop(first);
        let again = arena.take(DType::F32, &[120]).unwrap().reshaped(&[2, 60]);
        assert_eq!(arena.most_used_bytes(), Some(1000), "less than before");
        let more = arena.take(DType::F32, &[200]).unwrap();
        assert_eq!(arena.most_used_bytes(), Some(480 + 800));
        drop((again, more));
        arena.take(DType::F32, &[320]).unwrap();
        assert_eq!(arena.most_used_bytes(), Some(1280), "all were given back");
        assert!(arena.held_bytes() > 1280, "size classes and free memory are not counted");
    }
}
