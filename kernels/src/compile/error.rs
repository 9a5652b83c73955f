//! What can go wrong between a kernel and its cubin.

use std::path::PathBuf;

/// What emitting, compiling or caching a kernel can fail with.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// CubeCL did not accept a kernel.
    #[error("kernel {kernel}: CubeCL refuses it: {message}")]
    Emit {
        /// Its name.
        kernel: String,
        /// What CubeCL said.
        message: String,
    },
    /// NVRTC is missing, or a file is not NVRTC.
    #[error(transparent)]
    Library(#[from] crate::library::LibraryError),
    /// The CUDA headers were not found.
    #[error(
        "the CUDA headers were not found (looked for cuda_bf16.h in {tried}); install them with \
         `pip install nvidia-cuda-runtime-cu12` (CUDA 13: `nvidia-cuda-runtime`) and set VLJEPA_CUDA_INCLUDE to the folder that holds cuda_bf16.h"
    )]
    NoHeaders {
        /// Folders that were tried.
        tried: String,
    },
    /// NVRTC does not know the architecture.
    #[error("NVRTC {version} cannot compile for {architecture}; it supports {supported}")]
    Architecture {
        /// What was asked for.
        architecture: String,
        /// NVRTC's version.
        version: String,
        /// What it can do.
        supported: String,
    },
    /// NVRTC refused the source.
    #[error("kernel {kernel}: NVRTC error {code}:\n{log}")]
    Nvrtc {
        /// Its name.
        kernel: String,
        /// NVRTC's error.
        code: String,
        /// NVRTC's log.
        log: String,
    },
    /// A cubin is not one.
    #[error("kernel {kernel}: the cubin cannot be read: {message}")]
    Cubin {
        /// Its name.
        kernel: String,
        /// What is wrong.
        message: String,
    },
    /// A file of the cache cannot be read or written.
    #[error("kernel cache: {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
