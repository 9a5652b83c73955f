//! Tests of `SIGReg` on the host against its definition in f64 and finite differences.

use super::cases::CASES;
use super::{KNOTS, add_sums, coefficients, gradients, reference};
use crate::testing::{assert_close, assert_differs, finite_difference, normal, poison};
use crate::{KernelError, Stream, View, ViewMut};

const FACTOR: f32 = 0.5;

/// Terms (m) and gradients (b, m) of projections (b, m), by the operations. The sums over rows are
/// those of two parts of the rows, as of two ranks.
fn terms_and_gradients(x: &[f32], [rows, directions]: [usize; 2]) -> (Vec<f32>, Vec<f32>) {
    let stream = &Stream::Host;
    let mut sums = vec![0.0; 2 * KNOTS * directions];
    let (first, second) = x.split_at(rows / 2 * directions);
    for part in [first, second] {
        let part = View::from_f32(part, &[part.len() / directions, directions]);
        let out = ViewMut::from_f32(&mut sums, &[2 * KNOTS, directions]);
        add_sums(stream, part, out).unwrap();
    }
    let (mut terms, mut d) = (poison(directions), poison(rows * directions));
    let out = ViewMut::from_f32(&mut sums, &[2 * KNOTS, directions]);
    let of_terms = ViewMut::from_f32(&mut terms, &[directions]);
    coefficients(stream, out, rows, FACTOR, of_terms).unwrap();
    let sums = View::from_f32(&sums, &[2 * KNOTS, directions]);
    let out = ViewMut::from_f32(&mut d, &[rows, directions]);
    gradients(stream, View::from_f32(x, &[rows, directions]), sums, out).unwrap();
    (terms, d)
}

#[test]
fn statistics_and_gradients_match_the_definition_and_finite_differences() {
    for (seed, (rows, directions)) in (0..).zip(CASES) {
        // Neither centred nor of variance 1.
        let x: Vec<f32> = normal(seed, rows * directions).iter().map(|x| 1.4 * x + 0.3).collect();
        let (terms, d) = terms_and_gradients(&x, [rows, directions]);
        let want = reference::statistics(&x, directions, FACTOR);
        let want: Vec<f32> = want.into_iter().map(crate::parallel::round).collect();
        // Means of cosines have errors of 1e-6 after 8 rotations; g of their squares of order 0.1
        // are added.
        assert_close("statistics", &terms, &want, 2e-5);
        let moved: Vec<f32> = x.iter().map(|x| x + 0.01).collect();
        let other = terms_and_gradients(&moved, [rows, directions]);
        assert_differs("moved", &other.0, &want, 2e-5);
        if x.len() > 600 {
            // Differences of so many elements take long.
            continue;
        }
        let f = |x: &[f32]| reference::statistics(x, directions, FACTOR).iter().sum();
        // The moved points round: 2⁻²³ / step; the third derivative adds step².
        let want = finite_difference(&x, 1e-3, f);
        assert_close("gradients", &d, &want, 5e-4);
        assert_differs("moved", &other.1, &want, 5e-4);
    }
}

#[test]
fn a_normal_distribution_has_a_small_statistic_and_a_collapsed_one_a_large() {
    let (rows, directions) = (512, 4);
    let normal = normal(7, rows * directions);
    let statistic = |x: &[f32]| terms_and_gradients(x, [rows, directions]).0;
    // The expected statistic of g normal numbers does not depend on g: FACTOR · ∫ (1 − e^(−t²))
    // e^(−t²/2) dt = 0.5 · √2π · (1 − 1/√3) = 0.53.
    assert!(statistic(&normal).iter().all(|&t| t > 0.05 && t < 2.5), "{:?}", statistic(&normal));
    let collapsed = vec![0.0; rows * directions];
    // g · FACTOR · ∫ (1 − e^(−t²/2))² e^(−t²/2) dt = 512 · 0.5 · √2π · (1 − √2 + 1/√3) = 104.7.
    assert!(statistic(&collapsed).iter().all(|&t| (t - 104.7).abs() < 1.0));
}

#[test]
fn not_a_number_stays() {
    let (terms, d) = terms_and_gradients(&[f32::NAN, 1.0, 2.0], [3, 1]);
    assert!(terms[0].is_nan() && d.iter().all(|d| d.is_nan()), "{terms:?} {d:?}");
}

#[test]
fn shapes_that_disagree_are_errors() {
    let (x, mut sums) = ([0.0; 6], [0.0; 2 * KNOTS * 3]);
    let projections = View::from_f32(&x, &[3, 2]);
    let sums = ViewMut::from_f32(&mut sums, &[2 * KNOTS, 3]);
    let error = add_sums(&Stream::Host, projections, sums);
    assert!(matches!(error, Err(KernelError::Shape { what: "sums", .. })), "{error:?}");
}
