//! Tests of the gated MLP on the host against the reference, and of the reference against finite
//! differences.

use super::cases::{SIZES, TOLERANCE};
use super::{Activation, backward, forward, reference};
use crate::testing::{assert_close, assert_differs, dot, finite_difference, normal, poison};
use crate::{Stream, View, ViewMut};

const KINDS: [(Activation, Activation); 2] =
    [(Activation::Silu, Activation::GeluTanh), (Activation::GeluTanh, Activation::Silu)];

#[test]
fn forward_matches_reference() {
    for (kind, other) in KINDS {
        for &(n, f) in SIZES {
            let (x, mut got, mut want) = (normal(1, n * 2 * f), poison(n * f), poison(n * f));
            let out = ViewMut::from_f32(&mut got, &[n, f]);
            forward(&Stream::Host, View::from_f32(&x, &[n, 2 * f]), kind, out).unwrap();
            reference::forward(&x, f, kind, &mut want);
            assert_close(&format!("{kind:?} {n}x{f}"), &got, &want, TOLERANCE);
            reference::forward(&x, f, other, &mut want);
            if n * f > 0 {
                assert_differs("the other activation", &got, &want, TOLERANCE);
            }
        }
    }
}

#[test]
fn backward_matches_reference() {
    for (kind, other) in KINDS {
        for &(n, f) in SIZES {
            let (x, d_out) = (normal(1, n * 2 * f), normal(2, n * f));
            let (mut got, mut want) = (poison(n * 2 * f), poison(n * 2 * f));
            let (x_view, d_view) =
                (View::from_f32(&x, &[n, 2 * f]), View::from_f32(&d_out, &[n, f]));
            let d_x = ViewMut::from_f32(&mut got, &[n, 2 * f]);
            backward(&Stream::Host, x_view, kind, d_view, d_x).unwrap();
            reference::backward(&x, f, kind, &d_out, &mut want);
            assert_close(&format!("{kind:?} {n}x{f}"), &got, &want, TOLERANCE);
            reference::backward(&x, f, other, &d_out, &mut want);
            if n * f > 0 {
                assert_differs("the other activation", &got, &want, TOLERANCE);
            }
        }
    }
}

#[test]
fn a_closed_gate_stays_closed_far_out() {
    for (kind, _) in KINDS {
        let (x, mut out, mut d_x) = ([-1e6, 1e6, 2.0, 2.0], [f32::NAN; 2], [f32::NAN; 4]);
        let x = View::from_f32(&x, &[1, 4]);
        forward(&Stream::Host, x, kind, ViewMut::from_f32(&mut out, &[1, 2])).unwrap();
        let (d_out, d_view) = ([1.0, 1.0], ViewMut::from_f32(&mut d_x, &[1, 4]));
        backward(&Stream::Host, x, kind, View::from_f32(&d_out, &[1, 2]), d_view).unwrap();
        assert_close("out", &out, &[0.0, 2e6], 0.0);
        assert_close("d_gate_up", &d_x, &[0.0, 2.0, 0.0, 1e6], 0.0);
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    let (n, f) = (3, 4);
    for (kind, other) in KINDS {
        let (x, r) = (normal(1, n * 2 * f), normal(2, n * f));
        let mut d_x = poison(n * 2 * f);
        reference::backward(&x, f, kind, &r, &mut d_x);
        let numeric = finite_difference(&x, 0.03, |x| {
            let mut out = poison(n * f);
            reference::forward(x, f, kind, &mut out);
            dot(&out, &r)
        });
        // Rounding of an output of size 5 times r of size 3, over the step; the fifth derivative is
        // near 10.
        let tolerance = 1.5 * 15.0 * f32::EPSILON / 0.03;
        assert_close(&format!("{kind:?}"), &d_x, &numeric, tolerance);
        reference::backward(&x, f, other, &r, &mut d_x);
        assert_differs("the other activation", &d_x, &numeric, tolerance);
    }
}
