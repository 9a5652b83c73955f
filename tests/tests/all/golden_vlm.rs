//! Compares a whole VLM step, its texts and its candidates' losses with a second implementation in
//! PyTorch and with transformers.

use std::collections::BTreeMap;

use vljepa_kernels::testing::{assert_close, assert_differs, bytes};
use vljepa_kernels::{Device, KernelError, Tensor, View};
use vljepa_model::language_model::{Options, Search};
use vljepa_model::vlm::Conversations;
use vljepa_model::weights::{self, Source};
use vljepa_model::{AdamW, Gradients, Keep, ParameterId, Parameters, Visual, Vlm};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, compare_gradients, values};
use crate::{golden_language_model, golden_pe, tiny};

/// Tolerance for the vectors that the projector makes, of up to 2.9.
const VECTOR: f32 = 1e-5;

/// Tolerance for losses of up to 11, from logits that may be 2e-5 off.
const LOSS: f32 = 4e-5;

/// Tolerance for gradients, in units of a tensor's largest element: 12 times what PyTorch in f32 is
/// off.
const GRADIENT: f32 = 1e-5;

pub struct Step {
    golden: Golden,
    pub model: Vlm,
    pub parameters: Parameters,
    frames: Tensor,
    before: Vec<i32>,
    questions: Vec<Vec<i32>>,
    answers: Vec<Vec<i32>>,
    pub machine: Machine,
}

impl Step {
    pub fn on(device: Device) -> Self {
        let golden = Golden::open("vlm_step");
        let part = |key: &str| Golden::open(golden.config[key].as_str().unwrap());
        let (vision, llama) = (part("vision"), part("language_model"));
        let recipe = schema::Model {
            kind: schema::ModelKind::Vlm,
            image_size: vision.size("image_size"),
            x_encoder: golden_pe::keys(&vision, false, 2),
            language_model: Some(golden_language_model::vlm(&llama)),
            ..tiny::model()
        };
        let model = Vlm::new(&recipe, device).unwrap();
        let mut parameters = Parameters::new(model.layout(), device).unwrap();
        let files = [(Source::Pe, &vision), (Source::LanguageModel, &llama)];
        for (source, file) in files {
            weights::load(&model, &mut parameters, source, &file.weights()).unwrap();
        }
        let own = safetensors::SafeTensors::deserialize;
        let bytes = std::fs::read(golden.weights()).unwrap();
        let own = own(&bytes).unwrap();
        for (id, name) in projector(&model) {
            let bytes = own.tensor(&name).unwrap().data().to_vec();
            let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
            let values: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
            let fill = |into: &mut [f32]| {
                into.copy_from_slice(&values);
                Ok::<(), KernelError>(())
            };
            parameters.view_mut(model.layout(), id).write_f32(fill).unwrap();
        }
        parameters.refresh(&device.compute_stream()).unwrap();
        let [before, start, end] = ["before", "start", "end"].map(|key| ids(&golden, key));
        let answers = texts_of(&golden, "answers");
        let answers = answers.iter().map(|answer| [&start, &answer[..], &end].concat()).collect();
        Self {
            frames: golden.frames("in.frames"),
            before,
            questions: texts_of(&golden, "questions"),
            answers,
            model,
            parameters,
            machine: Machine::on(device),
            golden,
        }
    }

    /// Replaces the frames by pixels, which are what a GPU reads.
    pub fn show_pixels(&mut self) {
        let pixels = bytes(5, self.frames.shape().iter().product());
        let frames = Tensor::from_u8(pixels, self.frames.shape());
        self.frames = frames.on(self.machine.cx().arena.device()).unwrap();
    }

    fn visual(&self, keep: Keep) -> Visual {
        let (cx, parameters) = (self.machine.cx(), &self.parameters);
        self.model.x_encoder.forward(cx, parameters, self.frames.view(), keep).unwrap()
    }

