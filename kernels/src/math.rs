//! Exponential, logistic, tanh, error, sine and cosine functions in f32, written without branches
//! so that the compiler vectorises them.
//!
//! The `exp` and `tanh` of the standard library are calls on one element at a time; softmax, GELU
//! and SiLU need them for every activation. Each function here is a polynomial with selects instead
//! of branches, so a loop over a slice that calls it is vectorised. All functions propagate NaN.

/// Below this x, [`exp`] returns zero. Its result would have an exponent under −125, and arithmetic
/// on subnormal numbers is tens of times slower.
const EXP_UNDERFLOW: f32 = -86.9;

/// Above this x, [`exp`] returns infinity: ln(`f32::MAX`).
const EXP_OVERFLOW: f32 = 88.722_84;

/// 1.5 · 2²³. Adding this number to a small one leaves the nearest integer in the low bits of the
/// sum.
const ROUND_TO_INTEGER: f32 = 12_582_912.0;

/// eˣ, within 2 units in the last place; zero below −86.9, infinite above ln(`f32::MAX`).
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2. The polynomial for eʳ is that of the Cephes library
/// (`expf`).
///
/// ```
/// assert!((vljepa_kernels::math::exp(1.0) - std::f32::consts::E).abs() < 1e-6);
/// ```
#[inline]
#[must_use]
pub fn exp(x: f32) -> f32 {
    // ln 2 in two parts, so that n times the first part is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND_TO_INTEGER);
    let n = shifted - ROUND_TO_INTEGER;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let p = 1.987_569_1e-4_f32.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ⁻¹ from its bits, then doubled: for the largest finite eˣ, 2ⁿ would have the exponent of
    // infinity, 2ⁿ⁻¹ does not.
    let bits = shifted.to_bits().wrapping_sub(ROUND_TO_INTEGER.to_bits());
    let half_scale = f32::from_bits(bits.wrapping_add(126) << 23);
    let y = (p + p) * half_scale;
    let y = if x < EXP_UNDERFLOW { 0.0 } else { y };
    if x > EXP_OVERFLOW { f32::INFINITY } else { y }
}

/// The logistic function 1 / (1 + e⁻ˣ).
#[inline]
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent, within 2 units in the last place.
///
/// An odd polynomial up to 0.6, and 1 − 2 / (e²ˣ + 1) beyond.
#[inline]
#[must_use]
pub fn tanh(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let p = 1.573_944e-2_f32.mul_add(s, -5.230_255_8e-2);
    let p = p.mul_add(s, 1.331_524_7e-1);
    let p = p.mul_add(s, -3.333_276_8e-1);
    let near = (p * s).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(t + t) + 1.0)).copysign(x);
    if t > 0.6 { far } else { near }
}

/// The error function 2/√π ∫₀ˣ e^(−u²) du, within 2 units in the last place.
///
/// An odd polynomial up to 0.93, and 1 − e^(polynomial) beyond.
#[inline]
#[must_use]
pub fn erf(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let p = (-5.967_617e-4_f32).mul_add(s, 4.991_194e-3);
    let p = p.mul_add(s, -2.676_813_5e-2);
    let p = p.mul_add(s, 1.128_199_3e-1);
    let p = p.mul_add(s, -3.761_253_4e-1);
    let p = p.mul_add(s, 1.283_791_7e-1);
    let near = p.mul_add(x, x);
    let q = (-1.728_534_7e-5_f32).mul_add(t, 3.831_971_3e-4);
    let u = (-3.883_964_4e-3_f32).mul_add(t, 2.425_462_2e-2);
    let q = q.mul_add(s, u);
    let q = q.mul_add(t, -1.067_778_8e-1);
    let q = q.mul_add(t, -6.348_467e-1);
    let q = q.mul_add(t, -1.287_175_1e-1);
    let q = q.mul_add(t, -t);
    let far = (1.0 - exp(q)).copysign(x);
    if t > 0.927_734_4 { far } else { near }
}

