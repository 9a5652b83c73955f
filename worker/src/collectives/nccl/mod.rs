//! NCCL collectives between GPUs. All of them run on the device's communication stream, so they can
//! overlap with work on the compute stream.

mod communicator;
mod library;
#[cfg(test)]
mod tests;
mod watch;

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vljepa_kernels::device::cuda::{Cuda, CudaStream, Lane, Region};
use vljepa_kernels::{DType, Device, KernelError, Tensor, View, ViewMut};
use vljepa_recipes::RankId;

pub use self::library::{Id, Library};
pub use self::watch::LastWords;
pub use crate::error::nccl::NcclError;

use self::communicator::Communicator;
use self::library::{Buffers, Call, Element};
use self::watch::Watch;
use super::Shares;
use super::record::Ticket;
use crate::error::WorkerError;

/// Largest piece, in bytes, in which host values are sent through the GPU.
const CHUNK: usize = 16 << 20;

/// How long a rank waits for the other ranks.
#[derive(Debug, Clone, Copy)]
pub struct TimeOuts {
    /// Until all ranks have joined the communicator.
    pub start: Duration,
    /// Until a collective has completed on the device.
    pub collective: Duration,
}

/// NCCL communicator of all ranks' GPUs.
pub struct Nccl {
    // Dropped before the communicator, which it watches.
    watch: Watch,
    communicator: Arc<Communicator>,
    rank: RankId,
    compute: CudaStream,
    communicate: CudaStream,
    /// GPU memory, in bytes, for host values and padded shares. Only the communication stream uses
    /// it.
    staging: Mutex<Option<Tensor>>,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nccl({} of {})", self.rank(), self.world_size())
    }
}

type Result<T> = std::result::Result<T, WorkerError>;

impl Nccl {
    /// Connects to the other ranks that use `id`; `rank` is this process's rank. If a collective
    /// later fails or exceeds its timeout, `last_words` is called with the error and the process
    /// ends, because the thread that waits for the device could not report it.
    ///
    /// # Errors
    /// Fails if a rank does not join before the timeout, or if NCCL fails.
    pub fn join(
        library: &'static Library,
        id: Id,
        rank: RankId,
        cuda: &'static Cuda,
        time_outs: TimeOuts,
        last_words: LastWords,
    ) -> anyhow::Result<Self> {
        let [compute, communicate] =
            [Lane::Compute, Lane::Communicate].map(|lane| CudaStream::new(cuda, lane));
        // Makes the device current for this thread, as creating the communicator requires.
        communicate.handle()?;
        let communicator = Communicator::init(library, id, rank, time_outs.start)?;
        let communicator = Arc::new(communicator);
        let watch = Watch::start(Arc::clone(&communicator), time_outs.collective, last_words)?;
        let staging = Mutex::default();
        Ok(Self { watch, communicator, rank, compute, communicate, staging })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank.rank
    }

    pub(super) fn world_size(&self) -> usize {
        self.rank.world_size
    }

    /// Gathers the rows of all ranks, after the compute stream's work so far and before its later
    /// work.
    pub(super) fn all_gather_rows(
        &self,
        ticket: &Ticket<'_>,
        local: View<'_>,
        shares: Shares,
        out: View<'_>,
    ) -> Result<()> {
        let from = region("all_gather_rows", "local", local)?;
        let to = region("all_gather_rows", "out", out)?;
        self.communicate.wait_for(self.compute)?;
        self.gather(ticket, from, shares, to)?;
        Ok(self.compute.wait_for(self.communicate)?)
    }

    fn gather(&self, ticket: &Ticket<'_>, from: Region, shares: Shares, to: Region) -> Result<()> {
        let row = to.bytes / shares.global.max(1);
        let Shares { global, world_size } = shares;
        if global.is_multiple_of(world_size) {
            return self.gather_bytes(ticket, from, to.address);
        }
        // NCCL gathers equal parts only. Each rank's rows are padded to a slot of the size of the
        // largest share.
        let slot = row * global.div_ceil(world_size);
        let staging = self.staging(world_size * slot)?;
        let slot_of =
            |rank: usize, bytes| Region { address: staging.address + (rank * slot) as u64, bytes };
        let own = slot_of(self.rank(), slot);
        self.communicate.copy(from, Region { bytes: from.bytes, ..own })?;
        self.gather_bytes(ticket, own, staging.address)?;
        for rank in 0..world_size {
            let rows = shares.rows(rank);
            let bytes = rows.len() * row;
            let address = to.address + (rows.start * row) as u64;
            self.communicate.copy(slot_of(rank, bytes), Region { address, bytes })?;
        }
        Ok(())
    }

    /// Begins a sum in place, after the compute stream's work so far. [`Self::end`] makes that
    /// stream wait for the sum.
    pub(super) fn begin_all_reduce_sum(&self, ticket: &Ticket<'_>, values: View<'_>) -> Result<()> {
        let at = f32_region("all_reduce_sum", "values", values)?;
        self.communicate.wait_for(self.compute)?;
        let buffers = Buffers {
            from: at.address,
            to: at.address,
            count: values.len(),
            element: Element::F32,
        };
        self.issue(ticket, Call::AllReduceSum, buffers)
    }

