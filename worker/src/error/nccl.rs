//! Errors of NCCL, with hints for the user.

/// An error of an NCCL call, or of finding the library.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// The library is missing, or the file is not a usable NCCL.
    #[error(transparent)]
    Library(#[from] vljepa_kernels::library::LibraryError),
    /// An NCCL function returned an error code.
    #[error("{call}: {name} ({code}): {last}; {hint}")]
    Call {
        /// Name of the function that failed.
        call: &'static str,
        /// Error code, an `ncclResult_t`.
        code: i32,
        /// Text of the code, from `ncclGetErrorString`.
        name: String,
        /// Details of the last error, from `ncclGetLastError`.
        last: String,
        /// Advice for the user.
        hint: &'static str,
    },
    /// A call or a collective did not complete before its timeout.
    #[error("{call} is not done after {seconds:.0} s; {hint}")]
    TimeOut {
        /// Name of the function or number of the collective.
        call: String,
        /// Time since the call, in seconds.
        seconds: f64,
        /// Advice for the user.
        hint: &'static str,
    },
    /// The communicator was aborted after an earlier error.
    #[error("{call}: the communicator was aborted after an earlier error; see the log")]
    GivenUp {
        /// Name of the function that was called.
        call: &'static str,
    },
    /// The supervisor sent a text that is not an NCCL id.
    #[error("the supervisor sent an invalid NCCL id: {found}")]
    Id {
        /// Text that the supervisor sent.
        found: String,
    },
    /// A tensor does not lie on this rank's GPU.
    #[error("{operation}: `{what}` lies in host memory, but NCCL needs it on the GPU")]
    Host {
        /// Name of the collective that was called.
        operation: &'static str,
        /// Name of the tensor argument.
        what: &'static str,
    },
}

/// Returns advice for the user about an `ncclResult_t`.
pub(crate) fn hint(code: i32) -> &'static str {
    match code {
        1 => {
            "a CUDA call inside NCCL failed: check nvidia-smi and the driver; NCCL_DEBUG=INFO \
             prints details"
        }
        2 => {
            "a system call failed: check the network (NCCL_SOCKET_IFNAME), the size of /dev/shm \
             and, with InfiniBand, the limit on locked memory (`ulimit -l`); NCCL_DEBUG=INFO prints \
             details"
        }
        4 => "ranks may call different collectives: compare the last collectives in their logs",
        5 => {
            "two ranks may share a GPU (each needs its own: start one task per GPU, or lower \
             `cluster.ranks_per_node`) or call different collectives"
        }
        6 => "another rank or its host is gone: see the log of that rank",
        _ => "NCCL_DEBUG=INFO prints details",
    }
}
