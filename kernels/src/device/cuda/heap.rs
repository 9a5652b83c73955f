//! The heap of a device: which ranges of its memory are in use.
//!
//! A device reserves one range of addresses that never moves, and backs its beginning with memory
//! as the heap grows. Adjacent free blocks are merged, so that memory freed by one stage can serve
//! blocks of other sizes in the next. A tensor takes the first free block that is long enough. The
//! operations of one stream are ordered, so a block may be given to the next operation before the
//! last operation that used it has run. A caller that writes a block on another stream must make
//! that stream wait.
//!
//! Three alternatives were tried on the orders of the paper's three stages: best fit, blocks of
//! size classes, and large blocks from the end. Each left larger holes in the longest stage.

use std::collections::BTreeMap;

/// Alignment of blocks in bytes: as cuMemAlloc guarantees, and more than vector loads need.
pub(super) const ALIGNMENT: usize = 512;
/// Granularity of backed memory in bytes: that of cuMemCreate on every GPU we know.
pub(super) const PAGE_BYTES: usize = 2 << 20;

/// Used and free blocks of a range of addresses, as offsets from its start.
#[derive(Debug, Default)]
pub(super) struct Heap {
    backed: usize,
    /// Length of each free block by its offset. No two free blocks are adjacent.
    free: BTreeMap<usize, usize>,
    used_bytes: usize,
}

impl Heap {
    /// Bytes that are backed by memory.
    pub(super) fn backed(&self) -> usize {
        self.backed
    }

    /// Bytes of blocks in use.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Length of the block for a request of `bytes`.
    pub(super) fn block(bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(ALIGNMENT)
    }

    /// Offset of the first free block of at least `bytes`, or `None` if the heap must grow first.
    pub(super) fn take(&mut self, bytes: usize) -> Option<usize> {
        let bytes = Self::block(bytes);
        let mut free = self.free.iter().map(|(offset, length)| (*offset, *length));
        let (offset, length) = free.find(|(_, length)| *length >= bytes)?;
        self.free.remove(&offset);
        if length > bytes {
            self.free.insert(offset + bytes, length - bytes);
        }
        self.used_bytes += bytes;
        Some(offset)
    }

    /// Bytes by which the heap must grow to have a free block of `bytes`, in whole pages.
    pub(super) fn missing(&self, bytes: usize) -> usize {
        let tail = self.tail().map_or(0, |(_, length)| length);
        Self::block(bytes).saturating_sub(tail).next_multiple_of(PAGE_BYTES)
    }

    /// Adds `bytes` that have been backed beyond the end.
    pub(super) fn grow(&mut self, bytes: usize) {
        self.release(self.backed, bytes);
        self.backed += bytes;
    }

    /// Frees the block at `offset` that was taken for `bytes`.
    pub(super) fn give_back(&mut self, offset: usize, bytes: usize) {
        let bytes = Self::block(bytes);
        self.used_bytes -= bytes;
        self.release(offset, bytes);
    }

    /// Smallest end of the backed part that keeps every block in use, in whole pages.
    pub(super) fn needed(&self) -> usize {
        self.tail().map_or(self.backed, |(offset, _)| offset.next_multiple_of(PAGE_BYTES))
    }

    /// Removes everything beyond `end`, where no block is in use.
    pub(super) fn shrink(&mut self, end: usize) {
        if end < self.backed
            && let Some((offset, _)) = self.tail()
        {
            self.free.remove(&offset);
            if end > offset {
                self.free.insert(offset, end - offset);
            }
            self.backed = end;
        }
    }

    /// Offset and length of the free block at the end of the backed part, if there is one.
    fn tail(&self) -> Option<(usize, usize)> {
        let (offset, length) = self.free.last_key_value()?;
        (offset + length == self.backed).then_some((*offset, *length))
    }

    /// Adds a free block and merges it with its free neighbours.
    fn release(&mut self, mut offset: usize, mut length: usize) {
        if let Some((&before, &bytes)) = self.free.range(..offset).next_back()
            && before + bytes == offset
        {
            self.free.remove(&before);
            (offset, length) = (before, bytes + length);
        }
        if let Some(bytes) = self.free.remove(&(offset + length)) {
            length += bytes;
        }
        self.free.insert(offset, length);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::{ALIGNMENT, Heap, PAGE_BYTES};

    /// Takes a block of `bytes`, and grows the heap if necessary.
    fn take(heap: &mut Heap, bytes: usize) -> usize {
        heap.take(bytes).unwrap_or_else(|| {
            heap.grow(heap.missing(bytes));
            heap.take(bytes).unwrap()
        })
    }

    #[test]
    fn blocks_never_overlap_and_free_neighbours_become_one() {
        let mut heap = Heap::default();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut used: Vec<(usize, usize)> = Vec::new();
        for _ in 0..20_000 {
            if used.len() < 3 || random.random_bool(0.5) {
                let bytes = 1 << random.random_range(0..24);
                let offset = take(&mut heap, bytes);
                assert!(offset.is_multiple_of(ALIGNMENT) && offset + bytes <= heap.backed());
                let apart = |&(other, len): &(usize, usize)| {
                    offset + bytes <= other || other + len <= offset
                };
                assert!(used.iter().all(apart), "{offset} {bytes}");
                used.push((offset, bytes));
            } else {
                let (offset, bytes) = used.swap_remove(random.random_range(0..used.len()));
                heap.give_back(offset, bytes);
            }
            let sum: usize = used.iter().map(|(_, bytes)| Heap::block(*bytes)).sum();
            assert_eq!(heap.used_bytes(), sum);
        }
        for (offset, bytes) in used {
            heap.give_back(offset, bytes);
        }
        assert_eq!(heap.free.len(), 1, "one block is left when nothing is in use");
        assert_eq!((heap.used_bytes(), heap.needed()), (0, 0));
    }

    #[test]
    fn a_trimmed_heap_keeps_what_is_in_use() {
        let mut heap = Heap::default();
        let kept = take(&mut heap, 3 * PAGE_BYTES / 2);
        let above = take(&mut heap, 8 * PAGE_BYTES);
        heap.give_back(above, 8 * PAGE_BYTES);
        assert_eq!((heap.backed(), heap.needed()), (10 * PAGE_BYTES, 2 * PAGE_BYTES));
        heap.shrink(heap.needed());
        assert_eq!(heap.backed(), 2 * PAGE_BYTES);
        // The rest of the last page is used before the heap grows.
        assert_eq!(heap.take(PAGE_BYTES / 2), Some(kept + 3 * PAGE_BYTES / 2));
        assert_eq!(heap.take(1), None);
    }

    #[test]
    fn memory_of_many_small_blocks_serves_a_large_one() {
        let mut heap = Heap::default();
        let small: Vec<usize> = (0..64).map(|_| take(&mut heap, PAGE_BYTES / 4)).collect();
        let backed = heap.backed();
        small.into_iter().for_each(|offset| heap.give_back(offset, PAGE_BYTES / 4));
        take(&mut heap, 16 * PAGE_BYTES);
        assert_eq!(heap.backed(), backed);
    }
}
