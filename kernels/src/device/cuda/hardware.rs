//! The driver for a real GPU. It uses cudarc's bindings of libcuda, which is loaded at run time,
//! and cuBLASLt for products.
//!
//! Handles live as long as the process. Every call first makes the primary context of the device
//! current on the calling thread.

#![expect(unsafe_code, reason = "calls into C libraries that are loaded at run time")]

mod event;
mod page_locked;
mod products;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys as cu_sys;

use super::address_space::AddressSpace;
use super::algorithms::Algorithms;
use super::cublaslt::{Blas, WORKSPACE_BYTES, ZERO_BYTES};
use super::heap::PAGE_BYTES;
use super::{Lane, Region, Span, failed};
use crate::compile::{Compilation, Compiler, Kernel, Launch, pack};
use crate::library::Libraries;
use crate::{KernelError, Result};
pub(super) use event::Event;
pub(super) use page_locked::Locked;
use page_locked::Staging;

/// Dynamic shared memory, in bytes, that a kernel may use without
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const DEFAULT_SHARED_BYTES: usize = 48 << 10;
const INSTALL_HINT: &str = "install NVIDIA's driver, or run with `device: host`";
/// Hint of calls that report the errors of asynchronous work.
const ASYNC_HINT: &str =
    "an earlier kernel or copy may have failed: CUDA_LAUNCH_BLOCKING=1 shows which";

#[derive(Debug)]
pub(super) struct Hardware {
    ordinal: usize,
    device: cu_sys::CUdevice,
    context: cu_sys::CUcontext,
    streams: [Queue; 3],
    memory: Mutex<AddressSpace>,
    base: u64,
    staging: Mutex<Staging>,
    blas: Blas,
    /// Address of [`ZERO_BYTES`] zeros.
    zeros: u64,
    compiler: Compiler,
    functions: Mutex<HashMap<Kernel, Function>>,
    algorithms: Mutex<Algorithms>,
    /// Whether several algorithms are timed to find the fastest one.
    timed: bool,
    trace: Mutex<Option<Trace>>,
}

/// Work issued since a trace began.
#[derive(Debug)]
struct Trace {
    base: Event,
    spans: Vec<(String, Lane, [Event; 2])>,
}

/// A stream, the event on which other streams wait for it, and its cuBLASLt workspace.
#[derive(Debug)]
struct Queue {
    stream: cu_sys::CUstream,
    event: Event,
    workspace: cu_sys::CUdeviceptr,
}

/// A loaded kernel: its handle, threads per block, and bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy)]
struct Function {
    handle: cu_sys::CUfunction,
    units: u32,
    shared_bytes: u32,
}

// SAFETY: contexts, streams, events, functions and the cuBLASLt handle may be used from any thread.
// The caller orders the calls on one stream, and all mutable state is in a mutex.
unsafe impl Send for Hardware {}
// SAFETY: as above.
unsafe impl Sync for Hardware {}

fn driver(call: &'static str, hint: &'static str) -> impl Fn(DriverError) -> KernelError {
    move |error| {
        let name = error.error_name().map(|n| n.to_string_lossy().into_owned());
        let text = error.error_string().map(|s| s.to_string_lossy().into_owned());
        let message = match (name, text) {
            (Ok(name), Ok(text)) => format!("{name} ({text})"),
            _ => format!("error {:?}", error.0),
        };
        failed(call, message, hint)
    }
}

