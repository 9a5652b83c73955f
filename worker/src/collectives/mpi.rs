//! Collectives between CPU processes over MPI.

use std::fmt;

use mpi::collective::SystemOperation;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence, Root};
use mpi::{Count, Threading};

use super::Shares;
use crate::error::WorkerError;

/// Elements per message. MPI counts in 32-bit integers, and a sum needs a receive buffer of this
/// size.
const CHUNK: usize = 1 << 22;
/// Address for messages without content.
static EMPTY: [u8; 1] = [0];

/// MPI's world communicator, which holds all ranks.
pub struct Mpi {
    world: SimpleCommunicator,
    _universe: Universe,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi({} of {})", self.rank(), self.world_size())
    }
}

impl Mpi {
    pub(super) fn join() -> Result<Self, WorkerError> {
        let (universe, _threading) =
            mpi::initialize_with_threading(Threading::Serialized).ok_or(WorkerError::MpiTwice)?;
        Ok(Self { world: universe.world(), _universe: universe })
    }

    pub(super) fn rank(&self) -> usize {
        index(self.world.rank())
    }

    pub(super) fn world_size(&self) -> usize {
        index(self.world.size())
    }

    pub(super) fn all_gather<T: Equivalence>(
        &self,
        local: &[T],
        shares: Shares,
        width: usize,
        out: &mut [T],
    ) {
        let rows = |rank| shares.rows(rank);
        let ranks = 0..self.world_size();
        let counts: Vec<Count> = ranks.clone().map(|r| count(rows(r).len() * width)).collect();
        let starts: Vec<Count> = ranks.map(|r| count(rows(r).start * width)).collect();
        let mut parts = PartitionMut::new(out, counts, starts);
        self.world.all_gather_varcount_into(local, &mut parts);
    }

    /// Sums `values` over ranks, in place. Each element is summed in rank order, by the rank that
    /// owns it within its piece. The sum therefore has the same bits however a buffer is cut into
    /// messages; MPI's own reductions do not guarantee that.
    pub(super) fn all_reduce_sum(&self, values: &mut [f32]) {
        let world_size = self.world_size();
        for piece in values.chunks_mut(CHUNK) {
            let shares = Shares { global: piece.len(), world_size };
            let mut own = vec![0.0f32; shares.rows(self.rank()).len()];
            self.reduce_scatter_sum(piece, shares, &mut own);
            self.all_gather(&own, shares, 1, piece);
        }
    }

    /// Sums this rank's share of `values` over ranks. Each element is summed in rank order.
    pub(super) fn reduce_scatter_sum(&self, values: &[f32], shares: Shares, own: &mut [f32]) {
        let ranks = 0..self.world_size();
        let rows = |rank| shares.rows(rank);
        let counts: Vec<Count> = ranks.clone().map(|r| count(rows(r).len())).collect();
        let starts: Vec<Count> = ranks.clone().map(|r| count(rows(r).start)).collect();
        let len = own.len();
        let mut of_ranks = vec![0.0f32; len * ranks.len()];
        let own_counts = vec![count(len); ranks.len()];
        let own_starts: Vec<Count> = ranks.map(|r| count(r * len)).collect();
        let sent = Partition::new(values, counts, starts);
        let mut received = PartitionMut::new(&mut of_ranks[..], own_counts, own_starts);
        self.world.all_to_all_varcount_into(&sent, &mut received);
        let (first, others) = of_ranks.split_at(len);
        own.copy_from_slice(first);
        for other in others.chunks_exact(len.max(1)) {
            own.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
        }
    }

    pub(super) fn sum<const N: usize>(&self, values: [f64; N]) -> [f64; N] {
        let mut out = [0.0; N];
        self.world.all_reduce_into(&values[..], &mut out[..], SystemOperation::sum());
        out
    }

    pub(super) fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let root = self.world.process_at_rank(0);
        let mut len = bytes.len() as u64;
        root.broadcast_into(&mut len);
        let mut out = bytes;
        out.resize(usize::try_from(len).expect("a 64-bit machine"), 0);
        for chunk in out.chunks_mut(CHUNK) {
            root.broadcast_into(chunk);
        }
        out
    }

    /// Replaces `values` by those of rank 0.
    pub(super) fn broadcast_into(&self, values: &mut [f32]) {
        let root = self.world.process_at_rank(0);
        for chunk in values.chunks_mut(CHUNK) {
            root.broadcast_into(chunk);
        }
    }

    pub(super) fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lens = vec![0u64; self.world_size()];
        self.world.all_gather_into(&(bytes.len() as u64), &mut lens[..]);
        let lens: Vec<usize> =
            lens.iter().map(|&n| usize::try_from(n).expect("a 64-bit machine")).collect();
        let starts: Vec<usize> = lens
            .iter()
            .scan(0, |end, len| {
                let start = *end;
                *end += len;
                Some(start)
            })
            .collect();
        // The address of an empty vector is 1, which is Open MPI's value of MPI_IN_PLACE.
        let mut all = vec![0u8; lens.iter().sum::<usize>().max(1)];
        let bytes = if bytes.is_empty() { &EMPTY[..0] } else { bytes };
        let counts: Vec<Count> = lens.iter().map(|&n| count(n)).collect();
        let offsets: Vec<Count> = starts.iter().map(|&n| count(n)).collect();
        let mut parts = PartitionMut::new(&mut all[..], counts, offsets);
        self.world.all_gather_varcount_into(bytes, &mut parts);
        starts.iter().zip(&lens).map(|(&start, &len)| all[start..start + len].to_vec()).collect()
    }

    pub(super) fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

fn index(value: i32) -> usize {
    usize::try_from(value).expect("MPI ranks and sizes are not negative")
}

fn count(elements: usize) -> Count {
    Count::try_from(elements).expect("a gathered message holds fewer than 2^31 elements")
}
