//! Shapes in the tests of distances: (rows, width).

/// A single element, odd sizes, no row.
pub(crate) const CASES: [(usize, usize); 4] = [(1, 1), (3, 7), (17, 16), (0, 8)];
