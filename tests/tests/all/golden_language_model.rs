//! Compares causal language models with Hugging Face transformers: a Llama, and SONAR's text
//! decoder as the decoder of M2M100. Logits, loss, gradients, and texts token by token.

use std::collections::BTreeMap;

use vljepa_kernels::attention::Mask;
use vljepa_kernels::testing::{assert_close, assert_differs};
use vljepa_kernels::{Device, Lengths, Packed, Tensor, View};
use vljepa_model::language_model::{Options, Prompts, Search};
use vljepa_model::weights::load_y_decoder;
use vljepa_model::{Gradients, Keep, Layout, LayoutBuilder, Parameters, YDecoder};
use vljepa_recipes::schema::{self, LlamaDecoder, SonarDecoder};

use crate::golden::{Golden, Machine, integer, relative, values};

/// Tolerances for logits of up to 7 and losses, and for gradients in units of a tensor's largest
/// element: five times 4e-6, and ten times 1e-6, by which the f32 of `PyTorch` differs from f64.
const LOGITS: f32 = 2e-5;
const GRADIENT: f32 = 1e-5;

/// Bytes of the logits of two tokens, so that 23 tokens take several chunks.
const TWO_TOKENS: usize = 2 * 90 * 4;

pub struct Model {
    pub golden: Golden,
    pub decoder: YDecoder,
    pub layout: Layout,
    pub parameters: Parameters,
    pub machine: Machine,
    device: Device,
}

#[expect(clippy::cast_possible_truncation, reason = "numbers of the config are f32")]
fn llama(golden: &Golden) -> schema::YDecoder {
    let scaling = &golden.config["rope_scaling"];
    let number = |key: &str| scaling[key].as_f64().unwrap();
    schema::YDecoder::Llama(LlamaDecoder {
        prefix_tokens: 2,
        hidden_size: golden.size("hidden_size"),
        num_layers: golden.size("num_hidden_layers"),
        num_heads: golden.size("num_attention_heads"),
        num_kv_heads: golden.size("num_key_value_heads"),
        head_dim: golden.size("head_dim"),
        intermediate_size: golden.size("intermediate_size"),
        rms_norm_eps: golden.number("rms_norm_eps") as f32,
        rope_theta: golden.number("rope_theta"),
        rope_scaling: Some(schema::Llama3Scaling {
            factor: number("factor"),
            low_freq_factor: number("low_freq_factor"),
            high_freq_factor: number("high_freq_factor"),
            original_max_position_embeddings: number("original_max_position_embeddings"),
        }),
        vocab_size: golden.size("vocab_size"),
        ..LlamaDecoder::default()
    })
}

/// Keys of the golden Llama as the language model of a VLM.
pub fn vlm(golden: &Golden) -> schema::LanguageModel {
    let schema::YDecoder::Llama(keys) = llama(golden) else { unreachable!("a Llama") };
    schema::LanguageModel {
        hidden_size: keys.hidden_size,
        num_layers: keys.num_layers,
        num_heads: keys.num_heads,
        num_kv_heads: keys.num_kv_heads,
        head_dim: keys.head_dim,
        intermediate_size: keys.intermediate_size,
        rms_norm_eps: keys.rms_norm_eps,
        rope_theta: keys.rope_theta,
        rope_scaling: keys.rope_scaling,
        vocab_size: keys.vocab_size,
        ..schema::LanguageModel::default()
    }
}

fn sonar(golden: &Golden) -> schema::YDecoder {
    schema::YDecoder::Sonar(SonarDecoder {
        hidden_size: golden.size("d_model"),
        num_layers: golden.size("decoder_layers"),
        num_heads: golden.size("decoder_attention_heads"),
        intermediate_size: golden.size("decoder_ffn_dim"),
        vocab_size: golden.size("vocab_size"),
        ..SonarDecoder::default()
    })
}