    /// Losses of all tokens of all answers; adds the gradients of their mean.
    pub fn run(&self, gradients: &mut Gradients) -> Vec<f32> {
        let (cx, parameters, model) = (self.machine.cx(), &self.parameters, &self.model);
        let [questions, answers] = [&self.questions, &self.answers]
            .map(|texts| texts.iter().map(Vec::as_slice).collect::<Vec<&[i32]>>());
        let texts =
            Conversations { before: &self.before, questions: &questions, answers: &answers };
        let tokens: usize = answers.iter().map(|answer| answer.len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "a few tokens")]
        let factor = 1.0 / tokens as f32;
        let keep = Keep::EVERYTHING;
        let visual = self.visual(keep);
        let (losses, saved) =
            model.forward(cx, parameters, visual, texts, factor, keep, Some(gradients)).unwrap();
        model.backward(cx, parameters, saved.unwrap(), gradients, &mut |_, _| {}).unwrap();
        values(&losses)
    }

    /// Tensors of a flat buffer of the trained parameters, by the golden's names.
    pub fn by_name(&self, flat: &[f32]) -> BTreeMap<String, Vec<f32>> {
        let layout = self.model.layout();
        let of = |id: ParameterId, start: usize, len: usize| {
            let at = layout.get(id).range.start + start;
            flat[at..at + len].to_vec()
        };
        let pieces = Source::LanguageModel.pieces(&self.model).into_iter().map(|piece| {
            let values = of(piece.parameter, piece.start, piece.elements());
            (format!("model.{}", piece.name), values)
        });
        let own = projector(&self.model)
            .into_iter()
            .map(|(id, name)| (name, of(id, 0, layout.get(id).range.len())));
        pieces.chain(own).collect()
    }

    /// Gives the rows each other's questions.
    pub fn reverse_questions(&mut self) {
        self.questions.reverse();
    }
}

fn ids(golden: &Golden, key: &str) -> Vec<i32> {
    serde_json::from_value(golden.config[key].clone()).unwrap()
}

fn texts_of(golden: &Golden, key: &str) -> Vec<Vec<i32>> {
    serde_json::from_value(golden.config[key].clone()).unwrap()
}

fn projector(model: &Vlm) -> Vec<(ParameterId, String)> {
    let parameters = model.layout().parameters.iter().enumerate();
    parameters
        .filter(|(_, parameter)| parameter.name.starts_with("projector."))
        .map(|(i, parameter)| (ParameterId(i), parameter.name.clone()))
        .collect()
}

fn mean(losses: &[f32]) -> f64 {
    let sum: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
    #[expect(clippy::cast_precision_loss, reason = "a few tokens")]
    let count = losses.len() as f64;
    sum / count
}

