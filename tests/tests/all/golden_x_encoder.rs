//! Compares V-JEPA 2's encoder with that of Hugging Face transformers.

use std::sync::Arc;

use vljepa_kernels::rope::{Pairing, Table, inv_freq};
use vljepa_kernels::testing::{assert_close, assert_differs, dot};
use vljepa_kernels::{Device, Tensor};
use vljepa_model::weights::Source;
use vljepa_model::{Gradients, Keep, Parameters, VlJepa};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, compare_gradients, load, published, values};
use crate::tiny;

/// Tolerance for outputs, whose size is up to 4. transformers differs by 5e-6 from a numpy forward
/// pass in f64; our outputs may differ from f64 by as much again.
const OUTPUT: f32 = 1e-5;

/// Tolerance for gradients, in units of a tensor's largest element. They are sums over 64 tokens of
/// products of such outputs: 2 · 5e-6 · √64 at most.
const GRADIENT: f32 = 1e-4;

pub fn recipe(golden: &Golden) -> schema::VJepa2 {
    let hidden_size = golden.size("hidden_size");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "transformers' own int(hidden_size * mlp_ratio); an epsilon is f32"
    )]
    let (intermediate_size, layer_norm_eps) = (
        (hidden_size as f64 * golden.number("mlp_ratio")) as usize,
        golden.number("layer_norm_eps") as f32,
    );
    schema::VJepa2 {
        patch_size: golden.size("patch_size"),
        tubelet_size: golden.size("tubelet_size"),
        hidden_size,
        num_layers: golden.size("num_hidden_layers"),
        num_heads: golden.size("num_attention_heads"),
        intermediate_size,
        layer_norm_eps,
        trainable: true,
        ..schema::VJepa2::default()
    }
}

fn open(name: &str) -> (Golden, VlJepa, Parameters) {
    let golden = Golden::open(name);
    let x_encoder = schema::XEncoder::Vjepa2(recipe(&golden));
    let image_size = golden.size("crop_size");
    let recipe = schema::Model { image_size, x_encoder, ..tiny::model() };
    let model = VlJepa::new(&recipe, &schema::Loss::default(), Device::Host).unwrap();
    let parameters = load(&model, &[(Source::VJepa2, golden.weights())]);
    (golden, model, parameters)
}

/// Returns the textbook rotary table, which repeats cos and sin within pairs. The published weights
/// were trained with another table, so it must give other results.
fn textbook_table(golden: &Golden, frames: usize) -> Table {
    let dim = golden.size("hidden_size") / golden.size("num_attention_heads");
    let (axis, side) = (2 * (dim / 3 / 2), golden.size("crop_size") / golden.size("patch_size"));
    let frequencies = inv_freq(10_000.0, axis);
    let n = frames / golden.size("tubelet_size") * side * side;
    let angle = |i: usize| {
        let (token, element) = (i / dim, i % dim);
        let at = [token / (side * side), token / side % side, token % side];
        let place = at.get(element / axis)?;
        Some(f32::from(u8::try_from(*place).unwrap()) * frequencies[element % axis / 2])
    };
    let fill = |of: fn(f32) -> f32, rest: f32| {
        let cell = |i| angle(i).map_or(rest, of);
        Tensor::from_f32((0..n * dim).map(cell).collect(), &[n, dim])
    };
    Table { cos: fill(f32::cos, 1.0), sin: fill(f32::sin, 0.0), pairing: Pairing::Adjacent }
}

fn outputs_match(name: &str) {
    let (golden, model, parameters) = open(name);
    let (machine, encoder) = (Machine::new(), &model.x_encoder);
    let cx = machine.cx();
    let frames = golden.frames("in.pixel_values_videos");
    let patches = encoder.patches(cx, frames.view()).unwrap();
    let (x, sequence) = encoder.embed(cx, &parameters, &patches).unwrap();
    assert_close("patch embedding", &values(&x), golden.get("out.patch_embed"), OUTPUT);
    let block = &encoder.stack.blocks[0];
    let (x, _) = block.forward(cx, &parameters, x, &sequence, Keep::Nothing).unwrap();
    assert_close("first layer", &values(&x), golden.get("out.layer0"), OUTPUT);

    let last = golden.get("out.last_hidden_state");
    let visual = encoder.forward(cx, &parameters, frames.view(), Keep::EVERYTHING).unwrap();
    assert_close("last hidden state", &values(&visual.tokens), last, OUTPUT);
    let again = encoder.forward(cx, &parameters, frames.view(), Keep::Nothing).unwrap();
    assert_eq!(
        values(&visual.tokens),
        values(&again.tokens),
        "keeping activations changes no value"
    );

    let (x, mut sequence) = encoder.embed(cx, &parameters, &patches).unwrap();
    sequence.tables = vec![Arc::new(textbook_table(&golden, frames.shape()[1]))];
    let (wrong, _) = encoder.stack.forward(cx, &parameters, x, &sequence, Keep::Nothing).unwrap();
    assert_differs("textbook rotation", &values(&wrong), last, OUTPUT);
}

