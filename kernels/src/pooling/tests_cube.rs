//! The kernels of mean pooling against the reference, run by the emulator instead of a GPU.

use super::launch::{Sizes, backward, forward};
use super::reference;
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs};
use crate::{Device, Lengths};

#[test]
fn means_and_gradients_of_packed_sequences_match_the_reference() {
    for element in [Element::F32, Element::Bf16] {
        for (ends, tail, width) in [
            (vec![0, 1], 0, 1),
            (vec![0, 17, 18, 275], 3, 33),
            (vec![0, 5, 9], 0, 2304),
            (vec![0], 2, 8),
        ] {
            let lengths = Lengths::new(Device::Host, ends.clone()).unwrap();
            let (sequences, tokens) = (lengths.rows(), lengths.tokens() + tail);
            let sizes = Sizes { sequences, tokens, width };
            let x = inputs(1, element, tokens * width);
            let d_out = inputs(2, element, sequences * width);
            let mut e = Emulator::default();
            let offsets = e.i32(&ends);
            let [x_buffer, d_out_buffer] = [&x, &d_out].map(|x| e.upload(element, x));
            let out = e.poison(element, sequences * width);
            let d_x = e.poison(element, tokens * width);
            e.run(&forward(x_buffer, offsets, out, element, sizes).unwrap());
            e.run(&backward(d_out_buffer, offsets, d_x, element, sizes).unwrap());
            let (mut want, mut want_d) = (vec![0.0; d_out.len()], vec![0.0; x.len()]);
            reference::forward(&x, &lengths, width, &mut want);
            reference::backward(&d_out, &lengths, width, &mut want_d);
            let name = format!("{element:?} {ends:?} x {width}");
            // Kernel and reference sum in the same order; only the division may differ.
            let tolerance = rounding(element, 1e-6);
            assert_close(&name, &e.read(element, out), &want, tolerance);
            assert_close(&format!("{name}: d_x"), &e.read(element, d_x), &want_d, tolerance);
            if sequences > 1 {
                let shifted: Vec<i32> =
                    ends.iter().map(|&end| end.saturating_sub(1).max(0)).collect();
                let shifted = Lengths::new(Device::Host, shifted).unwrap();
                if !shifted.range(0).is_empty() {
                    reference::forward(&x, &shifted, width, &mut want);
                    reference::backward(&d_out, &shifted, width, &mut want_d);
                    assert_differs(&name, &e.read(element, out), &want, tolerance);
                    assert_differs(&name, &e.read(element, d_x), &want_d, tolerance);
                }
            }
        }
    }
    let sizes = Sizes { sequences: 1, tokens: 1 << 25, width: 1024 };
    assert!(forward(0, 1, 2, Element::Bf16, sizes).is_err());
}
