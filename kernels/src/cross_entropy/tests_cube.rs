//! Tests of the cross-entropy kernels against the reference, without a GPU.

use half::bf16;

use super::cases::CASES;
use super::launch::{Chunk, backward, forward};
use super::reference;
use crate::compile::Element;
use crate::compile::emulator::Emulator;
use crate::testing::{assert_close, assert_differs, indices, normal};

#[test]
fn losses_and_gradients_match_the_reference() {
    for element in [Element::F32, Element::Bf16] {
        for (n, v) in CASES {
            let logits: Vec<f32> =
                normal(3, n * v).iter().map(|&x| bf16::from_f32(4.0 * x).to_f32()).collect();
            let mut targets = indices(4, n, v);
            if n > 1 {
                targets[1] = -100;
            }
            let mut e = Emulator::default();
            let buffer = match element {
                Element::F32 => e.f32(&logits),
                Element::Bf16 => e.bf16(&logits),
            };
            let chunk = Chunk {
                logits: buffer,
                targets: e.i32(&targets),
                lse: e.poison_f32(n),
                element,
                tokens: n,
                vocabulary: v,
            };
            let losses = e.poison_f32(n);
            e.run(&forward(chunk, losses).unwrap());
            let (mut want, mut want_lse) = (vec![0.0; n], vec![0.0; n]);
            reference::forward(&logits, &targets, v, &mut want, &mut want_lse);
            let name = format!("{element:?} {n}x{v}");
            // 17 exponentials per thread and their sums in f32.
            assert_close(&format!("{name}: loss"), &e.read_f32(losses), &want, 5e-6);
            assert_close(&format!("{name}: lse"), &e.read_f32(chunk.lse), &want_lse, 5e-6);
            e.run(&backward(chunk, 1.5).unwrap());
            let mut d = logits.clone();
            reference::backward(&mut d, &targets, &want_lse, v, 1.5);
            let (got, tolerance) = match element {
                Element::F32 => (e.read_f32(buffer), 1e-5),
                // Half a unit in the last of 8 bits.
                Element::Bf16 => (e.read_bf16(buffer), 1.0 / 256.0),
            };
            assert_close(&format!("{name}: d_logits"), &got, &d, tolerance);
            if n > 1 {
                let moved: Vec<i32> =
                    targets.iter().map(|&t| if t > 0 { t - 1 } else { t }).collect();
                let mut wrong = logits.clone();
                reference::backward(&mut wrong, &moved, &want_lse, v, 1.5);
                assert_differs("other targets", &got, &wrong, tolerance);
                let mut other = want.clone();
                reference::forward(&logits, &moved, v, &mut other, &mut want_lse);
                assert_differs("other targets", &e.read_f32(losses), &other, 5e-6);
            }
        }
    }
}

#[test]
fn chunks_beyond_32_bit_offsets_are_errors() {
    let chunk = |tokens| Chunk {
        logits: 0,
        targets: 1,
        lse: 2,
        element: Element::Bf16,
        tokens,
        vocabulary: 128_256,
    };
    assert!(forward(chunk(33_487), 3).is_ok());
    let error = forward(chunk(33_488), 3).unwrap_err().to_string();
    assert!(error.contains("cross_entropy::forward") && error.contains("33488"), "{error}");
    assert!(backward(chunk(usize::MAX), 1.0).is_err());
}
