//! Errors on the way from a kernel to its cubin.

use std::path::PathBuf;

/// The reason why a kernel could not be emitted, compiled or cached.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// CubeCL did not accept a kernel.
    #[error("kernel {kernel}: CubeCL cannot emit it: {message}")]
    Emit {
        /// Name of the kernel.
        kernel: String,
        /// Error message of CubeCL.
        message: String,
    },
    /// NVRTC is missing, or a file is not a usable NVRTC.
    #[error(transparent)]
    Library(#[from] crate::library::LibraryError),
    /// The CUDA headers were not found.
    #[error(
        "the CUDA headers were not found (looked for cuda_bf16.h in {tried}); install them with \
         `pip install nvidia-cuda-runtime-cu12` (CUDA 13: `nvidia-cuda-runtime`) and set \
         VLJEPA_CUDA_INCLUDE to the folder that holds cuda_bf16.h"
    )]
    NoHeaders {
        /// Folders that were tried, separated by commas.
        tried: String,
    },
    /// NVRTC does not support the architecture.
    #[error("NVRTC {version} cannot compile for {architecture}; it supports {supported}")]
    Architecture {
        /// Architecture that was requested, such as `sm_90a`.
        architecture: String,
        /// Version of NVRTC, such as `12.9`.
        version: String,
        /// Architectures that NVRTC supports, separated by commas.
        supported: String,
    },
    /// NVRTC refused the source of a kernel.
    #[error("kernel {kernel}: NVRTC error {code}:\n{log}")]
    Nvrtc {
        /// Name of the kernel; empty if the call concerns no kernel.
        kernel: String,
        /// Name of NVRTC's error code.
        code: String,
        /// Compilation log of NVRTC; may be empty.
        log: String,
    },
    /// The compiled code or its log could not be read.
    #[error("kernel {kernel}: the cubin cannot be read: {message}")]
    Cubin {
        /// Name of the kernel.
        kernel: String,
        /// Description of the defect.
        message: String,
    },
    /// A file of the cache cannot be read or written.
    #[error("kernel cache: {}: {cause}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        cause: std::io::Error,
    },
}
