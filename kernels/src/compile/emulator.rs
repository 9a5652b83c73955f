//! Runs launches without a GPU: compiles the emitted CUDA C++ as a host program over `emulator.h`.
//!
//! The emulator detects faulty kernels. Buffers end at an inaccessible page, outputs start as NaN,
//! and shared memory is poisoned for each block. Asynchronous copies complete at the last moment
//! they may. A barrier that not every thread reaches ends the program, and so does a product of a
//! warpgroup that reads what no fence has published. Every launch runs twice: once with all threads
//! of a block in step, and once with each warp as far ahead of the others as barriers let it.
//! Except for atomic sums, the results must agree bit for bit.

#![expect(clippy::disallowed_methods, reason = "a test tool that starts the host's compiler")]
#![allow(
    clippy::unwrap_used,
    reason = "a test tool fails as tests do, also where a feature builds it outside of tests"
)]

mod ptx;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::bf16;

use super::{Element, Launch, Source, pack};
#[cfg(test)]
use crate::{
    DType,
    attention::launch::Mode,
    device::cuda::{Cuda, CudaBuffer, CudaStream, Lane, Region},
    testing::normal,
};

/// A buffer of an [`Emulator`], identified by its number.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer(usize);

/// Buffers, and the launches that change them.
#[derive(Debug, Default)]
pub(crate) struct Emulator {
    buffers: Vec<Vec<u8>>,
}

