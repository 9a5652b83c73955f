//! One NVIDIA GPU: memory, three streams, kernels loaded once, products by cuBLASLt.
//!
//! A [`Cuda`] lives as long as the process: it is opened once and referred to by `&'static`. What it does goes through a driver:
//! the hardware's, one that only records what it is asked to do, or in tests one that runs the same
//! launches on the host.

mod address_space;
mod algorithms;
mod blas;
mod call;
mod cublaslt;
#[cfg(any(test, feature = "emulator"))]
pub(crate) mod emulated;
mod hardware;
mod heap;
#[cfg(test)]
mod large;
mod mark;
mod page_locked;
mod recording;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::attention::launch::Mode;
use crate::compile::{Compiler, Launch};
use crate::library::Libraries;
use crate::{DType, Device, KernelError, Result, Tensor};

pub use blas::Product;
pub(crate) use call::Call;
use hardware::Hardware;
use heap::Heap;
pub use mark::Mark;
pub use page_locked::PageLocked;
use recording::Recording;
pub use recording::{Order, Record, Total};

/// A range of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    /// Its first byte.
    pub address: u64,
    /// How many.
    pub bytes: usize,
}

/// The streams of a device. Operations of one happen in order; those of different ones only where [`CudaStream::wait_for`] says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The step.
    Compute,
    /// Batches on their way to the device.
    Copy,
    /// Collectives.
    Communicate,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Compute, Self::Copy, Self::Communicate];
}

/// One kernel, product or copy in a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The kernel's name; for products their sizes, rows × columns × inner.
    pub name: String,
    /// Where it ran.
    pub lane: Lane,
    /// When it began, from the beginning of the trace.
    pub start_ms: f64,
    /// How long it took.
    pub duration_ms: f64,
}

/// A GPU.
#[derive(Debug)]
pub struct Cuda {
    driver: Driver,
    heap: Mutex<Heap>,
    attention: Mode,
}

/// What carries out a device's orders.
#[derive(Debug)]
enum Driver {
    Hardware(Box<Hardware>),
    Recording(Recording),
    #[cfg(any(test, feature = "emulator"))]
    Emulated(emulated::Emulated),
}

/// Calls a method of whichever driver there is.
macro_rules! driver {
    ($self:expr, $driver:ident => $call:expr) => {
        match &$self.driver {
            Driver::Hardware($driver) => $call,
            Driver::Recording($driver) => $call,
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated($driver) => $call,
        }
    };
}

