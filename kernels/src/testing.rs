//! Helpers for tests of operations: seeded random numbers, comparisons that report the differences,
//! finite differences.
//!
//! The module is part of the library and not behind `cfg(test)` because tests of other crates and
//! benches use it too.

use std::fmt;

/// Seeded random numbers (`SplitMix64`), the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number in [0, 1) with 24 random bits.
    #[expect(clippy::cast_possible_truncation, reason = "24 bits are exact in f32")]
    pub fn unit(&mut self) -> f32 {
        ((self.bits() >> 40) as f64 / 16_777_216.0) as f32
    }

    /// Returns a number below `bound`. The bias of the remainder is below 2⁻³² for the bounds of
    /// tests.
    pub fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.bits() % u64::from(bound.max(1))).unwrap_or(0)
    }
}

/// `len` numbers uniform in [low, high).
#[must_use]
pub fn uniform(seed: u64, len: usize, low: f32, high: f32) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| low + (high - low) * random.unit()).collect()
}

/// `len` numbers of the standard normal distribution (Box-Muller).
#[must_use]
pub fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut draw = || {
        let radius = (-2.0 * (1.0 - random.unit()).ln()).sqrt();
        radius * (std::f32::consts::TAU * random.unit()).cos()
    };
    (0..len).map(|_| draw()).collect()
}

/// `len` integers uniform in 0..bound: token ids, positions or row indices of tests.
///
/// # Panics
/// If `bound` is above 2³¹ − 1.
#[must_use]
pub fn indices(seed: u64, len: usize, bound: usize) -> Vec<i32> {
    let mut random = Random::new(seed);
    let bound = u32::try_from(bound).expect("bounds of tests are small");
    (0..len).map(|_| i32::try_from(random.below(bound)).expect("bound below 2^31")).collect()
}

/// `len` random bytes: pixels of tests.
#[must_use]
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.bits().to_le_bytes()[7]).collect()
}

/// `len` NaNs: the content of an output before an operation that must overwrite all of it.
#[must_use]
pub fn poison(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

/// Differences between two sequences of numbers. An element matches if |got − want| ≤ tolerance ·
/// max(1, |want|); NaN never matches.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Number of elements that do not match.
    pub mismatched: usize,
    /// Number of elements compared.
    pub compared: usize,
    /// Largest |got − want|, infinite if an element is NaN.
    pub max_difference: f32,
    /// Index of the largest difference, with the values `got` and `want` there.
    pub worst: Option<(usize, f32, f32)>,
    /// Tolerance of the comparison.
    pub tolerance: f32,
}

impl Comparison {
    /// Compares `got` with `want`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn new(got: &[f32], want: &[f32], tolerance: f32) -> Self {
        assert_eq!(got.len(), want.len(), "compared numbers differ in count");
        let compared = got.len();
        let mut result =
            Self { mismatched: 0, compared, max_difference: 0.0, worst: None, tolerance };
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            let same = g.to_bits() == w.to_bits() && !g.is_nan();
            let difference = if same { 0.0 } else { (g - w).abs() };
            let difference = if difference.is_nan() { f32::INFINITY } else { difference };
            if difference > tolerance * w.abs().max(1.0) || !difference.is_finite() {
                result.mismatched += 1;
            }
            if result.worst.is_none() || difference > result.max_difference {
                (result.max_difference, result.worst) = (difference, Some((i, g, w)));
            }
        }
        result
    }

    /// Whether every element matches.
    #[must_use]
    pub fn is_close(&self) -> bool {
        self.mismatched == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mismatched, compared, max_difference, worst, tolerance } = self;
        write!(f, "{mismatched}/{compared} mismatched at tolerance {tolerance:e}")?;
        write!(f, ", max |Δ| {max_difference:e}")?;
        match worst {
            Some((i, got, want)) => write!(f, " at [{i}]: got {got:e}, want {want:e}"),
            None => Ok(()),
        }
    }
}

