//! Gradients of a Y-decoder against finite differences of its loss, its texts, and files of SONAR's
//! decoder.

use std::path::{Path, PathBuf};

use vljepa_kernels::testing::{assert_close, assert_differs, dot, indices, normal};
use vljepa_kernels::{Arena, Device, Packed, Stream, View};
use vljepa_model::language_model::{Options, Search};
use vljepa_model::weights::{convert, identify, load_y_decoder};
use vljepa_model::{
    Context, Gradients, Keep, Layout, LayoutBuilder, ModelError, ParameterId, Parameters, YDecoder,
};
use vljepa_recipes::protocol::Weights;
use vljepa_recipes::schema::{
    self, Initialisation, LlamaDecoder, Model, ModelKind, Recompute, SonarDecoder,
};

use crate::committed_files::file;

const EMBEDDING: usize = 6;
const VOCABULARY: usize = 11;

struct Tiny {
    decoder: YDecoder,
    layout: Layout,
    parameters: Parameters,
    arena: Arena,
}

fn open(keys: schema::YDecoder, embed_dim: usize) -> Tiny {
    let initialisation = Initialisation::FanIn;
    let kind = ModelKind::YDecoder;
    let model =
        Model { kind, y_decoder: Some(keys), embed_dim, initialisation, ..Model::default() };
    let mut layout = LayoutBuilder::new(initialisation);
    let decoder = YDecoder::new(&mut layout, &model, Device::Host);
    let layout = layout.finish();
    let mut parameters = Parameters::new(&layout, Device::Host).unwrap();
    parameters.initialise(&layout, 1).unwrap();
    Tiny { decoder, layout, parameters, arena: Arena::new(Device::Host, usize::MAX) }
}

fn llama(train_layers: bool) -> Tiny {
    let keys = LlamaDecoder {
        prefix_tokens: 2,
        hidden_size: 8,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 4,
        intermediate_size: 12,
        vocab_size: VOCABULARY,
        train_layers,
        ..LlamaDecoder::default()
    };
    open(schema::YDecoder::Llama(keys), EMBEDDING)
}

fn sonar(num_layers: usize) -> Tiny {
    let keys = SonarDecoder {
        hidden_size: 16,
        num_layers,
        num_heads: 2,
        intermediate_size: 32,
        vocab_size: 9,
        ..SonarDecoder::default()
    };
    open(schema::YDecoder::Sonar(keys), 16)
}

/// Embeddings and texts of three samples.
fn batch() -> (Vec<f32>, Vec<Vec<i32>>) {
    let texts = [4, 1, 3].iter().zip(5..).map(|(len, seed)| indices(seed, *len, VOCABULARY));
    (normal(4, 3 * EMBEDDING), texts.collect())
}

fn packed(texts: &[Vec<i32>]) -> Packed {
    let mut ends = vec![0];
    for text in texts {
        ends.push(ends[ends.len() - 1] + i32::try_from(text.len()).unwrap());
    }
    Packed::new(Device::Host, texts.concat(), ends).unwrap()
}

impl Tiny {
    fn cx(&self) -> Context<'_> {
        Context { stream: &Stream::Host, arena: &self.arena }
    }

    /// Losses of all tokens.
    fn losses(&self, embeddings: &[f32], texts: &[Vec<i32>]) -> Result<Vec<f32>, ModelError> {
        let x = View::from_f32(embeddings, &[texts.len(), EMBEDDING]);
        let (cx, texts) = (self.cx(), packed(texts));
        let keep = Keep::Nothing;
        let losses = self.decoder.forward(cx, &self.parameters, x, &texts, 1.0, keep, None)?.0;
        Ok(losses.to_f32().unwrap().into_owned())
    }

    /// Adds the gradients of 0.5 · Σ losses.
    fn add_gradients(
        &self,
        embeddings: &[f32],
        texts: &[Vec<i32>],
        recompute: Recompute,
        gradients: &mut Gradients,
    ) {
        let x = View::from_f32(embeddings, &[texts.len(), EMBEDDING]);
        let (cx, texts, keep) = (self.cx(), packed(texts), Keep::Needed(recompute));
        let (parameters, decoder) = (&self.parameters, &self.decoder);
        let given = Some(&mut *gradients);
        let saved = decoder.forward(cx, parameters, x, &texts, 0.5, keep, given).unwrap().1;
        let mut complete = 0;
        let on_ready = &mut |_: &mut Gradients, end: usize| {
            assert!(end >= complete, "gradients are completed in order");
            complete = end;
        };
        decoder.backward(cx, parameters, saved.unwrap(), gradients, on_ready).unwrap();
        assert_eq!(complete, self.layout.trainable_len);
    }

    fn gradients(&self, embeddings: &[f32], texts: &[Vec<i32>], recompute: Recompute) -> Gradients {
        let mut gradients = Gradients::new(&self.layout, Device::Host).unwrap();
        self.add_gradients(embeddings, texts, recompute, &mut gradients);
        gradients
    }
}

