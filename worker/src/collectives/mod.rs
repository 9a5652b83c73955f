//! Communication between the ranks of a run. [`Collectives`] is the closed list of backends: a
//! single process, a stand-in for one rank of many, MPI between processes on CPUs, and NCCL between
//! GPUs.
//!
//! Every rank must issue the same calls in the same order. Sums have the same bits on every rank,
//! and the same bits again if the run is repeated with the same number of ranks. A [`record`] keeps
//! the last calls for the logs.

mod buckets;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg_attr(not(feature = "cuda"), path = "no_nccl.rs")]
pub mod nccl;
pub mod record;
mod solo;
mod stand_in;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use vljepa_kernels::{Stream, View, ViewMut, copy};
use vljepa_recipes::RankId;

pub use self::buckets::GradientSum;
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
pub use self::nccl::Nccl;
use self::record::{Entry, Kind, Ticket};
pub use self::solo::Solo;
pub use self::stand_in::StandIn;
use crate::error::WorkerError;

/// Division of a global batch among ranks: rank r of R owns rows ⌊rB/R⌋ to ⌊(r+1)B/R⌋ of B, so any
/// number of ranks can share any batch (ARCHITECTURE.md, "InfoNCE over ranks").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Number of rows in the global batch.
    pub global: usize,
    /// Number of ranks that share the batch.
    pub world_size: usize,
}

impl Shares {
    /// Returns the rows that `rank` owns.
    ///
    /// ```
    /// let shares = vljepa_worker::collectives::Shares { global: 8, world_size: 3 };
    /// assert_eq!([0, 1, 2].map(|rank| shares.rows(rank)), [0..2, 2..5, 5..8]);
    /// ```
    #[must_use]
    pub fn rows(self, rank: usize) -> Range<usize> {
        RankId { rank, world_size: self.world_size }.rows(self.global)
    }
}

/// Communication backend of a run.
#[derive(Debug)]
pub enum Collectives {
    /// A single process: every collective is the identity.
    Solo(Solo),
    /// A single process that stands in for one rank of many, for benchmarks.
    StandIn(StandIn),
    /// Several processes on CPUs, connected by MPI.
    #[cfg(feature = "mpi")]
    Mpi(Mpi),
    /// Several processes with one GPU each, connected by NCCL.
    Nccl(Nccl),
}

fn begin(kind: Kind, bytes: usize) -> Ticket<'static> {
    record::of_process().begin(kind, bytes)
}

impl Collectives {
    /// Joins the collectives between CPU processes: MPI if `mpirun` or `srun` started this process,
    /// otherwise a single process.
    ///
    /// # Errors
    /// Fails if the process was started as one of several ranks but the build lacks feature `mpi`,
    /// or if MPI cannot be initialised.
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

    /// Returns the rank of this process and the number of ranks.
    #[must_use]
    pub fn rank_id(&self) -> RankId {
        RankId { rank: self.rank(), world_size: self.world_size() }
    }

