//! Tests of the kernels that move, add and round rows, against the reference, without a GPU.

use super::launch::{add, average, cast, gather, scatter};
use super::reference;
use crate::Write;
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs};

#[test]
fn rows_go_where_the_index_says_and_sums_are_rounded_once() {
    for element in [Element::F32, Element::Bf16] {
        for (n, m, d) in [(1, 1, 1), (17, 300, 24), (5, 7, 33), (0, 3, 8)] {
            // The indices are distinct: 11 has no common divisor with any m above.
            let index: Vec<i32> = (0..n).map(|i| i32::try_from(i * 11 % m).unwrap()).collect();
            let (src, before) = (inputs(1, element, n * d), inputs(2, element, m * d));
            let mut e = Emulator::default();
            let (src_buffer, index_buffer) = (e.upload(element, &src), e.i32(&index));
            let out = e.upload(element, &before);
            e.run(&scatter([src_buffer, index_buffer, out], element, [n, d]).unwrap());
            let mut want = before.clone();
            reference::scatter(&src, &index, d, &mut want);
            let name = format!("{element:?} {n} of {m}x{d}");
            assert_close(&name, &e.read(element, out), &want, 0.0);
            if n > 1 {
                assert_differs(&name, &e.read(element, out), &before, 0.0);
            }
            let from = e.upload(element, &before);
            for write in [Write::Set, Write::Add] {
                let to = e.upload(element, &src);
                e.run(&gather([from, index_buffer, to], write, element, [n, d]).unwrap());
                let mut want = src.clone();
                reference::gather(&before, &index, d, write, &mut want);
                let got = e.read(element, to);
                assert_close(&format!("{name} {write:?}"), &got, &want, rounding(element, 0.0));
                if n > 1 {
                    assert_differs(&name, &got, &src, 1e-2);
                }
            }
            let (a, b) = (e.upload(element, &before), e.upload(element, &before));
            e.run(&add(a, b, element, m * d).unwrap());
            let doubled: Vec<f32> = before.iter().map(|x| 2.0 * x).collect();
            assert_close(&format!("{name}: sum"), &e.read(element, b), &doubled, 0.0);
        }
    }
    assert!(add(0, 1, Element::Bf16, 1 << 35).is_err());
}

#[test]
fn an_average_moves_toward_the_values_by_one_minus_decay() {
    for count in [0, 1, 7, 24, 4097] {
        let (old, new) = (inputs(1, Element::F32, count), inputs(2, Element::F32, count));
        for decay in [0.0, 0.75, 1.0] {
            let mut e = Emulator::default();
            let (from, to) = (e.upload(Element::F32, &new), e.upload(Element::F32, &old));
            e.run(&average(from, to, decay, count).unwrap());
            let both = old.iter().zip(&new);
            let want: Vec<f32> = both.map(|(a, b)| decay * a + (1.0 - decay) * b).collect();
            // Two products and a sum, which a GPU may fuse: each rounds by at most 2⁻²⁴.
            assert_close(&format!("{count}, {decay}"), &e.read(Element::F32, to), &want, 4e-7);
            if count > 1 && decay < 1.0 {
                assert_differs("not moved", &old, &want, 1e-2);
            }
        }
    }
}

#[test]
fn numbers_become_the_nearest_bf16() {
    for count in [0, 1, 7, 24, 4096, 4097] {
        let mut from = inputs(3, Element::F32, count);
        // Numbers halfway between 1 and the next bf16, and between that one and the one after it:
        // both round to the even one.
        for (x, halfway) in from.iter_mut().zip([1.0 + 0.003_906_25, 1.0 + 3.0 * 0.003_906_25]) {
            *x = halfway;
        }
        let mut e = Emulator::default();
        let (from_buffer, to) =
            (e.upload(Element::F32, &from), e.upload(Element::Bf16, &vec![7.0; count]));
        e.run(&cast(from_buffer, to, count).unwrap());
        let want: Vec<f32> = from.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        assert_close(&count.to_string(), &e.read(Element::Bf16, to), &want, 0.0);
        if count > 1 {
            assert_differs("not rounded", &from, &want, 0.0);
        }
    }
}