#[test]
fn gradients_of_a_decoder_match_finite_differences() {
    for train_layers in [true, false] {
        let mut tiny = llama(train_layers);
        let (embeddings, texts) = batch();
        let gradients = tiny.gradients(&embeddings, &texts, Recompute::None);
        let mut seen = 0;
        let trained: Vec<usize> = (0..tiny.layout.parameters.len())
            .filter(|i| tiny.layout.parameters[*i].trainable)
            .collect();
        // Two norms and four matrices of each layer, last norm and table; weight and bias of the
        // map.
        assert_eq!(trained.len(), if train_layers { 2 * 6 + 2 + 2 } else { 2 });
        for i in trained {
            let (layout, id) = (tiny.layout.clone(), ParameterId(i));
            let gradient = gradients.view(&layout, id).to_f32().unwrap().into_owned();
            let noise = normal(100 + i as u64, gradient.len());
            #[expect(clippy::cast_possible_truncation, reason = "a length near √n")]
            let length = dot(&noise, &noise).sqrt() as f32;
            let direction: Vec<f32> = noise.iter().map(|v| v / length).collect();
            let at = tiny.parameters.view(&layout, id).to_f32().unwrap().into_owned();
            let mut want = 0.0;
            let step = 0.02_f32;
            for (steps, weight) in [(1.0, 8.0), (-1.0, -8.0), (2.0, -1.0), (-2.0, 1.0)] {
                let into = tiny.parameters.view_mut(&layout, id).host_f32_mut("test", "w").unwrap();
                for ((to, at), d) in into.iter_mut().zip(&at).zip(&direction) {
                    *to = at + steps * step * d;
                }
                let losses = tiny.losses(&embeddings, &texts).unwrap();
                let loss = 0.5 * losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
                want += weight * loss / (12.0 * f64::from(step));
            }
            let into = tiny.parameters.view_mut(&layout, id).host_f32_mut("test", "w").unwrap();
            into.copy_from_slice(&at);
            let got = dot(&gradient, &direction);
            // Eight losses near 3, each rounded by 2⁻²³, over the step: 1.5 · 2e-6 / 0.02, and the
            // truncation 0.02⁴·f⁽⁵⁾/30.
            let tolerance = 4e-4 + 1e-3 * want.abs();
            let name = &layout.get(id).name;
            assert!((got - want).abs() < tolerance, "{name}: {got}, differences {want}");
            seen += usize::from((0.5 * got - want).abs() > tolerance);
        }
        assert!(seen >= if train_layers { 12 } else { 2 }, "half the gradient fails for {seen}");
    }
}

#[test]
fn micro_batches_and_recomputation_give_the_same_gradients() {
    let tiny = llama(true);
    let (embeddings, texts) = batch();
    let whole = tiny.gradients(&embeddings, &texts, Recompute::None);
    let whole = whole.flat.to_f32().unwrap();
    for recompute in [Recompute::None, Recompute::Mlp, Recompute::Block] {
        let mut sum = Gradients::new(&tiny.layout, Device::Host).unwrap();
        tiny.add_gradients(&embeddings[..EMBEDDING], &texts[..1], recompute, &mut sum);
        let first = sum.flat.to_f32().unwrap().into_owned();
        tiny.add_gradients(&embeddings[EMBEDDING..], &texts[1..], recompute, &mut sum);
        // Gradients of up to 6 after some 40 roundings: 6 · 2⁻²⁴ · √40 = 2e-6, times five.
        assert_close("sum", &sum.flat.to_f32().unwrap(), &whole, 1e-5);
        assert_differs("one part", &first, &whole, 1e-5);
    }
}

