//! Sizes in the tests of the gated MLP.

/// (rows, f): one element, odd widths, no rows, and a size large enough for threads.
pub(super) const SIZES: &[(usize, usize)] =
    &[(1, 1), (17, 33), (257, 160), (0, 8), (5, 0), (3, 4099)];

/// A sigmoid within 4 units in the last place, 5 roundings, products of up to 4 · 4 · 4.
pub(super) const TOLERANCE: f32 = 5e-6;
