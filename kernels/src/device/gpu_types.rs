//! Plain types of the GPU backend, which builds with and without the feature `cuda` share.

/// A range of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    /// Address of the first byte.
    pub address: u64,
    /// Length of the range in bytes.
    pub bytes: usize,
}

/// The streams of a device. Each executes its operations in order. Operations of different streams
/// are ordered only by [`wait_for`](super::cuda::CudaStream::wait_for).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Kernels and products of the step.
    Compute,
    /// Batches on their way to the device, and snapshots on their way to the host.
    Copy,
    /// Collectives between the ranks.
    Communicate,
}

impl Lane {
    /// All lanes, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Compute, Self::Copy, Self::Communicate];
}

/// One kernel, product or copy in a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Name of the kernel. For a product, its sizes: rows × columns × inner.
    pub name: String,
    /// The stream that executed it.
    pub lane: Lane,
    /// Start, in milliseconds since the start of the trace.
    pub start_ms: f64,
    /// Duration of the work in milliseconds.
    pub duration_ms: f64,
}
