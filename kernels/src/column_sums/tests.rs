//! Tests of column sums on the host against sums in f64.

use super::add;
use crate::testing::{assert_close, assert_differs, normal};
use crate::{KernelError, Stream, View, ViewMut, parallel::round};

/// (rows, width): single elements, widths that no vector divides, several blocks and rounds, no
/// elements.
pub(super) const SIZES: [(usize, usize); 8] =
    [(1, 1), (17, 33), (16, 8), (257, 264), (2500, 24), (5, 2048), (0, 8), (3, 0)];

/// `out` plus the sums over the rows of `x`, computed in f64.
pub(super) fn reference(x: &[f32], out: &[f32]) -> Vec<f32> {
    let column = |j| x.iter().skip(j).step_by(out.len()).map(|&x| f64::from(x)).sum::<f64>();
    (0..out.len()).map(|j| round(f64::from(out[j]) + column(j))).collect()
}

/// Sums of up to 2,500 numbers near 1, in partial sums of at most 200: √2500 · √200 · ε.
pub(super) const TOLERANCE: f32 = 5e-5;

#[test]
fn column_sums_are_added_to_what_is_there() {
    for (n, d) in SIZES {
        let (x, before) = (normal(1, n * d), normal(2, d));
        let mut out = before.clone();
        let x_view = View::from_f32(&x, &[n, d]);
        add(&Stream::Host, x_view, ViewMut::from_f32(&mut out, &[d])).unwrap();
        assert_close(&format!("{n}x{d}"), &out, &reference(&x, &before), TOLERANCE);
        if n * d > 0 {
            assert_differs("nothing added", &out, &before, TOLERANCE);
        }
    }
}

#[test]
fn an_output_of_another_width_is_refused() {
    let (x, mut out) = ([0.0; 6], [0.0; 2]);
    let out = ViewMut::from_f32(&mut out, &[2]);
    let error = add(&Stream::Host, View::from_f32(&x, &[2, 3]), out).unwrap_err();
    assert!(matches!(error, KernelError::Shape { what: "out", .. }), "{error}");
}
