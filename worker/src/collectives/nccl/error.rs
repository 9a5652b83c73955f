//! What can go wrong with NCCL, and what to do.

/// An error of NCCL or of finding it.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// The library is missing, or a file is not a usable NCCL.
    #[error(transparent)]
    Library(#[from] vljepa_kernels::library::LibraryError),
    /// A call failed.
    #[error("{call}: {name} ({code}): {last}; {hint}")]
    Call {
        /// The function.
        call: &'static str,
        /// `ncclResult_t`.
        code: i32,
        /// What NCCL calls the code.
        name: String,
        /// What `ncclGetLastError` says.
        last: String,
        /// What to do.
        hint: &'static str,
    },
    /// A call did not come to an end.
    #[error("{call} is not done after {seconds:.0} s: {hint}")]
    TimeOut {
        /// The function, or the collective.
        call: String,
        /// How long was waited.
        seconds: f64,
        /// What to do.
        hint: &'static str,
    },
    /// An earlier error ended the communicator.
    #[error("{call}: the communicator was given up after an earlier error, which the log names")]
    GivenUp {
        /// The function.
        call: &'static str,
    },
    /// The text that should be an id is none.
    #[error("the supervisor handed out an NCCL id that is none: {found}")]
    Id {
        /// What it is.
        found: String,
    },
    /// A tensor that does not lie on this rank's GPU.
    #[error("{operation}: `{what}` lies in host memory, NCCL needs it on the GPU")]
    Host {
        /// Which collective.
        operation: &'static str,
        /// Which tensor.
        what: &'static str,
    },
}

/// What to do about an `ncclResult_t`.
pub(super) fn hint(code: i32) -> &'static str {
    match code {
        1 => {
            "a CUDA call inside NCCL failed: see nvidia-smi and the driver; NCCL_DEBUG=INFO says more"
        }
        2 => {
            "a call of the system failed: check the network (NCCL_SOCKET_IFNAME) and the size of /dev/shm; NCCL_DEBUG=INFO says more"
        }
        4 => "ranks may differ in what they call: compare the last collectives in their logs",
        5 => {
            "two ranks may share a GPU (each needs its own: one task per GPU, or fewer `cluster.ranks_per_node`), or differ in what they call"
        }
        6 => "another rank or its host is gone: its log says why",
        _ => "NCCL_DEBUG=INFO says more",
    }
}
