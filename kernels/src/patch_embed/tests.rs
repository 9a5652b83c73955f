//! Unfolding against its definition, and against a convolution.

use super::cases::CASES;
use super::{Grid, Normalisation, reference, unfold};
use crate::testing::{assert_close, assert_differs, bytes, dot, normal, poison};
use crate::{KernelError, Stream, View, ViewMut};

fn frames_shape(clips: usize, grid: Grid) -> [usize; 5] {
    [clips, grid.time, grid.height * grid.patch, grid.width * grid.patch, grid.colours]
}

#[test]
fn bytes_are_normalised_and_put_in_the_order_of_a_conv3d_weight() {
    let n = Normalisation::IMAGENET;
    for (clips, grid) in CASES {
        let shape = frames_shape(clips, grid);
        let frames = bytes(1, shape.iter().product());
        let out_shape = [clips * grid.tokens(), grid.elements()];
        let mut got = poison(out_shape[0] * out_shape[1]);
        let (view, out) = (View::from_u8(&frames, &shape), ViewMut::from_f32(&mut got, &out_shape));
        unfold(&Stream::Host, view, n, grid.tubelet, grid.patch, out).unwrap();
        let value = |i: usize, c: usize| (f32::from(frames[i]) / 255.0 - n.mean[c]) / n.std[c];
        // Both compute the same operations in the same order, so they are equal to the bit.
        assert_close(&format!("{grid:?}"), &got, &reference::unfold(grid, clips, value), 0.0);
        if clips > 0 {
            let swapped = reference::unfold(grid, clips, |i, c| value(i, 2 - c));
            assert_differs("colours in reverse", &got, &swapped, 0.0);
        }
    }
}

#[test]
fn f32_frames_of_any_number_of_colours_are_copied() {
    for (clips, grid) in CASES {
        let grid = Grid { colours: 2, ..grid };
        let shape = frames_shape(clips, grid);
        let frames = normal(1, shape.iter().product());
        let out_shape = [clips * grid.tokens(), grid.elements()];
        let mut got = poison(out_shape[0] * out_shape[1]);
        let (view, out) =
            (View::from_f32(&frames, &shape), ViewMut::from_f32(&mut got, &out_shape));
        let n = Normalisation::IMAGENET;
        unfold(&Stream::Host, view, n, grid.tubelet, grid.patch, out).unwrap();
        assert_close("frames", &got, &reference::unfold(grid, clips, |i, _| frames[i]), 0.0);
    }
}

#[test]
fn a_row_times_a_flattened_kernel_is_the_convolution() {
    let grid = Grid { time: 4, height: 2, width: 3, colours: 3, tubelet: 2, patch: 2 };
    let (frames, kernel) = (normal(1, 4 * 4 * 6 * 3), normal(2, 3 * 2 * 2 * 2));
    let mut rows = poison(frames.len());
    let out = ViewMut::from_f32(&mut rows, &[grid.tokens(), grid.elements()]);
    let view = View::from_f32(&frames, &frames_shape(1, grid));
    unfold(&Stream::Host, view, Normalisation::IMAGENET, 2, 2, out).unwrap();
    // Output (t, y, x) = (1, 0, 2), with the kernel indexed (colour, time, row, column) as torch
    // stores it.
    let mut want = 0.0;
    for (c, t, y, x) in (0..24).map(|i| (i / 8, i / 4 % 2, i / 2 % 2, i % 2)) {
        let pixel = frames[(((2 + t) * 4 + y) * 6 + 4 + x) * 3 + c];
        want += f64::from(pixel) * f64::from(kernel[((c * 2 + t) * 2 + y) * 2 + x]);
    }
    let row = |token: usize| &rows[token * 24..(token + 1) * 24];
    assert!((dot(row(6 + 2), &kernel) - want).abs() < 1e-12);
    assert!((dot(row(6 + 3), &kernel) - want).abs() > 1e-3);
}

#[test]
fn frames_that_do_not_divide_are_refused() {
    let (frames, mut out) = (bytes(1, 3 * 4 * 4 * 3), poison(4));
    for (tubelet, patch) in [(2, 4), (1, 3), (0, 4), (1, 0)] {
        let view = View::from_u8(&frames, &[1, 3, 4, 4, 3]);
        let out = ViewMut::from_f32(&mut out, &[4]);
        let error = unfold(&Stream::Host, view, Normalisation::IMAGENET, tubelet, patch, out);
        assert!(matches!(error, Err(KernelError::Value { what: "frames", .. })), "{error:?}");
    }
}
