//! Tests of cross-entropy on the host against finite differences and known values.

use super::cases::CASES;
use super::{backward, forward, reference};
use crate::testing::{assert_close, assert_differs, finite_difference, indices, normal, poison};
use crate::{KernelError, Stream, View, ViewMut};

fn losses(logits: &[f32], targets: &[i32], v: usize) -> [Vec<f32>; 2] {
    let n = targets.len();
    let (mut losses, mut lse) = (poison(n), poison(n));
    forward(
        &Stream::Host,
        View::from_f32(logits, &[n, v]),
        View::from_i32(targets, &[n]),
        ViewMut::from_f32(&mut losses, &[n]),
        ViewMut::from_f32(&mut lse, &[n]),
    )
    .unwrap();
    [losses, lse]
}

#[test]
fn gradients_match_finite_differences() {
    for (n, v) in CASES.into_iter().filter(|(_, v)| *v < 100) {
        let logits = normal(3, n * v);
        let mut targets = indices(4, n, v);
        if n > 1 {
            targets[1] = -1;
        }
        let [_, lse] = losses(&logits, &targets, v);
        let mut d = logits.clone();
        let (lse, targets_view) = (View::from_f32(&lse, &[n]), View::from_i32(&targets, &[n]));
        let logits_view = ViewMut::from_f32(&mut d, &[n, v]);
        backward(&Stream::Host, logits_view, targets_view, lse, 1.5).unwrap();
        let total = |x: &[f32]| {
            let [losses, _] = losses(x, &targets, v);
            1.5 * losses.iter().map(|&loss| f64::from(loss)).sum::<f64>()
        };
        // Losses are rounded to f32: 5 of them below 8, 2⁻²² over twice a step of 0.01, and a
        // truncation error of h².
        let want = finite_difference(&logits, 0.01, total);
        assert_close("d_logits", &d, &want, 2e-4);
        if n > 1 {
            assert_differs(
                "half the factor",
                &d,
                &want.iter().map(|d| d / 2.0).collect::<Vec<_>>(),
                2e-4,
            );
            assert_eq!(d[v..2 * v], vec![0.0; v], "tokens without a target have no gradient");
        }
    }
}

#[test]
fn losses_and_gradients_match_the_reference() {
    // The last case has several blocks of tokens, which run in parallel.
    for (n, v) in CASES.into_iter().chain([(90, 2001)]) {
        let logits: Vec<f32> = normal(3, n * v).iter().map(|z| 4.0 * z).collect();
        let targets = indices(4, n, v);
        let (mut want, mut want_lse) = (vec![0.0; n], vec![0.0; n]);
        reference::forward(&logits, &targets, v, &mut want, &mut want_lse);
        let [got, lse] = losses(&logits, &targets, v);
        // Exponentials are off by 2 units in the last place, and sums of 4,099 of them by as many.
        assert_close("losses", &got, &want, 1e-6);
        assert_close("lse", &lse, &want_lse, 1e-6);
        let mut d = logits.clone();
        let (lse, view) = (View::from_f32(&lse, &[n]), View::from_i32(&targets, &[n]));
        backward(&Stream::Host, ViewMut::from_f32(&mut d, &[n, v]), view, lse, 1.5).unwrap();
        let mut want_d = logits.clone();
        reference::backward(&mut want_d, &targets, &want_lse, v, 1.5);
        // A log-sum-exp and its difference to a logit, numbers below 32, are each rounded by 1e-6,
        // which a probability repeats relative to itself; times the factor.
        assert_close("d_logits", &d, &want_d, 4e-6);
        if n > 1 {
            let moved: Vec<i32> = targets.iter().map(|&t| if t > 0 { t - 1 } else { 1 }).collect();
            let [wrong, _] = losses(&logits, &moved, v);
            assert_differs("other targets", &wrong, &want, 1e-6);
            let mut wrong = logits.clone();
            reference::backward(&mut wrong, &moved, &want_lse, v, 1.5);
            assert_differs("other targets", &d, &wrong, 4e-6);
        }
    }
}

#[test]
fn losses_of_known_logits() {
    // A vocabulary of equal logits gives log v, however large the logits are.
    let [loss, lse] = losses(&[1000.0; 8], &[3, -100], 4);
    assert_close("loss", &loss, &[4.0_f32.ln(), 0.0], 1e-6);
    assert_close("lse", &lse, &[1000.0 + 4.0_f32.ln(); 2], 1e-6);
}

#[test]
fn targets_outside_of_the_vocabulary_are_errors() {
    let (mut a, mut b) = ([0.0; 2], [0.0; 2]);
    let logits = [0.0; 6];
    let error = forward(
        &Stream::Host,
        View::from_f32(&logits, &[2, 3]),
        View::from_i32(&[2, 3], &[2]),
        ViewMut::from_f32(&mut a, &[2]),
        ViewMut::from_f32(&mut b, &[2]),
    );
    let Err(KernelError::Value { found, what: "targets", .. }) = error else { panic!("{error:?}") };
    assert_eq!(found, "3 at 1");
    let error = forward(
        &Stream::Host,
        View::from_f32(&logits, &[2, 3]),
        View::from_i32(&[2], &[1]),
        ViewMut::from_f32(&mut a, &[2]),
        ViewMut::from_f32(&mut b, &[2]),
    );
    assert!(matches!(error, Err(KernelError::Shape { what: "targets", .. })), "{error:?}");
}
