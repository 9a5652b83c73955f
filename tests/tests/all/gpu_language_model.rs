//! A language model and a VLM on an emulated GPU must give the losses, gradients and texts of the
//! host, except for rounding to bf16.

use vljepa_kernels::Device;
use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::device::cuda::Cuda;
use vljepa_model::Gradients;
use vljepa_model::language_model::Search;

use crate::golden::values;
use crate::golden_language_model::Model;
use crate::golden_vlm;
use crate::gpu_step::{BACKWARD, FORWARD, distance};

fn open(name: &str) -> [Model; 2] {
    let gpu = Device::Cuda(Cuda::for_tests(Mode::Deterministic));
    [Device::Host, gpu].map(|device| Model::open(name, device))
}

#[test]
fn losses_and_gradients_on_a_gpu_are_the_host_s_but_for_bf16() {
    let [host, gpu] = open("llama_lm");
    let ((loss, gradients), (want, wanted)) = (gpu.step(1), host.step(1));
    assert!((loss - want).abs() < FORWARD * want, "{loss} is not {want}");
    for (name, want) in &wanted {
        let far = distance(&gradients[name], want);
        assert!(far > 0.0 && far < BACKWARD, "{name}: {far}");
    }
    let (_, wrong) = gpu.step(0);
    let far = |name: &&String| distance(&wrong[*name], &wanted[*name]) > BACKWARD;
    assert_eq!(wanted.keys().filter(far).count(), wanted.len(), "labels that are not shifted");
}

#[test]
fn texts_on_a_gpu_are_the_host_s() {
    let [host, gpu] = open("llama_lm");
    // Four tokens take one pass over the prompts and three over single tokens.
    let texts = gpu.generate(Search::Greedy, 4);
    assert_eq!(texts, host.generate(Search::Greedy, 4));
    assert!(texts.iter().any(|text| text.len() == 4));
}

#[test]
fn a_vlm_s_step_on_a_gpu_is_the_host_s_but_for_bf16() {
    let gpu = Device::Cuda(Cuda::for_tests(Mode::Deterministic));
    let run = |device, reversed: bool| {
        let mut step = golden_vlm::Step::on(device);
        step.show_pixels();
        if reversed {
            step.reverse_questions();
        }
        let mut gradients = Gradients::new(step.model.layout(), device).unwrap();
        let losses = step.run(&mut gradients);
        (losses, step.by_name(&values(&gradients.flat)))
    };
    let ((losses, gradients), (want, wanted)) = (run(gpu, false), run(Device::Host, false));
    let far = distance(&losses, &want);
    assert!(far > 0.0 && far < FORWARD, "losses: {far}");
    for (name, want) in &wanted {
        let far = distance(&gradients[name], want);
        assert!(far > 0.0 && far < BACKWARD, "{name}: {far}");
    }
    let (_, wrong) = run(gpu, true);
    let far = |name: &&String| distance(&wrong[*name], &wanted[*name]) > BACKWARD;
    let different = wanted.keys().filter(far).count();
    assert!(different * 10 > wanted.len() * 9, "{different} of {}", wanted.len());
}
