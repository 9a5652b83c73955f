//! The one error type of this crate: an operation was given what it cannot compute, or a device failed.

/// What an operation or a device can refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Shapes of the arguments of one operation do not fit together.
    #[error("{operation}: {what} has shape {found}, needs {needed}")]
    Shape {
        /// The operation, such as `attention::forward`.
        operation: &'static str,
        /// The argument at fault.
        what: &'static str,
        /// Its shape.
        found: String,
        /// The shape it should have.
        needed: String,
    },
    /// An argument holds elements of another type than the operation computes in.
    #[error("{operation}: {what} holds {found}, needs {needed}")]
    DType {
        /// The operation.
        operation: &'static str,
        /// The argument at fault.
        what: &'static str,
        /// Its element type.
        found: &'static str,
        /// The element type it should have.
        needed: &'static str,
    },
    /// A value is outside of what the operation supports.
    #[error("{operation}: {what} is {found}; {needed}")]
    Value {
        /// The operation.
        operation: &'static str,
        /// The argument at fault.
        what: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        needed: String,
    },
    /// The arguments live on different devices.
    #[error("{operation}: {what} lives on another device than the stream")]
    Device {
        /// The operation.
        operation: &'static str,
        /// The argument at fault.
        what: &'static str,
    },
    /// The budget of an arena, or of a recording device, is spent.
    #[error(
        "out of {device} memory: {wanted} bytes more than the {budget} bytes there are; \
         lower `micro_batch`, or let backward recompute more (`recompute: block`)"
    )]
    OutOfMemory {
        /// The device's name.
        device: &'static str,
        /// Bytes asked for.
        wanted: usize,
        /// Bytes there are.
        budget: usize,
    },
    /// A library that a GPU needs is missing or unusable.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Library(crate::library::LibraryError),
    /// The GPU, its driver or one of its libraries refused a call.
    #[error("{call}: {message}; {hint}")]
    Cuda {
        /// The call.
        call: &'static str,
        /// What came back.
        message: String,
        /// What to do.
        hint: &'static str,
    },
}

/// Result of an operation on tensors.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;
