//! What ranks do together. The closed list of data planes: one process, one that stands in for a rank, or MPI between
//! processes.
//!
//! Every rank issues the same calls in the same order. Sums are the same bits on every rank, and the same bits again when the
//! run is repeated with as many ranks.

#[cfg(feature = "mpi")]
mod mpi;
mod solo;
mod stand_in;

use std::ops::Range;

use vljepa_kernels::{Device, Stream, View, ViewMut, copy};

#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
pub use self::solo::Solo;
pub use self::stand_in::StandIn;
use crate::error::WorkerError;

/// Which rows of a global batch each rank owns: rank r of R owns rows ⌊rB/R⌋ to ⌊(r+1)B/R⌋ of B, so that any number of ranks
/// serves any batch (DESIGN §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Rows of the global batch.
    pub global: usize,
    /// Ranks.
    pub world_size: usize,
}

impl Shares {
    /// Rows of one rank.
    ///
    /// ```
    /// let shares = vljepa_worker::collectives::Shares { global: 8, world_size: 3 };
    /// assert_eq!([0, 1, 2].map(|rank| shares.rows(rank)), [0..2, 2..5, 5..8]);
    /// ```
    #[must_use]
    pub fn rows(self, rank: usize) -> Range<usize> {
        rank * self.global / self.world_size..(rank + 1) * self.global / self.world_size
    }
}

/// The data plane of a run.
#[derive(Debug)]
pub enum Collectives {
    /// One process: nothing to exchange.
    Solo(Solo),
    /// One process in the place of a rank, for benchmarks.
    StandIn(StandIn),
    /// Several processes on CPUs.
    #[cfg(feature = "mpi")]
    Mpi(Mpi),
}

impl Collectives {
    /// Joins the data plane that this process was started into: MPI when `mpirun` or `srun` started it, else a single process.
    ///
    /// # Errors
    /// When it was started as one of several ranks but the build lacks feature `mpi`, or MPI cannot be initialised.
    pub fn join(started_by_mpi: bool) -> Result<Self, WorkerError> {
        #[cfg(feature = "mpi")]
        {
            if started_by_mpi {
                return Ok(Self::Mpi(Mpi::join()?));
            }
            Ok(Self::Solo(Solo))
        }
        #[cfg(not(feature = "mpi"))]
        {
            if started_by_mpi {
                return Err(WorkerError::Build { feature: "mpi", needed_for: "several ranks" });
            }
            Ok(Self::Solo(Solo))
        }
    }

    /// This process's rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        match self {
            Self::Solo(_) | Self::StandIn(_) => 0,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.rank(),
        }
    }

    /// Number of ranks.
    #[must_use]
    pub fn world_size(&self) -> usize {
        match self {
            Self::Solo(_) => 1,
            Self::StandIn(stand_in) => stand_in.world_size,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.world_size(),
        }
    }

    /// The rows of all ranks, in rank order: `local` is this rank's share `(rows, …)`, `out` is `(global, …)`, both f32 or
    /// both bf16.
    ///
    /// # Errors
    /// When the tensors are not of one of these types and this device.
    ///
    /// # Panics
    /// When `local` is not this rank's share or `out` not the whole: a bug, on every rank.
    pub fn all_gather_rows(
        &self,
        stream: &Stream,
        local: View<'_>,
        shares: Shares,
        out: ViewMut<'_>,
    ) -> Result<(), WorkerError> {
        let width = out.len() / shares.global.max(1);
        assert_eq!(local.len(), shares.rows(self.rank()).len() * width, "local share of a gather");
        match self {
            Self::Solo(_) => copy::copy(stream, local, out)?,
            Self::StandIn(stand_in) => stand_in.all_gather_rows(stream, local, shares, out)?,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => {
                let mut all = vec![0.0f32; out.len()];
                mpi.all_gather(&local.to_f32()?, shares, width, &mut all);
                copy::cast(stream, View::from_f32(&all, &[all.len()]), out)?;
            }
        }
        Ok(())
    }

    /// The hashes of all ranks' rows, in rank order.
    ///
    /// # Panics
    /// When `local` is not this rank's share: a bug, on every rank.
    #[must_use]
    pub fn all_gather_hashes(&self, local: &[u64], shares: Shares) -> Vec<u64> {
        assert_eq!(local.len(), shares.rows(self.rank()).len(), "local share of a gather");
        match self {
            Self::Solo(_) => local.to_vec(),
            Self::StandIn(stand_in) => stand_in.all_gather_hashes(local, shares),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => {
                let mut out = vec![0; shares.global];
                mpi.all_gather(local, shares, 1, &mut out);
                out
            }
        }
    }

    /// Sum over ranks, in place: gradients.
    ///
    /// # Errors
    /// When the tensor is not f32 of this device.
    pub fn all_reduce_sum(&self, stream: &Stream, values: ViewMut<'_>) -> Result<(), WorkerError> {
        match self {
            Self::Solo(_) | Self::StandIn(_) => {}
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => match values.as_view().device() {
                Device::Host => {
                    mpi.all_reduce_sum(values.host_f32_mut("all_reduce_sum", "values")?);
                }
                #[cfg(feature = "cuda")]
                Device::Cuda(_) => {
                    let mut sums = values.as_view().to_f32()?.into_owned();
                    mpi.all_reduce_sum(&mut sums);
                    copy::copy(stream, View::from_f32(&sums, &[sums.len()]), values)?;
                }
            },
        }
        Ok(())
    }

    /// This rank's rows of the sum of all ranks' `values` (global, …), into `out` (rows, …): f32.
    ///
    /// # Errors
    /// When the tensors are not f32 of this device.
    ///
    /// # Panics
    /// When `values` is not the whole or `out` not this rank's share: a bug, on every rank.
    pub fn reduce_scatter_sum(
        &self,
        stream: &Stream,
        values: View<'_>,
        shares: Shares,
        out: ViewMut<'_>,
    ) -> Result<(), WorkerError> {
        let width = values.len() / shares.global.max(1);
        let rows = shares.rows(self.rank());
        assert_eq!(out.len(), rows.len() * width, "own share of a sum");
        match self {
            Self::Solo(_) | Self::StandIn(_) => {
                copy::copy(stream, values.part(rows.start * width, &[out.len()]), out)?;
            }
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => {
                let mut own = vec![0.0f32; out.len()];
                mpi.reduce_scatter_sum(&values.to_f32()?, shares, width, &mut own);
                copy::copy(stream, View::from_f32(&own, &[own.len()]), out)?;
            }
        }
        Ok(())
    }

    /// Sum over ranks of a few numbers: loss shares, flags, counters.
    #[must_use]
    pub fn sum<const N: usize>(&self, values: [f64; N]) -> [f64; N] {
        match self {
            Self::Solo(_) | Self::StandIn(_) => values,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.sum(values),
        }
    }

    /// What rank 0 says, on every rank.
    #[must_use]
    pub fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Solo(_) | Self::StandIn(_) => bytes,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.broadcast(bytes),
        }
    }

    /// What each rank says, in rank order, on every rank.
    #[must_use]
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        match self {
            Self::Solo(_) => vec![bytes.to_vec()],
            Self::StandIn(stand_in) => vec![bytes.to_vec(); stand_in.world_size],
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.all_gather_bytes(bytes),
        }
    }

    /// Ends this process and, through the data plane, every other rank. Returning from `main` would finalize MPI and leave the
    /// others waiting in their next collective.
    pub fn abort(&self) -> ! {
        match self {
            Self::Solo(_) | Self::StandIn(_) => std::process::abort(),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.abort(),
        }
    }
}