fn a_single_frame_matches(name: &str) {
    let (golden, model, parameters) = open(name);
    let machine = Machine::new();
    let frames = golden.frames("in.pixel_values_videos");
    let &[b, t, h, w, c] = frames.shape() else { panic!("five dimensions") };
    let all = values(&frames);
    let take = |which: usize| {
        let clips = all.chunks_exact(t * h * w * c);
        let frame = clips.flat_map(|clip| clip[which * h * w * c..][..h * w * c].to_vec());
        Tensor::from_f32(frame.collect(), &[b, 1, h, w, c])
    };
    let forward = |frames: &Tensor| {
        let visual =
            model.x_encoder.forward(machine.cx(), &parameters, frames.view(), Keep::Nothing);
        values(&visual.unwrap().tokens)
    };
    assert_close("one frame", &forward(&take(0)), golden.get("out.single_frame"), OUTPUT);
    assert_differs("another frame", &forward(&take(1)), golden.get("out.single_frame"), OUTPUT);
}

fn gradients_match(name: &str) {
    let (golden, model, parameters) = open(name);
    let machine = Machine::new();
    let cx = machine.cx();
    let frames = golden.frames("in.pixel_values_videos");
    let mut visual =
        model.x_encoder.forward(cx, &parameters, frames.view(), Keep::EVERYTHING).unwrap();
    // loss = mean(tokens · weight)
    let weight = golden.get("in.loss_weight");
    let count = f64::from(u32::try_from(weight.len()).unwrap());
    let loss = dot(&values(&visual.tokens), weight) / count;
    // The loss is a mean of 4,096 terms near 1 with random errors of 1e-5.
    assert!((loss - golden.scalar("out.loss")).abs() < 1e-6, "{loss}");
    #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
    let d: Vec<f32> = weight.iter().map(|v| (f64::from(*v) / count) as f32).collect();
    let mut gradients = Gradients::new(model.layout(), Device::Host).unwrap();
    let shape = visual.tokens.shape().to_vec();
    let d = || Tensor::from_f32(d.clone(), &shape);
    let saved = visual.saved.take();
    model.x_encoder.backward(cx, &parameters, saved, d(), &mut gradients, &mut |_, _| {}).unwrap();
    let got = published(&model, &gradients, Source::VJepa2);
    let mut names: Vec<&str> = got.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, golden.names("grad."), "every gradient is compared");
    let (_, different) = compare_gradients(&got, &golden, "grad.", GRADIENT);
    assert!(different.is_empty(), "{different:#?}");

    // A wrong result must fail: the second backward pass adds to the gradients of the first.
    let mut visual =
        model.x_encoder.forward(cx, &parameters, frames.view(), Keep::EVERYTHING).unwrap();
    let saved = visual.saved.take();
    model.x_encoder.backward(cx, &parameters, saved, d(), &mut gradients, &mut |_, _| {}).unwrap();
    let twice = published(&model, &gradients, Source::VJepa2);
    assert_eq!(compare_gradients(&twice, &golden, "grad.", GRADIENT).1.len(), twice.len());
}

#[test]
fn v_jepa_2_outputs_match() {
    outputs_match("vjepa2_h64");
    outputs_match("vjepa2_h128_d64");
}

#[test]
fn v_jepa_2_repeats_a_single_frame() {
    a_single_frame_matches("vjepa2_h64");
    a_single_frame_matches("vjepa2_h128_d64");
}

#[test]
fn v_jepa_2_gradients_match() {
    gradients_match("vjepa2_h64");
    gradients_match("vjepa2_h128_d64");
}
