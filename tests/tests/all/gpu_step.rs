//! A step on an emulated GPU, which uses host memory and kernels compiled for the host, must give
//! the results of the host device.

use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::device::cuda::Cuda;
use vljepa_kernels::testing::bytes;
use vljepa_kernels::{Device, Packed, Tensor};
use vljepa_model::{AdamW, Gradients};
use vljepa_recipes::schema;

use crate::golden::{Machine, values};
use crate::golden_step::Step;

/// Results of a step.
struct Outcome {
    visual: Vec<f32>,
    predicted: Vec<f32>,
    target: Vec<f32>,
    loss: f64,
    gradients: Vec<(String, Vec<f32>)>,
    /// Trainable parameters after one update.
    updated: Vec<f32>,
}

/// Runs one step of the golden model on random pixels, with the query ids of the golden file or
/// with the same ids in reverse order.
fn step(device: Device, reversed: bool) -> Outcome {
    let mut step = Step::on(device);
    let shape = step.frames.shape().to_vec();
    let pixels = Tensor::from_u8(bytes(3, shape.iter().product()), &shape);
    step.frames = pixels.on(device).unwrap();
    let moved = |packed: &Packed, reversed: bool| {
        let mut ids = packed.ids().host_i32("test", "ids").unwrap().to_vec();
        if reversed {
            ids.reverse();
        }
        Packed::new(device, ids, packed.lengths.host().to_vec()).unwrap()
    };
    (step.query, step.target) = (moved(&step.query, reversed), moved(&step.target, false));
    let machine = Machine::on(device);
    let cx = machine.cx();
    let mut gradients = Gradients::new(step.model.layout(), device).unwrap();
    let result = step.run(cx, &mut gradients);
    let mut optimizer =
        AdamW::new(step.model.layout(), device, &schema::Optimizer::default()).unwrap();
    let control = Tensor::from_f32(vec![1.0, 1.0], &[2]).on(device).unwrap();
    optimizer.step(cx, &mut step.parameters, &gradients, control.view(), 1e-3).unwrap();
    let flat = values(&gradients.flat);
    Outcome {
        visual: result.visual,
        predicted: result.predicted,
        target: result.target,
        loss: result.loss,
        gradients: step.by_name(&flat).into_iter().collect(),
        updated: values(&step.parameters.trainable),
    }
}

/// Returns the relative distance ‖got − want‖ / ‖want‖.
pub fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    (difference / want.iter().map(|&b| square(b)).sum::<f64>().max(1e-30)).sqrt()
}

/// Tolerance for the forward pass. Some forty operations round to bf16, each by at most 2⁻⁹ and on
/// average by half of it: √40 · 2⁻¹⁰ = 0.6 %, times three for safety.
pub const FORWARD: f64 = 0.02;

/// Tolerance for gradients. The backward pass adds its own roundings, and the scale of InfoNCE
/// makes the differences of the logits 14 times as large as those of the similarities.
pub const BACKWARD: f64 = 0.08;

#[test]
fn a_step_on_a_gpu_is_the_host_s_but_for_bf16() {
    let want = step(Device::Host, false);
    let gpu = |mode, reversed| step(Device::Cuda(Cuda::for_tests(mode)), reversed);
    for mode in [Mode::Fast, Mode::Deterministic] {
        let got = gpu(mode, false);
        for (name, got, want) in [
            ("visual", &got.visual, &want.visual),
            ("predicted", &got.predicted, &want.predicted),
            ("target", &got.target, &want.target),
        ] {
            let far = distance(got, want);
            assert!(far > 0.0 && far < FORWARD, "{name}: {far}");
        }
        assert!((got.loss - want.loss).abs() < 0.05, "{} {}", got.loss, want.loss);
        for ((name, got), (_, want)) in got.gradients.iter().zip(&want.gradients) {
            let far = distance(got, want);
            assert!(far < BACKWARD, "{name}: {far}");
        }
        // Adam's first update is ± the learning rate, with the sign of the gradient. It differs for
        // gradients near zero.
        let far = distance(&got.updated, &want.updated);
        assert!(far < 1e-3, "updated: {far}");
    }
    let wrong = gpu(Mode::Fast, true);
    assert!(distance(&wrong.predicted, &want.predicted) > FORWARD);
    let all = want.gradients.len();
    let pairs = wrong.gradients.iter().zip(&want.gradients);
    let different = pairs.filter(|(a, b)| distance(&a.1, &b.1) > BACKWARD).count();
    assert!(different * 10 > all * 9, "{different} of {all}");
}
