//! One NVIDIA GPU: its memory, three streams, kernels that are loaded once, and matrix products by
//! cuBLASLt.
//!
//! A [`Cuda`] lives as long as the process: it is opened once and used as `&'static`. A driver
//! carries out its orders. One driver uses the hardware, one only records the orders, and in tests
//! one runs the same launches on the host.

mod address_space;
mod algorithms;
mod alignment;
mod blas;
mod buffer;
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

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::attention::launch::Mode;
use crate::compile::{Compiler, Element, Launch};
use crate::library::Libraries;
use crate::{DType, Device, KernelError, Result, Tensor};

pub use blas::Product;
pub use buffer::{CudaBuffer, CudaSlice, CudaSliceMut};
pub(crate) use call::Call;
use hardware::Hardware;
use heap::Heap;
pub use mark::Mark;
pub use page_locked::PageLocked;
use recording::Recording;
pub use recording::{Order, Record, Total};

pub use super::gpu_types::{Lane, Region, Span};

/// A GPU that is open for the rest of the process.
#[derive(Debug)]
pub struct Cuda {
    driver: Driver,
    heap: Mutex<Heap>,
    attention: Mode,
}

/// The backend that carries out the orders of a device.
#[derive(Debug)]
enum Driver {
    Hardware(Box<Hardware>),
    Recording(Recording),
    #[cfg(any(test, feature = "emulator"))]
    Emulated(emulated::Emulated),
}

/// Calls a method of the driver, whichever variant it is.
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
    /// Opens the GPU number `ordinal`; `compiler` compiles the kernels that it will run. The GPU
    /// stays open until the process ends. `attention` decides whether a step gives the same bits
    /// every time: the deterministic mode takes cuBLASLt's first algorithm for each product, the
    /// other modes the fastest one.
    ///
    /// # Errors
    /// If there is no driver, no cuBLASLt or no such GPU, or if the GPU has another architecture
    /// than the compiler's.
    pub fn open(
        ordinal: usize,
        compiler: Compiler,
        libraries: &Libraries,
        attention: Mode,
    ) -> Result<&'static Self> {
        let timed = attention != Mode::Deterministic;
        let hardware = Hardware::open(ordinal, compiler, libraries, timed)?;
        let driver = Driver::Hardware(Box::new(hardware));
        Ok(Self::leak(driver, attention))
    }

    fn leak(driver: Driver, attention: Mode) -> &'static Self {
        Box::leak(Box::new(Self { driver, heap: Mutex::default(), attention }))
    }

    /// A device with `memory_bytes` of memory that computes nothing and records every order.
    #[must_use]
    pub fn recording(memory_bytes: usize, attention: Mode) -> &'static Self {
        let driver = Driver::Recording(Recording::new(memory_bytes));
        Self::leak(driver, attention)
    }

    /// Takes the orders that a recording device has received since the last call. `None` for any
    /// other device.
    #[must_use]
    pub fn take_record(&self) -> Option<Record> {
        match &self.driver {
            Driver::Recording(driver) => Some(driver.take()),
            Driver::Hardware(_) => None,
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => None,
        }
    }

    /// Number of GPUs that this process sees.
    ///
    /// # Errors
    /// If there is no driver.
    pub fn count() -> Result<usize> {
        Hardware::count()
    }

    /// Newest version of CUDA that the driver of this machine supports, such as `13.0`.
    ///
    /// # Errors
    /// If there is no driver.
    pub fn driver_version() -> Result<String> {
        Hardware::driver_version()
    }

    /// Loads cuBLASLt, and returns its version, such as `12.9.1`, and its file. Needs no GPU.
    ///
    /// # Errors
    /// If the library is missing or unusable. The message lists the files that were tried and says
    /// what to install.
    pub fn cublaslt(libraries: &Libraries) -> Result<(String, std::path::PathBuf)> {
        cublaslt::version_and_path(libraries)
    }

    /// The device of tests. If `VLJEPA_TEST_GPU` is set, this is the GPU with that number.
    /// Otherwise it is an emulated device, which uses the memory and the processors of the host and
    /// is slow.
    ///
    /// # Panics
    /// If the GPU cannot be opened.
    #[cfg(any(test, feature = "emulator"))]
    #[must_use]
    pub fn for_tests(attention: Mode) -> &'static Self {
        if let Some(cuda) = emulated::test_gpu(attention) {
            return cuda;
        }
        let driver = Driver::Emulated(emulated::Emulated::default());
        Self::leak(driver, attention)
    }

    /// A device like that of [`Self::for_tests`] that no other test uses, so that a trace contains
    /// only the work of this test.
    ///
    /// # Panics
    /// If the GPU cannot be opened.
    #[cfg(any(test, feature = "emulator"))]
    #[must_use]
    pub fn for_one_test(attention: Mode) -> &'static Self {
        emulated::open_test_gpu(attention).unwrap_or_else(|| Self::for_tests(attention))
    }

    /// Which kernels compute attention.
    pub(crate) fn attention_mode(&self) -> Mode {
        self.attention
    }

    /// Model, number and bus address of the GPU, for people.
    ///
    /// # Errors
    /// If the device fails.
    pub fn description(&self) -> Result<String> {
        driver!(self, driver => driver.description())
    }

    /// PCI bus address of the GPU, which is unique within the machine.
    ///
    /// # Errors
    /// If the device fails.
    pub fn bus_address(&self) -> Result<String> {
        driver!(self, driver => driver.bus_address())
    }

    /// Loads the product algorithms that `file` holds for this GPU model and this cuBLASLt version,
    /// so that the run uses them and times nothing again. If `write` is true, later choices are
    /// appended to the file.
    ///
    /// # Errors
    /// If the file exists but cannot be read, or if the device fails.
    pub fn keep_algorithms(&self, file: &std::path::Path, write: bool) -> Result<()> {
        match &self.driver {
            Driver::Hardware(driver) => driver.keep_algorithms(file, write),
            // Recording and emulated devices have no choice of algorithms.
            Driver::Recording(_) => Ok(()),
            #[cfg(any(test, feature = "emulator"))]
            Driver::Emulated(_) => Ok(()),
        }
    }

    /// Starts a trace: records when each kernel, product and copy starts and ends.
    ///
    /// # Errors
    /// If the device fails.
    pub fn trace(&self) -> Result<()> {
        driver!(self, driver => driver.trace())
    }

    /// Ends the trace and returns the work recorded since [`Self::trace`]. Waits until all of it is
    /// complete.
    ///
    /// # Errors
    /// If the device failed in that work.
    pub fn traced(&self) -> Result<Vec<Span>> {
        driver!(self, driver => driver.traced())
    }

    /// Free bytes and total bytes of device memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn memory(&self) -> Result<[usize; 2]> {
        driver!(self, driver => driver.memory())
    }

    /// Bytes of device memory that this process holds, in use or free for the next tensor.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.heap().backed()
    }

    /// Bytes of device memory in use by tensors.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.heap().used_bytes()
    }

    /// Returns memory beyond the last tensor to the driver. Waits for everything issued so far.
    ///
    /// # Errors
    /// If the device failed in something issued before.
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

    /// Address of a block of `bytes` bytes whose contents are undefined.
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

