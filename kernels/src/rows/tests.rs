//! Tests of scatter and gather against numbers computed by hand, and as adjoints of each other.

use super::{gather, scatter};
use crate::testing::{assert_close, assert_differs, dot, normal};
use crate::{KernelError, Stream, View, ViewMut, Write};

#[test]
fn scatter_writes_named_rows_and_keeps_the_rest() {
    let (src, index, mut out) = ([1.0, 2.0, 3.0, 4.0], [2, 0], [9.0; 6]);
    let (src, index) = (View::from_f32(&src, &[2, 2]), View::from_i32(&index, &[2]));
    scatter(&Stream::Host, src, index, ViewMut::from_f32(&mut out, &[3, 2])).unwrap();
    assert_close("out", &out, &[3.0, 4.0, 9.0, 9.0, 1.0, 2.0], 0.0);
    assert_differs("rows in order", &out, &[1.0, 2.0, 9.0, 9.0, 3.0, 4.0], 0.0);
}

#[test]
fn gather_writes_or_adds_named_rows() {
    let (src, index, mut out) = ([1.0, 2.0, 3.0, 4.0], [1, 1, 0], [f32::NAN; 6]);
    let (src, index) = (View::from_f32(&src, &[2, 2]), View::from_i32(&index, &[3]));
    let once = [3.0, 4.0, 3.0, 4.0, 1.0, 2.0];
    let twice = once.map(|v| 2.0 * v);
    gather(&Stream::Host, src, index, Write::Set, ViewMut::from_f32(&mut out, &[3, 2])).unwrap();
    assert_close("set", &out, &once, 0.0);
    gather(&Stream::Host, src, index, Write::Add, ViewMut::from_f32(&mut out, &[3, 2])).unwrap();
    assert_close("added", &out, &twice, 0.0);
    assert_differs("added", &out, &once, 0.0);
}

#[test]
fn gather_is_the_adjoint_of_scatter() {
    for (n, m, d) in [(0, 3, 4), (1, 1, 3), (17, 40, 5), (257, 300, 7)] {
        // Distinct indices: the last n of m rows, in reverse order.
        let index: Vec<i32> = (0..n).map(|i| i32::try_from(m - 1 - i).unwrap()).collect();
        let (x, y) = (normal(1, n * d), normal(2, m * d));
        let (mut scattered, mut gathered) = (vec![0.0; m * d], vec![f32::NAN; n * d]);
        let index = View::from_i32(&index, &[n]);
        let out = ViewMut::from_f32(&mut scattered, &[m, d]);
        scatter(&Stream::Host, View::from_f32(&x, &[n, d]), index, out).unwrap();
        let out = ViewMut::from_f32(&mut gathered, &[n, d]);
        gather(&Stream::Host, View::from_f32(&y, &[m, d]), index, Write::Set, out).unwrap();
        // Both sides sum the same products in different orders, in f64.
        assert!((dot(&scattered, &y) - dot(&x, &gathered)).abs() < 1e-10);
    }
}

#[test]
fn indices_outside_are_refused() {
    let (src, mut out) = ([1.0; 2], [0.0; 2]);
    let (src, index) = (View::from_f32(&src, &[2, 1]), [0, 2]);
    let index = View::from_i32(&index, &[2]);
    let results = [
        scatter(&Stream::Host, src, index, ViewMut::from_f32(&mut out.clone(), &[2, 1])),
        gather(&Stream::Host, src, index, Write::Set, ViewMut::from_f32(&mut out, &[2, 1])),
    ];
    assert!(results.iter().all(|r| matches!(r, Err(KernelError::Value { what: "index", .. }))));
}
