//! Gradients summed over ranks in buckets, each as soon as a backward pass has completed it.
//!
//! Buckets lie at fixed places of the flat buffer, which holds gradients in the order in which backward passes complete them. Every
//! rank sums the same buckets in the same order, whenever its own backward pass comes to them.

use std::ops::Range;

use vljepa_kernels::{Stream, ViewMut};

use super::Collectives;
use crate::error::WorkerError;

/// Which buckets of a buffer are due.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Buckets {
    /// Elements of a bucket; the last one may be shorter.
    size: usize,
    /// Elements before this place are taken.
    taken: usize,
}

impl Buckets {
    fn new(size: usize) -> Self {
        Self { size: size.max(1), taken: 0 }
    }

    /// The next bucket of a buffer of `len` elements that lies before `complete` with all of its own.
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

/// The sum of one step's gradients over all ranks, under way.
#[derive(Debug)]
pub struct GradientSum<'a> {
    collectives: &'a Collectives,
    buckets: Buckets,
    failed: Option<WorkerError>,
}

impl<'a> GradientSum<'a> {
    /// Nothing is summed yet; gradients, f32, will be summed `bucket_bytes` at a time.
    #[must_use]
    pub fn new(collectives: &'a Collectives, bucket_bytes: usize) -> Self {
        let buckets = Buckets::new(bucket_bytes / size_of::<f32>());
        Self { collectives, buckets, failed: None }
    }

    /// Begins the sums of buckets that are complete: no backward pass adds to gradients before `complete` any more. An error
    /// is kept for [`Self::finish`].
    pub fn ready(&mut self, stream: &Stream, mut flat: ViewMut<'_>, complete: usize) {
        let len = flat.len();
        while self.failed.is_none()
            && let Some(Range { start, end }) = self.buckets.next(complete, len)
        {
            let bucket = flat.reborrow().part(start, &[end - start]);
            self.failed = self.collectives.begin_all_reduce_sum(stream, bucket).err();
        }
    }

    /// Sums what is left; what is issued to `stream` from now on sees the sums of all ranks.
    ///
    /// # Errors
    /// The first one of any bucket.
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