impl Cuda {
    /// The GPU of that number, with `compiler` for the kernels it will run. It stays open until the process ends. `attention` decides
    /// whether a step gives the same bits every time: then algorithms of products are cuBLASLt's first choice, otherwise the fastest.
    ///
    /// # Errors
    /// When there is no driver, no cuBLASLt or no such GPU, or the GPU is of another architecture than the compiler's.
    pub fn open(
        ordinal: usize,
        compiler: Compiler,
        libraries: &Libraries,
        attention: Mode,
    ) -> Result<&'static Self> {
        let timed = attention == Mode::Fast;
        let hardware = Hardware::open(ordinal, compiler, libraries, timed)?;
        let driver = Driver::Hardware(Box::new(hardware));
        Ok(Self::leak(driver, attention))
    }

    fn leak(driver: Driver, attention: Mode) -> &'static Self {
        Box::leak(Box::new(Self { driver, heap: Mutex::default(), attention }))
    }

    /// A device of `memory_bytes` that computes nothing and notes every order it is given.
    #[must_use]
    pub fn recording(memory_bytes: usize, attention: Mode) -> &'static Self {
        let driver = Driver::Recording(Recording::new(memory_bytes));
        Self::leak(driver, attention)
    }

    /// What a recording device was asked to do since the last call; `None` for any other device.
    #[must_use]
    pub fn take_record(&self) -> Option<Record> {
        match &self.driver {
            Driver::Recording(driver) => Some(driver.take()),
            Driver::Hardware(_) => None,
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => None,
        }
    }

    /// GPUs that this process sees.
    ///
    /// # Errors
    /// When there is no driver.
    pub fn count() -> Result<usize> {
        Hardware::count()
    }

    /// The device of tests: the GPU whose number `VLJEPA_TEST_GPU` holds or, without that variable, a device whose memory and
    /// kernels are the host's, at a snail's pace.
    ///
    /// # Panics
    /// When the GPU cannot be opened.
    #[cfg(any(test, feature = "emulator"))]
    #[must_use]
    pub fn for_tests(attention: Mode) -> &'static Self {
        if let Some(cuda) = emulated::test_gpu(attention) {
            return cuda;
        }
        let driver = Driver::Emulated(emulated::Emulated::default());
        Self::leak(driver, attention)
    }

    /// As [`Self::for_tests`], a device that no other test uses: what is traced on it is this
    /// test's alone.
    ///
    /// # Panics
    /// When the GPU cannot be opened.
    #[cfg(any(test, feature = "emulator"))]
    #[must_use]
    pub fn for_one_test(attention: Mode) -> &'static Self {
        emulated::open_test_gpu(attention).unwrap_or_else(|| Self::for_tests(attention))
    }

    /// How attention adds up the gradients of queries.
    pub(crate) fn attention_mode(&self) -> Mode {
        self.attention
    }

    /// Its model and where it sits, for people.
    ///
    /// # Errors
    /// When the device fails.
    pub fn description(&self) -> Result<String> {
        driver!(self, driver => driver.description())
    }

    /// Its address on the bus, which no other GPU of the machine has.
    ///
    /// # Errors
    /// When the device fails.
    pub fn bus_address(&self) -> Result<String> {
        driver!(self, driver => driver.bus_address())
    }

    /// Takes up the algorithms of products that `file` holds for this kind of GPU and this cuBLASLt, so that they are neither timed again nor
    /// chosen otherwise; with `write`, later choices are added to it.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or the device fails.
    pub fn keep_algorithms(&self, file: &std::path::Path, write: bool) -> Result<()> {
        match &self.driver {
            Driver::Hardware(driver) => driver.keep_algorithms(file, write),
            // Neither a recording nor the host has a choice of algorithms.
            Driver::Recording(_) => Ok(()),
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => Ok(()),
        }
    }

    /// From now on notes when each kernel, product and copy begins and ends.
    ///
    /// # Errors
    /// When the device fails.
    pub fn trace(&self) -> Result<()> {
        driver!(self, driver => driver.trace())
    }

    /// What was noted since [`Self::trace`], after all of it has happened. Nothing is noted any more.
    ///
    /// # Errors
    /// When the device failed in any of it.
    pub fn traced(&self) -> Result<Vec<Span>> {
        driver!(self, driver => driver.traced())
    }

    /// Bytes of memory that nobody uses, and of all.
    ///
    /// # Errors
    /// When the device fails.
    pub fn memory(&self) -> Result<[usize; 2]> {
        driver!(self, driver => driver.memory())
    }

    /// Bytes of device memory that this process holds, in use or free for the next tensor.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.heap().backed()
    }

    /// Bytes of device memory that tensors use.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.heap().used_bytes()
    }

    /// Gives memory behind the last tensor back to the driver, after everything issued so far.
    ///
    /// # Errors
    /// When the device failed in any of it.
    pub fn trim(&self) -> Result<()> {
        let mut heap = self.heap();
        let needed = heap.needed();
        if needed < heap.backed() {
            let end = driver!(self, driver => driver.shrink(needed))?;
            heap.shrink(end);
        }
        Ok(())
    }

    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of a block of `bytes`, whose contents are undefined.
    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut heap = self.heap();
        let mut taken = heap.take(bytes);
        if taken.is_none() {
            let missing = heap.missing(bytes);
            driver!(self, driver => driver.grow(missing))?;
            heap.grow(missing);
            taken = heap.take(bytes);
        }
        let offset = taken.expect("the heap has grown by what was missing");
        let address = driver!(self, driver => driver.base()) + offset as u64;
        match &self.driver {
            Driver::Hardware(_) => {}
            Driver::Recording(driver) => driver.allocated(Region { address, bytes }),
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(driver) => driver.spoil(Region { address, bytes }),
        }
        Ok(address)
    }

    fn free(&self, region: Region) {
        let offset = region.address - driver!(self, driver => driver.base());
        let offset = usize::try_from(offset).expect("device addresses fit the host's");
        self.heap().give_back(offset, region.bytes);
        if let Driver::Recording(driver) = &self.driver {
            driver.freed(region);
        }
    }
}

/// One of a device's streams.
#[derive(Debug, Clone, Copy)]
pub struct CudaStream {
    cuda: &'static Cuda,
    lane: Lane,
}

impl PartialEq for CudaStream {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.cuda, other.cuda) && self.lane == other.lane
    }
}

impl Eq for CudaStream {}

impl CudaStream {
    /// The stream of `cuda` for `lane`.
    #[must_use]
    pub fn new(cuda: &'static Cuda, lane: Lane) -> Self {
        Self { cuda, lane }
    }

