//! Tests of `VICReg`'s terms on the host against their definition in f64 and finite differences.

use super::cases::CASES;
use super::{EPSILON, Factors, centre, weights};
use crate::testing::{assert_close, assert_differs, finite_difference, normal, poison};
use crate::{KernelError, Stream, View, ViewMut, Write, column_sums, linear};

const FACTORS: Factors = Factors { variance: 12.5, covariance: 1.0 };

/// Embeddings whose columns have other means and deviations from 0.2 to 1.8, none within 0.05 of 1:
/// the hinge has no derivative there.
pub(super) fn embeddings(seed: u64, (rows, width): (usize, usize)) -> Vec<f32> {
    let mut x = normal(seed, rows * width);
    for column in 0..width {
        let of = |i: usize| i * width + column;
        let mean: f64 = (0..rows).map(|i| f64::from(x[of(i)])).sum::<f64>() / rows as f64;
        let square = (0..rows).map(|i| (f64::from(x[of(i)]) - mean).powi(2)).sum::<f64>();
        let deviation = (square / (rows - 1) as f64).sqrt();
        let wanted = [0.2, 0.8, 1.2, 1.8][column % 4];
        for i in 0..rows {
            let moved = (f64::from(x[of(i)]) - mean) * wanted / deviation + column as f64 / 10.0;
            x[of(i)] = crate::parallel::round(moved);
        }
    }
    x
}

/// Covariance matrix (e, e) of embeddings.
fn covariance(x: &[f32], width: usize) -> Vec<f64> {
    let rows = x.len() / width;
    let mean = |j: usize| {
        x.iter().skip(j).step_by(width).map(|&v| f64::from(v)).sum::<f64>() / rows as f64
    };
    let means: Vec<f64> = (0..width).map(mean).collect();
    let mut c = vec![0.0; width * width];
    for row in x.chunks_exact(width) {
        let centred: Vec<f64> = row.iter().zip(&means).map(|(&v, m)| f64::from(v) - m).collect();
        for (i, a) in centred.iter().enumerate() {
            for (j, b) in centred.iter().enumerate() {
                c[i * width + j] += a * b / (rows - 1) as f64;
            }
        }
    }
    c
}

/// The two terms by their definition.
fn definition(x: &[f32], width: usize, factors: Factors) -> f64 {
    let c = covariance(x, width);
    let term = |i: usize, j: usize| match i == j {
        true => f64::from(factors.variance) * (1.0 - (c[i * width + i] + EPSILON).sqrt()).max(0.0),
        false => f64::from(factors.covariance) * c[i * width + j].powi(2),
    };
    (0..width).flat_map(|i| (0..width).map(move |j| term(i, j))).sum()
}

/// The two terms and their gradient, by the operations.
fn terms_and_gradient(x: &[f32], [rows, width]: [usize; 2], factors: Factors) -> (f64, Vec<f32>) {
    let (mut sums, mut centred) = (vec![0.0; width], poison(rows * width));
    let stream = &Stream::Host;
    let z = View::from_f32(x, &[rows, width]);
    column_sums::add(stream, z, ViewMut::from_f32(&mut sums, &[width])).unwrap();
    let means = View::from_f32(&sums, &[width]);
    let out = ViewMut::from_f32(&mut centred, &[rows, width]);
    centre(stream, z, means, rows, out).unwrap();
    let centred = View::from_f32(&centred, &[rows, width]);
    let mut products = vec![0.0; width * width];
    let out = ViewMut::from_f32(&mut products, &[width, width]);
    linear::backward_weight(stream, centred, centred, out, None).unwrap();
    let (mut w, mut terms) = (poison(width * width), poison(width));
    weights(
        stream,
        View::from_f32(&products, &[width, width]),
        rows,
        factors,
        ViewMut::from_f32(&mut w, &[width, width]),
        ViewMut::from_f32(&mut terms, &[width]),
    )
    .unwrap();
    let (w, mut d) = (View::from_f32(&w, &[width, width]), poison(rows * width));
    let out = ViewMut::from_f32(&mut d, &[rows, width]);
    linear::backward_input(stream, centred, w, Write::Set, out).unwrap();
    (terms.iter().map(|&t| f64::from(t)).sum(), d)
}

#[test]
fn terms_and_gradients_match_the_definition_and_finite_differences() {
    for (seed, case @ (rows, width)) in (0..).zip(CASES) {
        let x = embeddings(seed, case);
        let (terms, d) = terms_and_gradient(&x, [rows, width], FACTORS);
        let want = definition(&x, width, FACTORS);
        // Covariances of at most 17 products of order 1, in f32.
        assert!((terms / want - 1.0).abs() < 5e-6, "{case:?}: {terms}, definition {want}");
        if width > 20 {
            // Differences of so many elements take long.
            continue;
        }
        // The moved points round: 2⁻²³ / step of derivatives of order 10; the third derivative adds
        // step².
        let want = finite_difference(&x, 1e-3, |x| definition(x, width, FACTORS));
        assert_close("gradient", &d, &want, 2e-3);
        let halved = Factors { variance: 0.5 * FACTORS.variance, ..FACTORS };
        assert_differs(
            "half the variance",
            &terms_and_gradient(&x, [rows, width], halved).1,
            &want,
            2e-3,
        );
    }
}

#[test]
fn not_a_number_stays_and_a_spread_without_covariance_costs_nothing() {
    let nan = terms_and_gradient(&[f32::NAN, 1.0, 2.0, 3.0], [2, 2], FACTORS);
    assert!(nan.0.is_nan() && nan.1.iter().any(|d| d.is_nan()), "{nan:?}");
    let cross = [2.0, 0.0, -2.0, 0.0, 0.0, 2.0, 0.0, -2.0];
    let (terms, d) = terms_and_gradient(&cross, [4, 2], FACTORS);
    assert!(terms == 0.0 && d.iter().all(|&d| d == 0.0), "{terms} {d:?}");
}

#[test]
fn shapes_that_disagree_and_a_single_row_are_errors() {
    let (x, mut out, mut terms) = ([0.0; 4], [0.0; 4], [0.0; 2]);
    let products = View::from_f32(&x, &[2, 2]);
    let mut run = |global, width| {
        let out = ViewMut::from_f32(&mut out, &[2, 2]);
        let terms = ViewMut::from_f32(&mut terms[..width], &[width]);
        weights(&Stream::Host, products, global, FACTORS, out, terms)
    };
    assert!(run(2, 2).is_ok());
    let error = run(1, 2).unwrap_err().to_string();
    assert!(error.contains("vic_reg::weights") && error.contains("at least 2"), "{error}");
    assert!(matches!(run(2, 1), Err(KernelError::Shape { what: "terms", .. })));
}