/// Asserts that every |got − want| ≤ tolerance · max(1, |want|).
///
/// # Panics
/// If an element does not match. The message counts the mismatches and shows the worst one.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    let comparison = Comparison::new(got, want, tolerance);
    print_difference(name, &comparison);
    assert!(comparison.is_close(), "{name}: {comparison}");
}

/// Prints the largest difference if `VLJEPA_SAY_ERRORS` is set, to show how much of a tolerance a
/// new machine uses.
#[expect(clippy::print_stdout, reason = "the user asks for it by a variable")]
fn print_difference(name: &str, comparison: &Comparison) {
    if std::env::var_os("VLJEPA_SAY_ERRORS").is_some() {
        println!("{name}: largest difference {:.2e}", comparison.max_difference);
    }
}

/// Asserts that a comparison with a wrong input fails, to show that the test can detect an error.
///
/// # Panics
/// If all elements match.
pub fn assert_differs(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    let comparison = Comparison::new(got, want, tolerance);
    assert!(!comparison.is_close(), "{name}: a wrong input passes: {comparison}");
}

/// The gradient of `f` at `at` by five-point differences: (8(f₊₁ − f₋₁) − (f₊₂ − f₋₂)) / 12h per
/// element.
///
/// The truncation error is h⁴·f⁽⁵⁾/30, and the rounding error about 1.5·δ/h for a function with
/// error δ. With f32 operations inside `f`, a step of 0.03 balances the two near 10⁻⁵.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "compared with an f32 gradient")]
pub fn finite_difference(at: &[f32], step: f32, mut f: impl FnMut(&[f32]) -> f64) -> Vec<f32> {
    let mut moved = at.to_vec();
    let mut gradient = Vec::with_capacity(at.len());
    for i in 0..at.len() {
        let mut sum = 0.0;
        for (steps, weight) in [(1.0, 8.0), (-1.0, -8.0), (2.0, -1.0), (-2.0, 1.0)] {
            moved[i] = at[i] + steps * step;
            sum += weight * f(&moved);
        }
        moved[i] = at[i];
        gradient.push((sum / (12.0 * f64::from(step))) as f32);
    }
    gradient
}

/// Σ aᵢ·bᵢ in f64: reduces an output to the scalar that [`finite_difference`] differentiates.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

#[cfg(test)]
mod tests {
    use super::{Comparison, assert_close, assert_differs, finite_difference, normal, uniform};

    #[test]
    fn a_comparison_counts_mismatches_and_finds_the_worst() {
        let comparison = Comparison::new(&[1.0, 2.5, f32::NAN, 4.0], &[1.0, 2.0, 3.0, 4.1], 1e-1);
        assert_eq!((comparison.mismatched, comparison.compared), (2, 4));
        assert_eq!(comparison.worst.map(|w| w.0), Some(2));
        assert!(!comparison.is_close());
        assert!(Comparison::new(&[f32::NAN], &[f32::NAN], 1.0).mismatched == 1);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let x = normal(1, 100_000);
        let moment = |p: i32| x.iter().map(|&v| f64::from(v).powi(p)).sum::<f64>() / 1e5;
        // Four standard errors: 4/√n and 4·√(2/n).
        assert!(moment(1).abs() < 0.013 && (moment(2) - 1.0).abs() < 0.018);
        assert!(uniform(2, 1000, -1.0, 3.0).iter().all(|v| (-1.0..3.0).contains(v)));
    }

    #[test]
    fn finite_differences_of_a_cubic_are_exact() {
        let cubic = |x: &[f32]| x.iter().map(|&v| f64::from(v).powi(3)).sum();
        let got = finite_difference(&[1.0, -2.0], 0.03, cubic);
        // Moved points are rounded to f32: 2⁻²³ / 0.03 relative to the derivative of 12.
        assert_close("cubic", &got, &[3.0, 12.0], 1e-5);
        assert_differs("cubic", &got, &[3.0, 12.1], 1e-5);
    }
}
