//! What ranks do together. The closed list of data planes: one process, one that stands in for a rank, MPI between processes on
//! CPUs, or NCCL between GPUs.
//!
//! Every rank issues the same calls in the same order. Sums are the same bits on every rank, and the same bits again when the
//! run is repeated with as many ranks. The last calls are kept in a [`record`].

mod buckets;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "cuda")]
pub mod nccl;
pub mod record;
mod solo;
mod stand_in;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use vljepa_kernels::{Stream, View, ViewMut, copy};

pub use self::buckets::GradientSum;
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
#[cfg(feature = "cuda")]
pub use self::nccl::Nccl;
use self::record::{Entry, Kind, Ticket};
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
    /// Several processes, each with a GPU.
    #[cfg(feature = "cuda")]
    Nccl(Nccl),
}

fn begin(kind: Kind, bytes: usize) -> Ticket<'static> {
    record::of_process().begin(kind, bytes)
}

impl Collectives {
    /// Joins the data plane of CPUs that this process was started into: MPI when `mpirun` or `srun` started it, else a single
    /// process.
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
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => nccl.rank(),
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
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => nccl.world_size(),
        }
    }

    /// The number of the last collective that this rank has come to: the same on every rank when all stand at the same place.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence_handle().load(Ordering::Relaxed)
    }

    /// Where that number stands, for other threads to read: heartbeats.
    #[must_use]
    pub fn sequence_handle(&self) -> &'static AtomicU64 {
        record::of_process().sequence()
    }

    /// The last collectives of this rank, oldest first, and how far each came.
    #[must_use]
    pub fn last(&self) -> Vec<Entry> {
        record::of_process().last()
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
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => {
                return nccl.all_gather_rows(&ticket, local, shares, out.as_view());
            }
        }
        ticket.done();
        Ok(())
    }

    /// The hashes of all ranks' rows, in rank order.
    ///
    /// # Panics
    /// When `local` is not this rank's share: a bug, on every rank.
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
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => return nccl.all_gather_hashes(ticket, local, shares),
        };
        ticket.done();
        all
    }

    /// Sum over ranks, in place.
    ///
    /// # Errors
    /// When the tensor is not f32 of this device.
    ///
    /// # Panics
    /// When the tensor is of another device than `stream`: a bug.
    pub fn all_reduce_sum(&self, stream: &Stream, values: ViewMut<'_>) -> Result<(), WorkerError> {
        self.begin_all_reduce_sum(stream, values)?;
        self.end_all_reduce_sums(stream)
    }

    /// Begins a sum over ranks, in place, of what `stream` has computed so far. On GPUs it goes on while `stream` does other things,
    /// and [`Self::end_all_reduce_sums`] makes `stream` wait for it; on CPUs it has happened when this returns.
    ///
    /// # Errors
    /// When the tensor is not f32 of this device.
    ///
    /// # Panics
    /// When the tensor is of another device than `stream`: a bug.
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
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => return nccl.begin_all_reduce_sum(&ticket, values.as_view()),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => match values.as_view().device() {
                vljepa_kernels::Device::Host => {
                    mpi.all_reduce_sum(values.host_f32_mut("all_reduce_sum", "values")?);
                }
                #[cfg(feature = "cuda")]
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

    /// What is issued to `stream` from now on sees the sums that were begun.
    ///
    /// # Errors
    /// When the device fails.
    pub fn end_all_reduce_sums(&self, stream: &Stream) -> Result<(), WorkerError> {
        match (self, stream) {
            #[cfg(feature = "cuda")]
            (Self::Nccl(nccl), _) => nccl.end(),
            _ => Ok(()),
        }
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
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => {
                return nccl.reduce_scatter_sum(&ticket, values, shares, out.as_view());
            }
        }
        ticket.done();
        Ok(())
    }

    /// Sum over ranks of a few numbers: loss shares, flags, counters.
    #[must_use]
    pub fn sum<const N: usize>(&self, values: [f64; N]) -> [f64; N] {
        let ticket = begin(Kind::AllReduce, size_of_val(&values));
        let sums = match self {
            Self::Solo(_) | Self::StandIn(_) => values,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.sum(values),
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => return nccl.sum(ticket, values),
        };
        ticket.done();
        sums
    }

    /// What rank 0 says, on every rank.
    #[must_use]
    pub fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let ticket = begin(Kind::Broadcast, bytes.len());
        let said = match self {
            Self::Solo(_) | Self::StandIn(_) => bytes,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.broadcast(bytes),
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => return nccl.broadcast(ticket, bytes),
        };
        ticket.done();
        said
    }

    /// What each rank says, in rank order, on every rank.
    #[must_use]
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let ticket = begin(Kind::AllGather, bytes.len());
        let said = match self {
            Self::Solo(_) => vec![bytes.to_vec()],
            Self::StandIn(stand_in) => vec![bytes.to_vec(); stand_in.world_size],
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.all_gather_bytes(bytes),
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => return nccl.all_gather_bytes(ticket, bytes),
        };
        ticket.done();
        said
    }

    /// Ends this process and, through the data plane, every other rank; the log says which collectives were the last. Returning
    /// from `main` would finalize MPI and leave the others waiting in their next collective.
    pub fn abort(&self) -> ! {
        tracing::error!("{}", record::of_process().describe());
        match self {
            Self::Solo(_) | Self::StandIn(_) => std::process::abort(),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.abort(),
            #[cfg(feature = "cuda")]
            Self::Nccl(nccl) => nccl.abort(),
        }
    }
}

fn bytes_of(view: View<'_>) -> usize {
    view.len() * view.dtype().bytes()
}
