//! The emulated GPU of tests: its memory is host memory, its kernels are host programs, and its
//! products are the host's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use half::bf16;

use super::{Cuda, Lane, Product, Region, Span};
use crate::Result;
use crate::attention::launch::Mode;
use crate::compile::emulator::{Buffer, Emulator};
use crate::compile::{Cache, Compiler, Element, Kernel, Launch, Nvrtc};
use crate::device::host_gemm::{Layout, matmul};
use crate::library::Libraries;

/// Reads an environment variable that only tests and benchmarks use. `None` if it is empty.
#[expect(clippy::disallowed_methods, reason = "variables that only tests know")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A compiler with the libraries that the environment names. It caches cubins in `folder`.
fn compiler(libraries: &Libraries, folder: &Path) -> Compiler {
    let nvrtc = Nvrtc::open(libraries).expect("NVRTC");
    Compiler::new(nvrtc, "sm_90a", Some(Cache::new(folder)))
}

/// Number of the GPU that tests run on, from `VLJEPA_TEST_GPU`. `None` means the emulated GPU.
pub(crate) fn test_gpu_number() -> Option<usize> {
    Some(variable("VLJEPA_TEST_GPU")?.parse().expect("VLJEPA_TEST_GPU is the number of a GPU"))
}

/// The GPU of [`test_gpu_number`], opened once for each mode.
pub(crate) fn test_gpu(attention: Mode) -> Option<&'static Cuda> {
    static OPENED: [OnceLock<Option<&'static Cuda>>; 3] = [const { OnceLock::new() }; 3];
    *OPENED[attention as usize].get_or_init(|| open_test_gpu(attention))
}

/// The GPU of [`test_gpu_number`], opened again with its own streams and trace. It reads cubins
/// from the folder `VLJEPA_TEST_KERNELS`.
pub(super) fn open_test_gpu(attention: Mode) -> Option<&'static Cuda> {
    let (number, libraries) = (test_gpu_number()?, Libraries::of(variable));
    let folder = variable("VLJEPA_TEST_KERNELS")
        .map_or_else(|| std::env::temp_dir().join("vljepa-test-kernels"), PathBuf::from);
    let compiler = compiler(&libraries, &folder);
    Some(Cuda::open(number, compiler, &libraries, attention).expect("the GPU"))
}

/// Compiles `kernel` for real GPUs into the folder `VLJEPA_TEST_KERNELS`; does nothing without that
/// variable. The emulator calls this function for every kernel that it runs, so that the folder
/// then holds the cubins that the same tests need on a real GPU.
pub(crate) fn compile_ahead(kernel: Kernel) {
    static AHEAD: OnceLock<Option<(Compiler, Mutex<BTreeSet<Kernel>>)>> = OnceLock::new();
    let open = || {
        let folder = PathBuf::from(variable("VLJEPA_TEST_KERNELS")?);
        Some((compiler(&Libraries::of(variable), &folder), Mutex::default()))
    };
    let Some((compiler, compiled)) = AHEAD.get_or_init(open) else { return };
    if compiled.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel) {
        compiler.compile(kernel).expect("the kernel compiles for sm_90a");
    }
}

/// The heap, which starts at address [`BASE`]. Memory that a tensor has not written yet has all
/// bits set: NaN.
#[derive(Debug, Default)]
pub(crate) struct Emulated {
    memory: Mutex<Vec<u8>>,
    trace: Mutex<Option<(Instant, Vec<Span>)>>,
}

/// First address of the heap.
const BASE: u64 = 1 << 32;
/// Memory size that the device reports, in bytes.
const MEMORY_BYTES: usize = 1 << 30;

