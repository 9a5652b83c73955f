//! Communication between the ranks of a run. [`Collectives`] is the closed list of backends: a
//! single process, a stand-in for one rank of many, threads of one process, MPI between processes
//! on CPUs, and NCCL between GPUs.
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
mod threads;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use vljepa_kernels::{Device, Stream, View, ViewMut, copy};
use vljepa_recipes::RankId;

pub use self::buckets::GradientSum;
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
pub use self::nccl::Nccl;
use self::record::{Entry, Kind, Ticket};
pub use self::solo::Solo;
pub use self::stand_in::StandIn;
pub use self::threads::Threads;
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
    /// One of several threads of this process, for tests and simulations.
    Threads(Threads),
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
            Self::Threads(threads) => threads.rank(),
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
            Self::Threads(threads) => threads.world_size(),
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
            Self::Threads(threads) => gather_on_host(stream, local, out, |local, all| {
                threads.all_gather(local, shares, width, all);
            })?,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => gather_on_host(stream, local, out, |local, all| {
                mpi.all_gather(local, shares, width, all);
            })?,
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
            Self::Threads(threads) => {
                let mut out = vec![0; shares.global];
                threads.all_gather(local, shares, 1, &mut out);
                out
            }
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
            Self::Threads(threads) => {
                on_host(stream, values, |values| threads.all_reduce_sum(values))?;
            }
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => on_host(stream, values, |values| mpi.all_reduce_sum(values))?,
            Self::Nccl(nccl) => return nccl.begin_all_reduce_sum(&ticket, values.as_view()),
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

    /// Divides `values` (n) among the ranks in equal slots, and replaces this rank's slot by its
    /// sum over all ranks. The other slots are undefined afterwards.
    ///
    /// # Errors
    /// Fails if the tensor is not f32 or lies on another device.
    ///
    /// # Panics
    /// Panics if `values` does not divide evenly: a bug that all ranks have.
    pub fn reduce_scatter_sum(
        &self,
        stream: &Stream,
        values: ViewMut<'_>,
    ) -> Result<(), WorkerError> {
        let own = self.slot(values.len());
        let ticket = begin(Kind::ReduceScatter, own.len() * size_of::<f32>());
        match self {
            Self::Solo(_) | Self::StandIn(_) => {}
            Self::Threads(threads) => on_host(stream, values, |values| {
                let mut sum = vec![0.0; own.len()];
                threads.reduce_scatter_sum(values, own.start, &mut sum);
                values[own].copy_from_slice(&sum);
            })?,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => on_host(stream, values, |values| {
                let shares = Shares { global: values.len(), world_size: self.world_size() };
                let mut sum = vec![0.0; own.len()];
                mpi.reduce_scatter_sum(values, shares, &mut sum);
                values[own].copy_from_slice(&sum);
            })?,
            Self::Nccl(nccl) => return nccl.reduce_scatter_sum(&ticket, values.as_view()),
        }
        ticket.done();
        Ok(())
    }

    /// Divides `values` (n) among the ranks in equal slots, and replaces each slot by that of the
    /// rank that owns it.
    ///
    /// # Errors
    /// Fails if the tensor is not f32 or lies on another device.
    ///
    /// # Panics
    /// Panics if `values` does not divide evenly: a bug that all ranks have.
    pub fn all_gather_slots(
        &self,
        stream: &Stream,
        values: ViewMut<'_>,
    ) -> Result<(), WorkerError> {
        let own = self.slot(values.len());
        let shares = Shares { global: values.len(), world_size: self.world_size() };
        let ticket = begin(Kind::AllGather, bytes_of(values.as_view()));
        match self {
            Self::Solo(_) | Self::StandIn(_) => {}
            Self::Threads(threads) => on_host(stream, values, |values| {
                let own = values[own].to_vec();
                threads.all_gather(&own, shares, 1, values);
            })?,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => on_host(stream, values, |values| {
                let own = values[own].to_vec();
                mpi.all_gather(&own, shares, 1, values);
            })?,
            Self::Nccl(nccl) => return nccl.all_gather_slots(&ticket, values.as_view()),
        }
        ticket.done();
        Ok(())
    }

    /// Elements of this rank's slot in a tensor of `len` elements.
    fn slot(&self, len: usize) -> Range<usize> {
        let (rank, ranks) = (self.rank(), self.world_size());
        assert!(len.is_multiple_of(ranks), "{len} elements in equal slots for {ranks} ranks");
        let slot = len / ranks;
        rank * slot..(rank + 1) * slot
    }

    /// Replaces `values` by those of rank 0. Does nothing if there is none.
    ///
    /// # Errors
    /// Fails if the tensor is not f32, or the device fails.
    pub fn broadcast_values(
        &self,
        stream: &Stream,
        values: ViewMut<'_>,
    ) -> Result<(), WorkerError> {
        if values.is_empty() {
            return Ok(());
        }
        let ticket = begin(Kind::Broadcast, bytes_of(values.as_view()));
        match self {
            Self::Solo(_) | Self::StandIn(_) => {}
            Self::Threads(threads) => on_host(stream, values, |values| {
                let said = threads.broadcast(bytemuck::cast_slice(values));
                bytemuck::cast_slice_mut::<f32, u8>(values).copy_from_slice(&said);
            })?,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => on_host(stream, values, |values| mpi.broadcast_into(values))?,
            Self::Nccl(nccl) => return nccl.broadcast_values(&ticket, values),
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
            Self::Threads(threads) => threads.sum(values),
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
            Self::Threads(threads) => threads.broadcast(&bytes),
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
            Self::Threads(threads) => threads.all_gather_bytes(bytes),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.all_gather_bytes(bytes),
            Self::Nccl(nccl) => return nccl.all_gather_bytes(ticket, bytes),
        };
        ticket.done();
        said
    }

    /// Runs `work`, in which ranks may wait long for one that reads files. Its collectives have no
    /// timeout: the supervisor sees whether that rank goes on, and limits the wait.
    pub fn patiently<T>(&self, work: impl FnOnce() -> T) -> T {
        let be_patient = |patient| match self {
            Self::Solo(_) | Self::StandIn(_) | Self::Threads(_) => false,
            #[cfg(feature = "mpi")]
            Self::Mpi(_) => false,
            Self::Nccl(nccl) => nccl.be_patient(patient),
        };
        let before = be_patient(true);
        let done = work();
        be_patient(before);
        done
    }

    /// Logs the last collectives, then ends this process and, through the backend, all other ranks.
    /// Returning from `main` instead would finalize MPI and leave the others waiting in their next
    /// collective.
    pub fn abort(&self) -> ! {
        tracing::error!("{}", record::of_process().describe());
        match self {
            Self::Solo(_) | Self::StandIn(_) | Self::Threads(_) => std::process::abort(),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.abort(),
            Self::Nccl(nccl) => nccl.abort(),
        }
    }
}

/// Lets a backend that communicates in host memory change f32 values on any device.
fn on_host(
    stream: &Stream,
    values: ViewMut<'_>,
    change: impl FnOnce(&mut [f32]),
) -> Result<(), WorkerError> {
    match values.as_view().device() {
        Device::Host => change(values.host_f32_mut("collective", "values")?),
        Device::Cuda(_) => {
            let mut here = values.as_view().to_f32()?.into_owned();
            change(&mut here);
            copy::copy(stream, View::from_f32(&here, &[here.len()]), values)?;
        }
    }
    Ok(())
}

/// Lets a backend that communicates in host memory gather f32 or bf16 rows on any device.
fn gather_on_host(
    stream: &Stream,
    local: View<'_>,
    out: ViewMut<'_>,
    gather: impl FnOnce(&[f32], &mut [f32]),
) -> Result<(), WorkerError> {
    let mut all = vec![0.0; out.len()];
    gather(&local.to_f32()?, &mut all);
    Ok(copy::cast(stream, View::from_f32(&all, &[all.len()]), out)?)
}

fn bytes_of(view: View<'_>) -> usize {
    view.len() * view.dtype().bytes()
}