impl Hardware {
    /// Newest version of CUDA that the driver supports.
    pub(super) fn driver_version() -> Result<String> {
        Self::find_driver()?;
        let mut version = 0;
        // SAFETY: the pointer is valid for the call, which needs no initialised driver.
        unsafe { cu_sys::cuDriverGetVersion(&raw mut version) }
            .result()
            .map_err(driver("cuDriverGetVersion", INSTALL_HINT))?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// Fails if the driver's library is missing: cudarc would panic.
    fn find_driver() -> Result<()> {
        // SAFETY: the call only tries to load a library.
        if unsafe { cu_sys::is_culib_present() } {
            return Ok(());
        }
        Err(failed("opening the GPU", "no libcuda.so.1".to_owned(), INSTALL_HINT))
    }

    pub(super) fn count() -> Result<usize> {
        Self::find_driver()?;
        cu::init().map_err(driver("cuInit", INSTALL_HINT))?;
        let count = cu::device::get_count().map_err(driver("cuDeviceGetCount", INSTALL_HINT))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(super) fn open(
        ordinal: usize,
        compiler: Compiler,
        libraries: &Libraries,
        timed: bool,
    ) -> Result<Self> {
        let count = Self::count()?;
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let Some(number) = number else {
            let message =
                format!("GPU {ordinal} was requested, but the number of visible GPUs is {count}");
            let hint = "lower `cluster.ranks_per_node`, or check CUDA_VISIBLE_DEVICES";
            return Err(failed("opening the GPU", message, hint));
        };
        let device = cu::device::get(number).map_err(driver("cuDeviceGet", INSTALL_HINT))?;
        check_architecture(device, compiler.architecture())?;
        // SAFETY: `device` is one of this machine's; the context is never released.
        let context = unsafe { cu::primary_ctx::retain(device) }
            .map_err(driver("cuDevicePrimaryCtxRetain", "another process may hold the GPU"))?;
        // SAFETY: the context was just retained.
        unsafe { cu::ctx::set_current(context) }.map_err(driver("cuCtxSetCurrent", ASYNC_HINT))?;
        let (_, bytes) = cu::mem_get_info().map_err(driver("cuMemGetInfo", ASYNC_HINT))?;
        let memory = AddressSpace::reserve(device, bytes.next_multiple_of(PAGE_BYTES))
            .map_err(driver("cuMemAddressReserve", ASYNC_HINT))?;
        let base = memory.base();
        let [compute, copy, communicate] = Lane::ALL.map(|_| Queue::new());
        let streams = [compute?, copy?, communicate?];
        let blas = Blas::open(libraries)?;
        // SAFETY: the memory is written below and never freed.
        let zeros = unsafe { cu::malloc_sync(ZERO_BYTES) }
            .map_err(driver("cuMemAlloc", "see what else runs on the GPU with nvidia-smi"))?;
        // SAFETY: that many bytes were just allocated.
        unsafe { cu::memset_d8_sync(zeros, 0, ZERO_BYTES) }
            .map_err(driver("cuMemsetD8", ASYNC_HINT))?;
        let (functions, algorithms) = (Mutex::default(), Mutex::new(Algorithms::new(timed)));
        let (staging, trace) = (Mutex::default(), Mutex::default());
        Ok(Self {
            ordinal,
            device,
            context,
            streams,
            memory: Mutex::new(memory),
            base,
            staging,
            blas,
            zeros,
            compiler,
            functions,
            algorithms,
            timed,
            trace,
        })
    }

    fn bind(&self) -> Result<()> {
        // SAFETY: the context is never released.
        unsafe { cu::ctx::set_current(self.context) }.map_err(driver("cuCtxSetCurrent", ASYNC_HINT))
    }

    fn queue(&self, lane: Lane) -> &Queue {
        &self.streams[lane as usize]
    }

    pub(super) fn description(&self) -> Result<String> {
        let name =
            cu::device::get_name(self.device).map_err(driver("cuDeviceGetName", ASYNC_HINT))?;
        Ok(format!("{name}, GPU {} at {}", self.ordinal, self.bus_address()?))
    }

    pub(super) fn bus_address(&self) -> Result<String> {
        let mut address = [0u8; 32];
        let len = i32::try_from(address.len()).unwrap_or(0);
        // SAFETY: the driver writes at most `len` bytes, including the terminating NUL.
        unsafe { cu_sys::cuDeviceGetPCIBusId(address.as_mut_ptr().cast(), len, self.device) }
            .result()
            .map_err(driver("cuDeviceGetPCIBusId", ASYNC_HINT))?;
        let end = address.iter().position(|byte| *byte == 0).unwrap_or(address.len());
        Ok(String::from_utf8_lossy(&address[..end]).into_owned())
    }

    pub(super) fn memory(&self) -> Result<[usize; 2]> {
        self.bind()?;
        let (free, all) = cu::mem_get_info().map_err(driver("cuMemGetInfo", ASYNC_HINT))?;
        Ok([free, all])
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Backs the heap with `bytes` more bytes of memory.
    pub(super) fn grow(&self, bytes: usize) -> Result<()> {
        self.bind()?;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.grow(bytes).map_err(|error| {
            let free = cu::mem_get_info().map_or(0, |(free, _)| free);
            let hint = "lower `micro_batch`, choose `recompute: block`, or check with nvidia-smi \
                        what else runs on the GPU";
            let KernelError::Cuda { call, message, hint } = driver("cuMemCreate", hint)(error)
            else {
                unreachable!("driver errors are CUDA errors")
            };
            let message = format!(
                "GPU {} cannot provide {bytes} more bytes ({free} bytes are free): {message}",
                self.ordinal
            );
            KernelError::Cuda { call, message, hint }
        })
    }

    /// Returns memory beyond the first `end` bytes of the heap to the driver, after everything
    /// issued so far. Returns how many bytes remain backed.
    pub(super) fn shrink(&self, end: usize) -> Result<usize> {
        for lane in Lane::ALL {
            self.synchronize(lane)?;
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.shrink(end).map_err(driver("cuMemUnmap", ASYNC_HINT))
    }

    pub(super) fn upload(&self, lane: Lane, to: Region, bytes: &[u8]) -> Result<()> {
        let upload = |stream| {
            let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
            staging.upload(to.address, bytes, stream)
        };
        self.issue(lane, || "upload".to_owned(), upload)
    }

    pub(super) fn download(&self, lane: Lane, from: Region, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the range is allocated, and the bytes are borrowed until the stream has been
        // synchronised.
        unsafe { cu::memcpy_dtoh_async(bytes, from.address, self.queue(lane).stream) }
            .map_err(driver("cuMemcpyDtoHAsync", ASYNC_HINT))?;
        self.synchronize(lane)
    }

    /// Page-locked memory of the host, filled with zeros.
    pub(super) fn lock(&self, bytes: usize) -> Result<Locked> {
        self.bind()?;
        Locked::new(self.context, bytes)
    }

    /// Issues a copy of `from`, which has as many bytes as `to`.
    pub(super) fn download_later(&self, lane: Lane, from: Region, to: &mut Locked) -> Result<()> {
        self.issue(lane, || "snapshot".to_owned(), |stream| to.fill(from, stream))
    }

    /// Issues a copy to `to`, which has as many bytes as `from`.
    pub(super) fn upload_later(&self, lane: Lane, to: Region, from: &mut Locked) -> Result<()> {
        self.issue(lane, || "upload".to_owned(), |stream| from.send(to, stream))
    }

    /// Makes `lane` wait for the last copy of `memory`.
    pub(super) fn wait_for_copy(&self, lane: Lane, memory: &Locked) -> Result<()> {
        self.bind()?;
        memory.copied().holds_up(self.queue(lane).stream)
    }

    /// Contents of page-locked memory, after its last copy is complete.
    pub(super) fn locked<'a>(&self, memory: &'a Locked) -> Result<&'a [u8]> {
        self.bind()?;
        memory.bytes()
    }

    /// Mutable contents of page-locked memory, after its last copy is complete.
    pub(super) fn locked_mut<'a>(&self, memory: &'a mut Locked) -> Result<&'a mut [u8]> {
        self.bind()?;
        memory.bytes_mut()
    }

