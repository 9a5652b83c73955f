//! X-encoders on an emulated GPU, compared with the host.

use serde_json::json;
use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::device::cuda::Cuda;
use vljepa_kernels::testing::bytes;
use vljepa_kernels::{Device, Packed, Tensor, copy};
use vljepa_model::weights::Source;
use vljepa_model::{DualEncoder, Gradients, Keep, Parameters};

use crate::golden::{Machine, values};
use crate::gpu_step::{BACKWARD, FORWARD, distance};
use crate::{golden_clip_siglip2, golden_pe, golden_vjepa2_1};

/// Random pixels of frames (b, T, H, W, 3).
fn pixels(device: Device, shape: &[usize]) -> Tensor {
    Tensor::from_u8(bytes(5, shape.iter().product()), shape).on(device).unwrap()
}

/// Tokens of V-JEPA 2.1 for clips of random pixels, and the gradients of all weights.
fn tokens_and_gradients(device: Device, frames: usize) -> [Vec<f32>; 2] {
    let (golden, model, parameters) = golden_vjepa2_1::open_on(device, golden_vjepa2_1::GOLDENS[0]);
    let machine = Machine::on(device);
    let (cx, encoder) = (machine.cx(), &model.x_encoder);
    let &[b, _, h, w, c] = golden.frames("in.video").shape() else { panic!("five dimensions") };
    let pixels = pixels(device, &[b, frames, h, w, c]);
    let mut visual = encoder.forward(cx, &parameters, pixels.view(), Keep::EVERYTHING).unwrap();
    let shape = visual.tokens.shape();
    let d = &golden.get("in.video.d_tokens")[..shape.iter().product()];
    let d = Tensor::from_f32(d.to_vec(), shape).on(device).unwrap();
    let mut d_tokens = cx.take(shape).unwrap();
    copy::cast(cx.stream, d.view(), d_tokens.view_mut()).unwrap();
    let mut gradients = Gradients::new(model.layout(), device).unwrap();
    let saved = visual.saved.take();
    encoder.backward(cx, &parameters, saved, d_tokens, &mut gradients, &mut |_, _| {}).unwrap();
    [values(&visual.tokens), values(&gradients.flat)]
}

#[test]
fn v_jepa_2_1_on_an_emulated_gpu_is_the_host_s_but_for_bf16() {
    let gpu = Device::Cuda(Cuda::for_tests(Mode::Fast));
    for frames in [4, 1] {
        let [want, d_want] = tokens_and_gradients(Device::Host, frames);
        let [got, d_got] = tokens_and_gradients(gpu, frames);
        let (forward, backward) = (distance(&got, &want), distance(&d_got, &d_want));
        assert!(forward > 0.0 && forward < FORWARD, "{frames} frames: {forward}");
        assert!(backward > 0.0 && backward < BACKWARD, "{frames} frames: {backward}");
    }
    let [two, _] = tokens_and_gradients(gpu, 2);
    let [image, _] = tokens_and_gradients(Device::Host, 1);
    assert!(distance(&two, &image) > FORWARD);
}

/// Tokens of an image encoder with a cls token for two clips of two frames of random pixels.
fn tokens_of_frames(device: Device, source: Source, pool: usize) -> Vec<f32> {
    let (golden, model, parameters) = match source {
        Source::Clip => golden_clip_siglip2::open_on(device, source),
        _ => golden_pe::open_on(device, "pe_vision_cls", true, pool),
    };
    let (machine, side) = (Machine::on(device), golden.size("image_size"));
    let pixels = pixels(device, &[2, 2, side, side, 3]);
    let visual =
        model.x_encoder.forward(machine.cx(), &parameters, pixels.view(), Keep::Nothing).unwrap();
    values(&visual.tokens)
}

#[test]
fn image_encoders_on_an_emulated_gpu_are_the_host_s_but_for_bf16() {
    let gpu = Device::Cuda(Cuda::for_tests(Mode::Fast));
    for (source, pool) in [(Source::Pe, 1), (Source::Pe, 2), (Source::Clip, 1)] {
        let tokens = |device| tokens_of_frames(device, source, pool);
        let (got, want) = (tokens(gpu), tokens(Device::Host));
        let far = distance(&got, &want);
        assert!(far > 0.0 && far < FORWARD, "{source:?}, pool {pool}: {far}");
        let moved: Vec<f32> = want.iter().skip(1).chain(&want[..1]).copied().collect();
        assert!(distance(&got, &moved) > FORWARD);
    }
}

/// Embeddings of two clips of two frames, and of two texts, by a dual encoder of random weights.
/// Its heads have 16 elements.
fn embeddings(device: Device, family: &str, width: usize) -> [Vec<f32>; 2] {
    let resnet = family == "clip_resnet";
    let (side, num_heads) = (if resnet { 32 } else { 16 }, width / 16);
    let x_encoder = if resnet {
        json!({
            "family": family, "width": width / 32, "layers": [1, 2, 1, 1], "num_heads": num_heads,
        })
    } else {
        json!({
            "family": family, "patch_size": 8, "hidden_size": width, "num_layers": 1,
            "num_heads": num_heads, "intermediate_size": 64,
        })
    };
    let text = if resnet { "clip_text" } else { &format!("{family}_text") };
    let recipe = json!({
        "kind": "dual_encoder", "image_size": side, "embed_dim": width, "initialisation": "fan_in",
        "x_encoder": x_encoder,
        "y_encoder": {
            "family": text, "hidden_size": 32, "num_layers": 1, "num_heads": 2,
            "intermediate_size": 64, "vocab_size": 9, "context_length": 6, "max_target_tokens": 6,
            "output_size": width, "update": "frozen", "projection": "none",
        },
    });
    let model = DualEncoder::new(&serde_json::from_value(recipe).unwrap(), device).unwrap();
    let mut parameters = Parameters::new(model.layout(), device).unwrap();
    parameters.initialise(model.layout(), 1).unwrap();
    let machine = Machine::on(device);
    let pixels = pixels(device, &[2, 2, side, side, 3]);
    let texts = Packed::new(device, vec![5, 8, 1, 0, 3, 7, 1], vec![0, 4, 7]).unwrap();
    let clips = model.embed_frames(machine.cx(), &parameters, pixels.view()).unwrap();
    let texts = model.embed_texts(machine.cx(), &parameters, &texts).unwrap();
    [values(&clips), values(&texts)]
}

#[test]
fn dual_encoders_on_an_emulated_gpu_are_the_host_s_but_for_bf16() {
    let gpu = Device::Cuda(Cuda::for_tests(Mode::Fast));
    // PE-core's attention pooling has eight heads in all sizes. Tokens of the ResNet are 32 times
    // as wide as its stem, whose odd widths of two and four channels no vector divides.
    for (family, width) in [("clip", 32), ("siglip2", 32), ("pe", 128), ("clip_resnet", 128)] {
        let [want, got] = [Device::Host, gpu].map(|device| embeddings(device, family, width));
        for (want, got) in want.iter().zip(&got) {
            let distance = distance(got, want);
            assert!(distance > 0.0 && distance < FORWARD, "{family}: {distance}");
        }
        assert!(distance(&got[0], &want[1]) > FORWARD, "{family}");
    }
}