/// One stream of a device.
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

    /// The device that the stream belongs to.
    #[must_use]
    pub fn cuda(self) -> &'static Cuda {
        self.cuda
    }

    /// Temporary memory for kernels issued to this stream. The tensor may be dropped at once: work
    /// issued later to the same stream can safely reuse the memory.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn scratch(self, dtype: DType, len: usize) -> Result<Tensor> {
        Tensor::new(Device::Cuda(self.cuda), dtype, &[len])
    }

    /// Issues kernels, which run one after the other.
    ///
    /// # Errors
    /// If a kernel cannot be compiled, loaded or launched, or cannot access vectors of a buffer.
    pub fn run(self, launches: impl IntoIterator<Item = Launch<Region>>) -> Result<()> {
        for launch in launches {
            alignment::check(&launch)?;
            driver!(self.cuda, driver => driver.run(self.lane, &launch))?;
        }
        Ok(())
    }

    /// Issues a matrix product.
    ///
    /// # Errors
    /// If cuBLASLt refuses the product, or an f32 output has a bias.
    pub fn multiply(self, product: Product) -> Result<()> {
        let Product { rows, columns, inner, out, addend, bias, .. } = product;
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        if bias.is_some() && product.out_element == Element::F32 {
            // cuBLASLt would read the bias in the type of the output.
            let message = "a bf16 bias of an f32 output".to_owned();
            return Err(failed("a product", message, "add the bias separately"));
        }
        if inner == 0 && bias.is_none() {
            // An empty sum, for which cuBLASLt has no layout.
            return match addend {
                None => self.fill_zero(out),
                Some(addend) if addend == out => Ok(()),
                Some(addend) => self.copy(addend, out),
            };
        }
        driver!(self.cuda, driver => driver.multiply(self.lane, product))
    }

    /// Issues a copy from host memory. The caller may change `bytes` as soon as this function
    /// returns.
    ///
    /// # Errors
    /// If the sizes differ or the device fails.
    pub fn upload(self, to: Region, bytes: &[u8]) -> Result<()> {
        check_sizes("upload", to.bytes, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        driver!(self.cuda, driver => driver.upload(self.lane, to, bytes))
    }

    /// Copies to host memory, after everything issued to this stream before. Waits for the copy.
    ///
    /// # Errors
    /// If the sizes differ, or if the device failed in something issued before.
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
    /// If the sizes differ or the device fails.
    pub fn copy(self, from: Region, to: Region) -> Result<()> {
        check_sizes("copy", to.bytes, from.bytes)?;
        if from.bytes == 0 {
            return Ok(());
        }
        driver!(self.cuda, driver => driver.copy(self.lane, from, to))
    }

    /// Issues a fill of `region` with zeros.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fill_zero(self, region: Region) -> Result<()> {
        if region.bytes == 0 {
            return Ok(());
        }
        driver!(self.cuda, driver => driver.fill_zero(self.lane, region))
    }

    /// Makes this stream wait for everything issued to `other` so far before it executes work
    /// issued after this call.
    ///
    /// # Errors
    /// If the device fails.
    pub fn wait_for(self, other: Self) -> Result<()> {
        driver!(self.cuda, driver => driver.wait(self.lane, other.lane))
    }

    /// Measures the time in milliseconds that the work issued by `work` takes on this stream, and
    /// waits for it.
    ///
    /// # Errors
    /// If `work` fails or the device fails.
    pub fn time(self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        driver!(self.cuda, driver => driver.time(self.lane, work))
    }

    /// Blocks the host until everything issued to this stream is complete.
    ///
    /// # Errors
    /// If the device failed in something issued before.
    pub fn synchronize(self) -> Result<()> {
        driver!(self.cuda, driver => driver.synchronize(self.lane))
    }
}

fn check_sizes(operation: &'static str, needed: usize, found: usize) -> Result<()> {
    if needed == found {
        return Ok(());
    }
    let needed = format!("the range on the device has {needed}");
    Err(crate::check::value(operation, "bytes", found.to_string(), needed))
}

fn failed(call: &'static str, message: String, hint: &'static str) -> KernelError {
    KernelError::Cuda { call, message, hint }
}
