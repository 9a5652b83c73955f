//! Tests of the distance kernels against the reference, without a GPU.

use half::bf16;

use super::launch::{Inputs, backward, forward};
use super::{Distance, reference};
use crate::compile::Element;
use crate::compile::emulator::Emulator;
use crate::testing::{assert_close, assert_differs, normal};

#[test]
fn distances_and_gradients_match_the_reference() {
    for (kind, element) in [
        (Distance::Cosine, Element::Bf16),
        (Distance::L1, Element::Bf16),
        (Distance::L2, Element::Bf16),
        (Distance::L1, Element::F32),
    ] {
        for (rows, width) in [(1, 1), (3, 7), (17, 257), (0, 8)] {
            let inputs = |seed| -> Vec<f32> {
                let values = normal(seed, rows * width);
                values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
            };
            let (p, mut t) = (inputs(1), inputs(2));
            if let (Some(t), Some(p)) = (t.first_mut(), p.first()) {
                // The gradient of |x| at 0 is 0.
                *t = *p;
            }
            let mut e = Emulator::default();
            let [pred, target] = [&p, &t].map(|x| match element {
                Element::F32 => e.f32(x),
                Element::Bf16 => e.bf16(x),
            });
            let buffers = Inputs { pred, target, element, rows, width };
            let (distances, out) = (e.poison_f32(rows), e.poison_f32(1));
            e.run(&forward(buffers, kind, distances, out).unwrap());
            let want = crate::parallel::round(reference::forward(&p, &t, width, kind));
            // Sums of 257 products below 10 in f32, over 17 rows.
            let tolerance = 1e-4;
            let name = format!("{kind:?} of {rows}x{width}");
            assert_close(&name, &e.read_f32(out), &[want], tolerance);
            let [d_p, d_t] = [0; 2].map(|_| e.poison_f32(rows * width));
            e.run(&backward(buffers, kind, 1.5, d_p, d_t).unwrap());
            let mut d = [vec![0.0; p.len()], vec![0.0; p.len()]];
            let [want_p, want_t] = &mut d;
            reference::backward(&p, &t, width, kind, 1.5, want_p, want_t);
            assert_close(&format!("{name}: d_pred"), &e.read_f32(d_p), want_p, 2e-6);
            assert_close(&format!("{name}: d_target"), &e.read_f32(d_t), want_t, 2e-6);
            if rows > 1 {
                assert_differs(&name, &e.read_f32(out), &[want + 2e-3 * want.abs()], tolerance);
                assert_differs(&name, &e.read_f32(d_p), want_t, 2e-6);
            }
        }
    }
}

#[test]
fn more_elements_than_offsets_count_are_errors() {
    let inputs = |rows| Inputs { pred: 0, target: 1, element: Element::F32, rows, width: 1536 };
    assert!(forward(inputs(1 << 20), Distance::L2, 2, 3).is_ok());
    assert!(forward(inputs(1 << 22), Distance::L2, 2, 3).is_err());
    assert!(backward(inputs(usize::MAX), Distance::L2, 1.0, 2, 3).is_err());
}
