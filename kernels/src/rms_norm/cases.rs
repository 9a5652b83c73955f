//! Sizes at which root-mean-square normalisation is compared.

/// (rows, width): one row, one column, odd widths, no rows, and one case large enough for threads.
pub(super) const SIZES: &[(usize, usize)] =
    &[(1, 1), (1, 64), (17, 33), (257, 64), (3, 2048), (0, 8), (1201, 67)];

/// Epsilon of Llama 3.2's norms.
pub(super) const EPS: f32 = 1e-5;

/// Tolerance of outputs: the sum is off by ε · √(width / 32 + 5) relative, a handful of roundings
/// follow, and values stay below 10.
pub(super) const TOLERANCE: f32 = 2e-6;

/// Tolerance of sums over up to 1201 rows of terms near 1, in f32: at most ε · √1201 · √1201.
pub(super) const SUM_TOLERANCE: f32 = 1.5e-4;
