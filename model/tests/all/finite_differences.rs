//! Gradients of the whole model against finite differences of its loss.

use std::f32::consts::LN_10;

use vljepa_kernels::Device;
use vljepa_kernels::testing::{Random, dot, normal};
use vljepa_model::{Gradients, Objective, ParameterId};
use vljepa_recipes::schema::LossKind;

use crate::step::Step;

/// Step of the five-point formula. The loss is near 1 and has an f32 rounding error of about 2e-6,
/// which gives an error of 1.5 · 2e-6 / 0.02 = 1.5e-4 in a derivative. The truncation error,
/// 0.02⁴·f⁽⁵⁾/30, is smaller than that if the fifth derivative is below 3e4.
const STEP: f32 = 0.02;

/// About twice the larger of the two errors of [`STEP`], plus a margin.
const TOLERANCE: f64 = 4e-4;

/// Derivative of the loss along `direction` in one parameter.
fn derivative_along(step: &mut Step, id: ParameterId, direction: &[f32]) -> f64 {
    let layout = step.model.layout().clone();
    let at = step.parameters.view(&layout, id).host_f32("test", "weights").unwrap().to_vec();
    let mut sum = 0.0;
    for (steps, weight) in [(1.0, 8.0), (-1.0, -8.0), (2.0, -1.0), (-2.0, 1.0)] {
        let moved = step.parameters.view_mut(&layout, id).host_f32_mut("test", "weights").unwrap();
        for ((m, a), d) in moved.iter_mut().zip(&at).zip(direction) {
            *m = a + steps * STEP * d;
        }
        sum += weight * step.loss();
    }
    let moved = step.parameters.view_mut(&layout, id).host_f32_mut("test", "weights").unwrap();
    moved.copy_from_slice(&at);
    sum / (12.0 * f64::from(STEP))
}

/// A random direction of length one, and three directions of one random element each.
fn directions(len: usize, seed: u64) -> Vec<Vec<f32>> {
    let noise = normal(seed, len);
    #[expect(clippy::cast_possible_truncation, reason = "a length near √n")]
    let length = dot(&noise, &noise).sqrt() as f32;
    let mut all = vec![noise.iter().map(|v| v / length).collect()];
    let mut random = Random::new(seed);
    for _ in 0..3 {
        let mut one = vec![0.0; len];
        one[random.below(u32::try_from(len).unwrap()) as usize] = 1.0;
        all.push(one);
    }
    all
}

fn check(kind: LossKind, mask_equal_targets: bool) {
    let mut step = Step::tiny(kind, mask_equal_targets);
    let gradients = step.gradients();
    let layout = step.model.layout().clone();
    let (mut tensors, mut seen) = (0, 0);
    for (i, parameter) in layout.parameters.iter().enumerate().filter(|(_, p)| p.trainable) {
        let id = ParameterId(i);
        let gradient = gradients.view(&layout, id).host_f32("test", "gradient").unwrap();
        let mut any = false;
        for direction in directions(gradient.len(), 100 + i as u64) {
            let (got, want) =
                (dot(gradient, &direction), derivative_along(&mut step, id, &direction));
            let tolerance = TOLERANCE + 3e-3 * want.abs();
            assert!(
                (got - want).abs() < tolerance,
                "{}: {got}, differences {want}",
                parameter.name
            );
            // A wrong gradient must fail: half the gradient.
            any |= (0.5 * got - want).abs() > tolerance;
        }
        tensors += 1;
        seen += usize::from(any);
    }
    assert!(tensors > 70, "{tensors}");
    assert!(seen * 10 > tensors * 6, "half the gradient fails for {seen} of {tensors} only");
}

#[test]
fn info_nce_reaches_every_parameter() {
    check(LossKind::InfoNce, false);
}

#[test]
fn info_nce_with_equal_targets_masked_reaches_every_parameter() {
    check(LossKind::InfoNce, true);
}

#[test]
fn vic_reg_reaches_every_parameter() {
    check(LossKind::VicReg, false);
}

#[test]
fn sig_reg_reaches_every_parameter() {
    check(LossKind::SigReg, false);
}

#[test]
fn the_temperature_is_clamped_and_can_come_back() {
    let mut step = Step::tiny(LossKind::InfoNce, false);
    let (layout, id) = (step.model.layout().clone(), step.model.logit_scale());
    let mut gradient_at = |value: f32| {
        let into = step.parameters.view_mut(&layout, id);
        into.host_f32_mut("test", "scale").unwrap()[0] = value;
        let scale = step.model.alpha(&step.parameters).unwrap().value;
        (scale, step.gradients().view(&layout, id).host_f32("test", "gradient").unwrap()[0])
    };
    let (inside, d_inside) = gradient_at(1.9 * LN_10);
    let (outside, d_outside) = gradient_at(2.1 * LN_10);
    assert!(inside < 100.0 && (outside - 100.0).abs() < 1e-5);
    // With random embeddings the loss rises with α, so the gradient is positive on both sides of
    // the clamp.
    assert!(d_inside > 0.0 && d_outside > 0.0);
}

#[test]
fn beyond_its_clamp_the_temperature_may_only_come_back() {
    let mut step = Step::tiny(LossKind::InfoNce, false);
    let (layout, id) = (step.model.layout().clone(), step.model.logit_scale());
    let Objective::InfoNce(info_nce) = step.model.objective else { panic!("InfoNCE") };
    // `sum` stands for the gradient summed over ranks.
    let mut held = |value: f32, sum: f32| {
        let into = step.parameters.view_mut(&layout, id);
        into.host_f32_mut("test", "scale").unwrap()[0] = value;
        let mut gradients = Gradients::new(&layout, Device::Host).unwrap();
        gradients.view_mut(&layout, id).host_f32_mut("test", "gradient").unwrap()[0] = sum;
        let alpha = step.model.alpha(&step.parameters).unwrap();
        info_nce.hold_at_clamp(step.cx(), alpha, &mut gradients).unwrap();
        gradients.view(&layout, id).host_f32("test", "gradient").unwrap()[0].to_bits()
    };
    let (below, above) = (1.9 * LN_10, 2.1 * LN_10);
    assert_eq!(
        held(below, -0.5),
        (-0.5f32).to_bits(),
        "below the clamp, the gradient is unchanged"
    );
    assert_eq!(
        held(above, -0.5),
        0.0f32.to_bits(),
        "beyond the clamp, a gradient that raises α is zero"
    );
    assert_eq!(
        held(above, 0.5),
        0.5f32.to_bits(),
        "beyond the clamp, a gradient that lowers α is kept"
    );
}