    /// Makes later work of the compute stream wait for the communication stream's work so far.
    pub(super) fn end(&self) -> Result<()> {
        Ok(self.compute.wait_for(self.communicate)?)
    }

    /// Replaces this rank's slot of `values` by its sum over all ranks.
    pub(super) fn reduce_scatter_sum(&self, ticket: &Ticket<'_>, values: View<'_>) -> Result<()> {
        let (at, slot) = self.slots("reduce_scatter_sum", values)?;
        let to = at.address + (self.rank() * slot * size_of::<f32>()) as u64;
        let buffers = Buffers { from: at.address, to, count: slot, element: Element::F32 };
        self.communicate.wait_for(self.compute)?;
        self.issue(ticket, Call::ReduceScatterSum, buffers)?;
        self.end()
    }

    /// Replaces each slot of `values` by that of the rank that owns it.
    pub(super) fn all_gather_slots(&self, ticket: &Ticket<'_>, values: View<'_>) -> Result<()> {
        let (at, slot) = self.slots("all_gather_slots", values)?;
        let from = at.address + (self.rank() * slot * size_of::<f32>()) as u64;
        let buffers = Buffers { from, to: at.address, count: slot, element: Element::F32 };
        self.communicate.wait_for(self.compute)?;
        self.issue(ticket, Call::AllGather, buffers)?;
        self.end()
    }

    /// Memory of f32 values, and the number of elements in each rank's slot.
    fn slots(&self, operation: &'static str, values: View<'_>) -> Result<(Region, usize)> {
        Ok((f32_region(operation, "values", values)?, values.len() / self.world_size()))
    }

    /// Replaces `values`, on the GPU or in host memory, by those of rank 0.
    pub(super) fn broadcast_values(&self, ticket: &Ticket<'_>, values: ViewMut<'_>) -> Result<()> {
        if values.as_view().device() == Device::Host {
            let values = values.host_f32_mut("broadcast_values", "values")?;
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
            return bytes
                .chunks_mut(CHUNK)
                .try_for_each(|piece| self.broadcast_host(ticket, piece));
        }
        let at = f32_region("broadcast_values", "values", values.as_view())?;
        let (address, count) = (at.address, values.len());
        let buffers = Buffers { from: address, to: address, count, element: Element::F32 };
        self.communicate.wait_for(self.compute)?;
        self.issue(ticket, Call::Broadcast { root: 0 }, buffers)?;
        self.end()
    }

    /// Gathers the hashes of all ranks' rows.
    pub(super) fn all_gather_hashes(
        &self,
        ticket: Ticket<'_>,
        local: &[u64],
        shares: Shares,
    ) -> Vec<u64> {
        let bytes = self.or_fail(self.gather_host(&ticket, bytemuck::cast_slice(local), shares, 8));
        bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
    }

    /// Sums each number over all ranks, in rank order, so the sums have the same bits on every
    /// rank.
    pub(super) fn sum<const N: usize>(&self, ticket: Ticket<'_>, values: [f64; N]) -> [f64; N] {
        let own: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = self.or_fail(self.gather_host(&ticket, &own, self.one_each(), own.len()));
        let mut sums = [0.0; N];
        for of_rank in all.chunks_exact(own.len().max(1)) {
            for (sum, x) in sums.iter_mut().zip(of_rank.chunks_exact(8)) {
                *sum += f64::from_le_bytes(x.try_into().expect("8 bytes"));
            }
        }
        sums
    }

    /// Returns the bytes of every rank, which may differ in length.
    pub(super) fn all_gather_bytes(&self, ticket: Ticket<'_>, bytes: &[u8]) -> Vec<Vec<u8>> {
        let gathered = || -> Result<Vec<Vec<u8>>> {
            let len = (bytes.len() as u64).to_le_bytes();
            let lens = self.gather_host(&ticket, &len, self.one_each(), 8)?;
            let lens: Vec<usize> = lens.chunks_exact(8).map(length).collect();
            let longest = lens.iter().copied().max().unwrap_or(0);
            let mut padded = bytes.to_vec();
            padded.resize(longest, 0);
            let mut all: Vec<Vec<u8>> = lens.iter().map(|_| Vec::with_capacity(longest)).collect();
            for piece in padded.chunks(CHUNK) {
                let pieces = self.gather_host(&ticket, piece, self.one_each(), piece.len())?;
                all.iter_mut().zip(pieces.chunks_exact(piece.len())).for_each(|(a, p)| a.extend(p));
            }
            all.iter_mut().zip(lens).for_each(|(of_rank, len)| of_rank.truncate(len));
            Ok(all)
        };
        self.or_fail(gathered())
    }