    pub(super) fn copy(&self, lane: Lane, from: Region, to: Region) -> Result<()> {
        // SAFETY: both ranges are allocated and of one size.
        let copy = |stream| unsafe {
            cu::memcpy_dtod_async(to.address, from.address, from.bytes, stream)
                .map_err(driver("cuMemcpyDtoDAsync", ASYNC_HINT))
        };
        self.issue(lane, || "copy".to_owned(), copy)
    }

    pub(super) fn fill_zero(&self, lane: Lane, region: Region) -> Result<()> {
        // SAFETY: the range is allocated.
        let fill = |stream| unsafe {
            cu::memset_d8_async(region.address, 0, region.bytes, stream)
                .map_err(driver("cuMemsetD8Async", ASYNC_HINT))
        };
        self.issue(lane, || "zeros".to_owned(), fill)
    }

    pub(super) fn wait(&self, lane: Lane, other: Lane) -> Result<()> {
        self.bind()?;
        let other = self.queue(other);
        other.event.record(other.stream)?;
        other.event.holds_up(self.queue(lane).stream)
    }

    /// Handle of the stream. Makes the context current on this thread.
    pub(super) fn handle(&self, lane: Lane) -> Result<*mut c_void> {
        self.bind()?;
        Ok(self.queue(lane).stream.cast())
    }

