//! Shards of flat buffers: which elements of weights and moments a rank owns (ZeRO-1, checkpoints).

use std::ops::Range;

use vljepa_model::Layout;

/// Division of flat buffers among ranks, in rows of 64 elements, so that shards are aligned as
/// parameters are.
///
/// Each rank owns a slot, and all slots have the same length ⌈rows / ranks⌉, so one collective
/// scatters or gathers a buffer for any number of ranks. The last slots may reach beyond the
/// buffer. Its padding ([`vljepa_kernels::Tensor::padded`]) lies there; it belongs to no shard, and
/// no checkpoint holds it.
///
/// ```
/// let shards = vljepa_worker::sharding::Shards::new(320, 2);
/// assert_eq!((shards.of(0), shards.of(1), shards.room()), (0..192, 192..320, 384));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shards {
    len: usize,
    ranks: usize,
}

impl Shards {
    /// Divides buffers of `len` elements among `ranks` ranks.
    ///
    /// # Panics
    /// Panics if `len` is not a multiple of 64, or there is no rank: a bug.
    #[must_use]
    pub fn new(len: usize, ranks: usize) -> Self {
        assert!(len.is_multiple_of(Layout::ALIGNMENT), "flat buffers are aligned");
        assert!(ranks > 0, "buffers have an owner");
        Self { len, ranks }
    }

    /// Length of each rank's slot.
    #[must_use]
    pub fn slot(self) -> usize {
        (self.len / Layout::ALIGNMENT).div_ceil(self.ranks) * Layout::ALIGNMENT
    }

    /// Number of elements for which a buffer needs memory: the slots of all ranks.
    #[must_use]
    pub fn room(self) -> usize {
        self.slot() * self.ranks
    }

    /// Elements that `rank` owns: its slot without padding. With fewer rows than ranks, the last
    /// ranks own none.
    #[must_use]
    pub fn of(self, rank: usize) -> Range<usize> {
        let slot = self.slot();
        (rank * slot).min(self.len)..((rank + 1) * slot).min(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::Shards;

    /// Trainable elements of the paper's model: 64 times an odd number.
    const TRAINABLE: usize = 795_864_896;

    #[test]
    fn shards_cover_the_buffer_once_and_are_equal_but_for_the_padding() {
        for len in [0, 64, 640, 64 * 331, TRAINABLE] {
            for ranks in [1, 2, 3, 7, 8, 24, 192, 1024, 1025, 4096] {
                let shards = Shards::new(len, ranks);
                let mut end = 0;
                for rank in 0..ranks {
                    let own = shards.of(rank);
                    assert_eq!(own.start, end, "{len} on {ranks}");
                    assert!(own.len() <= shards.slot());
                    let is_whole = own.len() == shards.slot() || own.end == len;
                    assert!(is_whole && own.start.is_multiple_of(64), "{len} on {ranks}: {own:?}");
                    end = own.end;
                }
                assert_eq!(end, len);
                assert!((len..len + 64 * ranks).contains(&shards.room()), "{len} on {ranks}");
            }
        }
    }

    #[test]
    fn the_paper_s_model_needs_at_most_a_mebibyte_of_padding_and_leaves_no_rank_without_work() {
        for ranks in [8, 64, 192, 1024, 4096] {
            let shards = Shards::new(TRAINABLE, ranks);
            assert!((shards.room() - TRAINABLE) * size_of::<f32>() <= 1 << 20, "{ranks}");
            assert!(!shards.of(ranks - 1).is_empty(), "{ranks}");
        }
    }
}
