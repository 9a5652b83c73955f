//! Sums gradients over ranks in buckets; the sum of a bucket begins as soon as a backward pass has
//! completed it.
//!
//! The buckets are fixed ranges of the flat gradient buffer, which holds gradients in the order in
//! which backward passes complete them. Every rank sums the same buckets in the same order, at
//! whatever time its own backward pass completes them.

use std::ops::Range;

use vljepa_kernels::{Stream, ViewMut};

use super::Collectives;
use crate::error::WorkerError;

/// Divides a buffer into buckets and remembers which of them were taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Buckets {
    /// Elements per bucket; the last bucket may be shorter.
    size: usize,
    /// End of the last bucket that was taken.
    taken: usize,
}

impl Buckets {
    fn new(size: usize) -> Self {
        Self { size: size.max(1), taken: 0 }
    }

    /// Returns the next bucket of a buffer of `len` elements if it ends at or before `complete`.
    fn next(&mut self, complete: usize, len: usize) -> Option<Range<usize>> {
        let end = (self.taken + self.size).min(len);
        if self.taken == len || end > complete {
            return None;
        }
        let bucket = self.taken..end;
        self.taken = end;
        Some(bucket)
    }
}

/// Sum of one step's gradients over all ranks, in progress.
#[derive(Debug)]
pub struct GradientSum<'a> {
    collectives: &'a Collectives,
    buckets: Buckets,
    failed: Option<WorkerError>,
}

impl<'a> GradientSum<'a> {
    /// Prepares to sum f32 gradients, `bucket_bytes` at a time. Nothing is summed yet.
    #[must_use]
    pub fn new(collectives: &'a Collectives, bucket_bytes: usize) -> Self {
        let buckets = Buckets::new(bucket_bytes / size_of::<f32>());
        Self { collectives, buckets, failed: None }
    }

    /// Begins the sums of all buckets before `complete`, to which no backward pass adds any more.
    /// [`Self::finish`] returns the first error.
    pub fn ready(&mut self, stream: &Stream, mut flat: ViewMut<'_>, complete: usize) {
        let len = flat.len();
        while self.failed.is_none()
            && let Some(Range { start, end }) = self.buckets.next(complete, len)
        {
            let bucket = flat.reborrow().part(start, &[end - start]);
            self.failed = self.collectives.begin_all_reduce_sum(stream, bucket).err();
        }
    }

    /// Sums the remaining buckets, and makes later work of `stream` wait for all sums.
    ///
    /// # Errors
    /// Returns the first error of any bucket.
    pub fn finish(mut self, stream: &Stream, flat: ViewMut<'_>) -> Result<(), WorkerError> {
        let len = flat.len();
        self.ready(stream, flat, len);
        self.failed.map_or(Ok(()), Err)?;
        self.collectives.end_all_reduce_sums(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::Buckets;

    #[test]
    fn buckets_are_due_once_when_their_last_element_is_complete() {
        let mut buckets = Buckets::new(10);
        assert_eq!(buckets.next(9, 25), None);
        assert_eq!(buckets.next(19, 25), Some(0..10));
        assert_eq!(buckets.next(19, 25), None);
        assert_eq!(buckets.next(24, 25), Some(10..20));
        assert_eq!(buckets.next(24, 25), None, "the last one is short, and not complete yet");
        assert_eq!(buckets.next(25, 25), Some(20..25));
        assert_eq!(buckets.next(25, 25), None);
    }

    #[test]
    fn buckets_do_not_depend_on_how_completion_was_announced() {
        let all = |announced: &[usize]| {
            let mut buckets = Buckets::new(64);
            let mut taken = Vec::new();
            for &complete in announced {
                while let Some(bucket) = buckets.next(complete, 1000) {
                    taken.push(bucket);
                }
            }
            taken
        };
        let at_once = all(&[1000]);
        assert_eq!(at_once.iter().map(ExactSizeIterator::len).sum::<usize>(), 1000);
        assert_eq!(all(&[1, 70, 70, 500, 999, 1000]), at_once);
        assert_eq!(all(&[0, 640, 1000]), at_once);
    }

    #[test]
    fn an_empty_buffer_has_no_bucket_and_a_bucket_has_an_element() {
        assert_eq!(Buckets::new(10).next(0, 0), None);
        assert_eq!(Buckets::new(0).next(3, 3), Some(0..1));
    }
}
