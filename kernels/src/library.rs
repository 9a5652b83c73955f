//! Loads NVIDIA's libraries at run time: the search for their files, and the errors if a library is
//! missing.
//!
//! If the user names a path, only that path is tried. Otherwise the search order is: the loader's
//! own search (`LD_LIBRARY_PATH`, `ld.so.conf`), NVIDIA's wheels among the Python packages (where
//! PyTorch installs them), a CUDA toolkit. A file that exists but does not load is an error; the
//! search does not continue with another file.

#![expect(unsafe_code, reason = "loads C libraries")]

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

/// Folder of the libraries of a CUDA toolkit.
const TOOLKIT: &str = "/usr/local/cuda/lib64";

/// Names and locations of a library of NVIDIA.
#[derive(Debug)]
pub struct Wanted {
    /// Name of the library in messages, such as `cuBLASLt`.
    pub name: &'static str,
    /// File names, in order of preference.
    pub files: &'static [&'static str],
    /// Folders of NVIDIA's wheels that contain the library, relative to a folder of Python
    /// packages.
    pub wheels: &'static [&'static str],
    /// Advice at the end of every error message: how to install the library, and the variable that
    /// names its file.
    pub install: &'static str,
}

/// A library was not found, or a file is not a usable library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// No file with one of the names exists.
    #[error("{name} was not found (tried {tried}); {install}")]
    Missing {
        /// Name of the library, such as `cuBLASLt`.
        name: &'static str,
        /// File names and paths that were tried, separated by commas.
        tried: String,
        /// Advice on how to install the library.
        install: &'static str,
    },
    /// A file exists, but it does not load or lacks a function.
    #[error("{} is not a usable {name}: {message}; {install}", path.display())]
    Unusable {
        /// Name of the library, such as `cuBLASLt`.
        name: &'static str,
        /// Path of the file that does not work.
        path: PathBuf,
        /// Message of the loader, or the missing function.
        message: String,
        /// Advice on how to install a usable library.
        install: &'static str,
    },
}

/// Settings of the environment for NVIDIA's libraries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Libraries {
    /// Path of NVRTC (`VLJEPA_NVRTC`).
    pub nvrtc: Option<PathBuf>,
    /// Folder of `cuda_bf16.h` (`VLJEPA_CUDA_INCLUDE`).
    pub include: Option<PathBuf>,
    /// Path of cuBLASLt (`VLJEPA_CUBLASLT`).
    pub cublaslt: Option<PathBuf>,
    /// Path of NCCL (`VLJEPA_NCCL`).
    pub nccl: Option<PathBuf>,
    /// Folders of Python packages (`site-packages`) that contain wheels of NVIDIA.
    pub packages: Vec<PathBuf>,
    /// Folders of libraries of CUDA toolkits that the environment names.
    pub toolkits: Vec<PathBuf>,
    /// Folder of the libraries of the active Conda environment.
    pub conda: Option<PathBuf>,
}

impl Libraries {
    /// Reads the environment through `variable`, and searches for Python packages in the active
    /// virtual environment, beside every `python3` on `PATH`, in the user's home and in
    /// `/usr/local`. Modules of a cluster name their toolkit in `CUDA_HOME` or `CUDA_PATH`; Conda's
    /// own packages have their libraries in the environment's `lib`.
    #[must_use]
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut prefixes: Vec<PathBuf> =
            ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(path).collect();
        let programs = variable("PATH").unwrap_or_default();
        for python in std::env::split_paths(&programs).map(|folder| folder.join("python3")) {
            if let Ok(file) = python.canonicalize() {
                let prefix = |program: &Path| Some(program.parent()?.parent()?.to_owned());
                prefixes.extend([prefix(&python), prefix(&file)].into_iter().flatten());
            }
        }
        prefixes.extend(path("HOME").map(|home| home.join(".local")));
        prefixes.push("/usr/local".into());
        let mut packages = Vec::new();
        for folder in prefixes.iter().flat_map(|prefix| python_packages(prefix)) {
            if !packages.contains(&folder) {
                packages.push(folder);
            }
        }
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(path);
        Self {
            toolkits: toolkits.map(|toolkit| toolkit.join("lib64")).collect(),
            conda: path("CONDA_PREFIX").map(|prefix| prefix.join("lib")),
            nvrtc: path("VLJEPA_NVRTC"),
            include: path("VLJEPA_CUDA_INCLUDE"),
            cublaslt: path("VLJEPA_CUBLASLT"),
            nccl: path("VLJEPA_NCCL"),
            packages,
        }
    }
}