    /// The device.
    #[must_use]
    pub fn cuda(self) -> &'static Cuda {
        self.cuda
    }

    /// Memory that kernels issued here use among themselves: it may be dropped, and so reused by what is issued later, at once.
    ///
    /// # Errors
    /// When the device has no more.
    pub fn scratch(self, dtype: DType, len: usize) -> Result<Tensor> {
        Tensor::new(Device::Cuda(self.cuda), dtype, &[len])
    }

    /// Issues kernels, which run one after the other.
    ///
    /// # Errors
    /// When one cannot be compiled, loaded or launched.
    pub fn run(self, launches: impl IntoIterator<Item = Launch<Region>>) -> Result<()> {
        for launch in launches {
            driver!(self.cuda, driver => driver.run(self.lane, &launch))?;
        }
        Ok(())
    }

    /// Issues a matrix product.
    ///
    /// # Errors
    /// When cuBLASLt refuses it.
    pub fn multiply(self, product: Product) -> Result<()> {
        let Product { rows, columns, inner, out, addend, bias, .. } = product;
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        if inner == 0 && bias.is_none() {
            // A sum over nothing, for which cuBLASLt has no layout.
            return match addend {
                None => self.fill_zero(out),
                Some(addend) if addend == out => Ok(()),
                Some(addend) => self.copy(addend, out),
            };
        }
        driver!(self.cuda, driver => driver.multiply(self.lane, product))
    }

    /// Issues a copy from host memory, which may be changed when this returns.
    ///
    /// # Errors
    /// When sizes differ or the device fails.
    pub fn upload(self, to: Region, bytes: &[u8]) -> Result<()> {
        check_sizes("upload", to.bytes, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        driver!(self.cuda, driver => driver.upload(self.lane, to, bytes))
    }

    /// Copies to host memory, after everything issued before.
    ///
    /// # Errors
    /// When sizes differ, or the device failed in anything issued before.
    pub fn download(self, from: Region, bytes: &mut [u8]) -> Result<()> {
        check_sizes("download", from.bytes, bytes.len())?;
        if bytes.is_empty() {
            return self.synchronize();
        }
        driver!(self.cuda, driver => driver.download(self.lane, from, bytes))
    }

    /// Issues a copy within the device.
    ///
    /// # Errors
    /// When sizes differ or the device fails.
    pub fn copy(self, from: Region, to: Region) -> Result<()> {
        check_sizes("copy", to.bytes, from.bytes)?;
        if from.bytes == 0 {
            return Ok(());
        }
        driver!(self.cuda, driver => driver.copy(self.lane, from, to))
    }

    /// Issues zeros.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fill_zero(self, region: Region) -> Result<()> {
        if region.bytes == 0 {
            return Ok(());
        }
        driver!(self.cuda, driver => driver.fill_zero(self.lane, region))
    }

    /// What is issued here from now on happens after what has been issued on `other` so far.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait_for(self, other: Self) -> Result<()> {
        driver!(self.cuda, driver => driver.wait(self.lane, other.lane))
    }

    /// Milliseconds that what `work` issues here takes, after everything issued before. Waits for it.
    ///
    /// # Errors
    /// Those of `work`, and when the device fails.
    pub fn time(self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        driver!(self.cuda, driver => driver.time(self.lane, work))
    }

    /// Waits on the host until everything issued here has happened.
    ///
    /// # Errors
    /// When the device failed in any of it.
    pub fn synchronize(self) -> Result<()> {
        driver!(self.cuda, driver => driver.synchronize(self.lane))
    }
}

fn check_sizes(operation: &'static str, needed: usize, found: usize) -> Result<()> {
    if needed == found {
        return Ok(());
    }
    let needed = format!("the device's range has {needed}");
    Err(crate::check::value(operation, "bytes", found.to_string(), needed))
}

/// Memory of a device.
#[derive(Debug)]
pub struct CudaBuffer {
    cuda: &'static Cuda,
    dtype: DType,
    region: Region,
}

impl CudaBuffer {
    /// Memory for `len` elements, whose values are undefined.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] when the device has no more.
    pub fn new(cuda: &'static Cuda, dtype: DType, len: usize) -> Result<Self> {
        let bytes = len.max(1) * dtype.bytes();
        Ok(Self { cuda, dtype, region: Region { address: cuda.allocate(bytes)?, bytes } })
    }

    /// Element type.
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

/// A range of device memory to read.
#[derive(Debug, Clone, Copy)]
pub struct CudaSlice<'a> {
    cuda: &'static Cuda,
    dtype: DType,
    region: Region,
    memory: PhantomData<&'a CudaBuffer>,
}

/// A range of device memory to write.
#[derive(Debug)]
pub struct CudaSliceMut<'a>(CudaSlice<'a>);

impl CudaSlice<'_> {
    /// Element type.
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

    /// Elements from `start` to `end` of this range.
    ///
    /// # Panics
    /// When that is outside.
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

/// A failed call.
fn failed(call: &'static str, message: String, hint: &'static str) -> KernelError {
    KernelError::Cuda { call, message, hint }
}
