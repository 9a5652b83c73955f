//! Tests of the AdamW kernel against the reference, without a GPU.

use super::launch::{Buffers, step};
use super::{Hyper, State, reference};
use crate::compile::emulator::Emulator;
use crate::testing::{assert_close, assert_differs, normal};

const HYPER: Hyper =
    Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3 };

#[test]
fn an_update_matches_the_reference_and_refreshes_the_bf16_copy() {
    for len in [1, 17, 256, 4100] {
        let [w, m, gradient] = [1, 2, 3].map(|seed| normal(seed, len));
        let v: Vec<f32> = normal(4, len).iter().map(|x| x * x).collect();
        let mut want = [w.clone(), m.clone(), v.clone()];
        let [weights, m1, v1] = &mut want;
        reference::step(State { weights, m: m1, v: v1 }, &gradient, HYPER, 0.3);
        let mut e = Emulator::default();
        let (copy, control) = (e.poison_bf16(len), e.f32(&[0.3, 1.0]));
        let [weights, m, v, gradient] = [&w, &m, &v, &gradient].map(|x| e.f32(x));
        let buffers = Buffers { weights, m, v, gradient, control, copy: Some(copy) };
        e.run(&step(buffers, len, HYPER));
        // A handful of f32 roundings on numbers below 8; the copy rounds to 8 bits.
        let tolerance = 8.0 * 4.0 * f32::EPSILON;
        for (name, buffer, want) in
            [("weights", weights, &want[0]), ("m", m, &want[1]), ("v", v, &want[2])]
        {
            assert_close(&format!("{name} of {len}"), &e.read_f32(buffer), want, tolerance);
        }
        assert_close("copy", &e.read_bf16(copy), &want[0], 0.004);
        assert_differs("weights before", &e.read_f32(weights), &w, tolerance);
    }
}
