//! Shapes in the tests of `VICReg`: (rows, width).

/// One dimension, odd sizes, more dimensions than a block has threads.
pub(crate) const CASES: [(usize, usize); 4] = [(2, 1), (5, 3), (17, 16), (6, 260)];
