//! Tests of activations on the host against the reference, and of the reference against finite
//! differences.

use super::cases::{LENGTHS, TOLERANCE};
use super::{Activation, backward, forward, reference};
use crate::testing::{assert_close, assert_differs, dot, finite_difference, normal, poison};
use crate::{Stream, View, ViewMut};

/// Each activation, and another one that must differ from it.
pub(super) const KINDS: [(Activation, Activation); 4] = [
    (Activation::Gelu, Activation::GeluTanh),
    (Activation::GeluTanh, Activation::Gelu),
    (Activation::GeluQuick, Activation::Gelu),
    (Activation::Relu, Activation::Gelu),
];

/// Normal numbers, with zeros and large numbers at the start.
fn inputs(len: usize) -> Vec<f32> {
    let mut x = normal(1, len);
    for (x, far) in x.iter_mut().skip(1).zip([0.0, -0.0, 6.0, -6.0, 50.0, -50.0, 1e6, -1e6]) {
        *x = far;
    }
    x
}

#[test]
fn forward_matches_reference() {
    for (kind, other) in KINDS {
        for &len in LENGTHS {
            let (x, mut got, mut want) = (inputs(len), poison(len), poison(len));
            let out = ViewMut::from_f32(&mut got, &[len]);
            forward(&Stream::Host, View::from_f32(&x, &[len]), kind, out).unwrap();
            reference::forward(&x, kind, &mut want);
            assert_close(&format!("{kind:?} {len}"), &got, &want, TOLERANCE);
            reference::forward(&x, other, &mut want);
            if len > 1 {
                assert_differs("the other activation", &got, &want, TOLERANCE);
            }
        }
    }
}

#[test]
fn backward_matches_reference() {
    for (kind, other) in KINDS {
        for &len in LENGTHS {
            let (x, d_out) = (inputs(len), normal(2, len));
            let (mut got, mut want) = (poison(len), poison(len));
            let (x_view, d_view) = (View::from_f32(&x, &[len]), View::from_f32(&d_out, &[len]));
            let d_x = ViewMut::from_f32(&mut got, &[len]);
            backward(&Stream::Host, x_view, kind, d_view, d_x).unwrap();
            reference::backward(&x, kind, &d_out, &mut want);
            assert_close(&format!("{kind:?} {len}"), &got, &want, TOLERANCE);
            reference::backward(&x, other, &d_out, &mut want);
            if len > 1 {
                assert_differs("the other activation", &got, &want, TOLERANCE);
            }
        }
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    for (kind, other) in KINDS {
        // Far enough from 0 that no step crosses the kink of ReLU.
        let x: Vec<f32> = normal(1, 50).iter().map(|x| x + 0.1f32.copysign(*x)).collect();
        let r = normal(2, 50);
        let mut d_x = poison(50);
        reference::backward(&x, kind, &r, &mut d_x);
        let numeric = finite_difference(&x, 0.03, |x| {
            let mut out = poison(50);
            reference::forward(x, kind, &mut out);
            dot(&out, &r)
        });
        // Rounding of an output of size 3 times r of size 3, over the step; the fifth derivative is
        // near 10.
        assert_close(&format!("{kind:?}"), &d_x, &numeric, 1.5 * 9.0 * f32::EPSILON / 0.03);
        reference::backward(&x, other, &r, &mut d_x);
        assert_differs("the other activation", &d_x, &numeric, 1.5 * 9.0 * f32::EPSILON / 0.03);
    }
}
