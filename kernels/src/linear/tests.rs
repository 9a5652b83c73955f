//! The host's linear layer against the reference, and the reference against finite differences.

use super::cases::{SIZES, tolerance};
use super::{Size, backward_input, backward_weight, forward, forward_onto, reference};
use crate::testing::{assert_close, assert_differs, dot, finite_difference, normal, poison};
use crate::{KernelError, Stream, View, ViewMut, Write};

#[test]
fn forward_matches_reference_with_and_without_bias() {
    for &(n, i, o) in SIZES {
        let size = Size { rows: n, inputs: i, outputs: o };
        let (x, w, b) = (normal(1, n * i), normal(2, o * i), normal(3, o));
        for (write, bias) in [(Write::Set, true), (Write::Set, false), (Write::Add, true)] {
            let before = match write {
                Write::Set => poison(n * o),
                Write::Add => normal(4, n * o),
            };
            let (mut got, mut want) = (before.clone(), before);
            let bias_view = bias.then(|| View::from_f32(&b, &[o]));
            let (x_view, w_view) = (View::from_f32(&x, &[n, i]), View::from_f32(&w, &[o, i]));
            let out = ViewMut::from_f32(&mut got, &[n, o]);
            forward(&Stream::Host, x_view, w_view, bias_view, write, out).unwrap();
            reference::forward(size, &x, &w, bias.then_some(&b), write, &mut want);
            assert_close(&format!("{size:?} {write:?}"), &got, &want, tolerance(i));
            if write == Write::Add {
                let (residual, mut onto) = (normal(4, n * o), poison(n * o));
                let residual = View::from_f32(&residual, &[n, o]);
                let out = ViewMut::from_f32(&mut onto, &[n, o]);
                forward_onto(&Stream::Host, x_view, w_view, bias_view, residual, out).unwrap();
                assert_close("another tensor's residual", &onto, &got, 0.0);
            }
            if n * o > 0 {
                want[n * o / 2] += 0.01;
                assert_differs("one output moved", &got, &want, tolerance(i));
            }
        }
    }
}

#[test]
fn backward_matches_reference_and_adds_parameter_gradients() {
    for &(n, i, o) in SIZES {
        let size = Size { rows: n, inputs: i, outputs: o };
        let (x, w, d_out) = (normal(1, n * i), normal(2, o * i), normal(3, n * o));
        let (x_view, w_view) = (View::from_f32(&x, &[n, i]), View::from_f32(&w, &[o, i]));
        let d_out_view = View::from_f32(&d_out, &[n, o]);

        let (mut got, mut want) = (poison(n * i), poison(n * i));
        let d_x = ViewMut::from_f32(&mut got, &[n, i]);
        backward_input(&Stream::Host, d_out_view, w_view, Write::Set, d_x).unwrap();
        reference::backward_input(size, &d_out, &w, Write::Set, &mut want);
        assert_close(&format!("d_x {size:?}"), &got, &want, tolerance(o));

        let (mut d_w, mut d_b) = (normal(5, o * i), normal(6, o));
        let (mut want_w, mut want_b) = (d_w.clone(), d_b.clone());
        let (d_w_view, d_b_view) =
            (ViewMut::from_f32(&mut d_w, &[o, i]), ViewMut::from_f32(&mut d_b, &[o]));
        backward_weight(&Stream::Host, x_view, d_out_view, d_w_view, Some(d_b_view)).unwrap();
        reference::backward_weight(size, &x, &d_out, &mut want_w, &mut want_b);
        assert_close(&format!("d_weight {size:?}"), &d_w, &want_w, tolerance(n));
        assert_close(&format!("d_bias {size:?}"), &d_b, &want_b, tolerance(n));
        if n > 0 && o * i > 0 {
            reference::backward_weight(size, &x, &d_out, &mut want_w, &mut want_b);
            assert_differs("added twice", &d_w, &want_w, tolerance(n));
            assert_differs("added twice", &d_b, &want_b, tolerance(n));
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (n, i, o) = (999, 131, 257);
    let (x, w, b, d_out) = (normal(1, n * i), normal(2, o * i), normal(3, o), normal(4, n * o));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (x, w) = (View::from_f32(&x, &[n, i]), View::from_f32(&w, &[o, i]));
            let d_out = View::from_f32(&d_out, &[n, o]);
            let (mut out, mut d_x) = (poison(n * o), poison(n * i));
            let (mut d_w, mut d_b) = (vec![0.0; o * i], vec![0.0; o]);
            let out_view = ViewMut::from_f32(&mut out, &[n, o]);
            let bias = Some(View::from_f32(&b, &[o]));
            forward(&Stream::Host, x, w, bias, Write::Set, out_view).unwrap();
            let d_x_view = ViewMut::from_f32(&mut d_x, &[n, i]);
            backward_input(&Stream::Host, d_out, w, Write::Set, d_x_view).unwrap();
            let d_w_view = ViewMut::from_f32(&mut d_w, &[o, i]);
            let d_b_view = Some(ViewMut::from_f32(&mut d_b, &[o]));
            backward_weight(&Stream::Host, x, d_out, d_w_view, d_b_view).unwrap();
            [out, d_x, d_w, d_b].concat()
        })
    };
    let one = run(1);
    assert!([2, 3, 8].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn reference_gradients_match_finite_differences() {
    let size = Size { rows: 3, inputs: 4, outputs: 5 };
    let (x, w, b, r) = (normal(1, 12), normal(2, 20), normal(3, 5), normal(4, 15));
    let loss = |x: &[f32], w: &[f32], b: &[f32]| {
        let mut out = poison(15);
        reference::forward(size, x, w, Some(b), Write::Set, &mut out);
        dot(&out, &r)
    };
    let (mut d_x, mut d_w, mut d_b) = (poison(12), vec![0.0; 20], vec![0.0; 5]);
    reference::backward_input(size, &r, &w, Write::Set, &mut d_x);
    reference::backward_weight(size, &x, &r, &mut d_w, &mut d_b);
    // Linear functions have no truncation error: only the rounding of about 5 outputs of size 4,
    // divided by the step.
    let tolerance = 1.5 * 5.0 * 4.0 * f32::EPSILON / 0.25;
    assert_close("d_x", &d_x, &finite_difference(&x, 0.25, |x| loss(x, &w, &b)), tolerance);
    assert_close("d_w", &d_w, &finite_difference(&w, 0.25, |w| loss(&x, w, &b)), tolerance);
    assert_close("d_b", &d_b, &finite_difference(&b, 0.25, |b| loss(&x, &w, b)), tolerance);
    d_w.swap(0, 1);
    assert_differs("swapped", &d_w, &finite_difference(&w, 0.25, |w| loss(&x, w, &b)), tolerance);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let (x, w, mut out) = ([0.0; 6], [0.0; 8], [0.0; 4]);
    let (x, w) = (View::from_f32(&x, &[2, 3]), View::from_f32(&w, &[2, 4]));
    let out = ViewMut::from_f32(&mut out, &[2, 2]);
    let error = forward(&Stream::Host, x, w, None, Write::Set, out).unwrap_err();
    assert!(matches!(error, KernelError::Shape { what: "the input", .. }), "{error}");
}
