//! Tests of `VICReg`'s kernels against the reference, without a GPU.

use super::cases::CASES;
use super::launch::{centre, weights};
use super::tests::embeddings;
use super::{Factors, reference};
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs};
use crate::testing::{assert_close, assert_differs, normal, poison};

#[test]
fn centred_rows_weights_and_terms_match_the_reference() {
    let factors = Factors { variance: 12.5, covariance: 1.0 };
    // Half a unit in the last of 8 bits, or a few roundings in f32.
    for (element, tolerance) in [(Element::F32, 2e-6), (Element::Bf16, 1.0 / 256.0)] {
        for case @ (rows, width) in CASES {
            let name = format!("{element:?} {case:?}");
            let mut e = Emulator::default();
            let (x, sums) = (inputs(1, element, rows * width), normal(2, width));
            let out = e.poison(element, rows * width);
            let buffers = [e.upload(element, &x), e.f32(&sums), out];
            e.run(&centre(buffers, element, 0.125, [rows, width]).unwrap());
            let mut want = poison(rows * width);
            reference::centre(&x, &sums, 0.125, &mut want);
            assert_close(&name, &e.read(element, out), &want, tolerance);
            let differs = |got: &[f32], wrong: &[f32], tolerance| {
                // A single dimension can be close by chance.
                if width > 1 {
                    assert_differs(&name, got, wrong, tolerance);
                }
            };
            differs(&e.read(element, out), &x, tolerance);

            // Products with diagonal elements on both sides of the hinge.
            let z = embeddings(3, case);
            let product =
                |i: usize, j: usize| z.chunks_exact(width).map(|row| row[i] * row[j]).sum::<f32>();
            let products: Vec<f32> =
                (0..width * width).map(|at| product(at / width, at % width)).collect();
            let (w, terms) = (e.poison(element, width * width), e.poison_f32(width));
            let buffers = [e.f32(&products), w, terms];
            e.run(&weights(buffers, element, 0.25, factors, width).unwrap());
            let (mut want, mut want_terms) = (poison(width * width), poison(width));
            reference::weights(&products, 0.25, factors, &mut want, &mut want_terms);
            assert_close(&name, &e.read(element, w), &want, tolerance);
            // Sums of 260 squares in f32.
            assert_close(&name, &e.read_f32(terms), &want_terms, 1e-5);
            reference::weights(&products, 0.24, factors, &mut want, &mut want_terms);
            differs(&e.read(element, w), &want, tolerance);
            differs(&e.read_f32(terms), &want_terms, 1e-5);
        }
    }
}

#[test]
fn more_elements_than_offsets_count_are_errors() {
    assert!(centre([0; 3], Element::Bf16, 1.0, [1 << 20, 1536]).is_ok());
    assert!(centre([0; 3], Element::Bf16, 1.0, [1 << 22, 1536]).is_err());
    let factors = Factors { variance: 1.0, covariance: 1.0 };
    assert!(weights([0; 3], Element::Bf16, 1.0, factors, 1 << 17).is_err());
}
