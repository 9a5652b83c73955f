//! Sizes at which the linear layer is compared.

/// (rows, inputs, outputs): one row, odd widths, empty sizes, and one case large enough for
/// threads.
pub(super) const SIZES: &[(usize, usize, usize)] =
    &[(1, 1, 1), (1, 64, 3), (17, 33, 65), (257, 64, 192), (0, 8, 8), (5, 0, 4), (700, 67, 129)];

/// Tolerance for a sum of `len` terms: ε · √len · (largest |term|, about 9 for products of two
/// normal numbers).
pub(super) fn tolerance(len: usize) -> f32 {
    9.0 * f32::EPSILON * (len as f32).sqrt().max(1.0)
}