    /// Returns the rank of this process, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        match self {
            Self::Solo(_) | Self::StandIn(_) => 0,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.rank(),
            Self::Nccl(nccl) => nccl.rank(),
        }
    }

    /// Returns the number of ranks in the run.
    #[must_use]
    pub fn world_size(&self) -> usize {
        match self {
            Self::Solo(_) => 1,
            Self::StandIn(stand_in) => stand_in.world_size,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.world_size(),
            Self::Nccl(nccl) => nccl.world_size(),
        }
    }

    /// Returns the number of the last collective that this rank has begun, counted from 1. All
    /// ranks have the same number when they are at the same point of the run.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence_handle().load(Ordering::Relaxed)
    }

    /// Returns the counter behind [`Self::sequence`], so that other threads can read it for
    /// heartbeats.
    #[must_use]
    pub fn sequence_handle(&self) -> &'static AtomicU64 {
        record::of_process().sequence()
    }

    /// Returns the last collectives of this rank, oldest first, with the progress of each.
    #[must_use]
    pub fn last(&self) -> Vec<Entry> {
        record::of_process().last()
    }

    /// Gathers the rows of all ranks, in rank order. `local` holds this rank's share `(rows, …)`
    /// and `out` becomes `(global, …)`; both are f32 or both bf16.
    ///
    /// # Errors
    /// Fails if a tensor has another dtype or lies on another device.
    ///
    /// # Panics
    /// Panics if `local` is not this rank's share or `out` does not hold all rows: a bug that all
    /// ranks have.
    pub fn all_gather_rows(
        &self,
        stream: &Stream,
        local: View<'_>,
        shares: Shares,
        out: ViewMut<'_>,
    ) -> Result<(), WorkerError> {
        let width = out.len() / shares.global.max(1);
        assert_eq!(local.len(), shares.rows(self.rank()).len() * width, "local share of a gather");
        let ticket = begin(Kind::AllGather, bytes_of(out.as_view()));
        match self {
            Self::Solo(_) => copy::copy(stream, local, out)?,
            Self::StandIn(stand_in) => stand_in.all_gather_rows(stream, local, out)?,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => {
                let mut all = vec![0.0f32; out.len()];
                mpi.all_gather(&local.to_f32()?, shares, width, &mut all);
                copy::cast(stream, View::from_f32(&all, &[all.len()]), out)?;
            }
            Self::Nccl(nccl) => {
                return nccl.all_gather_rows(&ticket, local, shares, out.as_view());
            }
        }
        ticket.done();
        Ok(())
    }

    /// Gathers the hashes of all ranks' rows, in rank order.
    ///
    /// # Panics
    /// Panics if `local` is not this rank's share: a bug that all ranks have.
    #[must_use]
    pub fn all_gather_hashes(&self, local: &[u64], shares: Shares) -> Vec<u64> {
        assert_eq!(local.len(), shares.rows(self.rank()).len(), "local share of a gather");
        let ticket = begin(Kind::AllGather, shares.global * size_of::<u64>());
        let all = match self {
            Self::Solo(_) => local.to_vec(),
            Self::StandIn(stand_in) => stand_in.all_gather_hashes(local, shares),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => {
                let mut out = vec![0; shares.global];
                mpi.all_gather(local, shares, 1, &mut out);
                out
            }
            Self::Nccl(nccl) => return nccl.all_gather_hashes(ticket, local, shares),
        };
        ticket.done();
        all
    }

    /// Sums a tensor over all ranks, in place.
    ///
    /// # Errors
    /// Fails if the tensor is not f32 or lies on another device.
    ///
    /// # Panics
    /// Panics if the tensor lies on another device than `stream`: a bug.
    pub fn all_reduce_sum(&self, stream: &Stream, values: ViewMut<'_>) -> Result<(), WorkerError> {
        self.begin_all_reduce_sum(stream, values)?;
        self.end_all_reduce_sums(stream)
    }

    /// Begins to sum a tensor over all ranks, in place, after the work that `stream` has been given
    /// so far. On GPUs the sum runs beside later work of `stream`, until
    /// [`Self::end_all_reduce_sums`] makes `stream` wait for it. On CPUs the sum is complete when
    /// this function returns.
    ///
    /// # Errors
    /// Fails if the tensor is not f32 or lies on another device.
    ///
    /// # Panics
    /// Panics if the tensor lies on another device than `stream`: a bug.
    pub fn begin_all_reduce_sum(
        &self,
        stream: &Stream,
        values: ViewMut<'_>,
    ) -> Result<(), WorkerError> {
        let ticket = begin(Kind::AllReduce, bytes_of(values.as_view()));
        match self {
            Self::Solo(_) | Self::StandIn(_) => {
                let devices = [stream.device(), values.as_view().device()];
                assert_eq!(devices[0].name(), devices[1].name(), "a tensor of the stream's device");
            }
            Self::Nccl(nccl) => return nccl.begin_all_reduce_sum(&ticket, values.as_view()),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => match values.as_view().device() {
                vljepa_kernels::Device::Host => {
                    mpi.all_reduce_sum(values.host_f32_mut("all_reduce_sum", "values")?);
                }
                vljepa_kernels::Device::Cuda(_) => {
                    let mut sums = values.as_view().to_f32()?.into_owned();
                    mpi.all_reduce_sum(&mut sums);
                    copy::copy(stream, View::from_f32(&sums, &[sums.len()]), values)?;
                }
            },
        }
        ticket.done();
        Ok(())
    }

    /// Makes later work of `stream` wait for the sums that were begun.
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn end_all_reduce_sums(&self, stream: &Stream) -> Result<(), WorkerError> {
        match (self, stream) {
            (Self::Nccl(nccl), _) => nccl.end(),
            _ => Ok(()),
        }
    }

    /// Sums `values` (global, …) over all ranks and stores this rank's rows of the sum in `out`
    /// (rows, …); both are f32.
    ///
    /// # Errors
    /// Fails if a tensor is not f32 or lies on another device.
    ///
    /// # Panics
    /// Panics if `values` does not hold all rows or `out` is not this rank's share: a bug that all
    /// ranks have.
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
        let ticket = begin(Kind::ReduceScatter, bytes_of(out.as_view()));
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
            Self::Nccl(nccl) => {
                return nccl.reduce_scatter_sum(&ticket, values, shares, out.as_view());
            }
        }
        ticket.done();
        Ok(())
    }

    /// Sums a few numbers over all ranks, each by itself: loss shares, flags, counters.
    #[must_use]
    pub fn sum<const N: usize>(&self, values: [f64; N]) -> [f64; N] {
        let ticket = begin(Kind::AllReduce, size_of_val(&values));
        let sums = match self {
            Self::Solo(_) | Self::StandIn(_) => values,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.sum(values),
            Self::Nccl(nccl) => return nccl.sum(ticket, values),
        };
        ticket.done();
        sums
    }

    /// Barrier: returns when every rank has called it.
    pub fn barrier(&self) {
        let [_ranks] = self.sum([1.0]);
    }

    /// Returns rank 0's `bytes` on every rank. The argument of other ranks is ignored.
    #[must_use]
    pub fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let ticket = begin(Kind::Broadcast, bytes.len());
        let said = match self {
            Self::Solo(_) | Self::StandIn(_) => bytes,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.broadcast(bytes),
            Self::Nccl(nccl) => return nccl.broadcast(ticket, bytes),
        };
        ticket.done();
        said
    }

    /// Returns the `bytes` of all ranks, in rank order, on every rank.
    #[must_use]
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let ticket = begin(Kind::AllGather, bytes.len());
        let said = match self {
            Self::Solo(_) => vec![bytes.to_vec()],
            Self::StandIn(stand_in) => vec![bytes.to_vec(); stand_in.world_size],
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.all_gather_bytes(bytes),
            Self::Nccl(nccl) => return nccl.all_gather_bytes(ticket, bytes),
        };
        ticket.done();
        said
    }

    /// Logs the last collectives, then ends this process and, through the backend, all other ranks.
    /// Returning from `main` instead would finalize MPI and leave the others waiting in their next
    /// collective.
    pub fn abort(&self) -> ! {
        tracing::error!("{}", record::of_process().describe());
        match self {
            Self::Solo(_) | Self::StandIn(_) => std::process::abort(),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.abort(),
            Self::Nccl(nccl) => nccl.abort(),
        }
    }
}

fn bytes_of(view: View<'_>) -> usize {
    view.len() * view.dtype().bytes()
}