impl Model {
    pub fn open(name: &str, device: Device) -> Self {
        let golden = Golden::open(name);
        let keys = if name == "llama_lm" { llama(&golden) } else { sonar(&golden) };
        let kind = schema::ModelKind::YDecoder;
        let recipe =
            schema::Model { kind, y_decoder: Some(keys), embed_dim: 32, ..Default::default() };
        let mut layout = LayoutBuilder::new(recipe.initialisation);
        let decoder = YDecoder::new(&mut layout, &recipe, device);
        let layout = layout.finish();
        let mut parameters = Parameters::new(&layout, device).unwrap();
        parameters.initialise(&layout, 1).unwrap();
        let imported = load_y_decoder(&decoder, &layout, &mut parameters, &golden.weights());
        let unused = imported.unwrap().unused;
        // Maps of queries and keys, and the norm before them, of SONAR's two layers.
        assert_eq!(unused.len(), if name == "llama_lm" { 0 } else { 2 * 6 }, "{unused:?}");
        let machine = Machine::on(device);
        Self { golden, decoder, layout, parameters, machine, device }
    }

    fn texts(&self) -> Packed {
        let Packed { lengths, .. } = &self.golden.packed("in.input_ids", "in.attention_mask");
        let ids = self.golden.packed("in.input_ids", "in.attention_mask").host_ids().to_vec();
        Packed::new(self.device, ids, lengths.host().to_vec()).unwrap()
    }

    fn lengths(&self, of: &Packed) -> Lengths {
        Lengths::new(self.device, of.lengths.host().to_vec()).unwrap()
    }

    /// Hidden states of all tokens of the texts.
    fn hidden(
        &self,
        keep: Keep,
    ) -> (Tensor, Option<vljepa_model::language_model::LanguageModelSaved>) {
        let (cx, texts) = (self.machine.cx(), self.texts());
        let model = &self.decoder.language_model;
        let x = model.input(cx, &self.parameters, &texts).unwrap();
        model.forward(cx, &self.parameters, x, self.lengths(&texts), keep).unwrap()
    }

    fn logits(&self) -> Vec<f32> {
        let (hidden, _) = self.hidden(Keep::Nothing);
        let model = &self.decoder.language_model;
        values(&model.logits(self.machine.cx(), &self.parameters, hidden.view()).unwrap())
    }

    /// Target of each token: the label of the token after it, `shift` tokens later.
    fn targets(&self, shift: usize) -> Vec<i32> {
        let width = self.golden.shape("in.labels")[1];
        let labels = self.golden.get("in.labels");
        let target = |i: usize| {
            let inside = i % width + shift < width;
            if inside { integer(labels[i + shift]).max(-1) } else { -1 }
        };
        self.golden.token_indices("in.attention_mask").into_iter().map(target).collect()
    }

    /// Mean loss, and gradients by their published names.
    pub fn step(&self, shift: usize) -> (f64, BTreeMap<String, Vec<f32>>) {
        let (cx, targets) = (self.machine.cx(), self.targets(shift));
        let model = &self.decoder.language_model;
        let (hidden, saved) = self.hidden(Keep::EVERYTHING);
        let count = targets.iter().filter(|t| **t >= 0).count();
        let mut gradients = Gradients::new(&self.layout, self.device).unwrap();
        let (losses, d_hidden) = model
            .losses_with_gradient(
                cx,
                &self.parameters,
                hidden.view(),
                &targets,
                1.0 / count as f32,
                &mut gradients,
            )
            .unwrap();
        let alone = model.losses(cx, &self.parameters, hidden.view(), &targets).unwrap();
        assert_eq!(values(&alone), values(&losses), "losses with and without gradients");
        let on_ready = &mut |_: &mut _, _| {};
        let parameters = &self.parameters;
        let d_x =
            model.backward(cx, parameters, saved, d_hidden, &mut gradients, on_ready).unwrap();
        model.text.embed_backward(cx, self.texts().host_ids(), d_x.view(), &mut gradients).unwrap();
        let sum: f64 = values(&losses).iter().map(|loss| f64::from(*loss)).sum();
        (sum / count as f64, self.published(&gradients))
    }

