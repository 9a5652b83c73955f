//! Compares Llama and `EmbeddingGemma` with Hugging Face transformers.

use std::collections::BTreeMap;

use vljepa_kernels::rms_norm::Scale;
use vljepa_kernels::rope::{Llama3Scaling, llama3_inv_freq};
use vljepa_kernels::testing::{assert_close, assert_differs, dot};
use vljepa_kernels::{Device, Lengths, Packed, Tensor, View, ViewMut, pooling};
use vljepa_model::layers::Norm;
use vljepa_model::weights::Source;
use vljepa_model::{Context, Gradients, Keep, Parameters, TextModel, VlJepa};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, compare_gradients, load, published, values};
use crate::tiny;

/// Tolerance for outputs, whose size is up to 4. transformers differs by 5e-6 from a numpy forward
/// pass in f64; our outputs may differ from f64 by as much again.
pub const OUTPUT: f32 = 1e-5;

/// Tolerance for gradients, in units of a tensor's largest element. They are sums over some 40
/// tokens of products of such outputs: 2 · 5e-6 · √40.
pub const GRADIENT: f32 = 7e-5;

pub fn llama_recipe(golden: &Golden) -> schema::Predictor {
    let scaling = &golden.config["rope_scaling"];
    let number = |key: &str| scaling[key].as_f64().unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is f32")]
    let rms_norm_eps = golden.number("rms_norm_eps") as f32;
    schema::Predictor {
        hidden_size: golden.size("hidden_size"),
        layers: [0, golden.size("num_hidden_layers")],
        num_heads: golden.size("num_attention_heads"),
        num_kv_heads: golden.size("num_key_value_heads"),
        head_dim: golden.size("head_dim"),
        intermediate_size: golden.size("intermediate_size"),
        rms_norm_eps,
        rope_theta: golden.number("rope_theta"),
        rope_scaling: Some(schema::Llama3Scaling {
            factor: number("factor"),
            low_freq_factor: number("low_freq_factor"),
            high_freq_factor: number("high_freq_factor"),
            original_max_position_embeddings: number("original_max_position_embeddings"),
        }),
        vocab_size: golden.size("vocab_size"),
        ..tiny::model().predictor
    }
}

pub fn gemma_recipe(golden: &Golden) -> schema::EmbeddingGemma {
    let types = golden.config["layer_types"].as_array().unwrap();
    let full = |i: usize| types[i] == "full_attention";
    let full_attention_every = (0..types.len()).position(full).unwrap() + 1;
    assert!((0..types.len()).all(|i| full(i) == (i + 1).is_multiple_of(full_attention_every)));
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is f32")]
    let rms_norm_eps = golden.number("rms_norm_eps") as f32;
    schema::EmbeddingGemma {
        hidden_size: golden.size("hidden_size"),
        num_layers: golden.size("num_hidden_layers"),
        num_heads: golden.size("num_attention_heads"),
        num_kv_heads: golden.size("num_key_value_heads"),
        head_dim: golden.size("head_dim"),
        intermediate_size: golden.size("intermediate_size"),
        rms_norm_eps,
        rope_theta: golden.number("rope_theta"),
        rope_local_theta: golden.number("rope_local_base_freq"),
        full_attention_every,
        effective_window: golden.size("sliding_window_effective_exclusive"),
        query_pre_attn_scalar: golden.number("query_pre_attn_scalar"),
        vocab_size: golden.size("vocab_size"),
        ..schema::EmbeddingGemma::default()
    }
}

fn open_llama(attention: schema::Attention) -> (Golden, VlJepa, Parameters) {
    let golden = Golden::open("llama");
    let predictor = schema::Predictor { attention, ..llama_recipe(&golden) };
    let recipe = schema::Model { predictor, ..tiny::model() };
    let model = VlJepa::new(&recipe, &schema::Loss::default(), Device::Host).unwrap();
    let parameters = load(&model, &[(Source::Llama, golden.weights())]);
    (golden, model, parameters)
}

fn ends(text: &Packed) -> Lengths {
    Lengths::new(Device::Host, text.lengths.host().to_vec()).unwrap()
}

pub fn hidden(
    cx: Context<'_>,
    model: &TextModel,
    parameters: &Parameters,
    text: &Packed,
) -> Vec<f32> {
    let sequence = model.sequence(ends(text)).unwrap();
    let x = model.input(cx, parameters, text.ids(), &sequence).unwrap();
    let (out, _) = model.stack.forward(cx, parameters, x, &sequence, Keep::Nothing).unwrap();
    values(&out)
}

