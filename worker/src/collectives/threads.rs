//! Collectives between ranks that are threads of one process, for tests and simulations of many
//! ranks on one machine.
//!
//! Sums are made in rank order, as the MPI backend makes them, so they have the same bits.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytemuck::Pod;

use super::{Collectives, Shares};

/// End of the text with which a rank panics that waits for one whose work has ended.
const HAS_ENDED: &str = ", which has ended";

/// What a panicked thread leaves.
type Panic = Box<dyn std::any::Any + Send>;

/// One of several ranks in this process, each of which is a thread; see [`Self::run`].
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    ranks: usize,
    round: Mutex<Round>,
    ended: Condvar,
}

/// An exchange in progress, and the result of the one before. A rank that is still reading that
/// result has not joined this exchange, so the result stays until all have read it.
#[derive(Debug, Default)]
struct Round {
    number: u64,
    arrived: usize,
    parts: Vec<Arc<[u8]>>,
    result: Arc<[Arc<[u8]>]>,
    /// A rank whose thread has ended its work.
    left: Option<usize>,
}

impl Threads {
    /// Runs `work` as each of `ranks` ranks at the same time, and returns their results in rank
    /// order.
    ///
    /// # Panics
    /// Panics if the work of a rank panics, or if a rank waits in a collective for one that has
    /// ended its work.
    ///
    /// ```
    /// use vljepa_worker::collectives::Threads;
    ///
    /// let sums = Threads::run(3, |ranks| ranks.sum([ranks.rank() as f64]));
    /// assert_eq!(sums, [[3.0]; 3]);
    /// ```
    pub fn run<T: Send>(ranks: usize, work: impl Fn(Collectives) -> T + Sync) -> Vec<T> {
        let group = Group { ranks, round: Mutex::default(), ended: Condvar::new() };
        let (group, work) = (Arc::new(group), &work);
        std::thread::scope(|scope| {
            let start = |rank| {
                let own = Self { rank, group: Arc::clone(&group) };
                scope.spawn(move || work(Collectives::Threads(own)))
            };
            let threads: Vec<_> = (0..ranks).map(start).collect();
            let (mut results, mut panics) = (Vec::new(), Vec::new());
            for thread in threads {
                match thread.join() {
                    Ok(result) => results.push(result),
                    Err(panic) => panics.push(panic),
                }
            }
            // Ranks that wait for one that has panicked panic too; the first cause counts.
            let waits = |panic: &Panic| {
                panic.downcast_ref().is_some_and(|text: &String| text.ends_with(HAS_ENDED))
            };
            let cause = panics.iter().position(|panic| !waits(panic)).unwrap_or(0);
            if cause < panics.len() {
                std::panic::resume_unwind(panics.swap_remove(cause));
            }
            results
        })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn world_size(&self) -> usize {
        self.group.ranks
    }

    /// Returns the bytes of all ranks, in rank order.
    fn exchange(&self, bytes: &[u8]) -> Arc<[Arc<[u8]>]> {
        let Group { ranks, round, ended } = &*self.group;
        let mut round = round.lock().unwrap_or_else(PoisonError::into_inner);
        if round.parts.is_empty() {
            round.parts = vec![Arc::from([]); *ranks];
        }
        round.parts[self.rank] = Arc::from(bytes);
        round.arrived += 1;
        if round.arrived == *ranks {
            round.result = std::mem::take(&mut round.parts).into();
            (round.arrived, round.number) = (0, round.number + 1);
            ended.notify_all();
        } else {
            let own = round.number;
            let goes_on = |round: &mut Round| round.number == own && round.left.is_none();
            round = ended.wait_while(round, goes_on).unwrap_or_else(PoisonError::into_inner);
            if let (true, Some(left)) = (round.number == own, round.left) {
                drop(round);
                panic!("rank {} waits for rank {left}{HAS_ENDED}", self.rank);
            }
        }
        Arc::clone(&round.result)
    }

    pub(super) fn all_gather<T: Pod>(
        &self,
        local: &[T],
        shares: Shares,
        width: usize,
        out: &mut [T],
    ) {
        let all = self.exchange(bytemuck::cast_slice(local));
        for (rank, part) in all.iter().enumerate() {
            let rows = shares.rows(rank);
            let rows = &mut out[rows.start * width..rows.end * width];
            bytemuck::cast_slice_mut::<T, u8>(rows).copy_from_slice(part);
        }
    }

    pub(super) fn all_reduce_sum(&self, values: &mut [f32]) {
        let all = self.exchange(bytemuck::cast_slice(values));
        add_up(&all, 0, values);
    }

    /// Sums the elements from `start` to `start + own.len()` of all ranks' `values`.
    pub(super) fn reduce_scatter_sum(&self, values: &[f32], start: usize, own: &mut [f32]) {
        let all = self.exchange(bytemuck::cast_slice(values));
        add_up(&all, start, own);
    }

    pub(super) fn sum<const N: usize>(&self, values: [f64; N]) -> [f64; N] {
        let all = self.exchange(bytemuck::cast_slice(&values));
        let mut sums = [0.0; N];
        for part in all.iter() {
            let values = part.chunks_exact(size_of::<f64>());
            sums.iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += bytemuck::pod_read_unaligned::<f64>(value));
        }
        sums
    }