    fn published(&self, gradients: &Gradients) -> BTreeMap<String, Vec<f32>> {
        let pieces = vljepa_model::weights::y_decoder_pieces(&self.decoder);
        let flat = |id| values_of(gradients.view(&self.layout, id));
        let piece = |piece: vljepa_model::weights::Piece| {
            let of = flat(piece.parameter);
            (format!("model.{}", piece.name), of[piece.start..][..piece.elements()].to_vec())
        };
        pieces.into_iter().map(piece).collect()
    }

    /// Texts of at most `max_tokens` tokens after the golden prompts.
    pub fn generate(&self, search: Search, max_tokens: usize) -> Vec<Vec<i32>> {
        let (cx, parameters) = (self.machine.cx(), &self.parameters);
        let stop = self.golden.get("in.end").iter().map(|end| integer(*end)).collect();
        let model = &self.decoder.language_model;
        let mut options = Options { search, max_tokens, stop, forbidden: vec![] };
        if self.decoder.prefix.is_some() {
            let texts = self.texts();
            let x = model.input(cx, parameters, &texts).unwrap();
            let prompts = Prompts { x, lengths: self.lengths(&texts), memory: None };
            return model.generate(cx, parameters, prompts, &options).unwrap();
        }
        options.forbidden = vec![1];
        // The two tokens at the start count.
        options.max_tokens += 2;
        let mut texts = Vec::new();
        let memory = self.golden.get("in.memory");
        let width = self.golden.shape("in.input_ids")[1];
        // Rows start with different tokens, so each is a call of its own.
        for (row, memory) in memory.chunks_exact(32).enumerate() {
            let start = &self.golden.get("in.input_ids")[row * width..][..2];
            let start: Vec<i32> = start.iter().map(|id| integer(*id)).collect();
            let memory = Tensor::from_f32(memory.to_vec(), &[1, 32]).on(self.device).unwrap();
            let (decoder, memory) = (&self.decoder, memory.view());
            texts.extend(decoder.generate(cx, parameters, memory, &start, &options).unwrap());
        }
        texts
    }

    fn want(&self, name: &str) -> Vec<Vec<i32>> {
        let rows = self.golden.get(name).chunks_exact(NEW);
        let text = |row: &[f32]| row.iter().map(|t| integer(*t)).filter(|t| *t >= 0).collect();
        rows.map(text).collect()
    }
}

/// Most tokens of a text in the golden files, with the one that ends it.
const NEW: usize = 12;

fn values_of(view: View<'_>) -> Vec<f32> {
    view.to_f32().unwrap().into_owned()
}

/// Names of the gradients that differ.
fn different(model: &Model, gradients: &BTreeMap<String, Vec<f32>>) -> Vec<String> {
    assert_eq!(gradients.len(), model.golden.names("grad.").len(), "every gradient is compared");
    let differs = |name: &String| {
        let want = model.golden.get(&format!("grad.{name}"));
        !relative(&gradients[name], want, GRADIENT).is_close()
    };
    gradients.keys().filter(|name| differs(name)).cloned().collect()
}

#[test]
fn llama_logits_match() {
    let mut model = Model::open("llama_lm", Device::Host);
    let want = model.golden.unpadded("out.logits", "in.attention_mask");
    assert_close("logits", &model.logits(), &want, LOGITS);
    for block in &mut model.decoder.language_model.text.stack.blocks {
        block.attention.mask = Mask::Full;
    }
    assert_differs("with attention in both directions", &model.logits(), &want, LOGITS);
    // An output map of its own, here with other values than the table, is not the tied one.
    let mut model = Model::open("llama_lm", Device::Host);
    let (hidden, _) = model.hidden(Keep::Nothing);
    let table = model.decoder.language_model.table().id();
    let values_of = model.parameters.view_mut(&model.layout, table);
    values_of.host_f32_mut("test", "table").unwrap().reverse();
    let untied =
        model.decoder.language_model.logits(model.machine.cx(), &model.parameters, hidden.view());
    assert_differs("an untied output map", &values(&untied.unwrap()), &want, LOGITS);
}

