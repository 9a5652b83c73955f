//! Shards of flat buffers: which elements of weights and moments a rank owns (ZeRO-1, checkpoints).

use std::ops::Range;

use vljepa_model::Layout;
use vljepa_recipes::RankId;

use crate::collectives::Shares;

/// Divides flat buffers of `len` elements among ranks, in rows of 64 elements, so that shards are
/// aligned as parameters are.
///
/// # Panics
/// Panics if `len` is not a multiple of 64: a bug.
#[must_use]
pub fn shards(len: usize, world_size: usize) -> Shares {
    assert!(len.is_multiple_of(Layout::ALIGNMENT), "flat buffers are aligned");
    Shares { global: len / Layout::ALIGNMENT, world_size }
}

/// Returns the elements of flat buffers that `rank` owns.
///
/// # Panics
/// Panics if `len` is not a multiple of 64: a bug.
///
/// ```
/// let second = vljepa_recipes::RankId { rank: 1, world_size: 2 };
/// assert_eq!(vljepa_worker::sharding::shard(320, second), 128..320);
/// ```
#[must_use]
pub fn shard(len: usize, rank: RankId) -> Range<usize> {
    let Range { start, end } = shards(len, rank.world_size).rows(rank.rank);
    start * Layout::ALIGNMENT..end * Layout::ALIGNMENT
}