    /// Returns rank 0's bytes on every rank.
    pub(super) fn broadcast(&self, ticket: Ticket<'_>, bytes: Vec<u8>) -> Vec<u8> {
        let told = || -> Result<Vec<u8>> {
            let mut len = (bytes.len() as u64).to_le_bytes();
            self.broadcast_host(&ticket, &mut len)?;
            let mut all = bytes;
            all.resize(length(len), 0);
            for piece in all.chunks_mut(CHUNK) {
                self.broadcast_host(&ticket, piece)?;
            }
            Ok(all)
        };
        self.or_fail(told())
    }

    /// Sets whether later collectives have no timeout, and returns whether they had none before.
    pub(super) fn be_patient(&self, patient: bool) -> bool {
        self.watch.be_patient(patient)
    }

    /// Ends this process. The other ranks see that it is gone.
    pub(super) fn abort(&self) -> ! {
        self.watch.end()
    }

    /// Gathers host values through GPU memory: `row` bytes for each row of the ranks' shares.
    fn gather_host(
        &self,
        ticket: &Ticket<'_>,
        local: &[u8],
        shares: Shares,
        row: usize,
    ) -> Result<Vec<u8>> {
        let Shares { global, world_size } = shares;
        let slot = row * global.div_ceil(world_size);
        let staging = self.staging(world_size * slot)?;
        let slot_of =
            |rank: usize, bytes| Region { address: staging.address + (rank * slot) as u64, bytes };
        self.communicate.upload(slot_of(self.rank(), local.len()), local)?;
        self.gather_bytes(ticket, slot_of(self.rank(), slot), staging.address)?;
        let mut all = vec![0; world_size * slot];
        self.communicate.download(staging, &mut all)?;
        Ok((0..world_size)
            .flat_map(|rank| all[rank * slot..][..shares.rows(rank).len() * row].to_vec())
            .collect())
    }

    fn broadcast_host(&self, ticket: &Ticket<'_>, bytes: &mut [u8]) -> Result<()> {
        let at = self.staging(bytes.len())?;
        if self.rank() == 0 {
            self.communicate.upload(at, bytes)?;
        }
        let buffers = Buffers {
            from: at.address,
            to: at.address,
            count: bytes.len(),
            element: Element::Byte,
        };
        self.issue(ticket, Call::Broadcast { root: 0 }, buffers)?;
        Ok(self.communicate.download(at, bytes)?)
    }

    /// Gathers equal parts of all ranks.
    fn gather_bytes(&self, ticket: &Ticket<'_>, from: Region, to: u64) -> Result<()> {
        let (from, count) = (from.address, from.bytes);
        self.issue(ticket, Call::AllGather, Buffers { from, to, count, element: Element::Byte })
    }

    /// Issues a collective to the communication stream and hands it to the watch thread.
    fn issue(&self, ticket: &Ticket<'_>, call: Call, buffers: Buffers) -> Result<()> {
        let stream: *mut c_void = self.communicate.handle()?;
        self.communicator.issue(call, buffers, stream)?;
        ticket.issued();
        self.watch.add(ticket.sequence(), self.communicate.mark()?);
        Ok(())
    }

    /// Returns the first `bytes` of the staging memory, which grows as needed.
    fn staging(&self, bytes: usize) -> Result<Region> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let held = staging.as_ref().map_or(0, |tensor| tensor.shape()[0]);
        if staging.is_none() || held < bytes {
            *staging = None;
            let device = Device::Cuda(self.communicate.cuda());
            *staging = Some(Tensor::zeros(device, DType::U8, &[bytes.next_power_of_two()])?);
            // The compute stream writes the zeros.
            self.communicate.wait_for(self.compute)?;
        }
        let all = staging.as_ref().and_then(|tensor| tensor.view().region());
        let Some(all) = all else { unreachable!("staging memory lies on the GPU") };
        Ok(Region { bytes, ..all })
    }

    /// Shares with one row per rank.
    fn one_each(&self) -> Shares {
        Shares { global: self.world_size(), world_size: self.world_size() }
    }

    /// Unwraps a result that the run cannot continue without. On an error this process ends, as it
    /// does for MPI errors.
    fn or_fail<T>(&self, result: Result<T>) -> T {
        result.unwrap_or_else(|error| self.watch.fail(&error.to_string()))
    }
}

fn length(bytes: impl AsRef<[u8]>) -> usize {
    let bytes = bytes.as_ref().try_into().expect("8 bytes");
    usize::try_from(u64::from_le_bytes(bytes)).expect("a 64-bit machine")
}

fn region(operation: &'static str, what: &'static str, view: View<'_>) -> Result<Region> {
    Ok(view.region().ok_or(NcclError::Host { operation, what })?)
}

fn f32_region(operation: &'static str, what: &'static str, view: View<'_>) -> Result<Region> {
    if view.dtype() != DType::F32 {
        let (found, needed) = (view.dtype().name(), "f32");
        return Err(KernelError::DType { operation, what, found, needed }.into());
    }
    region(operation, what, view)
}
