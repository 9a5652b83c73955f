//! Compares Qwen3-Embedding with Hugging Face transformers.

use vljepa_kernels::attention::Mask;
use vljepa_kernels::testing::{assert_close, assert_differs, dot};
use vljepa_kernels::{Device, View};
use vljepa_model::layers::Pooling;
use vljepa_model::weights::Source;
use vljepa_model::{Gradients, Keep, Parameters, VlJepa};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, compare_gradients, load, published, values};
use crate::golden_text::{GRADIENT, OUTPUT};
use crate::tiny;

/// Opens the golden Qwen3 with an identity as projection, so that its embedding is the sentence
/// embedding.
fn open() -> (Golden, VlJepa, Parameters) {
    let golden = Golden::open("qwen3");
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is f32")]
    let rms_norm_eps = golden.number("rms_norm_eps") as f32;
    let keys = schema::Qwen3Embedding {
        hidden_size: golden.size("hidden_size"),
        num_layers: golden.size("num_hidden_layers"),
        num_heads: golden.size("num_attention_heads"),
        num_kv_heads: golden.size("num_key_value_heads"),
        head_dim: golden.size("head_dim"),
        intermediate_size: golden.size("intermediate_size"),
        rms_norm_eps,
        rope_theta: golden.number("rope_theta"),
        vocab_size: golden.size("vocab_size"),
        ..schema::Qwen3Embedding::default()
    };
    let embed_dim = keys.hidden_size;
    let recipe = schema::Model {
        y_encoder: schema::YEncoder::Qwen3Embedding(keys),
        embed_dim,
        projection_bias: false,
        ..tiny::model()
    };
    let model = VlJepa::new(&recipe, &schema::Loss::default(), Device::Host).unwrap();
    let mut parameters = load(&model, &[(Source::Qwen3, golden.weights())]);
    let one = |i| if i / embed_dim == i % embed_dim { 1.0 } else { 0.0 };
    let identity: Vec<f32> = (0..embed_dim * embed_dim).map(one).collect();
    let [map] = &model.y_encoder.head.maps[..] else { panic!("one map") };
    let into = parameters.view_mut(model.layout(), map.weight.id());
    into.host_f32_mut("test", "map").unwrap().copy_from_slice(&identity);
    (golden, model, parameters)
}

/// Embeddings of the golden texts.
fn embeddings(golden: &Golden, model: &VlJepa, parameters: &Parameters) -> Vec<f32> {
    let machine = Machine::new();
    let text = golden.packed("in.input_ids", "in.attention_mask");
    let embedded = model.y_encoder.forward(machine.cx(), parameters, &text, Keep::Nothing);
    values(&embedded.unwrap().embedding)
}

#[test]
fn qwen3_outputs_match() {
    let (golden, mut model, parameters) = open();
    let machine = Machine::new();
    let cx = machine.cx();
    let text = golden.packed("in.input_ids", "in.attention_mask");
    let last = crate::golden_text::hidden(cx, &model.y_encoder.text, &parameters, &text);
    let want = golden.unpadded("out.last_hidden_state", "in.attention_mask");
    assert_close("last hidden state", &last, &want, OUTPUT);
    let sentence = golden.get("out.sentence_embedding");
    let got = embeddings(&golden, &model, &parameters);
    assert_close("sentence embedding", &got, sentence, OUTPUT);

    model.y_encoder.head.pooling = Pooling::Mean;
    let mean = embeddings(&golden, &model, &parameters);
    assert_differs("the mean instead of the last token", &mean, sentence, OUTPUT);
    model.y_encoder.head.pooling = Pooling::Last;
    for block in &mut model.y_encoder.text.stack.blocks {
        block.attention.mask = Mask::Full;
    }
    let full = embeddings(&golden, &model, &parameters);
    assert_differs("without the causal mask", &full, sentence, OUTPUT);
}

#[test]
fn qwen3_gradients_match() {
    let compare = |pooling: Pooling| {
        let (golden, mut model, parameters) = open();
        model.y_encoder.head.pooling = pooling;
        let machine = Machine::new();
        let cx = machine.cx();
        let text = golden.packed("in.input_ids", "in.attention_mask");
        let embedded = model.y_encoder.forward(cx, &parameters, &text, Keep::EVERYTHING).unwrap();
        let weight = golden.get("in.loss_weight");
        let loss = dot(&values(&embedded.embedding), weight);
        // The loss is a sum of 128 terms with random errors of up to 1e-5.
        let near = (loss - golden.scalar("out.loss")).abs() < 1e-4;
        assert_eq!(near, pooling == Pooling::Last, "{loss}");
        let mut gradients = Gradients::new(model.layout(), Device::Host).unwrap();
        let d = View::from_f32(weight, embedded.embedding.shape());
        let (saved, on_ready) = (embedded.saved, &mut |_: &mut _, _| {});
        model.y_encoder.backward(cx, &parameters, saved, d, &mut gradients, on_ready).unwrap();
        let got = published(&model, &gradients, Source::Qwen3);
        assert_eq!(got.len(), golden.names("grad.").len(), "every gradient is compared");
        compare_gradients(&got, &golden, "grad.", GRADIENT).1
    };
    let different = compare(Pooling::Last);
    assert!(different.is_empty(), "{different:#?}");
    assert!(!compare(Pooling::Mean).is_empty());
}
