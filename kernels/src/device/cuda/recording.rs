//! A device without memory that records its orders: a rehearsal of a run at its real size on a
//! machine without a GPU.
//!
//! Addresses are numbers, reads return zeros, and nothing is computed, so a step of the paper's
//! model takes a second. The record answers three questions before a GPU is booked: which kernels a
//! recipe launches, how much memory it needs, and how often the host and the device wait for each
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Lane, Product, Region, Span, failed};
use crate::compile::{Kernel, Launch};
use crate::{KernelError, Result};

/// First address of the heap.
const BASE: u64 = 1 << 40;

/// One order that a recording device received.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// The launch of a kernel.
    Launch(Launch<Region>),
    /// A matrix product, which cuBLASLt would compute.
    Multiply(Product),
    /// A copy from the host to this range.
    Upload(Region),
    /// A copy of this range to the host, which waits for everything issued to the stream before.
    Download(Region),
    /// A copy of this range to the host that runs asynchronously.
    Snapshot(Region),
    /// A copy within the device.
    Copy {
        /// Memory that the copy reads.
        from: Region,
        /// Memory that the copy writes.
        to: Region,
    },
    /// A fill of this range with zeros.
    FillZero(Region),
    /// The host waits for a stream.
    Synchronize,
    /// The stream waits for everything issued to another stream.
    Wait(Lane),
    /// The heap provides the memory of a tensor.
    Allocate(Region),
    /// The heap takes back the memory of a tensor.
    Free(Region),
    /// The heap takes memory from the driver, in bytes.
    Grow(usize),
    /// The heap returns memory to the driver, in bytes.
    Shrink(usize),
}

/// The orders that a recording device received.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// All orders with their streams, in order.
    pub orders: Vec<(Lane, Order)>,
    /// Peak size of the heap in bytes.
    pub peak_bytes: usize,
}

impl Record {
    /// The distinct kernels that were launched.
    #[must_use]
    pub fn kernels(&self) -> BTreeSet<Kernel> {
        self.launches().map(|launch| launch.kernel).collect()
    }

    /// The launches, in order.
    pub fn launches(&self) -> impl Iterator<Item = &Launch<Region>> {
        self.orders.iter().filter_map(|(_, order)| match order {
            Order::Launch(launch) => Some(launch),
            _ => None,
        })
    }

    /// Counts the orders for which `which` returns `Some`, and sums the bytes it returns.
    pub fn total(&self, which: impl Fn(&Order) -> Option<usize>) -> Total {
        let found = self.orders.iter().filter_map(|(_, order)| which(order));
        found.fold(Total::default(), |sum, bytes| Total {
            count: sum.count + 1,
            bytes: sum.bytes + bytes,
        })
    }
}

/// Number of orders of a kind, and the bytes they move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// Number of orders that were counted.
    pub count: usize,
    /// Sum of the bytes of these orders.
    pub bytes: usize,
}

#[derive(Debug)]
pub(super) struct Recording {
    state: Mutex<State>,
    memory_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    record: Record,
    /// Size of the heap in bytes.
    backed: usize,
    /// Length of each tensor in the heap, by its address.
    tensors: BTreeMap<u64, usize>,
}

impl State {
    fn note(&mut self, lane: Lane, order: Order) {
        self.record.orders.push((lane, order));
    }

    /// Refuses memory that belongs to no tensor, or that exceeds its tensor.
    fn check(&self, call: &'static str, region: Region) -> Result<()> {
        let owner = self.tensors.range(..=region.address).next_back();
        let inside = owner.is_some_and(|(base, bytes)| {
            region.address + region.bytes as u64 <= base + *bytes as u64
        });
        if inside {
            return Ok(());
        }
        let message = format!("{region:?} belongs to no tensor");
        Err(failed(call, message, "this is a bug in the program"))
    }
}