#[test]
fn a_vlm_step_has_the_losses_gradients_and_update_of_torch() {
    let mut step = Step::on(Device::Host);
    let layout = step.model.layout().clone();
    let mut gradients = Gradients::new(&layout, Device::Host).unwrap();
    let losses = step.run(&mut gradients);
    let golden = Golden::open("vlm_step");
    let visual = step.visual(Keep::Nothing);
    let cx = step.machine.cx();
    let vectors = step.model.projector.forward(cx, &step.parameters, &visual, Keep::Nothing);
    assert_close("vectors", &values(&vectors.unwrap().0), golden.get("out.vectors"), VECTOR);
    assert_close("losses", &losses, golden.get("out.losses"), LOSS);
    let loss = mean(&losses);
    assert!((loss - golden.scalar("out.loss")).abs() < f64::from(LOSS));
    // A mean before the two maps, a loss without the answer's header, a mean of each row's mean.
    for wrong in ["mean_first", "without_header", "mean_of_means"] {
        let far = (loss - golden.scalar(&format!("wrong.{wrong}"))).abs();
        assert!(far > 10.0 * f64::from(LOSS), "{wrong}: {far}");
    }
    let by_name = step.by_name(&values(&gradients.flat));
    let found: Vec<&str> = by_name.keys().map(String::as_str).collect();
    assert_eq!(found, golden.names("grad."), "every gradient is compared");
    let (_, different) = compare_gradients(&by_name, &golden, "grad.", GRADIENT);
    assert!(different.is_empty(), "{different:#?}");

    let recipe = schema::Optimizer {
        betas: [0.9, 0.95],
        weight_decay: 0.1,
        multipliers: BTreeMap::new(),
        ..schema::Optimizer::default()
    };
    let mut optimizer = AdamW::new(&layout, Device::Host, &recipe).unwrap();
    let control = View::from_f32(&[1.0, 1.0], &[2]);
    optimizer.step(step.machine.cx(), &mut step.parameters, &gradients, control, 1e-2).unwrap();
    let after = step.by_name(&values(&step.parameters.trainable));
    for (name, after) in &after {
        // Where the gradient is noise, so is the sign of Adam's first update.
        let gradient = golden.get(&format!("grad.{name}"));
        let largest = gradient.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let meant = |i: &usize| gradient[*i] == 0.0 || gradient[*i].abs() > 1e-4 * largest;
        let kept: Vec<usize> = (0..gradient.len()).filter(meant).collect();
        assert!(kept.len() * 10 > gradient.len() * 9, "{name}: most elements are compared");
        let of = |values: &[f32]| kept.iter().map(|&i| values[i]).collect::<Vec<_>>();
        // A hundredth of the learning rate.
        assert_close(name, &of(after), &of(golden.get(&format!("after.{name}"))), 1e-4);
    }
    gradients.zero(&Device::Host.compute_stream()).unwrap();
    let second = mean(&step.run(&mut gradients));
    assert!((second - golden.scalar("out.loss_after")).abs() < 3e-4, "{second}");

    // A wrong input must fail: questions in another order.
    let mut wrong = Step::on(Device::Host);
    wrong.reverse_questions();
    gradients.zero(&Device::Host.compute_stream()).unwrap();
    assert_differs("losses", &wrong.run(&mut gradients), golden.get("out.losses"), LOSS);
    let by_name = wrong.by_name(&values(&gradients.flat));
    let (_, different) = compare_gradients(&by_name, &golden, "grad.", GRADIENT);
    assert!(different.len() * 10 > by_name.len() * 9, "{} of {}", different.len(), by_name.len());
}

#[test]
fn texts_are_those_of_transformers_and_candidates_have_the_losses_of_the_full_pass() {
    let step = Step::on(Device::Host);
    let (cx, parameters, model) = (step.machine.cx(), &step.parameters, &step.model);
    let questions: Vec<&[i32]> = step.questions.iter().map(Vec::as_slice).collect();
    let start = ids(&step.golden, "start");
    let answers = vec![&*start; questions.len()];
    let texts = Conversations { before: &step.before, questions: &questions, answers: &answers };
    let visual = step.visual(Keep::Nothing);
    let options =
        Options { search: Search::Greedy, max_tokens: 8, stop: vec![-1], forbidden: vec![] };
    let written = model.generate(cx, parameters, &visual, texts, &options).unwrap();
    assert_eq!(serde_json::to_value(&written).unwrap(), step.golden.config["texts"]);
    // Without the tokens that begin the answer, other texts follow.
    let empty: Vec<&[i32]> = vec![&[]; questions.len()];
    let wrong = Conversations { answers: &empty, ..texts };
    assert_ne!(model.generate(cx, parameters, &visual, wrong, &options).unwrap(), written);

    let end = ids(&step.golden, "end")[0];
    let mut candidates = texts_of(&step.golden, "candidates");
    candidates.iter_mut().for_each(|ids| ids.push(end));
    let losses =
        |texts| model.mean_losses(cx, parameters, &visual, texts, &candidates).unwrap().concat();
    let wanted = step.golden.get("out.candidates");
    assert_close("candidates", &losses(texts), wanted, LOSS);
    assert_differs("candidates", &losses(wrong), wanted, LOSS);
}