    /// Records an event after everything issued to `lane` so far.
    pub(super) fn mark(&self, lane: Lane) -> Result<Event> {
        self.bind()?;
        let event = Event::plain()?;
        event.record(self.queue(lane).stream)?;
        Ok(event)
    }

    /// Whether the work before an event is complete. Does not wait.
    pub(super) fn happened(&self, event: &Event) -> Result<bool> {
        self.bind()?;
        event.happened()
    }

    /// Measures the time in milliseconds that the work issued by `work` takes on `lane`.
    pub(super) fn time(&self, lane: Lane, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.bind()?;
        let (stream, [begin, end]) = (self.queue(lane).stream, [Event::timed()?, Event::timed()?]);
        begin.record(stream)?;
        work()?;
        end.record(stream)?;
        end.wait()?;
        end.since(&begin)
    }

    /// Starts recording when each kernel, product and copy starts and ends.
    pub(super) fn trace(&self) -> Result<()> {
        self.bind()?;
        let base = Event::timed()?;
        base.record(self.queue(Lane::Compute).stream)?;
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        *trace = Some(Trace { base, spans: Vec::new() });
        Ok(())
    }

    /// Ends the trace and returns its spans, after all recorded work is complete.
    pub(super) fn traced(&self) -> Result<Vec<Span>> {
        for lane in Lane::ALL {
            self.synchronize(lane)?;
        }
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Trace { base, spans }) = trace.take() else { return Ok(Vec::new()) };
        let span = |(name, lane, [begin, end]): (String, Lane, [Event; 2])| {
            let (start_ms, duration_ms) = (begin.since(&base)?, end.since(&begin)?);
            Ok(Span { name, lane, start_ms, duration_ms })
        };
        spans.into_iter().map(span).collect()
    }

    /// Issues work to `lane`, and records it if a trace is active.
    fn issue(
        &self,
        lane: Lane,
        name: impl FnOnce() -> String,
        issue: impl FnOnce(cu_sys::CUstream) -> Result<()>,
    ) -> Result<()> {
        self.bind()?;
        let stream = self.queue(lane).stream;
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(trace) = trace.as_mut() else { return issue(stream) };
        let [begin, end] = [Event::timed()?, Event::timed()?];
        begin.record(stream)?;
        issue(stream)?;
        end.record(stream)?;
        trace.spans.push((name(), lane, [begin, end]));
        Ok(())
    }

    pub(super) fn synchronize(&self, lane: Lane) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is never destroyed.
        unsafe { cu::stream::synchronize(self.queue(lane).stream) }
            .map_err(driver("cuStreamSynchronize", ASYNC_HINT))
    }

    pub(super) fn run(&self, lane: Lane, launch: &Launch<Region>) -> Result<()> {
        self.bind()?;
        let function = self.function(launch.kernel)?;
        // Buffers are passed as pointers, followed by one structure with the scalars, by value.
        let mut addresses: Vec<u64> = launch.buffers.iter().map(|b| b.address).collect();
        let mut info = pack(launch.buffers.len(), &launch.scalars);
        let mut arguments: Vec<*mut c_void> =
            addresses.iter_mut().map(|address| std::ptr::from_mut(address).cast()).collect();
        if !launch.scalars.is_empty() {
            arguments.push(info.as_mut_ptr().cast());
        }
        let [x, y, z] = launch.cubes;
        // SAFETY: the arguments match the emitted source (a test compares the layouts), and the
        // call copies them.
        let start = |stream| unsafe {
            cu::launch_kernel(
                function.handle,
                (x, y, z),
                (function.units, 1, 1),
                function.shared_bytes,
                stream,
                &mut arguments,
            )
            .map_err(driver("cuLaunchKernel", ASYNC_HINT))
        };
        self.issue(lane, || launch.kernel.name(), start)
    }

    /// Returns a kernel, which is compiled and loaded on its first launch.
    fn function(&self, kernel: Kernel) -> Result<Function> {
        const UPDATE_HINT: &str = "update NVIDIA's driver (CUDA 12.4 or newer)";
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&kernel) {
            return Ok(*function);
        }
        let hint = "`vljepa-worker compile RECIPE` compiles the kernels of a recipe ahead of a run";
        let Compilation { cubin, not_stored, .. } = self
            .compiler
            .compile(kernel)
            .map_err(|error| failed("compiling a kernel", error.to_string(), hint))?;
        if let Some(error) = not_stored {
            tracing::warn!("kernel {} is compiled in every run: {error}", cubin.name);
        }
        if cubin.resources.spills > 0 {
            let (name, version) = (&cubin.name, self.compiler.nvrtc().version());
            let bytes = cubin.resources.spills;
            tracing::warn!("kernel {name} spills {bytes} bytes and is slower with NVRTC {version}");
        }
        let name = CString::new(cubin.name.clone())
            .map_err(|error| failed("loading a kernel", error.to_string(), hint))?;
        // SAFETY: the image is a complete cubin, checked by its hash; module and function are never
        // unloaded.
        let handle = unsafe {
            let module = cu::module::load_data(cubin.image.as_ptr().cast())
                .map_err(driver("cuModuleLoadData", UPDATE_HINT))?;
            cu::module::get_function(module, name)
                .map_err(driver("cuModuleGetFunction", UPDATE_HINT))?
        };
        let shared = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX);
        if cubin.shared_bytes > DEFAULT_SHARED_BYTES {
            let attribute =
                cu_sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was just loaded.
            unsafe {
                cu::function::set_function_attribute(handle, attribute, shared(cubin.shared_bytes))
            }
            .map_err(driver("cuFuncSetAttribute", "the GPU has less shared memory than H100"))?;
        }
        let shared_bytes = u32::try_from(cubin.shared_bytes).unwrap_or(u32::MAX);
        let function = Function { handle, units: cubin.units, shared_bytes };
        functions.insert(kernel, function);
        Ok(function)
    }
}

