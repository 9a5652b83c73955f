//! L2 normalisation: lengths of one, zero vectors, finite differences.

use super::{backward, forward};
use crate::testing::{assert_close, assert_differs, dot, finite_difference, normal, poison};
use crate::{Stream, View, ViewMut};

fn run(x: &[f32], e: usize, eps: f32) -> (Vec<f32>, Vec<f32>) {
    let b = x.len() / e;
    let (mut out, mut norm) = (poison(b * e), poison(b));
    let out_view = ViewMut::from_f32(&mut out, &[b, e]);
    let norm_view = ViewMut::from_f32(&mut norm, &[b]);
    forward(&Stream::Host, View::from_f32(x, &[b, e]), eps, out_view, norm_view).unwrap();
    (out, norm)
}

fn gradient(out: &[f32], norm: &[f32], d_out: &[f32]) -> Vec<f32> {
    let (b, e) = (norm.len(), out.len() / norm.len());
    let mut d_x = poison(b * e);
    let (out, d_out) = (View::from_f32(out, &[b, e]), View::from_f32(d_out, &[b, e]));
    let d_x_view = ViewMut::from_f32(&mut d_x, &[b, e]);
    backward(&Stream::Host, out, View::from_f32(norm, &[b]), d_out, d_x_view).unwrap();
    d_x
}

#[test]
fn rows_get_length_one_and_zero_stays_zero() {
    for (b, e) in [(1, 1), (17, 33), (257, 64), (2, 1536)] {
        let (mut x, rows) = (normal(1, b * e), b);
        x[..e].fill(0.0);
        let (out, norm) = run(&x, e, 1e-12);
        assert_close("zero", &out[..e], &vec![0.0; e], 0.0);
        let lengths: Vec<f32> =
            out.chunks(e).map(|r| crate::parallel::round(dot(r, r).sqrt())).collect();
        let mut want = vec![1.0; rows];
        want[0] = 0.0;
        // Each element is rounded once and the divisor once.
        assert_close("lengths", &lengths, &want, 2.0 * f32::EPSILON);
        let back: Vec<f32> = out
            .chunks(e)
            .zip(&norm)
            .flat_map(|(r, n)| r.iter().map(move |v| v * n.abs()))
            .collect();
        assert_close("out · norm", &back, &x, 3.0 * f32::EPSILON);
        if b > 1 {
            assert_differs("out", &out, &x, 3.0 * f32::EPSILON);
        }
    }
}

#[test]
fn gradients_match_finite_differences_above_and_below_eps() {
    let (x, r, e) = (normal(1, 15), normal(2, 15), 5);
    // Rounding of 5 outputs of size 1 times r of size 3, over the step; fifth derivatives near 50
    // at lengths near 2.
    let tolerance = 1.5 * 8.0 * f32::EPSILON / 0.03 + 5e-6;
    for eps in [1e-12, 100.0] {
        let (out, norm) = run(&x, e, eps);
        let numeric = finite_difference(&x, 0.03, |x| dot(&run(x, e, eps).0, &r));
        assert_close(&format!("d_x at eps {eps}"), &gradient(&out, &norm, &r), &numeric, tolerance);
        let other: Vec<f32> = norm.iter().map(|n| -n).collect();
        let wrong = gradient(&out, &other, &r);
        // Below eps = 100 the projection is of size (2/100)², divided by 100 once more.
        assert_differs(
            "the other side of eps",
            &wrong,
            &numeric,
            if eps > 1.0 { 1e-6 } else { tolerance },
        );
    }
}
