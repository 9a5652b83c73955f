//! The host's root-mean-square normalisation against the reference, and the reference against
//! finite differences.

use super::cases::{EPS, SIZES, SUM_TOLERANCE, TOLERANCE};
use super::{Input, Scale, backward, forward, reference};
use crate::testing::{assert_close, assert_differs, dot, finite_difference, normal, poison};
use crate::{Stream, View, ViewMut, Write};

#[test]
fn forward_matches_reference() {
    for (&(n, d), scale) in SIZES.iter().zip([Scale::Plain, Scale::OnePlus].into_iter().cycle()) {
        let (x, w) = (normal(1, n * d), normal(2, d));
        let (mut out, mut rstd) = (poison(n * d), poison(n));
        let (mut want, mut want_rstd) = (poison(n * d), poison(n));
        forward(
            &Stream::Host,
            View::from_f32(&x, &[n, d]),
            View::from_f32(&w, &[d]),
            scale,
            EPS,
            ViewMut::from_f32(&mut out, &[n, d]),
            ViewMut::from_f32(&mut rstd, &[n]),
        )
        .unwrap();
        let mut input = Input { x: &x, weight: &w, offset: scale.offset(), width: d };
        reference::forward(input, EPS, &mut want, &mut want_rstd);
        assert_close(&format!("out {n}x{d} {scale:?}"), &out, &want, TOLERANCE);
        assert_close("rstd", &rstd, &want_rstd, TOLERANCE);
        input.offset = 1.0 - input.offset;
        reference::forward(input, EPS, &mut want, &mut want_rstd);
        if n > 0 {
            assert_differs("the other scale", &out, &want, TOLERANCE);
        }
    }
}

#[test]
fn backward_matches_reference() {
    for (&(n, d), scale) in SIZES.iter().zip([Scale::OnePlus, Scale::Plain].into_iter().cycle()) {
        let (x, w, d_out) = (normal(1, n * d), normal(2, d), normal(3, n * d));
        let input = Input { x: &x, weight: &w, offset: scale.offset(), width: d };
        let (mut out, mut rstd) = (poison(n * d), poison(n));
        reference::forward(input, 0.1, &mut out, &mut rstd);
        for write in [Write::Set, Write::Add] {
            let before = match write {
                Write::Set => poison(n * d),
                Write::Add => normal(4, n * d),
            };
            let (mut d_x, mut d_w) = (before.clone(), normal(5, d));
            let (mut want_x, mut want_w) = (before, d_w.clone());
            backward(
                &Stream::Host,
                View::from_f32(&x, &[n, d]),
                View::from_f32(&w, &[d]),
                scale,
                View::from_f32(&rstd, &[n]),
                View::from_f32(&d_out, &[n, d]),
                write,
                ViewMut::from_f32(&mut d_x, &[n, d]),
                ViewMut::from_f32(&mut d_w, &[d]),
            )
            .unwrap();
            reference::backward(input, &rstd, &d_out, write, &mut want_x, &mut want_w);
            // Gradients reach 30: rstd of up to 3 times products of two normal numbers.
            assert_close(&format!("d_x {n}x{d} {write:?}"), &d_x, &want_x, 10.0 * TOLERANCE);
            assert_close("d_weight", &d_w, &want_w, SUM_TOLERANCE);
            if n > 0 {
                reference::backward(input, &rstd, &d_out, write, &mut want_x, &mut want_w);
                assert_differs("added twice", &d_w, &want_w, SUM_TOLERANCE);
            }
        }
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    let (n, d) = (2, 5);
    for scale in [Scale::Plain, Scale::OnePlus] {
        let (x, w, r) = (normal(1, n * d), normal(2, d), normal(4, n * d));
        let offset = scale.offset();
        let run = |x: &[f32], w: &[f32]| {
            let (mut out, mut rstd) = (poison(n * d), poison(n));
            let input = Input { x, weight: w, offset, width: d };
            reference::forward(input, 0.1, &mut out, &mut rstd);
            (dot(&out, &r), rstd)
        };
        let (mut d_x, mut d_w) = (poison(n * d), vec![0.0; d]);
        let input = Input { x: &x, weight: &w, offset, width: d };
        let rstd = run(&x, &w).1;
        reference::backward(input, &rstd, &r, Write::Set, &mut d_x, &mut d_w);
        // Rounding of about 5 outputs of size 2 over the step, plus h⁴/30 of a fifth derivative
        // near 100.
        let tolerance = 1.5 * 5.0 * 2.0 * f32::EPSILON / 0.03 + 1e-5;
        let numeric = finite_difference(&x, 0.03, |x| run(x, &w).0);
        assert_close("d_x", &d_x, &numeric, tolerance);
        assert_close("d_w", &d_w, &finite_difference(&w, 0.03, |w| run(&x, w).0), tolerance);
        let input = Input { offset: 1.0 - offset, ..input };
        reference::backward(input, &rstd, &r, Write::Set, &mut d_x, &mut d_w);
        assert_differs("the other scale", &d_x, &numeric, tolerance);
    }
}
