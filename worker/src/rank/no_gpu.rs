//! GPUs in a build without the feature `cuda`: nothing can be opened.

use vljepa_kernels::device::cuda::Cuda;
use vljepa_recipes::protocol::LibraryReport;
use vljepa_recipes::{RankId, Recipe};

use crate::collectives::nccl::Nccl;
use crate::error::WorkerError;
use crate::rank::control::Control;

/// Opens the GPU of a rank, which this build cannot do.
///
/// # Errors
/// Fails always, with [`WorkerError::NoCuda`].
pub(crate) fn open(_: bool, _: usize) -> anyhow::Result<&'static Cuda> {
    Err(WorkerError::NoCuda.into())
}

/// Describes the GPUs of this machine, which this build cannot do.
///
/// # Errors
/// Fails always, with [`WorkerError::NoCuda`].
pub(crate) fn examine(_: bool, _: usize) -> anyhow::Result<String> {
    Err(WorkerError::NoCuda.into())
}

/// NVIDIA's libraries, of which this build uses none.
pub(crate) fn libraries() -> Vec<LibraryReport> {
    Vec::new()
}

/// Joins NCCL, which this build cannot do.
///
/// # Errors
/// Fails always, with [`WorkerError::NoCuda`].
pub(crate) fn join(
    _: &Recipe,
    _: bool,
    _: &'static Cuda,
    _: RankId,
    _: &Control,
) -> anyhow::Result<Nccl> {
    Err(WorkerError::NoCuda.into())
}
