//! Computes one rank's share of a step without the other ranks, for benchmarks on one machine.
//!
//! This rank's rows stand in for the rows of the others, and its numbers for the sums. Shapes,
//! arithmetic and memory equal those of a rank in the full world. The values of the step differ,
//! and network time is not included.

use vljepa_kernels::{Result, Stream, View, ViewMut, copy};

use super::Shares;

/// Rank 0 of `world_size` ranks, of which only this one exists.
#[derive(Debug, Clone, Copy)]
pub struct StandIn {
    /// Number of ranks in the simulated world.
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
        // Each copy appends everything written so far, so a few copies fill the whole tensor.
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
        // Other ranks have other texts, so their hashes must differ.
        let of = |rank: u64, i: usize| local[i % local.len().max(1)].wrapping_add(rank);
        (0u64..)
            .zip(0..self.world_size)
            .flat_map(|(number, rank)| (0..shares.rows(rank).len()).map(move |i| of(number, i)))
            .collect()
    }
}