impl Emulated {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, region: Region, act: impl FnOnce(&mut [u8]) -> T) -> T {
        let start = usize::try_from(region.address - BASE).expect("memory of this process");
        act(&mut self.lock()[start..start + region.bytes])
    }

    fn read(&self, region: Region) -> Vec<u8> {
        self.with(region, |bytes| bytes.to_vec())
    }

    fn numbers(&self, region: Region, element: Element) -> Vec<f32> {
        let mut emulator = Emulator::default();
        let buffer = emulator.bytes(self.read(region));
        emulator.read(element, buffer)
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn description(&self) -> Result<String> {
        Ok("emulated GPU".to_owned())
    }

    pub(super) fn bus_address(&self) -> Result<String> {
        self.description()
    }

    pub(super) fn time(&self, _: Lane, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let since = Instant::now();
        work()?;
        Ok(since.elapsed().as_secs_f64() * 1e3)
    }

    pub(super) fn trace(&self) -> Result<()> {
        *self.trace.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Vec::new()));
        Ok(())
    }

    pub(super) fn traced(&self) -> Result<Vec<Span>> {
        let trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(trace.map_or_else(Vec::new, |(_, spans)| spans))
    }

    /// Records work that began at `since`, if a trace is active.
    fn note(&self, name: String, lane: Lane, since: Instant) {
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((base, spans)) = trace.as_mut() {
            let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
            let (start_ms, duration_ms) = (ms(since - *base), ms(since.elapsed()));
            spans.push(Span { name, lane, start_ms, duration_ms });
        }
    }

    pub(super) fn memory(&self) -> Result<[usize; 2]> {
        Ok([MEMORY_BYTES.saturating_sub(self.lock().len()), MEMORY_BYTES])
    }

    #[expect(clippy::unused_self, reason = "every driver has this method")]
    pub(super) fn base(&self) -> u64 {
        BASE
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn grow(&self, bytes: usize) -> Result<()> {
        let mut memory = self.lock();
        let backed = memory.len() + bytes;
        memory.resize(backed, 0xFF);
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the hardware driver can fail here")]
    pub(super) fn shrink(&self, end: usize) -> Result<usize> {
        self.lock().truncate(end);
        Ok(end)
    }

    /// Fills a new block with NaN, so that a test that reads undefined memory fails.
    pub(super) fn spoil(&self, region: Region) {
        self.with(region, |bytes| bytes.fill(0xFF));
    }

    pub(super) fn upload(&self, _: Lane, to: Region, bytes: &[u8]) -> Result<()> {
        self.with(to, |memory| memory.copy_from_slice(bytes));
        Ok(())
    }

    pub(super) fn download(&self, _: Lane, from: Region, bytes: &mut [u8]) -> Result<()> {
        self.with(from, |memory| bytes.copy_from_slice(memory));
        Ok(())
    }

    pub(super) fn copy(&self, lane: Lane, from: Region, to: Region) -> Result<()> {
        self.upload(lane, to, &self.read(from))
    }

    pub(super) fn fill_zero(&self, _: Lane, region: Region) -> Result<()> {
        self.with(region, |memory| memory.fill(0));
        Ok(())
    }

    pub(super) fn wait(&self, _: Lane, _: Lane) -> Result<()> {
        Ok(())
    }

    pub(super) fn synchronize(&self, _: Lane) -> Result<()> {
        Ok(())
    }

    pub(super) fn run(&self, lane: Lane, launch: &Launch<Region>) -> Result<()> {
        let since = Instant::now();
        let mut emulator = Emulator::default();
        let mut buffers = Vec::<Buffer>::new();
        for (i, region) in launch.buffers.iter().enumerate() {
            let known = launch.buffers[..i].iter().position(|other| other == region);
            let buffer = known.map(|i| buffers[i]);
            buffers.push(buffer.unwrap_or_else(|| emulator.bytes(self.read(*region))));
        }
        emulator.run(&[Launch {
            kernel: launch.kernel,
            cubes: launch.cubes,
            buffers: buffers.clone(),
            scalars: launch.scalars.clone(),
        }]);
        for (region, buffer) in launch.buffers.iter().zip(buffers) {
            self.upload(lane, *region, emulator.raw(buffer))?;
        }
        self.note(launch.kernel.name(), lane, since);
        Ok(())
    }

    pub(super) fn multiply(&self, lane: Lane, product: Product) -> Result<()> {
        let Product { rows, columns, inner, out, out_element, .. } = product;
        let since = Instant::now();
        let layout = |rows, columns, transposed| {
            if transposed {
                Layout::row_major(columns, rows).transposed()
            } else {
                Layout::row_major(rows, columns)
            }
        };
        let left = self.numbers(product.left, Element::Bf16);
        let right = self.numbers(product.right, Element::Bf16);
        let mut sums = product
            .addend
            .map_or_else(|| vec![0.0; rows * columns], |addend| self.numbers(addend, out_element));
        if let Some(bias) = product.bias {
            let bias = self.numbers(bias, Element::Bf16);
            for row in sums.chunks_exact_mut(columns) {
                row.iter_mut().zip(&bias).for_each(|(sum, bias)| *sum += bias);
            }
        }
        matmul(
            1.0,
            &mut sums,
            Layout::row_major(rows, columns),
            1.0,
            &left,
            layout(rows, inner, product.left_transposed),
            &right,
            layout(inner, columns, product.right_transposed),
            1,
        );
        let bytes: Vec<u8> = match out_element {
            Element::F32 => sums.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Bf16 => sums.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        };
        self.upload(lane, out, &bytes)?;
        self.note(format!("product_{rows}x{columns}x{inner}"), lane, since);
        Ok(())
    }
}
