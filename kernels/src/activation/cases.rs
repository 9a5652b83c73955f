//! Sizes in the tests of activations.

/// Number of elements: none, one, a remainder of a vector, more than a block, enough for threads.
pub(super) const LENGTHS: &[usize] = &[0, 1, 17, 257, 20_000, 70_001];

/// 1 + erf cancels for negative x: three units in the last place of 1, times |x| ≤ 4, then relative
/// rounding.
pub(super) const TOLERANCE: f32 = 2e-6;
