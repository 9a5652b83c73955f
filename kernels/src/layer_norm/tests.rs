//! The host's layer normalisation against the reference, and the reference against finite
//! differences.

use super::cases::{EPS, SIZES, SUM_TOLERANCE, TOLERANCE};
use super::{Input, Saved, backward, forward, reference};
use crate::testing::{
    assert_close, assert_differs, dot, finite_difference, normal, poison, uniform,
};
use crate::{Stream, View, ViewMut, Write};

/// Rows with a mean far from zero, for which a variance by E[x²] − E[x]² would lose digits.
fn shifted(seed: u64, len: usize) -> Vec<f32> {
    normal(seed, len).iter().map(|v| v * 2.0 + 10.0).collect()
}

#[test]
fn forward_matches_reference() {
    for &(n, d) in SIZES {
        let (x, w, b) = (shifted(1, n * d), uniform(2, d, 0.5, 1.5), normal(3, d));
        let (mut out, mut mean, mut rstd) = (poison(n * d), poison(n), poison(n));
        let (mut want, mut want_mean, mut want_rstd) = (poison(n * d), poison(n), poison(n));
        forward(
            &Stream::Host,
            View::from_f32(&x, &[n, d]),
            View::from_f32(&w, &[d]),
            View::from_f32(&b, &[d]),
            EPS,
            ViewMut::from_f32(&mut out, &[n, d]),
            ViewMut::from_f32(&mut mean, &[n]),
            ViewMut::from_f32(&mut rstd, &[n]),
        )
        .unwrap();
        let input = Input { x: &x, weight: &w, width: d };
        reference::forward(input, &b, EPS, &mut want, &mut want_mean, &mut want_rstd);
        assert_close("mean", &mean, &want_mean, TOLERANCE);
        if d > 1 {
            // A single column has variance 0 exactly; its rstd of 1000 magnifies nothing else.
            assert_close("rstd", &rstd, &want_rstd, TOLERANCE);
        }
        assert_close(&format!("out {n}x{d}"), &out, &want, TOLERANCE);
        let unshifted = normal(1, n * d);
        let input = Input { x: &unshifted, weight: &w, width: d };
        reference::forward(input, &b, EPS, &mut want, &mut want_mean, &mut want_rstd);
        if n * d > 1 {
            assert_differs("another mean", &mean, &want_mean, TOLERANCE);
        }
    }
}

#[test]
fn backward_matches_reference() {
    for &(n, d) in SIZES {
        let (x, w, d_out) = (shifted(1, n * d), uniform(2, d, 0.5, 1.5), normal(3, n * d));
        let input = Input { x: &x, weight: &w, width: d };
        let (mut out, mut mean, mut rstd) = (poison(n * d), poison(n), poison(n));
        reference::forward(input, &vec![0.0; d], 0.1, &mut out, &mut mean, &mut rstd);
        let saved = Saved { mean: &mean, rstd: &rstd };
        for write in [Write::Set, Write::Add] {
            let before = match write {
                Write::Set => poison(n * d),
                Write::Add => normal(4, n * d),
            };
            let (mut d_x, mut d_w, mut d_b) = (before.clone(), normal(5, d), normal(6, d));
            let (mut want_x, mut want_w, mut want_b) = (before, d_w.clone(), d_b.clone());
            backward(
                &Stream::Host,
                View::from_f32(&x, &[n, d]),
                View::from_f32(&w, &[d]),
                View::from_f32(&mean, &[n]),
                View::from_f32(&rstd, &[n]),
                View::from_f32(&d_out, &[n, d]),
                write,
                ViewMut::from_f32(&mut d_x, &[n, d]),
                ViewMut::from_f32(&mut d_w, &[d]),
                ViewMut::from_f32(&mut d_b, &[d]),
            )
            .unwrap();
            reference::backward(input, saved, &d_out, write, &mut want_x, &mut want_w, &mut want_b);
            assert_close(&format!("d_x {n}x{d} {write:?}"), &d_x, &want_x, TOLERANCE);
            assert_close("d_weight", &d_w, &want_w, SUM_TOLERANCE);
            assert_close("d_bias", &d_b, &want_b, SUM_TOLERANCE);
            if n * d > 1 {
                reference::backward(
                    input,
                    saved,
                    &d_out,
                    write,
                    &mut want_x,
                    &mut want_w,
                    &mut want_b,
                );
                assert_differs("added twice", &d_w, &want_w, SUM_TOLERANCE);
                assert_differs("added twice", &d_b, &want_b, SUM_TOLERANCE);
            }
        }
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    let (n, d) = (2, 5);
    let (x, w, b, r) = (normal(1, n * d), normal(2, d), normal(3, d), normal(4, n * d));
    let run = |x: &[f32], w: &[f32], b: &[f32]| {
        let (mut out, mut mean, mut rstd) = (poison(n * d), poison(n), poison(n));
        let input = Input { x, weight: w, width: d };
        reference::forward(input, b, 0.1, &mut out, &mut mean, &mut rstd);
        (dot(&out, &r), mean, rstd)
    };
    let (_, mean, rstd) = run(&x, &w, &b);
    let (mut d_x, mut d_w, mut d_b) = (poison(n * d), vec![0.0; d], vec![0.0; d]);
    let input = Input { x: &x, weight: &w, width: d };
    let saved = Saved { mean: &mean, rstd: &rstd };
    reference::backward(input, saved, &r, Write::Set, &mut d_x, &mut d_w, &mut d_b);
    // Rounding of about 5 outputs of size 2 over the step, plus h⁴/30 of a fifth derivative near
    // 100.
    let tolerance = 1.5 * 5.0 * 2.0 * f32::EPSILON / 0.03 + 1e-5;
    let numeric = finite_difference(&x, 0.03, |x| run(x, &w, &b).0);
    assert_close("d_x", &d_x, &numeric, tolerance);
    assert_close("d_w", &d_w, &finite_difference(&w, 0.03, |w| run(&x, w, &b).0), tolerance);
    assert_close("d_b", &d_b, &finite_difference(&b, 0.03, |b| run(&x, &w, b).0), tolerance);
    let unscaled = Saved { mean: &[0.0; 2], rstd: &rstd };
    reference::backward(input, unscaled, &r, Write::Set, &mut d_x, &mut d_w, &mut d_b);
    assert_differs("mean left out", &d_x, &numeric, tolerance);
}
