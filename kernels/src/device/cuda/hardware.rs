//! The driver of a real GPU, by cudarc's bindings of libcuda, loaded at run time; products by
//! cuBLASLt.
//!
//! Handles live as long as the process. Every call first makes the device's primary context current on its thread.

#![expect(unsafe_code, reason = "calls into C libraries that are loaded at run time")]

mod event;
mod page_locked;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result::{self as cu, DriverError};
use cudarc::driver::sys as cu_sys;

use super::address_space::AddressSpace;
use super::algorithms::{Algorithms, Shape, Words};
use super::cublaslt::{Blas, Matmul, WORKSPACE_BYTES};
use super::heap::PAGE_BYTES;
use super::{Lane, Product, Region, Span, failed};
use crate::compile::{Compiler, Kernel, Launch, pack};
use crate::library::Libraries;
use crate::{KernelError, Result};
pub(super) use event::Event;
pub(super) use page_locked::Locked;
use page_locked::Staging;

/// Shared memory of a cube that needs no permission.
const SHARED_WITHOUT_ASKING: usize = 48 << 10;
const INSTALL: &str = "install NVIDIA's driver, or run with `device: host`";
const LATER: &str =
    "a kernel or copy issued before may have failed: CUDA_LAUNCH_BLOCKING=1 shows which";

/// An open GPU.
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
    compiler: Compiler,
    functions: Mutex<HashMap<Kernel, Function>>,
    algorithms: Mutex<Algorithms>,
    /// Whether the fastest of several algorithms is found by timing them.
    timed: bool,
    trace: Mutex<Option<Recording>>,
}

/// What was issued since a trace began.
#[derive(Debug)]
struct Recording {
    base: Event,
    spans: Vec<(String, Lane, [Event; 2])>,
}

/// A stream, the event that others wait for, and cuBLASLt's workspace on it.
#[derive(Debug)]
struct Queue {
    stream: cu_sys::CUstream,
    event: Event,
    workspace: cu_sys::CUdeviceptr,
}

/// A loaded kernel.
#[derive(Debug, Clone, Copy)]
struct Function {
    handle: cu_sys::CUfunction,
    units: u32,
    shared_bytes: u32,
}

