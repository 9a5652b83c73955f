//! Tests of the global-norm kernels against the host, without a GPU.

use super::host;
use super::launch::{control, parts, squares};
use crate::compile::emulator::Emulator;
use crate::testing::{assert_close, assert_differs, normal};

/// Σ x² of all ranges, with clip factor and flag.
fn norm_and_control(ranges: &[Vec<f32>], max_norm: f32) -> (f32, Vec<f32>) {
    let mut e = Emulator::default();
    let count = ranges.iter().map(|x| parts(x.len())).sum();
    let partials = e.poison_f32(count);
    let mut first = 0;
    for x in ranges {
        let buffer = e.f32(x);
        e.run(&squares(buffer, partials, x.len(), first).unwrap());
        first += parts(x.len());
    }
    let (sum, out) = (e.poison_f32(1), e.poison_f32(2));
    e.run(&[control(partials, sum, out, count, max_norm).unwrap()]);
    (e.read_f32(sum)[0], e.read_f32(out))
}

#[test]
fn ranges_together_give_the_norm_and_the_clip_factor() {
    let ranges = [normal(1, 300_001), normal(2, 4096), normal(3, 1), Vec::new()];
    let all: Vec<f32> = ranges.concat();
    let want = host::squared_sum(&all);
    for max_norm in [1.0, f32::INFINITY] {
        let (sum, out) = norm_and_control(&ranges, max_norm);
        // Each lane adds five squares, a warp and a block a few hundred sums, in f32.
        assert_close("sum", &[sum], &[want], 2e-6);
        assert_close("control", &out, &host::control(want, max_norm), 2e-6);
        assert_differs("a range less", &[sum], &[host::squared_sum(&ranges[0])], 2e-6);
    }
}

#[test]
fn what_is_not_finite_is_flagged_on_the_device() {
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let (_, out) = norm_and_control(&[vec![1.0, bad, 2.0]], 1.0);
        assert_eq!(out, [0.0, 0.0], "{bad}");
    }
    assert_eq!(norm_and_control(&[vec![0.0; 4]], 1.0).1, [1.0, 1.0]);
    assert!(control(0, 1, 2, 1, 0.0).is_err() && control(0, 1, 2, 1, f32::NAN).is_err());
    assert!(squares(0, 1, (1 << 32) + 1, 0).is_err() && squares(0, 1, 1 << 32, 0).is_ok());
}
