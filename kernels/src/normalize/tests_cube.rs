//! The kernels of L2 normalisation against the reference, run by the emulator instead of a GPU.

use super::launch::{backward, forward};
use super::reference;
use crate::compile::Element;
use crate::compile::emulator::{Emulator, inputs, rounding};
use crate::testing::{assert_close, assert_differs, normal};

const EPS: f32 = 1e-3;

#[test]
fn rows_and_their_gradients_match_the_reference_and_short_rows_are_divided_by_eps() {
    for element in [Element::F32, Element::Bf16] {
        for (b, width) in [(1, 1), (17, 33), (9, 1536), (0, 8)] {
            let mut x = inputs(1, element, b * width);
            if b > 1 {
                x[..width].fill(0.0);
            }
            let d_out = normal(2, b * width);
            let mut e = Emulator::default();
            let [x_buffer, out, d_x] = [0, 1, 2].map(|i| match i {
                0 => e.upload(element, &x),
                _ => e.poison(element, b * width),
            });
            let norm = e.poison_f32(b);
            e.run(&forward([x_buffer, out, norm], EPS, element, [b, width]).unwrap());
            let (mut want, mut want_norm) = (vec![0.0; b * width], vec![0.0; b]);
            reference::forward(&x, width, EPS, &mut want, &mut want_norm);
            let name = format!("{element:?} {b}x{width}");
            // Sums of 1,536 squares, 48 per lane, in f32.
            let tolerance = rounding(element, 1e-5);
            let got = e.read(element, out);
            assert_close(&name, &got, &want, tolerance);
            assert_close(&format!("{name}: norm"), &e.read_f32(norm), &want_norm, 1e-5);
            let d_out_buffer = e.f32(&d_out);
            e.run(&backward([out, norm, d_out_buffer, d_x], element, [b, width]).unwrap());
            let mut want_d = vec![0.0; b * width];
            // Kernel and reference both read the `out` that the forward kernel stored.
            reference::backward(&got, &want_norm, &d_out, width, &mut want_d);
            assert_close(&format!("{name}: d_x"), &e.read(element, d_x), &want_d, tolerance);
            if b > 1 {
                assert_differs(&name, &got[width..], &x[width..], tolerance);
                let mut wrong = want_d.clone();
                reference::backward(&want, &vec![-1.0; b], &d_out, width, &mut wrong);
                assert_differs(&name, &e.read(element, d_x), &wrong, tolerance);
            }
        }
    }
    assert!(forward([0, 1, 2], EPS, Element::Bf16, [1 << 30, 1536]).is_err());
}
