//! Compares V-JEPA 2.1's encoder with a second implementation in PyTorch.

use std::sync::Arc;

use vljepa_kernels::rope::Table;
use vljepa_kernels::testing::{assert_close, assert_differs};
use vljepa_kernels::{Device, Tensor};
use vljepa_model::weights::Source;
use vljepa_model::x_encoder::Patches;
use vljepa_model::{Gradients, Keep, Parameters, Sequence, VlJepa};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, compare_gradients, load_on, published, values};
use crate::tiny;

/// Tolerance for outputs, whose size is up to 5, and for gradients in units of a tensor's largest
/// element. `tests/golden/README.md` derives both.
const TOLERANCE: f32 = 1e-5;

pub const GOLDENS: [&str; 2] = ["vjepa2_1_h32", "vjepa2_1_h64_d64"];

fn open(name: &str) -> (Golden, VlJepa, Parameters) {
    open_on(Device::Host, name)
}

pub fn open_on(device: Device, name: &str) -> (Golden, VlJepa, Parameters) {
    let golden = Golden::open(name);
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is f32")]
    let layer_norm_eps = golden.number("layer_norm_eps") as f32;
    let x_encoder = schema::XEncoder::Vjepa2_1(schema::VJepa2_1 {
        patch_size: golden.size("patch_size"),
        tubelet_size: golden.size("tubelet_size"),
        hidden_size: golden.size("hidden_size"),
        num_layers: golden.size("num_hidden_layers"),
        num_heads: golden.size("num_attention_heads"),
        intermediate_size: golden.size("intermediate_size"),
        layer_norm_eps,
        rope_grid: golden.size("pretrained_grid"),
        trainable: true,
        ..schema::VJepa2_1::default()
    });
    let image_size = golden.size("patch_size") * golden.size("pretrained_grid");
    let recipe = schema::Model { image_size, x_encoder, ..tiny::model() };
    let model = VlJepa::new(&recipe, &schema::Loss::default(), device).unwrap();
    let parameters = load_on(device, &model, &[(Source::VJepa2_1, golden.weights())]);
    (golden, model, parameters)
}

/// Final tokens with another rotary table than the encoder's own.
fn with_table(
    model: &VlJepa,
    parameters: &Parameters,
    patches: &Patches,
    table: Table,
) -> Vec<f32> {
    let (machine, encoder) = (Machine::new(), &model.x_encoder);
    let (x, sequence) = encoder.embed(machine.cx(), parameters, patches).unwrap();
    let sequence = Sequence { tables: vec![Arc::new(table)], ..sequence };
    let tokens =
        encoder.stack.forward(machine.cx(), parameters, x, &sequence, Keep::Nothing).unwrap().0;
    values(&tokens)
}

#[test]
fn v_jepa_2_1_outputs_match_for_videos_and_images() {
    for name in GOLDENS {
        let (golden, model, parameters) = open(name);
        let (machine, encoder) = (Machine::new(), &model.x_encoder);
        let cx = machine.cx();
        for kind in ["video", "image", "strip"] {
            let want = |stage: &str| golden.get(&format!("out.{kind}.{stage}"));
            let frames = golden.frames(&format!("in.{kind}"));
            let patches = encoder.patches(cx, frames.view()).unwrap();
            let (x, sequence) = encoder.embed(cx, &parameters, &patches).unwrap();
            assert_close(kind, &values(&x), want("patch_embed"), TOLERANCE);
            let block = &encoder.stack.blocks[0];
            let (x, _) = block.forward(cx, &parameters, x, &sequence, Keep::Nothing).unwrap();
            assert_close(kind, &values(&x), want("layer0"), TOLERANCE);
            for keep in [Keep::Nothing, Keep::EVERYTHING] {
                let visual = encoder.forward(cx, &parameters, frames.view(), keep).unwrap();
                assert_close(kind, &values(&visual.tokens), want("tokens"), TOLERANCE);
            }
        }
    }
}

