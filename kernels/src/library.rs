//! NVIDIA's libraries, loaded at run time: where they are looked for, and what a message says when
//! one is missing.
//!
//! A path that the user names is the only one tried. Otherwise the loader's own search
//! (`LD_LIBRARY_PATH`, `ld.so.conf`) comes first, then the wheels beside Python's packages, where
//! PyTorch installs them, then a CUDA toolkit. A file that exists but does not load is an error: it
//! is never passed over for another one.

#![expect(unsafe_code, reason = "loads C libraries")]

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

/// Folder of a CUDA toolkit's libraries.
const TOOLKIT: &str = "/usr/local/cuda/lib64";

/// How one of NVIDIA's libraries is found.
#[derive(Debug)]
pub struct Wanted {
    /// The library's name in messages, such as `cuBLASLt`.
    pub name: &'static str,
    /// File names, the preferred one first.
    pub files: &'static [&'static str],
    /// Folders of NVIDIA's wheels that hold the library, relative to a folder of Python packages.
    pub wheels: &'static [&'static str],
    /// The end of every error message: how to install the library, and which variable names its
    /// file.
    pub install: &'static str,
}

/// A library that was not found, or a file that is not that library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// No file of the wanted names exists.
    #[error("{name} was not found (tried {tried}); {install}")]
    Missing {
        /// Name of the library, such as `cuBLASLt`.
        name: &'static str,
        /// File names and paths that were tried.
        tried: String,
        /// How to install it.
        install: &'static str,
    },
    /// A file exists but does not load, or lacks a function.
    #[error("{} is not a usable {name}: {message}; {install}", path.display())]
    Unusable {
        /// Name of the library, such as `cuBLASLt`.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// The loader's message, or the missing function.
        message: String,
        /// How to install a usable one.
        install: &'static str,
    },
}

/// What the environment says about NVIDIA's libraries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Libraries {
    /// `VLJEPA_NVRTC`: the file of NVRTC.
    pub nvrtc: Option<PathBuf>,
    /// `VLJEPA_CUDA_INCLUDE`: the folder of `cuda_bf16.h`.
    pub include: Option<PathBuf>,
    /// `VLJEPA_CUBLASLT`: the file of cuBLASLt.
    pub cublaslt: Option<PathBuf>,
    /// `VLJEPA_NCCL`: the file of NCCL.
    pub nccl: Option<PathBuf>,
    /// Folders of Python packages (`site-packages`) that hold wheels of NVIDIA.
    pub packages: Vec<PathBuf>,
}

impl Libraries {
    /// Reads the environment through `variable`, and looks for the Python packages of an active
    /// virtual environment, of the `python3` on `PATH`, of the user and of `/usr/local`.
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
        Self {
            nvrtc: path("VLJEPA_NVRTC"),
            include: path("VLJEPA_CUDA_INCLUDE"),
            cublaslt: path("VLJEPA_CUBLASLT"),
            nccl: path("VLJEPA_NCCL"),
            packages,
        }
    }
}

/// The folders `lib/python3*/{site,dist}-packages` of `prefix` in which NVIDIA's wheels are
/// installed.
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
    /// Loads the library from `path` if that is given, otherwise from the first place that has it,
    /// and returns its file.
    ///
    /// # Errors
    /// [`LibraryError::Missing`] with everything that was tried, or
    /// [`LibraryError::Unusable`] for a file that does not load.
    pub fn load(
        &self,
        path: Option<&Path>,
        packages: &[PathBuf],
    ) -> Result<(Library, PathBuf), LibraryError> {
        let candidates = path.map_or_else(|| self.candidates(packages), |path| vec![path.into()]);
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

    /// Names for the loader's own search, then files of wheels, then files of a toolkit.
    fn candidates(&self, packages: &[PathBuf]) -> Vec<PathBuf> {
        let wheels = packages.iter().flat_map(|folder| self.wheels.iter().map(|w| folder.join(w)));
        let folders = wheels.chain([PathBuf::from(TOOLKIT)]);
        let files = folders.flat_map(|folder| self.files.iter().map(move |file| folder.join(file)));
        self.files.iter().map(PathBuf::from).chain(files).collect()
    }

    /// Loads `file`; `None` if it does not exist.
    pub(crate) fn open(&self, file: &Path) -> Result<Option<Library>, LibraryError> {
        if !is_bare(file) && !file.is_file() {
            return Ok(None);
        }
        // SAFETY: the initialisers of NVIDIA's libraries only set up the library itself.
        let error = match unsafe { Library::new(file) } {
            Ok(library) => return Ok(Some(library)),
            Err(error) => error.source().map_or_else(|| error.to_string(), ToString::to_string),
        };
        // The loader names what it did not find: this file, or another one that this file needs.
        let absent = format!("{}: cannot open shared object file", file.display());
        if is_bare(file) && error.starts_with(&absent) {
            return Ok(None);
        }
        Err(self.unusable(file, error))
    }

    /// The error for a file that is not this library.
    #[must_use]
    pub fn unusable(&self, path: &Path, message: String) -> LibraryError {
        let Self { name, install, .. } = *self;
        LibraryError::Unusable { name, path: path.to_owned(), message, install }
    }
}

/// Whether the loader searches for `file` by itself.
fn is_bare(file: &Path) -> bool {
    file.components().count() == 1 && !file.is_absolute()
}

/// Where the loader found the library of a bare name: the path of its mapping in this process.
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
