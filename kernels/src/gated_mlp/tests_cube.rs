//! Tests of the gated MLP kernels against the reference, without a GPU.

use super::launch::{backward, forward};
use super::{Activation, reference};
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs};

#[test]
fn both_activations_and_their_gradients_match_the_reference() {
    for (activation, other) in
        [(Activation::Silu, Activation::GeluTanh), (Activation::GeluTanh, Activation::Silu)]
    {
        for element in [Element::F32, Element::Bf16] {
            for (n, f) in [(1, 1), (3, 17), (17, 40), (0, 8)] {
                let gate_up: Vec<f32> =
                    inputs(1, element, 2 * n * f).iter().map(|x| 2.0 * x).collect();
                let d_out = inputs(2, element, n * f);
                let mut e = Emulator::default();
                let [input, d_out_buffer] = [&gate_up, &d_out].map(|x| e.upload(element, x));
                let (out, d_gate_up) = (e.poison(element, n * f), e.poison(element, 2 * n * f));
                e.run(&forward(input, out, activation, element, [n, f]).unwrap());
                let launches =
                    backward(input, d_out_buffer, d_gate_up, activation, element, [n, f]);
                e.run(&launches.unwrap());
                let reference = |activation| {
                    let (mut out, mut d) = (vec![0.0; n * f], vec![0.0; 2 * n * f]);
                    reference::forward(&gate_up, f, activation, &mut out);
                    reference::backward(&gate_up, f, activation, &d_out, &mut d);
                    [out, d]
                };
                let name = format!("{activation:?} {element:?} {n}x{f}");
                let [want, want_d] = reference(activation);
                // A few roundings of products below 100.
                let tolerance = rounding(element, 1e-5);
                assert_close(&name, &e.read(element, out), &want, tolerance);
                assert_close(
                    &format!("{name}: d"),
                    &e.read(element, d_gate_up),
                    &want_d,
                    tolerance,
                );
                if n > 1 {
                    let [wrong, wrong_d] = reference(other);
                    assert_differs(&name, &e.read(element, out), &wrong, tolerance);
                    assert_differs(&name, &e.read(element, d_gate_up), &wrong_d, tolerance);
                }
            }
        }
    }
    assert!(forward(0, 1, Activation::Silu, Element::Bf16, [1 << 23, 8192]).is_err());
}