#[test]
fn v_jepa_2_1_is_neither_v_jepa_2_nor_without_scaled_positions() {
    for name in GOLDENS {
        let (golden, model, parameters) = open(name);
        let frames = golden.frames("in.video");
        let patches = model.x_encoder.patches(Machine::new().cx(), frames.view()).unwrap();
        let head_dim = golden.size("hidden_size") / golden.size("num_attention_heads");
        let want = golden.get("out.video.tokens");
        // V-JEPA 2's table has two angles in a pair.
        let tiled = Table::axial_tiled(Device::Host, head_dim, patches.grid, 10_000.0).unwrap();
        let got = with_table(&model, &parameters, &patches, tiled);
        assert_differs("tiled", &got, want, TOLERANCE);
        // The grid is 3×5, so the last positions are 15 and not 2 and 4.
        let [time, height, width] = patches.grid;
        #[expect(clippy::cast_precision_loss, reason = "positions are small")]
        let at = |i: usize| [i / (height * width), i / width % height, i % width].map(|p| p as f32);
        let unscaled: Vec<_> = (0..time * height * width).map(at).collect();
        let axis = 2 * (head_dim / 3 / 2);
        let table = Table::axial(Device::Host, head_dim, axis, &unscaled, 10_000.0).unwrap();
        let got = with_table(&model, &parameters, &patches, table);
        assert_differs("unscaled", &got, want, TOLERANCE);
        let scaled: Vec<_> =
            unscaled.iter().map(|&[t, h, w]| [t, h * 15.0 / 2.0, w * 15.0 / 4.0]).collect();
        let table = Table::axial(Device::Host, head_dim, axis, &scaled, 10_000.0).unwrap();
        let got = with_table(&model, &parameters, &patches, table);
        assert_close("scaled", &got, want, TOLERANCE);
    }
}

#[test]
fn v_jepa_2_1_encodes_an_image_otherwise_than_a_video_of_it() {
    let (golden, model, parameters) = open(GOLDENS[0]);
    let machine = Machine::new();
    let image = golden.frames("in.image");
    let &[b, _, h, w, c] = image.shape() else { panic!("five dimensions") };
    let twice = values(&image).chunks(h * w * c).flat_map(|frame| frame.repeat(2)).collect();
    let video = Tensor::from_f32(twice, &[b, 2, h, w, c]);
    let visual = model.x_encoder.forward(machine.cx(), &parameters, video.view(), Keep::Nothing);
    let got = values(&visual.unwrap().tokens);
    assert_differs("repeated image", &got, golden.get("out.image.tokens"), TOLERANCE);
    let three = Tensor::from_f32(vec![0.0; 3 * h * w * c], &[1, 3, h, w, c]);
    let error = model.x_encoder.forward(machine.cx(), &parameters, three.view(), Keep::Nothing);
    assert!(error.unwrap_err().to_string().contains("tubelets of 2×4×4"));
}

#[test]
fn v_jepa_2_1_gradients_match_for_videos_and_images() {
    for name in GOLDENS {
        let (golden, model, parameters) = open(name);
        let machine = Machine::new();
        let (cx, encoder) = (machine.cx(), &model.x_encoder);
        for kind in ["video", "image"] {
            let frames = golden.frames(&format!("in.{kind}"));
            let d = golden.get(&format!("in.{kind}.d_tokens"));
            let mut gradients = Gradients::new(model.layout(), Device::Host).unwrap();
            let mut backward = || {
                let mut visual =
                    encoder.forward(cx, &parameters, frames.view(), Keep::EVERYTHING).unwrap();
                let d = Tensor::from_f32(d.to_vec(), visual.tokens.shape());
                let saved = visual.saved.take();
                encoder
                    .backward(cx, &parameters, saved, d, &mut gradients, &mut |_, _| {})
                    .unwrap();
                published(&model, &gradients, Source::VJepa2_1)
            };
            let (got, prefix) = (backward(), format!("grad_{kind}."));
            let mut names: Vec<&str> = got.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, golden.names(&prefix), "every gradient is compared");
            let (_, different) = compare_gradients(&got, &golden, &prefix, TOLERANCE);
            assert!(different.is_empty(), "{kind}: {different:#?}");
            // A wrong result must fail: a second backward pass adds to all gradients but those of
            // the other modality, which stay zero.
            let different = compare_gradients(&backward(), &golden, &prefix, TOLERANCE).1;
            assert_eq!(different.len(), got.len() - 3, "{kind}");
        }
    }
}
