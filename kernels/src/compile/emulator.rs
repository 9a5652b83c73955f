//! Runs launches without a GPU: compiles the emitted CUDA C++ as a host program over `emulator.h`.
//!
//! The emulator detects faulty kernels. Buffers end at an inaccessible page, outputs start as NaN,
//! and shared memory is poisoned for each block. Asynchronous copies complete at the last moment
//! they may. A barrier that not every thread reaches ends the program. Every launch runs twice,
//! with the threads of a block taking turns in both directions; unless the kernel sums atomically,
//! the results must agree bit for bit.

#![expect(clippy::disallowed_methods, reason = "a test tool that starts the host's compiler")]
#![allow(
    clippy::unwrap_used,
    reason = "a test tool fails as tests do, also where a feature builds it outside of tests"
)]

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

/// The inline PTX instructions that kernels may use, in the only accepted spelling, and the
/// function of `emulator.h` that emulates each.
const INSTRUCTIONS: [(&str, &str); 13] = [
    (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};",
        "emu::mma",
    ),
    ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];", "emu::ldmatrix_x4"),
    (
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];",
        "emu::ldmatrix_x4_trans",
    ),
    ("cp.async.cg.shared.global [%0], [%1], 16, %2;", "emu::cp_async_16"),
    ("cp.async.commit_group;", "emu::cp_async_commit"),
    ("cp.async.wait_group 0;", "emu::cp_async_wait<0>"),
    ("cp.async.wait_group 1;", "emu::cp_async_wait<1>"),
    ("cvt.rn.bf16x2.f32 %0, %1, %2;", "emu::cvt_bf16x2"),
    ("st.shared.b32 [%0], %1;", "emu::store_shared"),
    ("st.shared.v4.f32 [%0], {%1, %2, %3, %4};", "emu::store_shared_v4"),
    ("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];", "emu::load_shared_v4"),
    ("ex2.approx.ftz.f32 %0, %1;", "emu::ex2"),
    ("red.global.add.v2.f32 [%0], {%1, %2};", "emu::red_add_v2"),
];

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
        if !launch.kernel.sums_atomically() {
            assert!(one == other, "{}: two runs differ", launch.kernel.name());
        }
        for (buffer, bytes) in launch.buffers.iter().zip(one) {
            self.buffers[buffer.0] = bytes;
        }
    }

    fn run_emulated(&mut self, launch: &Launch<Buffer>) {
        crate::device::cuda::emulated::compile_ahead(launch.kernel);
        let source = launch.kernel.source().unwrap();
        let program = build(&source);
        let forward = self.execute(&program, launch, &source, false);
        let backward = self.execute(&program, launch, &source, true);
        if !launch.kernel.sums_atomically() {
            for (i, (a, b)) in forward.iter().zip(&backward).enumerate() {
                assert_eq!(a, b, "{}: buffer {i} depends on the order of threads", source.name);
            }
        }
        for (buffer, bytes) in launch.buffers.iter().zip(forward) {
            self.buffers[buffer.0] = bytes;
        }
    }

    fn execute(
        &self,
        program: &PathBuf,
        launch: &Launch<Buffer>,
        source: &Source,
        reversed: bool,
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
        let order = if reversed { "1" } else { "0" };
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
    replace_asm(&text, &source.name)
}

fn is_integer_typedef(line: &str) -> bool {
    line.starts_with("typedef") && line.trim_end().ends_with("_t;")
}

/// Replaces every `asm` statement by a call of the function that emulates its instruction.
fn replace_asm(text: &str, kernel: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("asm ").into_iter().chain(rest.find("asm volatile(")).min() {
        out.push_str(&rest[..start]);
        let end = start + rest[start..].find(");").unwrap() + 2;
        out.push_str(&call(&rest[start..end], kernel));
        rest = &rest[end..];
    }
    out + rest
}

fn call(statement: &str, kernel: &str) -> String {
    let open = statement.find('"').unwrap() + 1;
    let close = open + statement[open..].find('"').unwrap();
    let template = &statement[open..close];
    let known = INSTRUCTIONS.iter().find(|(text, _)| *text == template);
    let (_, function) = known.unwrap_or_else(|| panic!("{kernel}: no emulation of `{template}`"));
    let operands: Vec<&str> = statement[close + 1..]
        .split("\"")
        .filter_map(|part| part.strip_prefix('('))
        .map(|part| {
            let mut depth = 1;
            let end = part.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            &part[..end.unwrap_or_else(|| panic!("{kernel}: {statement}"))]
        })
        .collect();
    format!("{function}({});", operands.join(", "))
}