// SAFETY: contexts, streams, events, functions and cuBLASLt's handle may be used from any thread, one call at a time per stream being
// the order that the caller wants; everything that changes lies in a mutex.
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
    pub(super) fn count() -> Result<usize> {
        // SAFETY: the call only tries to load a library.
        if !unsafe { cu_sys::is_culib_present() } {
            return Err(failed("opening the GPU", "no libcuda.so.1".to_owned(), INSTALL));
        }
        cu::init().map_err(driver("cuInit", INSTALL))?;
        let count = cu::device::get_count().map_err(driver("cuDeviceGetCount", INSTALL))?;
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
            let message = format!("GPU {ordinal} was asked for, {count} are visible");
            let hint = "lower `cluster.ranks_per_node`, or look at CUDA_VISIBLE_DEVICES";
            return Err(failed("opening the GPU", message, hint));
        };
        let device = cu::device::get(number).map_err(driver("cuDeviceGet", INSTALL))?;
        check_architecture(device, compiler.architecture())?;
        // SAFETY: `device` is one of this machine's; the context is never released.
        let context = unsafe { cu::primary_ctx::retain(device) }
            .map_err(driver("cuDevicePrimaryCtxRetain", "another process may hold the GPU"))?;
        // SAFETY: the context was just retained.
        unsafe { cu::ctx::set_current(context) }.map_err(driver("cuCtxSetCurrent", LATER))?;
        let (_, bytes) = cu::mem_get_info().map_err(driver("cuMemGetInfo", LATER))?;
        let memory = AddressSpace::reserve(device, bytes.next_multiple_of(PAGE_BYTES))
            .map_err(driver("cuMemAddressReserve", LATER))?;
        let base = memory.base();
        let [compute, copy, communicate] = Lane::ALL.map(|_| Queue::new());
        let streams = [compute?, copy?, communicate?];
        let blas = Blas::open(libraries)?;
        let (functions, algorithms) = (Mutex::default(), Mutex::default());
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
            compiler,
            functions,
            algorithms,
            timed,
            trace,
        })
    }

    fn bind(&self) -> Result<()> {
        // SAFETY: the context is never released.
        unsafe { cu::ctx::set_current(self.context) }.map_err(driver("cuCtxSetCurrent", LATER))
    }

    fn queue(&self, lane: Lane) -> &Queue {
        &self.streams[lane as usize]
    }

    pub(super) fn description(&self) -> Result<String> {
        let name = cu::device::get_name(self.device).map_err(driver("cuDeviceGetName", LATER))?;
        Ok(format!("{name}, GPU {} at {}", self.ordinal, self.bus_address()?))
    }

    pub(super) fn bus_address(&self) -> Result<String> {
        let mut address = [0u8; 32];
        let len = i32::try_from(address.len()).unwrap_or(0);
        // SAFETY: the buffer is as long as it is said to be, and the driver ends what it writes with a zero.
        unsafe { cu_sys::cuDeviceGetPCIBusId(address.as_mut_ptr().cast(), len, self.device) }
            .result()
            .map_err(driver("cuDeviceGetPCIBusId", LATER))?;
        let end = address.iter().position(|byte| *byte == 0).unwrap_or(address.len());
        Ok(String::from_utf8_lossy(&address[..end]).into_owned())
    }

    pub(super) fn memory(&self) -> Result<[usize; 2]> {
        self.bind()?;
        let (free, all) = cu::mem_get_info().map_err(driver("cuMemGetInfo", LATER))?;
        Ok([free, all])
    }

    /// The first address of the device's heap.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Backs so many more bytes of the heap.
    pub(super) fn grow(&self, bytes: usize) -> Result<()> {
        self.bind()?;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.grow(bytes).map_err(|error| {
            let free = cu::mem_get_info().map_or(0, |(free, _)| free);
            let hint = "lower `micro_batch`, choose `recompute: block`, or see what else runs on the GPU with nvidia-smi";
            let KernelError::Cuda { call, message, hint } = driver("cuMemCreate", hint)(error)
            else {
                unreachable!("driver errors are CUDA errors")
            };
            let message =
                format!("{bytes} more bytes of GPU {}, where {free} are free: {message}", self.ordinal);
            KernelError::Cuda { call, message, hint }
        })
    }

    /// Gives memory behind the first `end` bytes of the heap back, after everything issued so far;
    /// returns how many stay backed.
    pub(super) fn shrink(&self, end: usize) -> Result<usize> {
        for lane in Lane::ALL {
            self.synchronize(lane)?;
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.shrink(end).map_err(driver("cuMemUnmap", LATER))
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
        // SAFETY: the range is allocated, and the bytes are borrowed until the stream has been synchronised.
        unsafe { cu::memcpy_dtoh_async(bytes, from.address, self.queue(lane).stream) }
            .map_err(driver("cuMemcpyDtoHAsync", LATER))?;
        self.synchronize(lane)
    }

    /// Page-locked memory of the host, all zeros.
    pub(super) fn lock(&self, bytes: usize) -> Result<Locked> {
        self.bind()?;
        Locked::new(self.context, bytes)
    }

    /// Issues a copy of a range of as many bytes as `to` has.
    pub(super) fn download_later(&self, lane: Lane, from: Region, to: &mut Locked) -> Result<()> {
        self.issue(lane, || "snapshot".to_owned(), |stream| to.fill(from, stream))
    }

    /// Issues a copy to a range of as many bytes as `from` has.
    pub(super) fn upload_later(&self, lane: Lane, to: Region, from: &mut Locked) -> Result<()> {
        self.issue(lane, || "upload".to_owned(), |stream| from.send(to, stream))
    }

    /// What is issued to `lane` from now on happens after the last copy of `memory`.
    pub(super) fn wait_for_copy(&self, lane: Lane, memory: &Locked) -> Result<()> {
        self.bind()?;
        memory.copied().holds_up(self.queue(lane).stream)
    }

    /// What page-locked memory holds, when the last copy has happened.
    pub(super) fn locked<'a>(&self, memory: &'a Locked) -> Result<&'a [u8]> {
        self.bind()?;
        memory.bytes()
    }

    /// The same, to be changed.
    pub(super) fn locked_mut<'a>(&self, memory: &'a mut Locked) -> Result<&'a mut [u8]> {
        self.bind()?;
        memory.bytes_mut()
    }

    pub(super) fn copy(&self, lane: Lane, from: Region, to: Region) -> Result<()> {
        // SAFETY: both ranges are allocated and of one size.
        let copy = |stream| unsafe {
            cu::memcpy_dtod_async(to.address, from.address, from.bytes, stream)
                .map_err(driver("cuMemcpyDtoDAsync", LATER))
        };
        self.issue(lane, || "copy".to_owned(), copy)
    }

    pub(super) fn fill_zero(&self, lane: Lane, region: Region) -> Result<()> {
        // SAFETY: the range is allocated.
        let fill = |stream| unsafe {
            cu::memset_d8_async(region.address, 0, region.bytes, stream)
                .map_err(driver("cuMemsetD8Async", LATER))
        };
        self.issue(lane, || "zeros".to_owned(), fill)
    }

    pub(super) fn wait(&self, lane: Lane, other: Lane) -> Result<()> {
        self.bind()?;
        let other = self.queue(other);
        other.event.record(other.stream)?;
        other.event.holds_up(self.queue(lane).stream)
    }

    /// The stream's handle, with the context made current on this thread.
    pub(super) fn handle(&self, lane: Lane) -> Result<*mut c_void> {
        self.bind()?;
        Ok(self.queue(lane).stream.cast())
    }

    /// An event behind what was issued to `lane` so far.
    pub(super) fn mark(&self, lane: Lane) -> Result<Event> {
        self.bind()?;
        let event = Event::plain()?;
        event.record(self.queue(lane).stream)?;
        Ok(event)
    }

    /// Whether an event has happened, without waiting for it.
    pub(super) fn happened(&self, event: &Event) -> Result<bool> {
        self.bind()?;
        event.happened()
    }

    /// Milliseconds that what `work` issues to `lane` takes.
    pub(super) fn time(&self, lane: Lane, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.bind()?;
        let (stream, [begin, end]) = (self.queue(lane).stream, [Event::timed()?, Event::timed()?]);
        begin.record(stream)?;
        work()?;
        end.record(stream)?;
        end.wait()?;
        end.since(&begin)
    }

    /// From now on notes when each kernel, product and copy begins and ends.
    pub(super) fn trace(&self) -> Result<()> {
        self.bind()?;
        let base = Event::timed()?;
        base.record(self.queue(Lane::Compute).stream)?;
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        *trace = Some(Recording { base, spans: Vec::new() });
        Ok(())
    }

    /// What was noted since [`Self::trace`], after all of it has happened; nothing is noted any more.
    pub(super) fn traced(&self) -> Result<Vec<Span>> {
        for lane in Lane::ALL {
            self.synchronize(lane)?;
        }
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Recording { base, spans }) = trace.take() else { return Ok(Vec::new()) };
        let span = |(name, lane, [begin, end]): (String, Lane, [Event; 2])| {
            let (start_ms, duration_ms) = (begin.since(&base)?, end.since(&begin)?);
            Ok(Span { name, lane, start_ms, duration_ms })
        };
        spans.into_iter().map(span).collect()
    }

    /// Issues something to `lane`, and notes it where a trace is being taken.
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
            .map_err(driver("cuStreamSynchronize", LATER))
    }

    pub(super) fn run(&self, lane: Lane, launch: &Launch<Region>) -> Result<()> {
        self.bind()?;
        let function = self.function(launch.kernel)?;
        // Buffers go as pointers, scalars as one structure by value behind them.
        let mut addresses: Vec<u64> = launch.buffers.iter().map(|b| b.address).collect();
        let mut info = pack(launch.buffers.len(), &launch.scalars);
        let mut arguments: Vec<*mut c_void> =
            addresses.iter_mut().map(|address| std::ptr::from_mut(address).cast()).collect();
        if !launch.scalars.is_empty() {
            arguments.push(info.as_mut_ptr().cast());
        }
        let [x, y, z] = launch.cubes;
        // SAFETY: the arguments are those of the emitted source (a test compares the layouts) and are copied by the call.
        let start = |stream| unsafe {
            cu::launch_kernel(
                function.handle,
                (x, y, z),
                (function.units, 1, 1),
                function.shared_bytes,
                stream,
                &mut arguments,
            )
            .map_err(driver("cuLaunchKernel", LATER))
        };
        self.issue(lane, || launch.kernel.name(), start)
    }

    /// Loads a kernel the first time it is launched.
    fn function(&self, kernel: Kernel) -> Result<Function> {
        const NEWER: &str = "update NVIDIA's driver (CUDA 12.4 or newer)";
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&kernel) {
            return Ok(*function);
        }
        let hint = "`vljepa-worker compile RECIPE` compiles the kernels of a recipe ahead";
        let (cubin, _) = self
            .compiler
            .compile(kernel)
            .map_err(|error| failed("compiling a kernel", error.to_string(), hint))?;
        let name = CString::new(cubin.name.clone())
            .map_err(|error| failed("loading a kernel", error.to_string(), hint))?;
        // SAFETY: the image is a whole cubin, checked by its hash; module and function are never unloaded.
        let handle = unsafe {
            let module = cu::module::load_data(cubin.image.as_ptr().cast())
                .map_err(driver("cuModuleLoadData", NEWER))?;
            cu::module::get_function(module, name).map_err(driver("cuModuleGetFunction", NEWER))?
        };
        let shared = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX);
        if cubin.shared_bytes > SHARED_WITHOUT_ASKING {
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

    pub(super) fn multiply(&self, lane: Lane, product: Product) -> Result<()> {
        self.bind()?;
        let (matmul, shape) = (Matmul::new(&self.blas, &product)?, Shape::of(&product));
        let algorithm = {
            let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
            let choose = || self.fastest(lane, &matmul);
            algorithms.find(shape, |known| matmul.supports(known), choose)?
        };
        let name = || {
            let [rows, columns, inner] = shape.sizes;
            let form = if shape.f32_out { "gradient" } else { "product" };
            format!("{form}_{rows}x{columns}x{inner}")
        };
        let workspace = self.queue(lane).workspace;
        self.issue(lane, name, |stream| matmul.run(&algorithm, 1.0, workspace, stream.cast()))
    }

    /// The fastest of what cuBLASLt offers for a product; untimed its first answer, which is the
    /// same in every run.
    ///
    /// Timing computes into the product's own output, so that it needs no memory: see
    /// [`Matmul::timed`].
    fn fastest(&self, lane: Lane, matmul: &Matmul<'_>) -> Result<Words> {
        let candidates = matmul.candidates(if self.timed { CANDIDATES } else { 1 })?;
        if let [only] = candidates[..] {
            return Ok(only);
        }
        let (timed, scale) = matmul.timed()?;
        let Queue { stream, workspace, .. } = *self.queue(lane);
        let mut best = (f64::INFINITY, Err(failed("timing products", String::new(), LATER)));
        for candidate in candidates {
            let run = || timed.run(&candidate, scale, workspace, stream.cast());
            match (0..4).map(|_| self.time(lane, run)).collect::<Result<Vec<f64>>>() {
                Ok(ms) => {
                    // The first repetition may load code.
                    let least = ms[1..].iter().copied().fold(f64::INFINITY, f64::min);
                    if least < best.0 {
                        best = (least, Ok(candidate));
                    }
                }
                Err(error) if best.1.is_err() => best.1 = Err(error),
                Err(_) => {}
            }
        }
        best.1
    }

    /// Takes up stored choices, and adds to them where this process is the one that writes.
    pub(super) fn keep_algorithms(&self, file: &Path, write: bool) -> Result<()> {
        let name = cu::device::get_name(self.device).map_err(driver("cuDeviceGetName", LATER))?;
        let machine = format!("{name}, cuBLASLt {}", self.blas.version());
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        algorithms.keep(file, &machine, write)
    }
}

/// Algorithms that are timed for a shape.
const CANDIDATES: usize = 6;

impl Queue {
    fn new() -> Result<Self> {
        let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking)
            .map_err(driver("cuStreamCreate", LATER))?;
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
            .map_err(driver("cuDeviceGetAttribute", INSTALL))
    };
    let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if architecture.trim_start_matches("sm_").trim_end_matches('a') == format!("{major}{minor}") {
        return Ok(());
    }
    let name = cu::device::get_name(device).unwrap_or_else(|_| "the GPU".to_owned());
    let message = format!("{name} is sm_{major}{minor}, kernels are compiled for {architecture}");
    Err(failed("opening the GPU", message, "kernels are made for H100 and H200 (sm_90a)"))
}
