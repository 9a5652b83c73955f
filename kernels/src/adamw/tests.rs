//! Tests of AdamW against the reference over several updates, and of its control flags.

use super::{Hyper, State, reference, step};
use crate::testing::{assert_close, assert_differs, normal};
use crate::{KernelError, Result, Stream, View, ViewMut};

const HYPER: Hyper =
    Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };

type Arrays = [Vec<f32>; 3];

fn run([w, m, v]: &mut Arrays, gradient: &[f32], hyper: Hyper, control: [f32; 2]) -> Result<()> {
    let shape = [gradient.len()];
    let [w, m, v] = [w, m, v].map(|x| ViewMut::from_f32(x, &shape));
    let gradient = View::from_f32(gradient, &shape);
    step(&Stream::Host, w, m, v, gradient, hyper, View::from_f32(&control, &[2]), None)
}

#[test]
fn five_updates_match_reference() {
    for len in [0, 1, 17, 257, 70_001] {
        let start = [normal(1, len), vec![0.0; len], vec![0.0; len]];
        let (mut got, mut want, mut undecayed) = (start.clone(), start.clone(), start);
        for t in 1..=5 {
            let (gradient, hyper) = (normal(10 + t, len), Hyper { step: t, ..HYPER });
            run(&mut got, &gradient, hyper, [0.3, 1.0]).unwrap();
            let no_decay = Hyper { weight_decay: 0.0, ..hyper };
            for (arrays, hyper) in [(&mut want, hyper), (&mut undecayed, no_decay)] {
                let [weights, m, v] = arrays;
                reference::step(State { weights, m, v }, &gradient, hyper, 0.3);
            }
        }
        // Five updates of a handful of f32 roundings each, on numbers below 4.
        let tolerance = 5.0 * 4.0 * f32::EPSILON;
        for (name, i) in [("weights", 0), ("m", 1), ("v", 2)] {
            assert_close(&format!("{name} of {len}"), &got[i], &want[i], tolerance);
        }
        if len > 0 {
            assert_differs("without decay", &got[0], &undecayed[0], tolerance);
        }
    }
}

#[test]
fn the_first_update_is_decay_and_then_the_learning_rate_against_the_gradients_sign() {
    // w · (1 − 0.01 · 0.1) − 0.01 · sign(g), with m = 0.1·g.
    let mut state = [vec![1.0, -2.0, 0.5], vec![0.0; 3], vec![0.0; 3]];
    run(&mut state, &[0.1, -0.2, 0.3], HYPER, [1.0, 1.0]).unwrap();
    assert_close("step 1", &state[0], &[0.989, -1.988, 0.4895], 2.0 * f32::EPSILON);
    assert_close("m", &state[1], &[0.01, -0.02, 0.03], f32::EPSILON);
    assert_differs("sign", &state[0], &[1.009, -1.988, 0.4895], 2.0 * f32::EPSILON);
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let mut state = [normal(1, 9), normal(2, 9), vec![0.5; 9]];
    let before = state.clone();
    run(&mut state, &[f32::NAN; 9], HYPER, [0.0, 0.0]).unwrap();
    assert_eq!(state, before);
    run(&mut state, &[1.0; 9], HYPER, [1.0, 1.0]).unwrap();
    assert_ne!(state, before);
}

#[test]
fn updates_are_counted_from_one() {
    let mut state = [vec![1.0], vec![0.0], vec![0.0]];
    let error = run(&mut state, &[1.0], Hyper { step: 0, ..HYPER }, [1.0, 1.0]);
    assert!(matches!(error, Err(KernelError::Value { what: "step", .. })));
}
