//! Tests of the activation kernels against the reference, without a GPU.

use super::launch::{backward, forward};
use super::reference;
use super::tests::KINDS;
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs};

#[test]
fn all_activations_and_their_gradients_match_the_reference() {
    for (kind, other) in KINDS {
        for element in [Element::F32, Element::Bf16] {
            for len in [1, 17, 4096, 0] {
                // Large enough to saturate on both sides.
                let x: Vec<f32> = inputs(1, element, len).iter().map(|x| 4.0 * x).collect();
                let d_out = inputs(2, element, len);
                let mut e = Emulator::default();
                let [x_buffer, d_out_buffer] = [&x, &d_out].map(|x| e.upload(element, x));
                let [out, d_x] = [0; 2].map(|_| e.poison(element, len));
                e.run(&forward(x_buffer, out, kind, element, len).unwrap());
                e.run(&backward(x_buffer, d_out_buffer, d_x, kind, element, len).unwrap());
                let reference = |kind| {
                    let (mut out, mut d_x) = (vec![0.0; len], vec![0.0; len]);
                    reference::forward(&x, kind, &mut out);
                    reference::backward(&x, kind, &d_out, &mut d_x);
                    [out, d_x]
                };
                let name = format!("{kind:?} {element:?} {len}");
                let [want, want_d] = reference(kind);
                // 1 + erf cancels for x far below 0: 2⁻²⁴ of x up to 16; slopes multiply the error
                // by d_out below 5.
                let (tolerance, of_d) = (rounding(element, 2e-6), rounding(element, 1e-5));
                assert_close(&name, &e.read(element, out), &want, tolerance);
                assert_close(&format!("{name}: d_x"), &e.read(element, d_x), &want_d, of_d);
                if len == 4096 && element == Element::F32 {
                    let [wrong, wrong_d] = reference(other);
                    assert_differs(&name, &e.read(element, out), &wrong, tolerance);
                    assert_differs(&name, &e.read(element, d_x), &wrong_d, of_d);
                }
                if len == 4096 {
                    assert_differs(&name, &e.read(element, out), &want_d, tolerance);
                }
            }
        }
    }
}
