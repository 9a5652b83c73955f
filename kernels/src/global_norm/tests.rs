//! Tests of the global norm on the host against a plain f64 sum, and of clip factor and flag.

use super::{control, squared_sum};
use crate::testing::{assert_close, assert_differs, dot, normal};
use crate::{KernelError, Stream, View, ViewMut, parallel::round};

fn sum(x: &[f32]) -> f32 {
    let mut out = [f32::NAN];
    let out_view = ViewMut::from_f32(&mut out, &[1]);
    squared_sum(&Stream::Host, View::from_f32(x, &[x.len()]), out_view).unwrap();
    out[0]
}

fn verdict(squared_sum: f32, max_norm: f32) -> [f32; 2] {
    let mut out = [f32::NAN; 2];
    let (sum, out_view) = ([squared_sum], ViewMut::from_f32(&mut out, &[2]));
    control(&Stream::Host, View::from_f32(&sum, &[1]), max_norm, out_view).unwrap();
    out
}

#[test]
fn squares_sum_to_the_last_place_whatever_the_number_of_threads() {
    for len in [0, 1, 17, 257, 16_384, 200_003] {
        let x = normal(1, len);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum(&x))
        };
        let (one, three, want) = (run(1), run(3), round(dot(&x, &x)));
        assert_eq!(one.to_bits(), three.to_bits());
        assert_close("sum", &[one], &[want], f32::EPSILON);
        if len > 0 {
            let mut other = x.clone();
            other[len / 2] += 9.0;
            assert_differs("one element moved", &[sum(&other)], &[want], f32::EPSILON);
        }
    }
}

#[test]
fn only_norms_above_the_limit_are_clipped() {
    assert_close("above", &verdict(16.0, 1.0), &[1.0 / (4.0 + 1e-6), 1.0], f32::EPSILON);
    assert_close("below", &verdict(0.25, 1.0), &[1.0, 1.0], 0.0);
    assert_close("zero", &verdict(0.0, 1.0), &[1.0, 1.0], 0.0);
    assert_close("never", &verdict(1e30, f32::INFINITY), &[1.0, 1.0], 0.0);
    assert_differs("above", &verdict(16.0, 1.0), &[1.0, 1.0], f32::EPSILON);
}

#[test]
fn what_is_not_finite_is_flagged() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        let mut x = normal(1, 100);
        x[57] = bad;
        assert_close("flags", &verdict(sum(&x), 1.0), &[0.0, 0.0], 0.0);
    }
}

#[test]
fn a_limit_that_is_not_positive_is_refused() {
    for bad in [0.0, -1.0, f32::NAN] {
        let (sum, mut out) = ([1.0], [0.0; 2]);
        let (sum, out) = (View::from_f32(&sum, &[1]), ViewMut::from_f32(&mut out, &[2]));
        let error = control(&Stream::Host, sum, bad, out);
        assert!(matches!(error, Err(KernelError::Value { what: "max_norm", .. })));
    }
}