/// Folders `lib/python3*/{site,dist}-packages` of `prefix` in which NVIDIA's wheels are installed.
fn python_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir(prefix.join("lib"))
        .map_or_else(|_| Vec::new(), |entries| entries.flatten().map(|e| e.path()).collect());
    versions.retain(|path| {
        path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"python3"))
    });
    versions.sort();
    let both = |version: PathBuf| ["site-packages", "dist-packages"].map(|name| version.join(name));
    versions.into_iter().flat_map(both).filter(|folder| folder.join("nvidia").is_dir()).collect()
}

impl Wanted {
    /// Loads the library from `path` if it is `Some`, otherwise from the first candidate that
    /// exists. Returns the library and its file.
    ///
    /// # Errors
    /// [`LibraryError::Missing`] with every name and path that was tried, or
    /// [`LibraryError::Unusable`] for a file that does not load.
    pub fn load(
        &self,
        path: Option<&Path>,
        libraries: &Libraries,
    ) -> Result<(Library, PathBuf), LibraryError> {
        let candidates = path.map_or_else(|| self.candidates(libraries), |path| vec![path.into()]);
        for file in &candidates {
            if let Some(library) = self.open(file)? {
                let found = if is_bare(file) { mapped(file) } else { None };
                return Ok((library, found.unwrap_or_else(|| file.clone())));
            }
        }
        let tried: Vec<_> = candidates.iter().map(|file| file.display().to_string()).collect();
        let Self { name, install, .. } = *self;
        Err(LibraryError::Missing { name, tried: tried.join(", "), install })
    }

    /// Names for the loader's own search, then files of wheels, of toolkits, and of Conda.
    fn candidates(&self, libraries: &Libraries) -> Vec<PathBuf> {
        let packages = libraries.packages.iter();
        let wheels = packages.flat_map(|folder| self.wheels.iter().map(|w| folder.join(w)));
        let toolkits = libraries.toolkits.iter().cloned().chain([PathBuf::from(TOOLKIT)]);
        let folders = wheels.chain(toolkits).chain(libraries.conda.clone());
        let files = folders.flat_map(|folder| self.files.iter().map(move |file| folder.join(file)));
        self.files.iter().map(PathBuf::from).chain(files).collect()
    }

    /// Loads `file`, or returns `None` if it does not exist.
    pub(crate) fn open(&self, file: &Path) -> Result<Option<Library>, LibraryError> {
        if !is_bare(file) && !file.is_file() {
            return Ok(None);
        }
        // SAFETY: the initialisers of NVIDIA's libraries only set up the library itself.
        let error = match unsafe { Library::new(file) } {
            Ok(library) => return Ok(Some(library)),
            Err(error) => error.source().map_or_else(|| error.to_string(), ToString::to_string),
        };
        // The loader's message names the missing file: `file` itself, or another library that
        // `file` needs.
        let absent = format!("{}: cannot open shared object file", file.display());
        if is_bare(file) && error.starts_with(&absent) {
            return Ok(None);
        }
        Err(self.unusable(file, error))
    }

    /// The error for a file that exists but is not a usable library.
    #[must_use]
    pub fn unusable(&self, path: &Path, message: String) -> LibraryError {
        let Self { name, install, .. } = *self;
        LibraryError::Unusable { name, path: path.to_owned(), message, install }
    }
}

/// Whether `file` is a bare name, which the loader searches for itself.
fn is_bare(file: &Path) -> bool {
    file.components().count() == 1 && !file.is_absolute()
}

/// Path of the library that the loader found under a bare name, from its mapping in this process.
fn mapped(name: &Path) -> Option<PathBuf> {
    let name = name.to_str()?;
    let stem = &name[..name.find(".so")? + ".so".len()];
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut files = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let found = files.find(|file| {
        file.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(stem.as_bytes()))
    });
    found.map(Path::to_owned)
}

#[cfg(test)]
mod tests;