    pub(super) fn broadcast(&self, bytes: &[u8]) -> Vec<u8> {
        let own = if self.rank == 0 { bytes } else { &[] };
        self.exchange(own)[0].to_vec()
    }

    pub(super) fn all_gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.exchange(bytes).iter().map(|part| part.to_vec()).collect()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut round = self.group.round.lock().unwrap_or_else(PoisonError::into_inner);
        round.left = Some(self.rank);
        self.group.ended.notify_all();
    }
}

/// Sums the f32 values of all parts from element `start`, in rank order.
fn add_up(parts: &[Arc<[u8]>], start: usize, sums: &mut [f32]) {
    sums.fill(0.0);
    for (rank, part) in parts.iter().enumerate() {
        let values = part[start * size_of::<f32>()..].chunks_exact(size_of::<f32>());
        for (sum, value) in sums.iter_mut().zip(values) {
            let value = bytemuck::pod_read_unaligned::<f32>(value);
            *sum = if rank == 0 { value } else { *sum + value };
        }
    }
}

#[cfg(test)]
mod tests {
    use vljepa_kernels::{DType, Device, Tensor, View};

    use super::Threads;
    use crate::collectives::Shares;

    #[test]
    fn slots_are_summed_by_their_owners_and_gathered_again_in_place() {
        for (ranks, len) in [(1, 3_usize), (2, 3), (3, 7), (5, 4)] {
            let value = |rank: usize, i: usize| (10 * rank + i) as f32;
            let all = Threads::run(ranks, |collectives| {
                let room = len.next_multiple_of(ranks);
                let mut values = Tensor::padded(Device::Host, DType::F32, &[len], room).unwrap();
                let rank = collectives.rank();
                let fill = |values: &mut [f32]| {
                    values.iter_mut().enumerate().for_each(|(i, x)| *x = value(rank, i));
                    Ok::<(), vljepa_kernels::KernelError>(())
                };
                values.view_mut().write_f32(fill).unwrap();
                let stream = Device::Host.compute_stream();
                collectives.reduce_scatter_sum(&stream, values.with_padding_mut()).unwrap();
                collectives.all_gather_slots(&stream, values.with_padding_mut()).unwrap();
                values.to_f32().unwrap().into_owned()
            });
            let sum = |i| (0..ranks).map(|rank| value(rank, i)).sum::<f32>();
            let wanted: Vec<f32> = (0..len).map(sum).collect();
            assert!(all.iter().all(|values| *values == wanted), "{ranks} ranks: {all:?}");
        }
    }

    #[test]
    fn rows_bytes_sums_and_the_words_of_rank_0_reach_all_ranks_round_after_round() {
        let all = Threads::run(3, |collectives| {
            let (rank, stream) = (collectives.rank(), Device::Host.compute_stream());
            let shares = Shares { global: 4, world_size: 3 };
            let mut said = Vec::new();
            for round in 0..50 {
                let own: Vec<f32> = shares.rows(rank).map(|row| row as f32).collect();
                let mut rows = Tensor::zeros(Device::Host, DType::F32, &[4]).unwrap();
                let local = View::from_f32(&own, &[own.len()]);
                collectives.all_gather_rows(&stream, local, shares, rows.view_mut()).unwrap();
                let mut values = Tensor::from_f32(vec![rank as f32 + 0.5; 2], &[2]);
                collectives.broadcast_values(&stream, values.view_mut()).unwrap();
                let mut sums = Tensor::from_f32(vec![1.0, rank as f32], &[2]);
                collectives.all_reduce_sum(&stream, sums.view_mut()).unwrap();
                let of = |tensor: &Tensor| tensor.to_f32().unwrap().into_owned();
                let [sum] = collectives.sum([0.25 * rank as f64]);
                said.push((
                    [of(&rows), of(&values), of(&sums)],
                    collectives.all_gather_bytes(&vec![7; rank]),
                    collectives.broadcast(vec![round, u8::try_from(rank).unwrap()]),
                    sum.to_bits(),
                ));
            }
            said
        });
        for said in &all {
            for (round, (values, bytes, told, sum)) in said.iter().enumerate() {
                let wanted = [vec![0.0, 1.0, 2.0, 3.0], vec![0.5, 0.5], vec![3.0, 3.0]];
                assert_eq!(*values, wanted);
                assert_eq!(*bytes, [vec![], vec![7], vec![7, 7]]);
                assert_eq!(told[..], [u8::try_from(round).unwrap(), 0]);
                assert_eq!(*sum, 0.75_f64.to_bits());
            }
        }
    }

    #[test]
    #[should_panic(expected = "which has ended")]
    fn a_rank_that_waits_for_one_that_has_ended_does_not_wait_for_ever() {
        Threads::run(3, |collectives| {
            if collectives.rank() != 1 {
                collectives.barrier();
            }
        });
    }
}
