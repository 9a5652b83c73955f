//! The error type of this crate: an operation was given arguments it cannot compute, or a device
//! failed.

/// The reason why an operation or a device refused a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// An argument of an operation has a shape that does not fit the other arguments.
    #[error("{operation}: {what} has shape {found}, needs {needed}")]
    Shape {
        /// Name of the operation, such as `attention::forward`.
        operation: &'static str,
        /// Name of the argument at fault, such as `q`.
        what: &'static str,
        /// Shape of the argument, such as `[2, 3]`.
        found: String,
        /// Shape that the operation needs.
        needed: String,
    },
    /// The elements of an argument have another type than the operation computes in.
    #[error("{operation}: {what} holds {found}, needs {needed}")]
    DType {
        /// Name of the operation, such as `attention::forward`.
        operation: &'static str,
        /// Name of the argument at fault.
        what: &'static str,
        /// Element type of the argument.
        found: &'static str,
        /// Element type that the operation needs.
        needed: &'static str,
    },
    /// A value lies outside the range that the operation supports.
    #[error("{operation}: {what} is {found}; {needed}")]
    Value {
        /// Name of the operation, such as `attention::forward`.
        operation: &'static str,
        /// Name of the argument at fault.
        what: &'static str,
        /// Value of the argument.
        found: String,
        /// Values that the operation supports.
        needed: String,
    },
    /// An argument and the stream belong to different devices.
    #[error("{operation}: {what} is not on the device of the stream")]
    Device {
        /// Name of the operation, such as `attention::forward`.
        operation: &'static str,
        /// Name of the argument at fault.
        what: &'static str,
    },
    /// A request exceeds the memory budget of an arena or of a recording GPU.
    #[error(
        "out of {device} memory: the budget of {budget} bytes is exceeded by {wanted} bytes; \
         lower `micro_batch`, or let backward recompute more (`recompute: block`)"
    )]
    OutOfMemory {
        /// Name of the device, as [`Device::name`](crate::Device::name) gives it.
        device: &'static str,
        /// Bytes by which the request exceeds the budget.
        wanted: usize,
        /// Bytes of the budget.
        budget: usize,
    },
    /// The operating system gives the process no more memory.
    #[error("the machine has no {wanted} bytes of memory left for a tensor")]
    HostMemory {
        /// Bytes of the tensor.
        wanted: usize,
    },
    /// A library of NVIDIA is missing or unusable.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Library(crate::library::LibraryError),
    /// The GPU, its driver or a library of NVIDIA refused a call.
    #[error("{call}: {message}; {hint}")]
    Cuda {
        /// Name of the call, such as `cuLaunchKernel`.
        call: &'static str,
        /// Message or error code that the call returned.
        message: String,
        /// Advice to the user.
        hint: &'static str,
    },
}

/// Result of an operation on tensors, with [`KernelError`] as its error.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;