/// Runs forward and backward and returns the gradients of the parameters. `d` computes the gradient
/// of the hidden states from the hidden states.
fn gradients(
    cx: Context<'_>,
    model: (&VlJepa, &TextModel),
    parameters: &Parameters,
    text: &Packed,
    d: impl FnOnce(&Tensor) -> Vec<f32>,
) -> Gradients {
    let (whole, model) = model;
    let mut gradients = Gradients::new(whole.layout(), Device::Host).unwrap();
    let x = model.embed(cx, parameters, text.ids()).unwrap();
    let sequence = model.sequence(ends(text)).unwrap();
    let (out, saved) = model.stack.forward(cx, parameters, x, &sequence, Keep::EVERYTHING).unwrap();
    let d = d(&out);
    let d = Tensor::from_f32(d, out.shape());
    let stack = &model.stack;
    let d = stack
        .backward(cx, parameters, saved.unwrap(), d, &sequence, &mut gradients, &mut |_, _| {})
        .unwrap();
    model.embed_backward(cx, text.host_ids(), d.view(), &mut gradients).unwrap();
    gradients
}

fn means(cx: Context<'_>, hidden: &[f32], text: &Packed) -> Vec<f32> {
    let (b, n) = (text.lengths.rows(), text.lengths.tokens());
    let d = hidden.len() / n;
    let mut out = vec![f32::NAN; b * d];
    let (x, y) = (View::from_f32(hidden, &[n, d]), ViewMut::from_f32(&mut out, &[b, d]));
    pooling::forward(cx.stream, x, &text.lengths, y).unwrap();
    out
}

fn scaled(values: &[f32], count: usize) -> Vec<f32> {
    let count = f32::from(u16::try_from(count).unwrap());
    values.iter().map(|v| v / count).collect()
}

/// Asserts that `got` has exactly the golden tensors with `prefix`, except for the Dense layers.
fn assert_all_compared(got: &BTreeMap<String, Vec<f32>>, golden: &Golden, prefix: &str) {
    let names: Vec<&str> = got.keys().map(String::as_str).collect();
    let dense = |name: &&str| !name.contains("Dense");
    let wanted: Vec<&str> = golden.names(prefix).into_iter().filter(dense).collect();
    assert_eq!(names, wanted, "every gradient is compared");
}

#[test]
fn llama_outputs_match_causal_and_bidirectional() {
    let kinds = [
        (schema::Attention::Causal, "causal", "bidir"),
        (schema::Attention::Bidirectional, "bidir", "causal"),
    ];
    for (attention, name, other) in kinds {
        let (golden, model, parameters) = open_llama(attention);
        let machine = Machine::new();
        let (cx, text) = (machine.cx(), golden.packed("in.input_ids", "in.attention_mask"));
        let got = hidden(cx, &model.predictor.text, &parameters, &text);
        let want =
            |name| golden.unpadded(&format!("out.{name}.last_hidden_state"), "in.attention_mask");
        assert_close(name, &got, &want(name), OUTPUT);
        assert_differs("the other mask", &got, &want(other), OUTPUT);
        if attention == schema::Attention::Bidirectional {
            assert_close("pooled", &means(cx, &got, &text), golden.get("out.bidir.pooled"), OUTPUT);
            let x = model.predictor.text.embed(cx, &parameters, text.ids()).unwrap();
            let sequence = model.predictor.text.sequence(ends(&text)).unwrap();
            let block = &model.predictor.text.stack.blocks[0];
            let (x, _) = block.forward(cx, &parameters, x, &sequence, Keep::Nothing).unwrap();
            let layer0 = golden.unpadded("out.bidir.layer0", "in.attention_mask");
            assert_close("first layer", &values(&x), &layer0, OUTPUT);
        }
    }
}

#[test]
fn llama_causal_gradients_match() {
    let compare = |attention| {
        let (golden, model, parameters) = open_llama(attention);
        let machine = Machine::new();
        let (cx, text) = (machine.cx(), golden.packed("in.input_ids", "in.attention_mask"));
        let name = "in.causal.loss_weight";
        let count = golden.get(name).len();
        // loss = mean(hidden · weight). The mean includes padded tokens, whose weights are 0.
        let weight = golden.unpadded(name, "in.attention_mask");
        let d = |hidden: &Tensor| {
            let loss = dot(&values(hidden), &weight) / f64::from(u32::try_from(count).unwrap());
            let near = (loss - golden.scalar("out.causal.loss")).abs() < 1e-6;
            assert_eq!(near, attention == schema::Attention::Causal, "{loss}");
            scaled(&weight, count)
        };
        let whole = (&model, &model.predictor.text);
        let gradients = gradients(cx, whole, &parameters, &text, d);
        let got = published(&model, &gradients, Source::Llama);
        assert_all_compared(&got, &golden, "grad_causal.");
        compare_gradients(&got, &golden, "grad_causal.", GRADIENT).1
    };
    let different = compare(schema::Attention::Causal);
    assert!(different.is_empty(), "{different:#?}");
    // Without the causal mask every gradient must differ.
    let all = Golden::open("llama").names("grad_causal.").len();
    assert_eq!(compare(schema::Attention::Bidirectional).len(), all);
}

