//! One rank's share of a larger world's step, without the others: for benchmarks on one machine.
//!
//! Its own rows stand in for theirs, and its own numbers for the sums: shapes, arithmetic and memory of a rank are those of the real
//! world, what a step computes is not, and the network's time is left out.

use vljepa_kernels::{Result, Stream, View, ViewMut, copy};

use super::Shares;

/// Rank 0 of `world_size` ranks, the others of which are not there.
#[derive(Debug, Clone, Copy)]
pub struct StandIn {
    /// Ranks of the world.
    pub world_size: usize,
}

impl StandIn {
    pub(super) fn all_gather_rows(
        self,
        stream: &Stream,
        local: View<'_>,
        shares: Shares,
        mut out: ViewMut<'_>,
    ) -> Result<()> {
        let width = out.len() / shares.global.max(1);
        for rank in 0..self.world_size {
            let rows = shares.rows(rank);
            // Shares differ by one row at most.
            let some = rows.len() * width;
            let from = local.part(0, &[some.min(local.len())]);
            let to = out.reborrow().part(rows.start * width, from.shape());
            copy::copy(stream, from, to)?;
        }
        Ok(())
    }

    pub(super) fn all_gather_hashes(self, local: &[u64], shares: Shares) -> Vec<u64> {
        // Other ranks' texts are other texts.
        let of = |rank: u64, i: usize| local[i % local.len().max(1)].wrapping_add(rank);
        (0u64..)
            .zip(0..self.world_size)
            .flat_map(|(number, rank)| (0..shares.rows(rank).len()).map(move |i| of(number, i)))
            .collect()
    }
}
