//! Tests of the column-sum kernels against sums in f64, without a GPU.

use super::launch::{add, workspace};
use super::tests::{SIZES, TOLERANCE, reference};
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs};
use crate::testing::{assert_close, assert_differs, normal};

#[test]
fn every_row_is_added_once_whatever_the_width_and_the_number_of_rows() {
    for element in [Element::F32, Element::Bf16] {
        for (n, width) in SIZES {
            let (x, before) = (inputs(1, element, n * width), normal(2, width));
            let mut e = Emulator::default();
            let out = e.f32(&before);
            let buffers = [e.upload(element, &x), e.poison_f32(workspace(n, width)), out];
            e.run(&add(buffers, element, n, width).unwrap());
            let (name, got) = (format!("{element:?} {n}x{width}"), e.read_f32(out));
            assert_close(&name, &got, &reference(&x, &before), TOLERANCE);
            if n * width > 0 {
                assert_differs(&name, &got, &before, TOLERANCE);
            }
        }
    }
}

#[test]
fn more_rows_than_32_bit_offsets_count_are_refused() {
    let run = |n, width| add([0; 3], Element::Bf16, n, width).map(|launches| launches.len());
    assert_eq!(run(80 * 4096, 16_384), Ok(2));
    let error = run(1 << 24, 2048).unwrap_err().to_string();
    assert!(error.contains("column_sums::add") && error.contains("2^32"), "{error}");
}
