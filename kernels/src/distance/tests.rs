//! Tests of distances on the host against known values and finite differences.

use super::cases::CASES;
use super::{Distance, backward, forward};
use crate::testing::{assert_close, assert_differs, finite_difference, normal, poison};
use crate::{KernelError, Stream, View, ViewMut};

const KINDS: [Distance; 3] = [Distance::Cosine, Distance::L1, Distance::L2];

#[test]
fn distances_of_known_rows() {
    let (p, t) = ([0.6, 0.8, 1.0, 0.0], [0.8, 0.6, 0.0, 1.0]);
    let of = |kind| {
        let (p, t) = (View::from_f32(&p, &[2, 2]), View::from_f32(&t, &[2, 2]));
        forward(&Stream::Host, p, t, kind).unwrap()
    };
    // 0.6 and 0.8 are rounded to f32: errors of a few 2⁻²⁵.
    assert!((of(Distance::Cosine) - (2.0 - 0.96)).abs() < 2e-7);
    assert!((of(Distance::L1) - (0.2 + 1.0)).abs() < 2e-7);
    assert!((of(Distance::L2) - (0.04 + 1.0)).abs() < 2e-7);
}

#[test]
fn gradients_match_finite_differences() {
    for (seed, (b, e)) in (0..).zip(CASES) {
        let (p, t) = (normal(seed, b * e), normal(seed + 50, b * e));
        // p − t| is not differentiable at 0, so keep p and t apart.
        let apart = |(p, t): (&f32, f32)| if (p - t).abs() < 0.01 { p + 0.5 } else { t };
        let t: Vec<f32> = p.iter().zip(t).map(apart).collect();
        for kind in KINDS {
            let (mut d_p, mut d_t) = (poison(b * e), poison(b * e));
            backward(
                &Stream::Host,
                View::from_f32(&p, &[b, e]),
                View::from_f32(&t, &[b, e]),
                kind,
                1.5,
                ViewMut::from_f32(&mut d_p, &[b, e]),
                ViewMut::from_f32(&mut d_t, &[b, e]),
            )
            .unwrap();
            let f = |p: &[f32], t: &[f32]| {
                let (p, t) = (View::from_f32(p, &[b, e]), View::from_f32(t, &[b, e]));
                1.5 * forward(&Stream::Host, p, t, kind).unwrap()
            };
            // Sums are in f64, so only the moved points round: 2⁻²³ / step.
            let want_p = finite_difference(&p, 1e-3, |p| f(p, &t));
            let want_t = finite_difference(&t, 1e-3, |t| f(&p, t));
            assert_close("d_pred", &d_p, &want_p, 5e-4);
            assert_close("d_target", &d_t, &want_t, 5e-4);
            if b > 0 {
                assert_differs("swapped", &d_p, &want_t, 5e-4);
            }
        }
    }
}

#[test]
fn shapes_that_disagree_are_errors() {
    let x = [0.0; 6];
    let (a, b) = (View::from_f32(&x, &[2, 3]), View::from_f32(&x, &[3, 2]));
    let error = forward(&Stream::Host, a, b, Distance::L2);
    assert!(matches!(error, Err(KernelError::Shape { what: "target", .. })), "{error:?}");
    let flat = View::from_f32(&x, &[6]);
    let error = forward(&Stream::Host, flat, flat, Distance::L2);
    assert!(matches!(error, Err(KernelError::Shape { what: "pred", .. })), "{error:?}");
}
