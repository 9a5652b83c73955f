//! NVRTC, loaded at run time: compiles CUDA C++ to PTX and cubin without a CUDA toolkit and without
//! a GPU.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::CompileError;
use crate::library::{Libraries, LibraryError, Wanted};

type Program = *mut c_void;

/// Options of every compilation besides the architecture and the folders of headers. `-v` lists the
/// resources of a kernel in the log.
const OPTIONS: [&str; 3] = ["--std=c++17", "--ptxas-options=-v", "--generate-line-info"];

/// The NVRTC library and the folders of the CUDA headers that it compiles with.
#[derive(Debug)]
pub struct Nvrtc {
    library: Library,
    /// Kept loaded because NVRTC opens this library by its bare name, which the loader does not
    /// find in the folder of NVRTC.
    _builtins: Vec<Library>,
    path: PathBuf,
    include: Vec<PathBuf>,
    version: (c_int, c_int),
}

/// The output of one compilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Compiled {
    pub(super) cubin: Vec<u8>,
    pub(super) ptx: String,
    pub(super) log: String,
}

/// CUDA 12 is preferred: older drivers load its cubins too.
const NVRTC: Wanted = Wanted {
    name: "NVRTC",
    files: &["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"],
    wheels: &["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"],
    install: "install it with `pip install nvidia-cuda-nvrtc-cu12` (CUDA 13: \
              `nvidia-cuda-nvrtc`) or with a CUDA toolkit of version 12.3 or newer, or name its \
              file in VLJEPA_NVRTC",
};

/// Folders of headers relative to the folder of NVRTC, for NVIDIA's wheels
/// (`nvidia/cuda_nvrtc/lib`), for a toolkit (`lib64`) and for Conda's packages (`lib`).
const HEADERS: [&str; 10] = [
    "../../cuda_runtime/include",
    "../../cuda_cccl/include",
    "../../cuda_cccl/include/cccl",
    "../../cuda_nvcc/include",
    "../include",
    "../include/cccl",
    "../targets/x86_64-linux/include",
    "../targets/x86_64-linux/include/cccl",
    "/usr/local/cuda/include",
    "/usr/local/cuda/include/cccl",
];

impl Nvrtc {
    /// Loads NVRTC, and finds `cuda_bf16.h` in the folder that `libraries` names or near the
    /// library.
    ///
    /// # Errors
    /// If NVRTC or the header is missing, or the library is not NVRTC. The message lists the files
    /// that were tried and says what to install.
    pub fn open(libraries: &Libraries) -> Result<Self, CompileError> {
        let (library, path) = NVRTC.load(libraries.nvrtc.as_deref(), libraries)?;
        let builtins = open_builtins(&path)?;
        let folders: Vec<PathBuf> = match &libraries.include {
            Some(folder) => vec![folder.to_owned(), folder.join("cccl")],
            None => {
                let beside = path.parent().unwrap_or(Path::new("/usr/local/cuda/lib64"));
                HEADERS.iter().map(|h| beside.join(h)).collect()
            }
        };
        if !folders.iter().any(|f| f.join("cuda_bf16.h").is_file()) {
            let tried: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
            return Err(CompileError::NoHeaders { tried: tried.join(", ") });
        }
        let include = folders.into_iter().filter(|f| f.is_dir()).collect();
        let mut nvrtc = Self { library, _builtins: builtins, path, include, version: (0, 0) };
        let (mut major, mut minor) = (0, 0);
        let function = nvrtc
            .symbol::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(c"nvrtcVersion")?;
        // SAFETY: both pointers are valid for the call; the signature is nvrtc.h's.
        nvrtc.check("", unsafe { function(&raw mut major, &raw mut minor) }, String::new())?;
        nvrtc.version = (major, minor);
        Ok(nvrtc)
    }

