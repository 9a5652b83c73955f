//! Compares SONAR's text encoder and the text towers of CLIP and `SigLIP` 2 with Hugging Face
//! transformers, and PE-core's text tower with a second implementation in PyTorch.

use vljepa_kernels::attention::Mask;
use vljepa_kernels::testing::{assert_close, assert_differs, dot};
use vljepa_kernels::{Device, Packed, View, activation};
use vljepa_model::layers::{Activation, Pooling, Positions};
use vljepa_model::weights::Source;
use vljepa_model::{Gradients, Keep, Parameters, VlJepa};
use vljepa_recipes::schema::{
    ClipText, Loss, LossKind, Model, PeText, Projection, Siglip2Text, Sonar, Update, YEncoder,
};

use crate::golden::{Golden, Machine, integer, load, published, relative, values};
use crate::tiny;

/// Tolerances for outputs of up to 3.4, and for gradients in units of a tensor's largest element;
/// `tests/golden/README.md` derives them.
const TOLERANCE: f32 = 1e-5;

/// The golden encoder without a projection. The loss does not normalise, so that the encoder's
/// embedding is the golden one.
fn open(source: Source) -> (Golden, VlJepa, Parameters) {
    let (update, projection) = (Update::Train, Projection::None);
    let golden = Golden::open(source.family().unwrap().1);
    let y_encoder = match source {
        Source::Sonar => YEncoder::Sonar(Sonar {
            hidden_size: golden.size("d_model"),
            num_layers: golden.size("encoder_layers"),
            num_heads: golden.size("encoder_attention_heads"),
            intermediate_size: golden.size("encoder_ffn_dim"),
            vocab_size: golden.size("vocab_size"),
            update,
            projection,
            ..Sonar::default()
        }),
        Source::PeText => YEncoder::PeText(PeText {
            hidden_size: golden.size("width"),
            num_layers: golden.size("layers"),
            num_heads: golden.size("heads"),
            intermediate_size: 4 * golden.size("width"),
            vocab_size: golden.size("vocab_size"),
            context_length: golden.size("context_length"),
            max_target_tokens: golden.size("context_length"),
            output_size: golden.size("output_dim"),
            update,
            projection,
            ..PeText::default()
        }),
        Source::ClipText => YEncoder::ClipText(ClipText {
            hidden_size: golden.size("hidden_size"),
            num_layers: golden.size("num_hidden_layers"),
            num_heads: golden.size("num_attention_heads"),
            intermediate_size: golden.size("intermediate_size"),
            vocab_size: golden.size("vocab_size"),
            context_length: golden.size("max_position_embeddings"),
            max_target_tokens: golden.size("max_position_embeddings"),
            output_size: golden.size("output_size"),
            update,
            projection,
            ..ClipText::default()
        }),
        _ => YEncoder::Siglip2Text(Siglip2Text {
            hidden_size: golden.size("hidden_size"),
            num_layers: golden.size("num_hidden_layers"),
            num_heads: golden.size("num_attention_heads"),
            intermediate_size: golden.size("intermediate_size"),
            vocab_size: golden.size("vocab_size"),
            context_length: golden.size("max_position_embeddings"),
            max_target_tokens: golden.size("max_position_embeddings"),
            output_size: golden.size("output_size"),
            update,
            projection,
            ..Siglip2Text::default()
        }),
    };
    let embed_dim = y_encoder.sizes().output_size;
    let recipe = Model { y_encoder, embed_dim, ..tiny::model() };
    let loss = Loss { kind: LossKind::L2, ..Loss::default() };
    let model = VlJepa::new(&recipe, &loss, Device::Host).unwrap();
    let parameters = load(&model, &[(source, golden.weights())]);
    (golden, model, parameters)
}

fn embeddings(golden: &Golden, model: &VlJepa, parameters: &Parameters) -> Vec<f32> {
    let text = golden.packed("in.input_ids", "in.attention_mask");
    let machine = Machine::new();
    let embedded = model.y_encoder.forward(machine.cx(), parameters, &text, Keep::Nothing);
    values(&embedded.unwrap().embedding)
}