#[test]
fn llama_loss_and_gradients_match_in_one_chunk_and_in_several() {
    let mut model = Model::open("llama_lm", Device::Host);
    for bytes in [usize::MAX, TWO_TOKENS] {
        model.decoder.language_model.logits_bytes = bytes;
        let (loss, gradients) = model.step(1);
        let want = model.golden.scalar("out.loss");
        assert!((loss - want).abs() < f64::from(LOGITS), "{loss} is not {want}");
        assert_eq!(different(&model, &gradients), Vec::<String>::new());
    }
    let (loss, gradients) = model.step(0);
    assert!((loss - model.golden.scalar("out.loss")).abs() > 0.1, "labels that are not shifted");
    assert_eq!(different(&model, &gradients).len(), gradients.len());
    for block in &mut model.decoder.language_model.text.stack.blocks {
        block.attention.mask = Mask::Full;
    }
    let (_, gradients) = model.step(1);
    assert!(different(&model, &gradients).len() > gradients.len() / 2, "the wrong mask");
}

#[test]
fn texts_are_those_of_transformers_token_by_token() {
    for name in ["llama_lm", "sonar_decoder"] {
        let model = Model::open(name, Device::Host);
        let beam = |width, length_penalty| Search::Beam { width, length_penalty };
        let searches = [
            ("out.greedy", Search::Greedy),
            ("out.beam_short", beam(3, 0.0)),
            ("out.beam_long", beam(3, 2.0)),
            ("out.beam_mean", beam(5, 1.0)),
        ];
        for (search, how) in searches {
            assert_eq!(model.generate(how, NEW), model.want(search), "{name} {search}");
        }
        for (search, wrong) in [("out.beam_short", beam(3, 2.0)), ("out.beam_mean", Search::Greedy)]
        {
            assert_ne!(model.generate(wrong, NEW), model.want(search), "{name} {search}");
        }
    }
}

#[test]
fn sonar_s_decoder_gives_the_logits_of_m2m100() {
    let mut model = Model::open("sonar_decoder", Device::Host);
    let ids = model.golden.get("in.input_ids").iter().map(|id| integer(*id)).collect();
    let (rows, width) = (model.golden.shape("in.memory")[0], model.golden.shape("in.input_ids")[1]);
    let lengths = || Lengths::uniform(Device::Host, rows, width).unwrap();
    let tokens = Packed::new(Device::Host, ids, lengths().host().to_vec()).unwrap();
    let logits = |model: &Model, memory: &[f32]| {
        let (cx, parameters) = (model.machine.cx(), &model.parameters);
        let lm = &model.decoder.language_model;
        let memory = View::from_f32(memory, &[rows, 32]);
        let mut cache = lm.cache(cx, parameters, rows, Some(memory)).unwrap();
        let x = lm.input(cx, parameters, &tokens).unwrap();
        let hidden = lm.extend(cx, parameters, &mut cache, x, lengths()).unwrap();
        values(&lm.logits(cx, parameters, hidden.view()).unwrap())
    };
    let (memory, want) = (model.golden.get("in.memory"), model.golden.get("out.logits"));
    assert_close("logits", &logits(&model, memory), want, LOGITS);
    let other: Vec<f32> = memory.iter().rev().copied().collect();
    assert_differs("another memory", &logits(&model, &other), want, LOGITS);
    model.decoder.language_model.memory[0].swap(0, 1);
    let (memory, want) = (model.golden.get("in.memory"), model.golden.get("out.logits"));
    assert_differs("maps in the other order", &logits(&model, memory), want, LOGITS);
}