    /// Path of the library that was loaded.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the library, such as `12.9`.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Options of every compilation besides the architecture and the folders of headers. Since
    /// version 12.9, NVRTC asks the driver's cache for machine code. With a cubin of the cache the
    /// log says nothing of resources, so that cache, which all ranks would share, is left out.
    pub(super) fn options(&self) -> Vec<&'static str> {
        let no_cache = (self.version >= (12, 9)).then_some("--no-cache");
        OPTIONS.into_iter().chain(no_cache).collect()
    }

    /// Compute capabilities that this NVRTC supports, such as 90.
    ///
    /// # Errors
    /// If the library does not report them.
    pub fn architectures(&self) -> Result<Vec<i32>, CompileError> {
        type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
        let (count, list) = (
            self.symbol::<Count>(c"nvrtcGetNumSupportedArchs")?,
            self.symbol::<Count>(c"nvrtcGetSupportedArchs")?,
        );
        let mut number = 0;
        // SAFETY: the pointer is valid for the call.
        self.check("", unsafe { count(&raw mut number) }, String::new())?;
        let mut found = vec![0; usize::try_from(number).unwrap_or(0)];
        // SAFETY: the array has as many elements as the library said that it writes.
        self.check("", unsafe { list(found.as_mut_ptr()) }, String::new())?;
        Ok(found)
    }

    /// Compiles `text`, the source of `kernel`, for `architecture` (`sm_90a`).
    pub(super) fn compile(
        &self,
        kernel: &str,
        text: &str,
        architecture: &str,
    ) -> Result<Compiled, CompileError> {
        self.check_architecture(architecture)?;
        let nul = |_| CompileError::Nvrtc {
            kernel: kernel.to_owned(),
            code: "NUL in source".to_owned(),
            log: String::new(),
        };
        let source = CString::new(text).map_err(nul)?;
        let mut options = vec![format!("--gpu-architecture={architecture}")];
        options.extend(self.options().into_iter().map(str::to_owned));
        options.extend(self.include.iter().map(|f| format!("--include-path={}", f.display())));
        let options: Vec<CString> =
            options.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(nul)?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();

        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let create = self.symbol::<Create>(c"nvrtcCreateProgram")?;
        let compile = self.symbol::<Compile>(c"nvrtcCompileProgram")?;
        let destroy = self.symbol::<Destroy>(c"nvrtcDestroyProgram")?;
        let mut program: Program = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: strings are NUL-terminated and outlive the call; no headers are passed.
        let code = unsafe {
            create(&raw mut program, source.as_ptr(), c"kernel.cu".as_ptr(), 0, none, none)
        };
        self.check(kernel, code, String::new())?;
        let count = c_int::try_from(pointers.len()).unwrap_or(0);
        // SAFETY: the program was created above; `pointers` has `count` NUL-terminated strings.
        let code = unsafe { compile(program, count, pointers.as_ptr()) };
        let result = self
            .output(kernel, program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")
            .and_then(|log| {
                let log = text_of(&log);
                self.check(kernel, code, log.clone())?;
                let ptx =
                    text_of(&self.output(kernel, program, c"nvrtcGetPTXSize", c"nvrtcGetPTX")?);
                let cubin = self.output(kernel, program, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?;
                Ok(Compiled { cubin, ptx, log })
            });
        // SAFETY: the program was created above and is not used again.
        let destroyed = unsafe { destroy(&raw mut program) };
        let compiled = result?;
        self.check(kernel, destroyed, String::new())?;
        Ok(compiled)
    }

    fn check_architecture(&self, architecture: &str) -> Result<(), CompileError> {
        let found = self.architectures()?;
        let number = architecture.strip_prefix("sm_").map(|n| n.trim_end_matches(['a', 'f']));
        let known = number.and_then(|n| n.parse().ok()).is_some_and(|n: i32| found.contains(&n));
        if known {
            return Ok(());
        }
        let supported: Vec<_> = found.iter().map(|n| format!("sm_{n}")).collect();
        Err(CompileError::Architecture {
            architecture: architecture.to_owned(),
            version: self.version(),
            supported: supported.join(", "),
        })
    }

    /// The output of a pair of functions nvrtcGet…Size and nvrtcGet….
    fn output(
        &self,
        kernel: &str,
        program: Program,
        size: &CStr,
        get: &CStr,
    ) -> Result<Vec<u8>, CompileError> {
        let size = self.symbol::<unsafe extern "C" fn(Program, *mut usize) -> c_int>(size)?;
        let get = self.symbol::<unsafe extern "C" fn(Program, *mut u8) -> c_int>(get)?;
        let mut bytes = 0;
        // SAFETY: the program lives until the caller destroys it; the pointer is valid for the
        // call.
        self.check(kernel, unsafe { size(program, &raw mut bytes) }, String::new())?;
        let mut output = vec![0; bytes];
        // SAFETY: the buffer has the size that the library asked for.
        self.check(kernel, unsafe { get(program, output.as_mut_ptr()) }, String::new())?;
        Ok(output)
    }

    fn symbol<T: Copy>(&self, name: &CStr) -> Result<T, CompileError> {
        // SAFETY: every caller passes the function type that nvrtc.h declares for the name.
        let symbol = unsafe { self.library.get::<T>(name) };
        symbol
            .map(|s| *s)
            .map_err(|_| format!("it has no {}", name.to_string_lossy()))
            .map_err(|message| NVRTC.unusable(&self.path, message).into())
    }

    fn check(&self, kernel: &str, code: c_int, log: String) -> Result<(), CompileError> {
        if code == 0 {
            return Ok(());
        }
        let name =
            self.symbol::<unsafe extern "C" fn(c_int) -> *const c_char>(c"nvrtcGetErrorString")?;
        // SAFETY: the function returns a static NUL-terminated string for any code.
        let name = unsafe { CStr::from_ptr(name(code)) }.to_string_lossy().into_owned();
        Err(CompileError::Nvrtc { kernel: kernel.to_owned(), code: name, log })
    }
}

/// Loads every `libnvrtc-builtins.so.*` in the folder of NVRTC.
fn open_builtins(nvrtc: &Path) -> Result<Vec<Library>, LibraryError> {
    let entries = nvrtc.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let mut files: Vec<PathBuf> =
        entries.into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"libnvrtc-builtins.so.")
    });
    files.sort();
    files.iter().filter_map(|file| NVRTC.open(file).transpose()).collect()
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}