#[test]
fn greedy_texts_have_the_smallest_loss_at_each_token() {
    let tiny = llama(true);
    let (embeddings, _) = batch();
    let options =
        Options { search: Search::Greedy, max_tokens: 5, stop: vec![10], forbidden: vec![] };
    let x = View::from_f32(&embeddings, &[3, EMBEDDING]);
    let texts = tiny.decoder.generate(tiny.cx(), &tiny.parameters, x, &[], &options).unwrap();
    for (embedding, text) in embeddings.chunks_exact(EMBEDDING).zip(&texts) {
        assert!(text.len() <= 5 && !text.contains(&10));
        for end in 0..text.len() {
            let loss = |token: i32| {
                let text = [&text[..end], &[token]].concat();
                tiny.losses(embedding, &[text]).unwrap()[end]
            };
            let best = (0..11).min_by(|a, b| loss(*a).total_cmp(&loss(*b))).unwrap();
            assert_eq!(best, text[end], "{text:?} at {end}");
        }
    }
    let other: Vec<f32> = embeddings.iter().map(|x| -x).collect();
    let x = View::from_f32(&other, &[3, EMBEDDING]);
    let others = tiny.decoder.generate(tiny.cx(), &tiny.parameters, x, &[], &options).unwrap();
    assert_ne!(others, texts, "texts depend on the embedding");
}

#[test]
fn empty_texts_and_losses_of_sonar_are_errors() {
    let tiny = llama(true);
    let error = tiny.losses(&[0.0; 2 * EMBEDDING], &[vec![1], vec![]]).unwrap_err().to_string();
    assert!(error.contains("empty at 1"), "{error}");
    let tiny = sonar(2);
    let (x, texts) = ([0.0; 16], packed(&[vec![1]]));
    let x = View::from_f32(&x, &[1, 16]);
    let keep = Keep::Nothing;
    let error = tiny.decoder.forward(tiny.cx(), &tiny.parameters, x, &texts, 1.0, keep, None);
    assert!(error.unwrap_err().to_string().contains("model.y_decoder.family"));
    assert_eq!(tiny.layout.trainable_len, 0);
}

/// A file of SONAR's decoder under the names of transformers, with those of its encoder.
fn m2m100() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/sonar_decoder/model.safetensors")
}

#[test]
fn sonar_s_decoder_is_read_from_meta_s_file_and_from_what_convert_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let converted = folder.path().join("converted.safetensors");
    let (Weights::Known(known), Weights::Known(after)) = (
        identify(&file("sonar_decoder.pt")).unwrap(),
        convert(&file("sonar_decoder.pt"), &converted).unwrap(),
    ) else {
        panic!("a known model")
    };
    let [model] = &known.models[..] else { panic!("{:?}", known.models) };
    assert_eq!(
        (model.name.as_str(), model.key.as_str()),
        ("SONAR's text decoder", "model.y_decoder")
    );
    // The table, the last norm, and of each layer three norms less one, four maps of attention, two
    // of the MLP and two of the memory, each with a bias.
    assert_eq!(model.held.tensors, 3 + 2 * 2 * (2 + 4 + 2 + 2));
    assert_eq!(after.models[0].held, model.held);
    let mut tiny = sonar(2);
    let read = |tiny: &mut Tiny, path: &Path| {
        let imported =
            load_y_decoder(&tiny.decoder, &tiny.layout, &mut tiny.parameters, path).unwrap();
        let values = tiny.parameters.frozen.to_f32().unwrap().into_owned();
        (values, imported)
    };
    let (meta, imported) = read(&mut tiny, &file("sonar_decoder.pt"));
    assert_eq!((imported.read, imported.unused.len()), (43, 3 + 2 * 6), "{:?}", imported.unused);
    let (again, imported) = read(&mut tiny, &converted);
    assert!(meta == again && meta.iter().any(|v| *v != 0.0));
    assert_eq!(imported.unused.len(), 0);
    // Two of a file's three layers, or three of its two.
    for (layers, missing) in [(1, false), (3, true)] {
        let Tiny { decoder, layout, mut parameters, .. } = sonar(layers);
        let error = load_y_decoder(&decoder, &layout, &mut parameters, &file("sonar_decoder.pt"));
        match error.unwrap_err() {
            ModelError::MissingTensors { names, .. } => assert!(missing && names.len() == 20),
            ModelError::UnusedTensors { names, .. } => assert!(!missing && names.len() == 26),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn sonar_s_decoder_is_recognised_in_a_file_of_m2m100() {
    let Weights::Known(known) = identify(&m2m100()).unwrap() else { panic!("a known model") };
    let [model] = &known.models[..] else { panic!("{:?}", known.models) };
    assert_eq!(model.name, "SONAR's text decoder");
    assert!(model.recipe.contains("family: sonar") && model.recipe.contains("num_layers: 2"));
}
