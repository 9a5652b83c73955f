//! Compares `SigLIP` 2's vision tower with that of Hugging Face transformers.

use vljepa_kernels::gelu::Gelu;
use vljepa_kernels::testing::{assert_close, assert_differs};
use vljepa_kernels::{Device, Tensor};
use vljepa_model::layers::Activation;
use vljepa_model::weights::Source;
use vljepa_model::{Keep, VlJepa};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, load, values};
use crate::tiny;

/// Tolerance for outputs, whose size is up to 5; `tests/golden/README.md` derives it.
const TOLERANCE: f32 = 1e-5;

fn model(golden: &Golden) -> VlJepa {
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is f32")]
    let layer_norm_eps = golden.number("layer_norm_eps") as f32;
    let x_encoder = schema::XEncoder::Siglip2(schema::Siglip2 {
        patch_size: golden.size("patch_size"),
        hidden_size: golden.size("hidden_size"),
        num_layers: golden.size("num_hidden_layers"),
        num_heads: golden.size("num_attention_heads"),
        intermediate_size: golden.size("intermediate_size"),
        layer_norm_eps,
        ..schema::Siglip2::default()
    });
    let image_size = golden.size("image_size");
    let recipe = schema::Model { image_size, x_encoder, ..tiny::model() };
    VlJepa::new(&recipe, &schema::Loss::default(), Device::Host).unwrap()
}

#[test]
fn siglip_2_outputs_match() {
    let golden = Golden::open("siglip2_vision");
    let mut model = model(&golden);
    let parameters = load(&model, &[(Source::Siglip2, golden.weights())]);
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
    let want = golden.get("out.last_hidden_state");
    assert_close("tokens", &tokens(&model, &frames), want, TOLERANCE);
    // Wrong inputs must fail: the frames in reverse order, and exact GELU.
    let &[b, t, h, w, c] = frames.shape() else { panic!("five dimensions") };
    let all = values(&frames);
    let reversed = all.chunks(h * w * c).rev().flatten().copied().collect();
    let reversed = Tensor::from_f32(reversed, &[b, t, h, w, c]);
    assert_differs("reversed", &tokens(&model, &reversed), want, TOLERANCE);
    for block in &mut model.x_encoder.stack.blocks {
        block.mlp.activation = Activation::Plain(Gelu::Erf);
    }
    assert_differs("exact GELU", &tokens(&model, &frames), want, TOLERANCE);
}