/// Name of a wrong model, and what makes it wrong.
type Wrong = (&'static str, fn(&mut VlJepa));

/// Compares hidden states and embeddings, and embeddings of wrong models, which must differ.
fn outputs_match(source: Source, wrong: &[Wrong]) {
    let (golden, model, parameters) = open(source);
    let text = golden.packed("in.input_ids", "in.attention_mask");
    let machine = Machine::new();
    let last = crate::golden_text::hidden(machine.cx(), &model.y_encoder.text, &parameters, &text);
    let want = golden.unpadded("out.last_hidden_state", "in.attention_mask");
    assert_close("last hidden state", &last, &want, TOLERANCE);
    let want = golden.get("out.embedding");
    assert_close("embedding", &embeddings(&golden, &model, &parameters), want, TOLERANCE);
    for (name, change) in wrong {
        let (golden, mut model, parameters) = open(source);
        change(&mut model);
        let got = embeddings(&golden, &model, &parameters);
        assert_differs(name, &got, want, TOLERANCE);
    }
}

fn mask(model: &mut VlJepa, mask: Mask) {
    for block in &mut model.y_encoder.text.stack.blocks {
        block.attention.mask = mask;
    }
}

fn gelu(model: &mut VlJepa, kind: activation::Activation) {
    for block in &mut model.y_encoder.text.stack.blocks {
        block.mlp.activation = Activation::Plain(kind);
    }
}

/// Names of the gradients that differ, those of a model that `change` has changed.
fn different_gradients(source: Source, change: fn(&mut VlJepa)) -> Vec<String> {
    let (golden, mut model, parameters) = open(source);
    change(&mut model);
    let machine = Machine::new();
    let cx = machine.cx();
    let text = golden.packed("in.input_ids", "in.attention_mask");
    let embedded = model.y_encoder.forward(cx, &parameters, &text, Keep::EVERYTHING).unwrap();
    let weight = golden.get("in.loss_weight");
    assert!(dot(&values(&embedded.embedding), weight).is_finite());
    let mut gradients = Gradients::new(model.layout(), Device::Host).unwrap();
    let d = View::from_f32(weight, embedded.embedding.shape());
    let (saved, on_ready) = (embedded.saved, &mut |_: &mut _, _| {});
    model.y_encoder.backward(cx, &parameters, saved, d, &mut gradients, on_ready).unwrap();
    let got = published(&model, &gradients, source);
    assert_eq!(got.len(), golden.names("grad.").len(), "every gradient is compared");
    let differs = |(name, values): &(String, Vec<f32>)| {
        let want = golden.get(&format!("grad.{name}"));
        // A bias of all keys changes no softmax. Its gradient is 0 but for rounding, so it is
        // compared in units of the gradient of the queries' bias.
        let scale = golden.get(&format!("grad.{}", name.replace("k_proj.bias", "q_proj.bias")));
        let with_scale = |values: &[f32]| [values, scale].concat();
        !relative(&with_scale(values), &with_scale(want), TOLERANCE).is_close()
    };
    got.into_iter().filter(differs).map(|(name, _)| name).collect()
}

#[test]
fn sonar_outputs_match() {
    outputs_match(
        Source::Sonar,
        &[
            ("without positions", |m| m.y_encoder.text.positions = Positions::Rotated),
            ("without the factor of embeddings", |m| m.y_encoder.text.embedding_scale = 1.0),
            ("with a causal mask", |m| mask(m, Mask::Causal)),
            ("with GELU", |m| gelu(m, activation::Activation::Gelu)),
            ("the last token instead of the mean", |m| m.y_encoder.head.pooling = Pooling::Last),
        ],
    );
}

/// The rows of positions 2, 3, … are those of positions 0, 1, … of texts with two tokens more in
/// front.
#[test]
fn sonar_s_first_position_is_two() {
    let (_, model, _) = open(Source::Sonar);
    let Positions::Sinusoids(sinusoids) = &model.y_encoder.text.positions else { panic!("fixed") };
    let machine = Machine::new();
    let first = values(&sinusoids.table(machine.cx().stream, 1).unwrap())[..32].to_vec();
    let row = |p: f32| -> Vec<f32> {
        let angle = |i: u8| p * 10_000f32.powf(-f32::from(i) / 15.0);
        (0..16).map(|i| angle(i).sin()).chain((0..16).map(|i| angle(i).cos())).collect()
    };
    assert_close("position 2", &first, &row(2.0), 1e-6);
    assert_differs("position 0", &first, &row(0.0), 1e-6);
}

#[test]
fn sonar_gradients_match() {
    assert_eq!(different_gradients(Source::Sonar, |_| ()), Vec::<String>::new());
    let wrong = different_gradients(Source::Sonar, |m| gelu(m, activation::Activation::Gelu));
    assert!(wrong.len() > 30, "{wrong:?}");
}

#[test]
fn pe_text_outputs_match() {
    outputs_match(
        Source::PeText,
        &[
            ("without positions", |m| m.y_encoder.text.positions = Positions::Rotated),
            ("without the causal mask", |m| mask(m, Mask::Full)),
            ("with tanh GELU", |m| gelu(m, activation::Activation::GeluTanh)),
            ("the mean instead of the last token", |m| m.y_encoder.head.pooling = Pooling::Mean),
        ],
    );
}

#[test]
fn pe_text_gradients_match() {
    assert_eq!(different_gradients(Source::PeText, |_| ()), Vec::<String>::new());
    let wrong = different_gradients(Source::PeText, |m| mask(m, Mask::Full));
    assert!(wrong.len() > 20, "{wrong:?}");
}

#[test]
fn clip_text_outputs_match() {
    outputs_match(
        Source::ClipText,
        &[
            ("without positions", |m| m.y_encoder.text.positions = Positions::Rotated),
            ("without the causal mask", |m| mask(m, Mask::Full)),
            ("with exact GELU", |m| gelu(m, activation::Activation::Gelu)),
            ("the mean instead of the last token", |m| m.y_encoder.head.pooling = Pooling::Mean),
        ],
    );
}

#[test]
fn clip_text_gradients_match() {
    assert_eq!(different_gradients(Source::ClipText, |_| ()), Vec::<String>::new());
    let wrong = different_gradients(Source::ClipText, |m| mask(m, Mask::Full));
    assert!(wrong.len() > 20, "{wrong:?}");
}

#[test]
fn siglip2_text_outputs_match_with_the_padding_read_like_a_text() {
    outputs_match(
        Source::Siglip2Text,
        &[
            ("without positions", |m| m.y_encoder.text.positions = Positions::Rotated),
            ("with a causal mask", |m| mask(m, Mask::Causal)),
            ("with exact GELU", |m| gelu(m, activation::Activation::Gelu)),
            ("the mean instead of the last token", |m| m.y_encoder.head.pooling = Pooling::Mean),
            ("without the head's bias", |m| m.y_encoder.head.maps[0].bias = None),
        ],
    );
    let (golden, model, parameters) = open(Source::Siglip2Text);
    let (ids, rows) = (golden.get("in.input_ids"), golden.shape("in.input_ids")[0]);
    let positions = golden.size("max_position_embeddings");
    let embed = |texts: Vec<Vec<i32>>| {
        let mut ends = vec![0];
        for text in &texts {
            ends.push(ends[ends.len() - 1] + i32::try_from(text.len()).unwrap());
        }
        let text = Packed::new(Device::Host, texts.concat(), ends).unwrap();
        let machine = Machine::new();
        let embedded = model.y_encoder.forward(machine.cx(), &parameters, &text, Keep::Nothing);
        values(&embedded.unwrap().embedding)
    };
    let padded: Vec<Vec<i32>> =
        ids.chunks(positions).map(|row| row.iter().map(|&id| integer(id)).collect()).collect();
    let real =
        |text: &Vec<i32>| -> Vec<i32> { text.iter().copied().filter(|id| *id > 0).collect() };
    assert_eq!(padded.iter().map(|t| real(t).len()).collect::<Vec<_>>(), [4, positions, 2]);
    let want = golden.get("out.embedding");
    assert_close("padded on the right", &embed(padded.clone()), want, TOLERANCE);
    let left = |text: &Vec<i32>| [vec![0; positions - real(text).len()], real(text)].concat();
    let width = want.len() / rows;
    for (name, got) in [
        ("padded on the left", embed(padded.iter().map(left).collect())),
        ("without padding", embed(padded.iter().map(real).collect())),
    ] {
        // Only the second text fills all positions.
        for row in [0, 2] {
            let of_row = row * width..(row + 1) * width;
            assert_differs(name, &got[of_row.clone()], &want[of_row], TOLERANCE);
        }
        let of_row = width..2 * width;
        assert_close(name, &got[of_row.clone()], &want[of_row], TOLERANCE);
    }
}

#[test]
fn siglip2_text_gradients_match() {
    assert_eq!(different_gradients(Source::Siglip2Text, |_| ()), Vec::<String>::new());
    let wrong = different_gradients(Source::Siglip2Text, |m| mask(m, Mask::Causal));
    assert!(wrong.len() > 30, "{wrong:?}");
}

#[test]
fn a_text_longer_than_the_learned_positions_is_refused() {
    let (golden, model, parameters) = open(Source::PeText);
    let rows = golden.size("context_length");
    let machine = Machine::new();
    let text = |tokens: usize| {
        let end = i32::try_from(tokens).unwrap();
        Packed::new(Device::Host, vec![5; tokens], vec![0, end]).unwrap()
    };
    let encode = |tokens| {
        model.y_encoder.forward(machine.cx(), &parameters, &text(tokens), Keep::Nothing).map(|_| ())
    };
    encode(rows).unwrap();
    let error = encode(rows + 1).unwrap_err().to_string();
    assert!(error.contains("at most 8, as many as learned positions"), "{error}");
}
