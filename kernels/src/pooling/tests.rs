//! Mean pooling against f64 means and finite differences.

use super::{backward, forward};
use crate::testing::{assert_close, assert_differs, dot, finite_difference, normal, poison};
use crate::{Device, KernelError, Lengths, Stream, View, ViewMut, parallel::round};

fn run(x: &[f32], lengths: &Lengths, d: usize) -> Vec<f32> {
    let mut out = poison(lengths.rows() * d);
    let out_view = ViewMut::from_f32(&mut out, &[lengths.rows(), d]);
    forward(&Stream::Host, View::from_f32(x, &[x.len() / d, d]), lengths, out_view).unwrap();
    out
}

#[test]
fn every_sequence_becomes_its_mean_and_the_tail_counts_nothing() {
    let (lengths, d) = (Lengths::new(Device::Host, vec![0, 1, 18, 275]).unwrap(), 5);
    let x = normal(1, 280 * d);
    let mean = |from: usize, to: usize, j: usize| {
        round((from..to).map(|i| f64::from(x[i * d + j])).sum::<f64>() / (to - from) as f64)
    };
    let means = |bounds: [(usize, usize); 3]| -> Vec<f32> {
        bounds
            .iter()
            .flat_map(|&(a, b)| (0..d).map(move |j| (a, b, j)))
            .map(|(a, b, j)| mean(a, b, j))
            .collect()
    };
    // ε times the largest partial sum, about √257 · 3, over 257 additions with errors of random
    // sign: ε · √257.
    let tolerance = 16.0 * f32::EPSILON;
    let got = run(&x, &lengths, d);
    assert_close("means", &got, &means([(0, 1), (1, 18), (18, 275)]), tolerance);
    assert_differs("tail counted", &got, &means([(0, 1), (1, 18), (18, 280)]), tolerance);
}

#[test]
fn gradients_match_finite_differences_and_the_tail_has_none() {
    let (lengths, d) = (Lengths::new(Device::Host, vec![0, 1, 4]).unwrap(), 3);
    let (x, r) = (normal(1, 6 * d), normal(2, 2 * d));
    let mut got = poison(6 * d);
    let d_x = ViewMut::from_f32(&mut got, &[6, d]);
    backward(&Stream::Host, View::from_f32(&r, &[2, d]), &lengths, d_x).unwrap();
    let numeric = finite_difference(&x, 0.25, |x| dot(&run(x, &lengths, d), &r));
    // A linear function: rounding of one output of size 3 times r of size 3, over the step.
    let tolerance = 1.5 * 9.0 * f32::EPSILON / 0.25;
    assert_close("d_x", &got, &numeric, tolerance);
    assert_close("tail", &got[4 * d..], &[0.0; 6], 0.0);
    got.swap(0, d);
    assert_differs("swapped", &got, &numeric, tolerance);
}

#[test]
fn an_empty_sequence_is_refused() {
    let lengths = Lengths::new(Device::Host, vec![0, 1, 1]).unwrap();
    let (x, mut out) = ([1.0], [0.0; 2]);
    let out = ViewMut::from_f32(&mut out, &[2, 1]);
    let error = forward(&Stream::Host, View::from_f32(&x, &[1, 1]), &lengths, out).unwrap_err();
    assert!(matches!(error, KernelError::Value { what: "lengths", .. }), "{error}");
}