/// Sine and cosine of 2π·`turns`, with an absolute error below 10⁻⁶ up to 4 turns. From there the
/// error grows like the rounding error of `turns`.
///
/// Both are those of the doubled angle π·r with |r| ≤ 1/2, from Taylor polynomials of degree 11
/// and 12.
///
/// ```
/// let (sine, cosine) = vljepa_kernels::math::sin_cos_turns(0.25);
/// assert!((sine - 1.0).abs() < 1e-6 && cosine.abs() < 1e-6);
/// ```
#[inline]
#[must_use]
pub fn sin_cos_turns(turns: f32) -> (f32, f32) {
    let half = std::f32::consts::PI * (turns - (turns + 0.5).floor());
    let s = half * half;
    let p = (-2.505_210_8e-8_f32).mul_add(s, 2.755_732e-6);
    let p = p.mul_add(s, -1.984_127e-4);
    let p = p.mul_add(s, 8.333_334e-3);
    let p = p.mul_add(s, -1.666_666_7e-1);
    let sine = (p * s).mul_add(half, half);
    let q = 2.087_675_7e-9_f32.mul_add(s, -2.755_732e-7);
    let q = q.mul_add(s, 2.480_158_7e-5);
    let q = q.mul_add(s, -1.388_888_9e-3);
    let q = q.mul_add(s, 4.166_666_8e-2);
    let q = q.mul_add(s, -0.5);
    let cosine = q.mul_add(s, 1.0);
    (2.0 * sine * cosine, (-2.0 * sine).mul_add(sine, 1.0))
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::{erf, exp, sigmoid, sin_cos_turns, tanh};
    use crate::activation::reference;

    /// The largest error over a grid of 800,000 points, in units of the true value's last place.
    #[expect(clippy::cast_possible_truncation, reason = "the grid and the unit are f32 numbers")]
    fn worst_ulps(f: impl Fn(f32) -> f32, oracle: impl Fn(f64) -> f64, low: f64, high: f64) -> f64 {
        let error = |i: u32| {
            let x = (low + (high - low) * f64::from(i) / 800_000.0) as f32;
            let want = oracle(f64::from(x));
            let rounded = (want as f32).abs().max(f32::MIN_POSITIVE);
            let ulp = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
            (f64::from(f(x)) - want).abs() / ulp
        };
        (0..=800_000).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn functions_stay_within_two_units_in_the_last_place() {
        assert!(worst_ulps(exp, f64::exp, -86.8, 88.7) <= 2.0);
        assert!(worst_ulps(tanh, f64::tanh, -12.0, 12.0) <= 2.0);
        assert!(worst_ulps(erf, reference::erf, -6.0, 6.0) <= 2.0);
        // 1 + e⁻ˣ and the division add one rounding each to the two units of the exponential.
        assert!(worst_ulps(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0) <= 4.0);
        // An exponential with a relative error of 10⁻⁶ fails.
        assert!(worst_ulps(|x| exp(x) * (1.0 + 1e-6), f64::exp, -1.0, 1.0) > 2.0);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "these values are exact")]
    fn ends_of_the_range_are_exact() {
        let inf = f32::INFINITY;
        assert_eq!(
            [exp(-inf), exp(-104.0), exp(0.0), exp(89.0), exp(inf)],
            [0.0, 0.0, 1.0, inf, inf]
        );
        assert_eq!([tanh(-inf), tanh(-40.0), tanh(0.0), tanh(inf)], [-1.0, -1.0, 0.0, 1.0]);
        assert_eq!([erf(-inf), erf(-5.0), erf(0.0), erf(inf)], [-1.0, -1.0, 0.0, 1.0]);
        assert_eq!([sigmoid(-inf), sigmoid(0.0), sigmoid(inf)], [0.0, 0.5, 1.0]);
    }

    #[test]
    fn sine_and_cosine_have_the_stated_error() {
        let worst = |f: fn(f32) -> (f32, f32)| {
            let error = |i: i16| {
                let turns = f32::from(i) / 8000.0;
                let (sine, cosine) = (f64::from(turns) * TAU).sin_cos();
                let (s, c) = f(turns);
                (f64::from(s) - sine).abs().max((f64::from(c) - cosine).abs())
            };
            (-32_000..=32_000).map(error).fold(0.0, f64::max)
        };
        assert!(worst(sin_cos_turns) < 1e-6, "{}", worst(sin_cos_turns));
        assert!(worst(|turns| sin_cos_turns(turns + 1e-6)) > 1e-6);
        assert!(sin_cos_turns(f32::NAN).0.is_nan() && sin_cos_turns(f32::INFINITY).1.is_nan());
    }

    #[test]
    fn not_a_number_stays_not_a_number() {
        assert!([exp, tanh, erf, sigmoid].iter().all(|f| f(f32::NAN).is_nan()));
    }
}
