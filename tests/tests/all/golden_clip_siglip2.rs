//! Compares the vision towers of CLIP and `SigLIP` 2 with those of Hugging Face transformers.

use vljepa_kernels::testing::{assert_close, assert_differs, bytes};
use vljepa_kernels::{Device, Tensor, View, activation};
use vljepa_model::layers::Activation;
use vljepa_model::weights::Source;
use vljepa_model::{Keep, Parameters, VlJepa};
use vljepa_recipes::schema::{Clip, Loss, Model, Siglip2, XEncoder};

use crate::golden::{Golden, Machine, load_on, values};
use crate::tiny;

/// Tolerance for outputs, whose size is up to 5; `tests/golden/README.md` derives it.
const TOLERANCE: f32 = 1e-5;

pub fn open_on(device: Device, source: Source) -> (Golden, VlJepa, Parameters) {
    let name = if source == Source::Clip { "clip_vision" } else { "siglip2_vision" };
    let golden = Golden::open(name);
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is f32")]
    let layer_norm_eps = golden.number("layer_norm_eps") as f32;
    let [patch_size, hidden_size, num_layers] =
        ["patch_size", "hidden_size", "num_hidden_layers"].map(|key| golden.size(key));
    let [num_heads, intermediate_size] =
        ["num_attention_heads", "intermediate_size"].map(|key| golden.size(key));
    let x_encoder = if source == Source::Clip {
        let sizes = Clip { patch_size, hidden_size, num_layers, num_heads, ..Clip::default() };
        XEncoder::Clip(Clip { intermediate_size, layer_norm_eps, ..sizes })
    } else {
        let sizes =
            Siglip2 { patch_size, hidden_size, num_layers, num_heads, ..Siglip2::default() };
        XEncoder::Siglip2(Siglip2 { intermediate_size, layer_norm_eps, ..sizes })
    };
    let image_size = golden.size("image_size");
    let recipe = Model { image_size, x_encoder, ..tiny::model() };
    let model = VlJepa::new(&recipe, &Loss::default(), device).unwrap();
    let parameters = load_on(device, &model, &[(source, golden.weights())]);
    (golden, model, parameters)
}

fn outputs_match(source: Source, cls: usize) {
    let (golden, mut model, parameters) = open_on(Device::Host, source);
    let machine = Machine::new();
    let cx = machine.cx();
    let frames = golden.frames("in.frames");
    let patches = model.x_encoder.patches(cx, frames.view()).unwrap();
    let (x, sequence) = model.x_encoder.embed(cx, &parameters, &patches).unwrap();
    assert!(sequence.tables.is_empty(), "nothing is rotated");
    assert_close("embeddings", &values(&x), golden.get("out.embeddings"), TOLERANCE);
    let x = model.x_encoder.stack.forward_blocks(cx, &parameters, x, &sequence).unwrap();
    assert_close("last block", &values(&x), golden.get("out.last_block"), TOLERANCE);
    let tokens = |model: &VlJepa, frames: &Tensor| {
        let visual = model.x_encoder.forward(cx, &parameters, frames.view(), Keep::Nothing);
        values(&visual.unwrap().tokens)
    };
    // The last hidden state without its cls tokens.
    let &[images, per_image, width] = golden.shape("out.last_hidden_state") else {
        panic!("three dimensions")
    };
    let all = golden.get("out.last_hidden_state").chunks(per_image * width);
    let want: Vec<f32> = all.flat_map(|image| image[cls * width..].to_vec()).collect();
    assert_eq!(want.len(), images * (per_image - cls) * width);
    assert_close("tokens", &tokens(&model, &frames), &want, TOLERANCE);
    // Wrong inputs must fail: the frames in reverse order, and another GELU.
    let &[b, t, h, w, c] = frames.shape() else { panic!("five dimensions") };
    let pixels = values(&frames);
    let reversed = pixels.chunks(h * w * c).rev().flatten().copied().collect();
    let reversed = Tensor::from_f32(reversed, &[b, t, h, w, c]);
    assert_differs("reversed", &tokens(&model, &reversed), &want, TOLERANCE);
    for block in &mut model.x_encoder.stack.blocks {
        block.mlp.activation = Activation::Plain(activation::Activation::Gelu);
    }
    assert_differs("exact GELU", &tokens(&model, &frames), &want, TOLERANCE);
}

#[test]
fn siglip_2_outputs_match() {
    outputs_match(Source::Siglip2, 0);
}

#[test]
fn clip_outputs_match() {
    outputs_match(Source::Clip, 1);
}

#[test]
fn bytes_are_normalised_as_each_family_was_trained() {
    // `image_mean` and `image_std` of the published preprocessor configs.
    let clip =
        [[0.481_454_66_f32, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]];
    let halves = [[0.5; 3]; 2];
    for (source, right, wrong) in [(Source::Clip, clip, halves), (Source::Siglip2, halves, clip)] {
        let (golden, model, parameters) = open_on(Device::Host, source);
        let machine = Machine::new();
        let tokens = |frames: View<'_>| {
            let visual = model.x_encoder.forward(machine.cx(), &parameters, frames, Keep::Nothing);
            values(&visual.unwrap().tokens)
        };
        let side = golden.size("image_size");
        let shape = [1, 1, side, side, 3];
        let pixels = bytes(6, shape.iter().product());
        let scaled = |[mean, std]: [[f32; 3]; 2]| {
            let value = |(i, &p): (usize, &u8)| (f32::from(p) / 255.0 - mean[i % 3]) / std[i % 3];
            let values = pixels.iter().enumerate().map(value).collect();
            tokens(Tensor::from_f32(values, &shape).view())
        };
        let got = tokens(View::from_u8(&pixels, &shape));
        assert_close("bytes", &got, &scaled(right), TOLERANCE);
        assert_differs("another family's", &got, &scaled(wrong), TOLERANCE);
    }
}