/// Buffers from the values of a test.
#[cfg(test)]
impl Emulator {
    pub(crate) fn f32(&mut self, values: &[f32]) -> Buffer {
        self.bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub(crate) fn i32(&mut self, values: &[i32]) -> Buffer {
        self.bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub(crate) fn u64(&mut self, values: &[u64]) -> Buffer {
        self.bytes(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// A buffer of the values rounded to bf16.
    pub(crate) fn bf16(&mut self, values: &[f32]) -> Buffer {
        self.bytes(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect())
    }

    /// An output of `len` f32, all NaN.
    pub(crate) fn poison_f32(&mut self, len: usize) -> Buffer {
        self.bytes(vec![0xFF; 4 * len])
    }

    /// An output of `len` bf16, all NaN.
    pub(crate) fn poison_bf16(&mut self, len: usize) -> Buffer {
        self.bytes(vec![0xFF; 2 * len])
    }

    /// A buffer of `values` with the element type `element`; values of bf16 are rounded.
    pub(crate) fn upload(&mut self, element: Element, values: &[f32]) -> Buffer {
        match element {
            Element::F32 => self.f32(values),
            Element::Bf16 => self.bf16(values),
        }
    }

    /// An output of `len` elements, all NaN.
    pub(crate) fn poison(&mut self, element: Element, len: usize) -> Buffer {
        match element {
            Element::F32 => self.poison_f32(len),
            Element::Bf16 => self.poison_bf16(len),
        }
    }
}

impl Emulator {
    pub(crate) fn bytes(&mut self, bytes: Vec<u8>) -> Buffer {
        self.buffers.push(bytes);
        Buffer(self.buffers.len() - 1)
    }

    /// The bytes of a buffer.
    pub(crate) fn raw(&self, buffer: Buffer) -> &[u8] {
        &self.buffers[buffer.0]
    }

    pub(crate) fn read_f32(&self, buffer: Buffer) -> Vec<f32> {
        let words = self.buffers[buffer.0].chunks_exact(4);
        words.map(|w| f32::from_le_bytes(w.try_into().unwrap())).collect()
    }

    pub(crate) fn read_bf16(&self, buffer: Buffer) -> Vec<f32> {
        let halves = self.buffers[buffer.0].chunks_exact(2);
        halves.map(|h| bf16::from_le_bytes(h.try_into().unwrap()).to_f32()).collect()
    }

    pub(crate) fn read(&self, element: Element, buffer: Buffer) -> Vec<f32> {
        match element {
            Element::F32 => self.read_f32(buffer),
            Element::Bf16 => self.read_bf16(buffer),
        }
    }

    pub(crate) fn run(&mut self, launches: &[Launch<Buffer>]) {
        for launch in launches {
            #[cfg(test)]
            if let Some(cuda) = crate::device::cuda::emulated::test_gpu(Mode::Fast) {
                self.run_on_gpu(cuda, launch);
                continue;
            }
            self.run_emulated(launch);
        }
    }

    /// Runs a launch twice on a real GPU and compares the results, as [`Self::run_emulated`] does.
    #[cfg(test)]
    fn run_on_gpu(&mut self, cuda: &'static Cuda, launch: &Launch<Buffer>) {
        let stream = CudaStream::new(cuda, Lane::Compute);
        let once = || -> crate::Result<Vec<Vec<u8>>> {
            let held: Vec<CudaBuffer> = launch
                .buffers
                .iter()
                .map(|b| CudaBuffer::new(cuda, DType::U8, self.buffers[b.0].len()))
                .collect::<crate::Result<_>>()?;
            let regions: Vec<Region> = launch
                .buffers
                .iter()
                .zip(&held)
                .map(|(b, held)| held.slice(0, self.buffers[b.0].len()).region())
                .collect();
            // Arguments that name the same buffer share one region.
            let first = |i: usize| launch.buffers.iter().position(|b| *b == launch.buffers[i]);
            let regions: Vec<Region> =
                (0..regions.len()).map(|i| regions[first(i).unwrap()]).collect();
            for (b, region) in launch.buffers.iter().zip(&regions) {
                stream.upload(*region, &self.buffers[b.0])?;
            }
            stream.run([Launch {
                kernel: launch.kernel,
                cubes: launch.cubes,
                buffers: regions.clone(),
                scalars: launch.scalars.clone(),
            }])?;
            let download = |region: &Region| {
                let mut bytes = vec![0; region.bytes];
                stream.download(*region, &mut bytes).map(|()| bytes)
            };
            regions.iter().map(download).collect()
        };
        let [one, other] = [once().unwrap(), once().unwrap()];
        for (i, (a, b)) in one.iter().zip(&other).enumerate() {
            let differs = a != b && !is_atomic(launch, i);
            assert!(!differs, "{}: buffer {i} differs in two runs", launch.kernel.name());
        }
        for (buffer, bytes) in launch.buffers.iter().zip(one) {
            self.buffers[buffer.0] = bytes;
        }
    }

    fn run_emulated(&mut self, launch: &Launch<Buffer>) {
        crate::device::cuda::emulated::compile_ahead(launch.kernel);
        self.run_source(launch, &launch.kernel.source().unwrap());
    }

    /// Runs `source` as the kernel of `launch`.
    fn run_source(&mut self, launch: &Launch<Buffer>, source: &Source) {
        let program = build(source);
        let in_step = self.execute(&program, launch, source, false);
        let ahead = self.execute(&program, launch, source, true);
        for (i, (a, b)) in in_step.iter().zip(&ahead).enumerate() {
            let differs = a != b && !is_atomic(launch, i);
            assert!(!differs, "{}: buffer {i} depends on the order of threads", source.name);
        }
        // The test that compares the results sees a fault that an atomic sum hides here.
        for (buffer, bytes) in launch.buffers.iter().zip(ahead) {
            self.buffers[buffer.0] = bytes;
        }
    }

    fn execute(
        &self,
        program: &PathBuf,
        launch: &Launch<Buffer>,
        source: &Source,
        ahead: bool,
    ) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let info = pack(launch.buffers.len(), &launch.scalars);
        assert_eq!(info.len(), source.parameters.info_bytes(), "{}: scalars", source.name);
        assert_eq!(
            launch.buffers.len(),
            source.parameters.buffers.len(),
            "{}: buffers",
            source.name
        );
        fs::write(folder.path().join("info"), info).unwrap();
        for (i, buffer) in launch.buffers.iter().enumerate() {
            fs::write(folder.path().join(i.to_string()), &self.buffers[buffer.0]).unwrap();
        }
        let cubes = launch.cubes.map(|c| c.to_string());
        let order = if ahead { "1" } else { "0" };
        let output = Command::new(program)
            .arg(folder.path())
            .args(cubes)
            .args([source.shared_bytes.to_string(), order.to_owned()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {}: {said}", source.name, output.status);
        (0..launch.buffers.len())
            .map(|i| fs::read(folder.path().join(i.to_string())).unwrap())
            .collect()
    }
}

/// Whether the kernel adds to buffer `i` in an order that differs from run to run.
fn is_atomic(launch: &Launch<Buffer>, i: usize) -> bool {
    launch.kernel.sums_atomically() && i + 1 == launch.buffers.len()
}

/// `len` normal numbers that are exact in the element type.
#[cfg(test)]
pub(crate) fn inputs(seed: u64, element: Element, len: usize) -> Vec<f32> {
    let mut values = normal(seed, len);
    if element == Element::Bf16 {
        values.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }
    values
}

/// Adds to `tolerance`, an error in f32, the error of rounding a result to the element type: half a
/// unit in the last of bf16's 8 bits.
#[cfg(test)]
pub(crate) fn rounding(element: Element, tolerance: f32) -> f32 {
    match element {
        Element::F32 => tolerance,
        Element::Bf16 => tolerance + 1.0 / 256.0,
    }
}

/// Builds the host program of a kernel, once per source, and returns its path.
fn build(source: &Source) -> PathBuf {
    let folder = emulator();
    let text = program(source);
    let hash = blake3::hash(text.as_bytes()).to_hex();
    let path = folder.join(format!("{}-{}", source.name, &hash[..24]));
    if path.is_file() {
        return path;
    }
    let work = tempfile::tempdir_in(&folder).unwrap();
    let (kernel, built) = (work.path().join("kernel.cpp"), work.path().join("kernel"));
    fs::write(&kernel, text).unwrap();
    let (header, object) = (folder.join("emulator.h"), folder.join("emulator.o"));
    compile(&source.name, &[Path::new("-include"), &header, &kernel, &object], &built);
    fs::rename(&built, &path).unwrap();
    path
}

/// Folder of the programs, with what all of them have in common in compiled form: it would take
/// longer to compile than most kernels.
fn emulator() -> PathBuf {
    const HEADER: &str = include_str!("emulator.h");
    const COMMON: &str = include_str!("emulator.cpp");
    let hash = blake3::hash([HEADER, COMMON].concat().as_bytes()).to_hex();
    let folder = std::env::temp_dir().join(format!("vljepa-emulator-{}", &hash[..16]));
    if folder.join("emulator.h").is_file() {
        return folder;
    }
    fs::create_dir_all(&folder).unwrap();
    let work = tempfile::tempdir_in(&folder).unwrap();
    let file = |name: &str| work.path().join(name);
    fs::write(file("emulator.h"), HEADER).unwrap();
    fs::write(file("emulator.cpp"), COMMON).unwrap();
    let header = file("emulator.h");
    compile("the emulator", &["-x".as_ref(), "c++-header".as_ref(), &header], &file("header"));
    compile("the emulator", &["-c".as_ref(), &file("emulator.cpp")], &file("emulator.o"));
    fs::rename(file("header"), folder.join("emulator.h.gch")).unwrap();
    fs::rename(file("emulator.o"), folder.join("emulator.o")).unwrap();
    // The header comes last: where it is, the rest is complete.
    fs::rename(header, folder.join("emulator.h")).unwrap();
    folder
}

fn compile(name: &str, arguments: &[&Path], built: &Path) {
    let output = Command::new("g++")
        .args(["-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-ffp-contract=off"])
        .args([Path::new("-mno-red-zone"), Path::new("-o"), built])
        .args(arguments)
        .output()
        .expect("g++ is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: g++ refuses the source:\n{said}");
}

/// The emitted source and what `emulator.h` asks of a kernel.
fn program(source: &Source) -> String {
    let text = host_text(source);
    let (name, units) = (&source.name, source.units);
    let count = source.parameters.buffers.len();
    let mut arguments = String::new();
    for (i, element) in source.parameters.buffers.iter().enumerate() {
        write!(arguments, "({element}*)buffers[{i}], ").unwrap();
    }
    if source.parameters.groups.is_empty() {
        arguments.truncate(arguments.len() - 2);
    } else {
        arguments.push_str("*(const info_st*)scalars");
    }
    format!(
        "{text}
const uint32_t emu::BUFFERS = {count}, emu::UNITS = {units};
void emu::call(char* const* buffers, const char* scalars) {{ {name}({arguments}); }}
"
    )
}

/// The emitted source with the constructs of CUDA replaced by those of `emulator.h`.
fn host_text(source: &Source) -> String {
    let mut text = String::new();
    for line in source.text.lines() {
        if line.starts_with("#include") || is_integer_typedef(line) {
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    let mut text = text.replace("extern \"C\" ", "static ");
    while let Some(start) = text.find("extern __shared__") {
        let end = start + text[start..].find("[];").unwrap();
        let name = text[start..end].rsplit(' ').next().unwrap().to_owned();
        text.replace_range(start..end + 3, &format!("char* const {name} = emu::shared;"));
    }
    ptx::replace_asm(&text, &source.name)
}

fn is_integer_typedef(line: &str) -> bool {
    line.starts_with("typedef") && line.trim_end().ends_with("_t;")
}