impl Queue {
    fn new() -> Result<Self> {
        let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking)
            .map_err(driver("cuStreamCreate", ASYNC_HINT))?;
        let event = Event::plain()?;
        // SAFETY: cuBLASLt writes its workspace before it reads it.
        let workspace = unsafe { cu::malloc_sync(WORKSPACE_BYTES) }
            .map_err(driver("cuMemAlloc", "see what else runs on the GPU with nvidia-smi"))?;
        Ok(Self { stream, event, workspace })
    }
}

fn check_architecture(device: cu_sys::CUdevice, architecture: &str) -> Result<()> {
    use cu_sys::CUdevice_attribute as Attribute;
    let get = |attribute| {
        // SAFETY: `device` is one of this machine's.
        unsafe { cu::device::get_attribute(device, attribute) }
            .map_err(driver("cuDeviceGetAttribute", INSTALL_HINT))
    };
    let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if architecture.trim_start_matches("sm_").trim_end_matches('a') == format!("{major}{minor}") {
        return Ok(());
    }
    let name = cu::device::get_name(device).unwrap_or_else(|_| "the GPU".to_owned());
    let message = format!("{name} is sm_{major}{minor}, kernels are compiled for {architecture}");
    Err(failed("opening the GPU", message, "the kernels need an H100 or H200 (sm_90a)"))
}