impl Recording {
    /// A device with `memory_bytes` of memory.
    pub(super) fn new(memory_bytes: usize) -> Self {
        Self { state: Mutex::default(), memory_bytes }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the record since the last call.
    pub(super) fn take(&self) -> Record {
        let mut state = self.state();
        let peak_bytes = state.backed;
        std::mem::replace(&mut state.record, Record { orders: Vec::new(), peak_bytes })
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn description(&self) -> Result<String> {
        Ok(format!("recording GPU of {} GiB", self.memory_bytes >> 30))
    }

    pub(super) fn bus_address(&self) -> Result<String> {
        self.description()
    }

    #[expect(clippy::unused_self, reason = "every driver has this method")]
    pub(super) fn trace(&self) -> Result<()> {
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "every driver has this method")]
    pub(super) fn traced(&self) -> Result<Vec<Span>> {
        Ok(Vec::new())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn memory(&self) -> Result<[usize; 2]> {
        Ok([self.memory_bytes - self.state().backed, self.memory_bytes])
    }

    #[expect(clippy::unused_self, reason = "every driver has this method")]
    pub(super) fn base(&self) -> u64 {
        BASE
    }

    /// Records the memory of a new tensor.
    pub(super) fn allocated(&self, region: Region) {
        let mut state = self.state();
        state.tensors.insert(region.address, region.bytes);
        state.note(Lane::Compute, Order::Allocate(region));
    }

    /// Records that the memory of a tensor is free.
    pub(super) fn freed(&self, region: Region) {
        let mut state = self.state();
        state.tensors.remove(&region.address);
        state.note(Lane::Compute, Order::Free(region));
    }

    pub(super) fn grow(&self, bytes: usize) -> Result<()> {
        let mut state = self.state();
        if state.backed + bytes > self.memory_bytes {
            return Err(KernelError::OutOfMemory {
                device: "recording GPU",
                wanted: state.backed + bytes - self.memory_bytes,
                budget: self.memory_bytes,
            });
        }
        state.backed += bytes;
        state.record.peak_bytes = state.record.peak_bytes.max(state.backed);
        state.note(Lane::Compute, Order::Grow(bytes));
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn shrink(&self, end: usize) -> Result<usize> {
        let mut state = self.state();
        let bytes = state.backed - end;
        state.backed = end;
        state.note(Lane::Compute, Order::Shrink(bytes));
        Ok(end)
    }

    pub(super) fn upload(&self, lane: Lane, to: Region, _: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.check("upload", to)?;
        state.note(lane, Order::Upload(to));
        Ok(())
    }

    pub(super) fn download(&self, lane: Lane, from: Region, bytes: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        state.check("download", from)?;
        state.note(lane, Order::Download(from));
        bytes.fill(0);
        Ok(())
    }

    pub(super) fn download_later(&self, lane: Lane, from: Region) -> Result<()> {
        let mut state = self.state();
        state.check("snapshot", from)?;
        state.note(lane, Order::Snapshot(from));
        Ok(())
    }

    pub(super) fn copy(&self, lane: Lane, from: Region, to: Region) -> Result<()> {
        let mut state = self.state();
        state.check("copy", from)?;
        state.check("copy", to)?;
        state.note(lane, Order::Copy { from, to });
        Ok(())
    }

    pub(super) fn fill_zero(&self, lane: Lane, region: Region) -> Result<()> {
        let mut state = self.state();
        state.check("zeros", region)?;
        state.note(lane, Order::FillZero(region));
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn wait(&self, lane: Lane, other: Lane) -> Result<()> {
        self.state().note(lane, Order::Wait(other));
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn synchronize(&self, lane: Lane) -> Result<()> {
        self.state().note(lane, Order::Synchronize);
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "every driver has this method")]
    pub(super) fn time(&self, _: Lane, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        work().map(|()| 0.0)
    }

    pub(super) fn run(&self, lane: Lane, launch: &Launch<Region>) -> Result<()> {
        let mut state = self.state();
        for region in &launch.buffers {
            state.check("launch", *region)?;
        }
        state.note(lane, Order::Launch(launch.clone()));
        Ok(())
    }

    pub(super) fn multiply(&self, lane: Lane, product: Product) -> Result<()> {
        let mut state = self.state();
        let Product { left, right, bias, addend, out, .. } = product;
        for region in [Some(left), Some(right), bias, addend, Some(out)].into_iter().flatten() {
            state.check("product", region)?;
        }
        state.note(lane, Order::Multiply(product));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cuda, CudaStream, Lane};
    use super::{Order, Total};
    use crate::attention::launch::Mode;
    use crate::{DType, Device, KernelError, Tensor, View, copy};

    #[test]
    fn orders_are_noted_and_reads_give_zeros() {
        let cuda = Cuda::recording(1 << 30, Mode::Fast);
        let device = Device::Cuda(cuda);
        let stream = device.compute_stream();
        let mut tensor = Tensor::zeros(device, DType::F32, &[1000]).unwrap();
        let values = vec![3.0; 1000];
        copy::copy(&stream, View::from_f32(&values, &[1000]), tensor.view_mut()).unwrap();
        assert_eq!(tensor.to_f32().unwrap().to_vec(), vec![0.0; 1000]);
        let record = cuda.take_record().unwrap();
        let uploads = record.total(|order| match order {
            Order::Upload(to) => Some(to.bytes),
            _ => None,
        });
        assert_eq!(uploads, Total { count: 1, bytes: 4000 });
        assert!(matches!(record.orders.last(), Some((Lane::Compute, Order::Download(_)))));
        // One page of the heap.
        assert_eq!(record.peak_bytes, 2 << 20);
        assert!(cuda.take_record().unwrap().orders.is_empty(), "a record is taken once");
        assert!(Cuda::for_tests(Mode::Fast).take_record().is_none());
    }

    #[test]
    fn memory_of_a_dropped_tensor_and_too_much_of_it_are_refused() {
        let cuda = Cuda::recording(16 << 20, Mode::Fast);
        let stream = CudaStream::new(cuda, Lane::Compute);
        let tensor = Tensor::zeros(Device::Cuda(cuda), DType::F32, &[8]).unwrap();
        let region = stream.call("test").f32(tensor.view(), "tensor").unwrap();
        stream.fill_zero(region).unwrap();
        drop(tensor);
        let refused = stream.fill_zero(region).unwrap_err().to_string();
        assert!(refused.contains("belongs to no tensor"), "{refused}");
        let full = Tensor::zeros(Device::Cuda(cuda), DType::U8, &[17 << 20]).unwrap_err();
        assert!(matches!(full, KernelError::OutOfMemory { budget, .. } if budget == 16 << 20));
    }
}