#[test]
fn llama_bidirectional_gradients_match() {
    let compare = |attention| {
        let (golden, model, parameters) = open_llama(attention);
        let machine = Machine::new();
        let (cx, text) = (machine.cx(), golden.packed("in.input_ids", "in.attention_mask"));
        let weight = golden.get("in.loss_weight");
        let d = |hidden: &Tensor| {
            let pooled = means(cx, &values(hidden), &text);
            let loss = dot(&pooled, weight) / f64::from(u32::try_from(weight.len()).unwrap());
            let near = (loss - golden.scalar("out.loss")).abs() < 1e-6;
            assert_eq!(near, attention == schema::Attention::Bidirectional, "{loss}");
            let mut d = vec![f32::NAN; hidden.shape().iter().product()];
            let d_mean = scaled(weight, weight.len());
            let d_mean = View::from_f32(&d_mean, &[text.lengths.rows(), hidden.shape()[1]]);
            let out = ViewMut::from_f32(&mut d, hidden.shape());
            pooling::backward(cx.stream, d_mean, &text.lengths, out).unwrap();
            d
        };
        let whole = (&model, &model.predictor.text);
        let gradients = gradients(cx, whole, &parameters, &text, d);
        let got = published(&model, &gradients, Source::Llama);
        assert_all_compared(&got, &golden, "grad.");
        compare_gradients(&got, &golden, "grad.", GRADIENT).1
    };
    let different = compare(schema::Attention::Bidirectional);
    assert!(different.is_empty(), "{different:#?}");
    let all = Golden::open("llama").names("grad.").len();
    assert_eq!(compare(schema::Attention::Causal).len(), all);
}

#[test]
fn rotary_frequencies_match() {
    let golden = Golden::open("llama_rope_1b");
    let scaling = |factor| Llama3Scaling {
        factor,
        low_freq_factor: golden.number("low_freq_factor"),
        high_freq_factor: golden.number("high_freq_factor"),
        original_max_positions: golden.size("original_max_position_embeddings"),
    };
    let want = golden.get("out.inv_freq");
    let ratios = |factor| {
        let got = llama3_inv_freq(golden.number("rope_theta"), 2 * want.len(), scaling(factor));
        got.iter().zip(want).map(|(g, w)| g / w).collect::<Vec<_>>()
    };
    // The test compares ratios, because the last frequencies are near 1e-7. transformers computes
    // them from f32 powers in f32, with an error of up to ten units in the last place.
    let ones = vec![1.0; want.len()];
    assert_close("Llama-3.2-1B", &ratios(golden.number("factor")), &ones, 6e-7);
    assert_differs("Llama-3.1's factor", &ratios(8.0), &ones, 6e-7);

    let (golden, model, _) = open_llama(schema::Attention::Causal);
    let got = model.predictor.text.rotaries[0].inv_freq();
    let want = golden.get("out.inv_freq");
    let ratios: Vec<f32> = got.iter().zip(want).map(|(g, w)| g / w).collect();
    assert_close("tiny Llama", &ratios, &vec![1.0; want.len()], 6e-7);
}

/// Opens the golden Gemma with its Dense layers and an identity as projection, so that its
/// embedding is the sentence embedding.
fn open_gemma(change: impl FnOnce(&mut schema::EmbeddingGemma)) -> (Golden, VlJepa, Parameters) {
    let golden = Golden::open("gemma3");
    let [wide, d] = golden.shape("in.2_Dense.linear.weight") else { panic!("two dimensions") };
    let (embed_dim, dense_hidden_size) = (*d, *wide);
    let mut y_encoder =
        schema::EmbeddingGemma { dense_heads: true, dense_hidden_size, ..gemma_recipe(&golden) };
    change(&mut y_encoder);
    let y_encoder = schema::YEncoder::EmbeddingGemma(y_encoder);
    let recipe = schema::Model { y_encoder, embed_dim, projection_bias: false, ..tiny::model() };
    let model = VlJepa::new(&recipe, &schema::Loss::default(), Device::Host).unwrap();
    let mut parameters = load(&model, &[(Source::Gemma, golden.weights())]);
    let identity = (0..embed_dim * embed_dim)
        .map(|i| if i / embed_dim == i % embed_dim { 1.0 } else { 0.0 })
        .collect::<Vec<f32>>();
    let maps =
        [golden.get("in.2_Dense.linear.weight"), golden.get("in.3_Dense.linear.weight"), &identity];
    for (map, values) in model.y_encoder.head.maps.iter().zip(maps) {
        let into = parameters.view_mut(model.layout(), map.weight.id());
        into.host_f32_mut("test", "map").unwrap().copy_from_slice(values);
    }
    (golden, model, parameters)
}

