//! The kernel that unfolds patches against the reference, run by the emulator instead of a GPU.

use super::cases::CASES;
use super::launch::unfold;
use super::{Grid, Normalisation, reference};
use crate::compile::Element;
use crate::compile::emulator::{Emulator, rounding};
use crate::testing::{assert_close, assert_differs, bytes};

#[test]
fn rows_of_bytes_match_the_reference() {
    for element in [Element::F32, Element::Bf16] {
        for (clips, grid) in CASES {
            let Grid { time, height, width, tubelet, patch, .. } = grid;
            let frames = bytes(3, clips * time * height * patch * width * patch * 3);
            let mut e = Emulator::default();
            let mut padded = frames.clone();
            padded.resize(frames.len().next_multiple_of(4), 0);
            let buffer = e.bytes(padded);
            let out = e.poison(element, clips * grid.tokens() * grid.elements());
            let shape = [clips, time, height * patch, width * patch];
            let normalisation = Normalisation::IMAGENET;
            e.run(&unfold([buffer, out], shape, normalisation, tubelet, patch, element).unwrap());
            let table = normalisation.table();
            let want = |order: [usize; 3]| {
                reference::unfold(grid, clips, |at, c| table[order[c]][usize::from(frames[at])])
            };
            let name = format!("{element:?} {clips} of {grid:?}");
            // A product and a sum in f32, of numbers below 5.
            let tolerance = rounding(element, 1e-6);
            assert_close(&name, &e.read(element, out), &want([0, 1, 2]), tolerance);
            if clips > 0 {
                let wrong = want([2, 1, 0]);
                assert_differs("blue for red", &e.read(element, out), &wrong, tolerance);
            }
        }
    }
}

#[test]
fn frames_that_do_not_divide_or_are_too_many_are_errors() {
    let run = |shape| unfold([0, 1], shape, Normalisation::IMAGENET, 2, 16, Element::Bf16);
    assert!(run([128, 8, 256, 256]).is_ok());
    for shape in [[1, 3, 256, 256], [1, 2, 250, 256], [10_000, 8, 256, 256]] {
        assert!(run(shape).is_err(), "{shape:?}");
    }
}
