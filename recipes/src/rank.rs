//! Identity of a rank, and the rows of a batch that belong to it.

use std::ops::Range;

/// Number of a rank, and number of ranks in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RankId {
    /// Number of the rank, counted from 0.
    pub rank: usize,
    /// Number of ranks in the run, at least 1.
    pub world_size: usize,
}

impl RankId {
    /// The only rank of a run.
    pub const SINGLE: Self = Self { rank: 0, world_size: 1 };

    /// Rows of a batch of B rows that belong to rank r of R: ⌊rB/R⌋..⌊(r+1)B/R⌋. Any number of
    /// ranks can share any batch (ARCHITECTURE.md, "InfoNCE over ranks").
    ///
    /// ```
    /// use vljepa_recipes::RankId;
    ///
    /// let rows = |rank| RankId { rank, world_size: 3 }.rows(8);
    /// assert_eq!([0, 1, 2].map(rows), [0..2, 2..5, 5..8]);
    /// ```
    #[must_use]
    pub fn rows(self, batch: usize) -> Range<usize> {
        let Self { rank, world_size } = self;
        rank * batch / world_size..(rank + 1) * batch / world_size
    }
}

#[cfg(test)]
mod tests {
    use super::RankId;

    #[test]
    fn ranks_own_all_rows_once() {
        for batch in [1, 7, 8, 128] {
            for world_size in 1..=9 {
                let rows = |rank| RankId { rank, world_size }.rows(batch);
                let all: Vec<_> = (0..world_size).flat_map(rows).collect();
                assert_eq!(all, (0..batch).collect::<Vec<_>>());
                let sizes = (0..world_size).map(|rank| rows(rank).len());
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            }
        }
    }
}