#[test]
fn gemma_outputs_match() {
    let (golden, mut model, parameters) = open_gemma(|_| ());
    let machine = Machine::new();
    let (cx, text) = (machine.cx(), golden.packed("in.input_ids", "in.attention_mask"));
    let want = |name| golden.unpadded(name, "in.attention_mask");
    let y = &model.y_encoder.text;
    let x = y.embed(cx, &parameters, text.ids()).unwrap();
    assert_close("embeddings", &values(&x), &want("out.embed"), OUTPUT);
    let (x, _) = y.stack.blocks[0]
        .forward(cx, &parameters, x, &y.sequence(ends(&text)).unwrap(), Keep::Nothing)
        .unwrap();
    assert_close("first layer", &values(&x), &want("out.layer0"), OUTPUT);
    let last = hidden(cx, y, &parameters, &text);
    assert_close("last hidden state", &last, &want("out.last_hidden_state"), OUTPUT);
    assert_close("mean", &means(cx, &last, &text), golden.get("out.mean"), OUTPUT);
    let embedding =
        model.y_encoder.forward(cx, &parameters, &text, Keep::Nothing).unwrap().embedding;
    let sentence = golden.get("out.sentence_embedding");
    assert_close("sentence embedding", &values(&embedding), sentence, OUTPUT);

    let published_window = golden.size("sliding_window_published");
    let (_, wrong, _) = open_gemma(|y| y.effective_window = published_window);
    let wrong = hidden(cx, &wrong.y_encoder.text, &parameters, &text);
    assert_differs("the published window", &wrong, &want("out.last_hidden_state"), OUTPUT);

    let Norm::Rms { scale, .. } = &mut model.y_encoder.text.stack.norm else { panic!("RMS") };
    *scale = Scale::Plain;
    let wrong = hidden(cx, &model.y_encoder.text, &parameters, &text);
    assert_differs("w for 1 + w", &wrong, &want("out.last_hidden_state"), OUTPUT);
}

#[test]
fn gemma_gradients_match() {
    let compare = |window: Option<usize>| {
        let (golden, model, parameters) =
            open_gemma(|y| y.effective_window = window.unwrap_or(y.effective_window));
        let machine = Machine::new();
        let (cx, text) = (machine.cx(), golden.packed("in.input_ids", "in.attention_mask"));
        let embedded = model.y_encoder.forward(cx, &parameters, &text, Keep::EVERYTHING).unwrap();
        let weight = golden.get("in.loss_weight");
        let loss = dot(&values(&embedded.embedding), weight);
        // The loss is a sum of 128 terms with random errors of up to 1e-5.
        let near = (loss - golden.scalar("out.loss")).abs() < 1e-4;
        assert_eq!(near, window.is_none(), "{loss}");
        let mut gradients = Gradients::new(model.layout(), Device::Host).unwrap();
        let d = View::from_f32(weight, embedded.embedding.shape());
        let saved = embedded.saved;
        model
            .y_encoder
            .backward(cx, &parameters, saved, d, &mut gradients, &mut |_, _| {})
            .unwrap();
        let got = published(&model, &gradients, Source::Gemma);
        assert_all_compared(&got, &golden, "grad.");
        let mut different = compare_gradients(&got, &golden, "grad.", GRADIENT).1;
        let dense =
            [(Source::GemmaDense2, "grad.2_Dense."), (Source::GemmaDense3, "grad.3_Dense.")];
        for (source, prefix) in dense {
            let got = published(&model, &gradients, source);
            different.extend(compare_gradients(&got, &golden, prefix, GRADIENT).1);
        }
        (different, golden.names("grad.").len())
    };
    let (different, _) = compare(None);
    assert!(different.is_empty(), "{different:#?}");
    let published = Golden::open("gemma3").size("sliding_window_published");
    let (different, all) = compare(Some(published));
    assert_eq!(different.len(), all, "another window changes every gradient");
}

#[test]
fn a_comparison_of_gradients_sees_a_permutation() {
    let golden = Golden::open("llama");
    let want = golden.get("grad.norm.weight");
    let largest = (0..want.len()).max_by(|&a, &b| want[a].abs().total_cmp(&want[b].abs())).unwrap();
    let mut swapped = want.to_vec();
    swapped.swap(largest, (largest + 1) % want.len());
    let got = BTreeMap::from([("norm.weight".to_owned(), swapped)]);
    assert_eq!(compare_gradients(&got, &golden, "grad.", GRADIENT).1.len(), 1);
}
