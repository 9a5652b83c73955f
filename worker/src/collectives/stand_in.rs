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
        mut out: ViewMut<'_>,
    ) -> Result<()> {
        let (all, own) = (out.len(), local.len());
        if own == 0 {
            return Ok(());
        }
        copy::copy(stream, local, out.reborrow().part(0, local.shape()))?;
        // What is there is copied behind itself, so that a few copies fill the whole.
        let mut filled = own;
        while filled < all {
            let more = filled.min(all - filled);
            let (there, rest) = out.reborrow().split_at(filled);
            copy::copy(stream, there.as_view().part(0, &[more]), rest.part(0, &[more]))?;
            filled += more;
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
