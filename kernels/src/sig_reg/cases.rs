//! Shapes in the tests of `SIGReg`: (rows, directions).

/// One projection, odd sizes, more rows and more directions than a block takes.
pub(crate) const CASES: [(usize, usize); 4] = [(1, 1), (5, 3), (70, 8), (33, 136)];
