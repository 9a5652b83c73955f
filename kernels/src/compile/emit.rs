//! Emits CubeCL kernels as CUDA C++, without a client, a runtime or a GPU.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use cubecl::features::Features;
use cubecl::ir::settings::KernelSettings;
use cubecl::ir::{
    AddressType, DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties,
    TargetProperties, VectorSize,
};
use cubecl::prelude::{BufferCompilationArg, CubeDim, ExecutionMode};
use cubecl::profile::TimingMethod;
use cubecl_cpp::register_supported_types;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_cpp::target::Cuda;
use cubecl_runtime::compiler::Compiler as _;
use cubecl_runtime::kernel::CubeKernel;

use super::CompileError;

/// Largest shared memory of one block on sm_90, in bytes.
const SHARED_BYTES: usize = 232_448;

/// A kernel as CUDA C++, with the facts that a launch needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Name of the function.
    pub name: String,
    /// The CUDA C++ source.
    pub text: String,
    /// Number of threads per block.
    pub units: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: usize,
    /// Parameters of the function.
    pub parameters: Parameters,
}

/// Parameters of a kernel, as the emitted source declares them: pointers, then one structure by
/// value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Element type of each buffer as C++ spells it, in the order of the arguments.
    pub buffers: Vec<String>,
    /// Groups of the structure, in order.
    pub groups: Vec<Group>,
}

/// A group of the structure: the scalars of one type, or the lengths of the buffers, which come
/// last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// C++ type of the elements.
    pub element: String,
    /// Name of the group: `scalars_f32`, `scalars_u32`, … or `static_meta`.
    pub name: String,
    /// Number of elements, padded to a multiple of 8 bytes.
    pub count: usize,
}

/// Properties of the device that kernels are emitted for: warps of 32 threads, the shared memory of
/// sm_90, 16-byte loads.
static PROPERTIES: LazyLock<Arc<DeviceProperties>> = LazyLock::new(|| {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 32,
        max_shared_memory_size: SHARED_BYTES,
        max_cube_count: (i32::MAX.unsigned_abs(), u32::from(u16::MAX), u32::from(u16::MAX)),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity = DeviceIdentity {
        name: "sm_90a".to_owned(),
        fingerprint: "sm_90a".to_owned(),
        physical: None,
    };
    let memory = MemoryDeviceProperties::new(u64::MAX, 256);
    let mut properties = DeviceProperties::new(
        Features::default(),
        memory,
        hardware,
        TimingMethod::Device,
        identity,
    );
    register_supported_types(&mut properties);
    Arc::new(properties)
});

/// Emits kernels with a given block size. Its methods return the arguments that every CubeCL kernel
/// constructor takes before the compile-time values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Emit {
    units: u32,
    blocks: u32,
}

impl Emit {
    /// Emits kernels with one-dimensional blocks of `units` threads.
    pub(crate) fn new(units: u32) -> Self {
        Self { units, blocks: 1 }
    }

    /// Limits the registers of a thread so that `blocks` blocks fit on a multiprocessor.
    pub(crate) fn blocks(self, blocks: u32) -> Self {
        Self { blocks, ..self }
    }

    /// The first argument of the constructor.
    pub(crate) fn settings(self) -> KernelSettings {
        let dim = CubeDim::new_1d(self.units);
        KernelSettings::new(*dim, ExecutionMode::Unchecked, AddressType::U32)
    }

    /// The second argument of the constructor.
    pub(crate) fn properties(self) -> Arc<DeviceProperties> {
        Arc::clone(&PROPERTIES)
    }

    /// The third argument of the constructor.
    pub(crate) fn target(self) -> Arc<TargetProperties> {
        Arc::new(TargetProperties::default())
    }

    /// The argument for a buffer. The argument for a scalar is `()`.
    pub(crate) fn buffer(self) -> BufferCompilationArg {
        BufferCompilationArg { inplace: None }
    }

    /// Emits `kernel` under `name`.
    pub(crate) fn emit(self, name: &str, kernel: &impl CubeKernel) -> Result<Source, CompileError> {
        let options = CompilationOptions {
            supports_features: CppSupportedFeatures {
                grid_constants: true,
                ..CppSupportedFeatures::default()
            },
            ..CompilationOptions::default()
        };
        let refuse = |message: String| CompileError::Emit { kernel: name.to_owned(), message };
        let compiled = CppCompiler::<Cuda>::default()
            .compile(kernel.define(), &options)
            .map_err(|e| refuse(e.to_string()))?;
        let (text, arguments) = rename(&compiled.source, name)
            .ok_or_else(|| refuse("the source has no entry point".to_owned()))?;
        let text = self
            .with_blocks(&with_all_lanes(&text))
            .ok_or_else(|| refuse("the source has no launch bounds".to_owned()))?;
        let parameters = Parameters::read(&text, &arguments)
            .ok_or_else(|| refuse(format!("unknown form of parameters: {arguments}")))?;
        let shared_bytes = compiled.shared_memory_size;
        if shared_bytes > SHARED_BYTES {
            return Err(refuse(format!(
                "it needs {shared_bytes} bytes of shared memory, more than {SHARED_BYTES}"
            )));
        }
        Ok(Source { name: name.to_owned(), text, units: self.units, shared_bytes, parameters })
    }

