//! Shapes in the tests of cross-entropy: (tokens, vocabulary).

/// Single elements, sizes that no vector divides, more than a block takes at a time, no token.
pub(crate) const CASES: [(usize, usize); 5] = [(1, 1), (5, 17), (3, 2056), (17, 4099), (0, 8)];