    /// Adds the number of blocks to the bounds of the launch. `None` if the text has no bounds.
    fn with_blocks(self, text: &str) -> Option<String> {
        let Self { units, blocks } = self;
        let (threads, both) = (
            format!("__launch_bounds__({units})"),
            format!("__launch_bounds__({units}, {blocks})"),
        );
        match blocks {
            1 => Some(text.to_owned()),
            _ => text.contains(&threads).then(|| text.replace(&threads, &both)),
        }
    }
}

/// Makes every shuffle name all 32 lanes. CubeCL passes `__activemask()`, the lanes that execute
/// the shuffle at the same moment. These may be fewer than the lanes that reach it, since the lanes
/// of a warp may diverge. In every kernel of this crate all lanes of a warp reach every shuffle;
/// the emulator of the tests fails if one does not.
fn with_all_lanes(text: &str) -> String {
    text.replace("__activemask()", "0xffffffffu")
}

/// Renames the entry point to `name`. Returns the source and the parameter list of the entry point.
fn rename(source: &str, name: &str) -> Option<(String, String)> {
    let entry = source.find("__global__ void")?;
    let open = entry + source[entry..].find(") ")? + 2;
    let parenthesis = open + source[open..].find('(')?;
    let end = parenthesis + source[parenthesis..].find(") {")?;
    let arguments = source[parenthesis + 1..end].to_owned();
    let text = format!("{}{name}{}", &source[..open], &source[parenthesis..]);
    // Remove line markers: they contain paths of the build machine and would change the cache keys.
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("#line")).collect();
    Some((renumber(&lines.join("\n")), arguments))
}

/// Renumbers the values of the text (`v17`, `row_v17`, `v17_store`) in order of appearance, because
/// CubeCL's own numbers differ from run to run. A word after a point is not a value but a member
/// or, in inline PTX, the width of a vector (`red.global.add.v2.f32`).
fn renumber(text: &str) -> String {
    let mut numbers = BTreeMap::new();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    while let Some(start) = rest.find(is_word) {
        let (before, word) = rest.split_at(start);
        let (word, after) = word.split_at(word.find(|c| !is_word(c)).unwrap_or(word.len()));
        out.push_str(before);
        rest = after;
        if before.ends_with('.') {
            out.push_str(word);
            continue;
        }
        let parts = word.split('_').map(|part| {
            let number = part
                .strip_prefix('v')
                .filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            let Some(number) = number else { return part.to_owned() };
            let next = numbers.len();
            format!("v{}", numbers.entry(number.to_owned()).or_insert(next))
        });
        out.push_str(&parts.collect::<Vec<_>>().join("_"));
    }
    out + rest
}

impl Parameters {
    /// Parses the parameter list of the entry point and the declaration of `info_st`.
    fn read(text: &str, arguments: &str) -> Option<Self> {
        let pointers = arguments.split(", ").filter(|a| !a.contains("info_st"));
        let buffers: Option<Vec<_>> =
            pointers.map(|p| Some(p.split('*').next()?.trim().to_owned())).collect();
        let mut groups = Vec::new();
        if arguments.contains("info_st") {
            let start = text.find("struct info_st {")? + "struct info_st {".len();
            let body = &text[start..start + text[start..].find("};")?];
            for declaration in body.split(';').map(str::trim).filter(|d| !d.is_empty()) {
                let (element, rest) = declaration.split_once(' ')?;
                let (name, count) = rest.trim_end_matches(']').split_once('[')?;
                let count = count.parse().ok()?;
                groups.push(Group { element: element.to_owned(), name: name.to_owned(), count });
            }
        }
        Some(Self { buffers: buffers?, groups })
    }

    /// For each buffer the number of bytes of which its address must be a multiple: the size of an
    /// element of the kernel, a scalar or a vector, up to the 16 bytes of the widest access.
    #[must_use]
    pub fn alignments(&self) -> Vec<u64> {
        let bytes = |element: &String| {
            let element = element.trim_end_matches(" const");
            let vector = element
                .rsplit_once('_')
                .and_then(|(scalar, lanes)| lanes.parse::<u64>().ok().map(|lanes| (scalar, lanes)));
            let (scalar, lanes) = vector.unwrap_or((element, 1));
            let size = match scalar {
                name if name.contains("8_t") => 1,
                name if name.contains("16") => 2,
                name if name.contains("64") || name == "double" => 8,
                _ => 4,
            };
            (size * lanes).min(16)
        };
        self.buffers.iter().map(bytes).collect()
    }

    /// Size of the structure in bytes.
    #[must_use]
    pub fn info_bytes(&self) -> usize {
        let size = |element: &str| if element.starts_with("uint64") { 8 } else { 4 };
        self.groups.iter().map(|g| g.count * size(&g.element)).sum()
    }
}

/// Emits a kernel: `emit!(e, name, Kernel: [buffers] [scalars], compile-time values…)`. The names
/// of buffers and scalars only document their order.
macro_rules! emit {
    ($e:ident, $name:expr, $kernel:ty: [$($buffer:ident)*] [$($scalar:ident)*] $(, $value:expr)* $(,)?) => {
        $e.emit(
            $name,
            &<$kernel>::new(
                $e.settings(),
                $e.properties(),
                $e.target(),
                $({ let $buffer = $e.buffer(); $buffer },)*
                $({ let $scalar = (); $scalar },)*
                $($value),*
            ),
        )
    };
}
pub(crate) use emit;
