//! Compares whole VL-JEPA steps with Hugging Face transformers and torch's AdamW.

use std::collections::BTreeMap;

use vljepa_kernels::testing::{Comparison, assert_close, assert_differs};
use vljepa_kernels::{Device, KernelError, Packed, Tensor, View};
use vljepa_model::weights::Source;
use vljepa_model::{
    AdamW, Context, Gathered, Gradients, Group, InfoNce, Keep, Objective, ParameterId, Parameters,
    VlJepa,
};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, compare_gradients, load_on, relative, values};
use crate::{golden_text, golden_x_encoder};

/// Tolerance for embeddings. They have length 1 and elements up to 0.5, and come from models whose
/// outputs, up to 4, have errors of 1e-5.
const EMBEDDING: f32 = 5e-6;

/// Tolerance for logits, which are 14 times a sum of 48 products of such elements.
const LOGIT: f32 = 5e-5;

/// Tolerance for gradients, in units of a tensor's largest element. The softmax passes on the
/// logits' error of 5e-5.
const GRADIENT: f32 = 1e-4;

pub struct Step {
    golden: Golden,
    pub model: VlJepa,
    pub parameters: Parameters,
    pub frames: Tensor,
    pub query: Packed,
    pub target: Packed,
}

/// Results of one forward pass. Its backward pass writes the gradients.
pub struct Result {
    pub visual: Vec<f32>,
    pub predicted: Vec<f32>,
    pub target: Vec<f32>,
    pub loss: f64,
}

impl Step {
    fn open() -> Self {
        Self::on(Device::Host)
    }

    pub fn on(device: Device) -> Self {
        let golden = Golden::open("vljepa_step");
        let parts = ["vision", "predictor", "y_encoder"]
            .map(|key| Golden::open(golden.config[key].as_str().unwrap()));
        let [vision, predictor, y_encoder] = &parts;
        let recipe = schema::Model {
            image_size: vision.size("crop_size"),
            x_encoder: schema::XEncoder::Vjepa2(schema::VJepa2 {
                trainable: false,
                ..golden_x_encoder::recipe(vision)
            }),
            predictor: schema::Predictor {
                text_projection: golden.config["text_projection"] == true,
                train_embeddings: false,
                ..golden_text::llama_recipe(predictor)
            },
            y_encoder: schema::YEncoder::EmbeddingGemma(golden_text::gemma_recipe(y_encoder)),
            embed_dim: golden.shape("out.pred")[1],
            projection_bias: golden.config["bias"] == true,
            ..schema::Model::default()
        };
        let model = VlJepa::new(&recipe, &schema::Loss::default(), device).unwrap();
        let sources = [Source::VJepa2, Source::Llama, Source::Gemma];
        let files: Vec<_> = sources.into_iter().zip(parts.iter().map(Golden::weights)).collect();
        let mut parameters = load_on(device, &model, &files);
        for (id, name) in names(&model) {
            if let Some(values) = golden
                .names("in.")
                .contains(&name.as_str())
                .then(|| golden.get(&format!("in.{name}")))
            {
                let into = parameters.view_mut(model.layout(), id);
                let fill = |into: &mut [f32]| {
                    into.copy_from_slice(values);
                    Ok::<(), KernelError>(())
                };
                into.write_f32(fill).unwrap();
            }
        }
        parameters.refresh(&device.compute_stream()).unwrap();
        let frames = golden.frames("in.pixel_values_videos");
        let query = golden.packed("in.query_ids", "in.query_mask");
        let target = golden.packed("in.target_ids", "in.target_mask");
        Self { golden, model, parameters, frames, query, target }
    }

    fn info_nce(&self) -> InfoNce {
        match self.model.objective {
            Objective::InfoNce(info_nce) => info_nce,
            Objective::Distance(_) | Objective::VicReg(_) | Objective::SigReg(_) => {
                panic!("InfoNCE")
            }
        }
    }

    pub fn run(&self, cx: Context<'_>, gradients: &mut Gradients) -> Result {
        let (model, parameters) = (&self.model, &self.parameters);
        let visual =
            model.x_encoder.forward(cx, parameters, self.frames.view(), Keep::EVERYTHING).unwrap();
        assert!(visual.saved.is_none(), "a frozen encoder keeps nothing");
        let predicted = model
            .predictor
            .forward(cx, parameters, &visual, &self.query, Keep::EVERYTHING)
            .unwrap();
        let target =
            model.y_encoder.forward(cx, parameters, &self.target, Keep::EVERYTHING).unwrap();
        let info_nce = self.info_nce();
        let b = visual.rows;
        let gathered = Gathered {
            predicted: predicted.embedding.view(),
            target: target.embedding.view(),
            hashes: None,
            rows: 0..b,
        };
        let alpha = model.alpha(parameters).unwrap();
        let statistics = info_nce.statistics(cx, alpha, &gathered).unwrap();
        let loss = info_nce.loss(&statistics, b).unwrap();
        let (r, c) = (statistics.predicted_lse.view(), statistics.target_lse.view());
        let d = info_nce.backward(cx, alpha, &gathered, r, c, gradients).unwrap();
        let (d_target, d_predicted) = (d.target.view(), d.predicted.view());
        model
            .y_encoder
            .backward(cx, parameters, target.saved, d_target, gradients, &mut |_, _| {})
            .unwrap();
        let d_visual = model
            .predictor
            .backward(cx, parameters, predicted.saved, d_predicted, gradients, &mut |_, _| {})
            .unwrap();
        assert!(d_visual.is_none(), "a frozen encoder wants no gradient");
        Result {
            visual: values(&visual.tokens),
            predicted: values(&predicted.embedding),
            target: values(&target.embedding),
            loss,
        }
    }

    /// Splits a flat buffer of the trainable parameters into tensors with the golden file's names.
    pub fn by_name(&self, flat: &[f32]) -> BTreeMap<String, Vec<f32>> {
        let mut found = BTreeMap::new();
        let layout = self.model.layout();
        let of = |id: ParameterId, start: usize, len: usize| {
            let at = layout.get(id).range.start + start;
            flat[at..at + len].to_vec()
        };
        for (source, prefix) in [(Source::Llama, "predictor."), (Source::Gemma, "y_encoder.")] {
            for piece in source.pieces(&self.model) {
                if layout.get(piece.parameter).trainable {
                    let values = of(piece.parameter, piece.start, piece.elements());
                    found.insert(format!("{prefix}{}", piece.name), values);
                }
            }
        }
        for (id, name) in names(&self.model) {
            found.insert(name, of(id, 0, layout.get(id).range.len()));
        }
        found
    }
}

/// Returns the ids of the projections and of the scale with their names in the golden file.
fn names(model: &VlJepa) -> Vec<(ParameterId, String)> {
    let mut found = Vec::new();
    for (i, parameter) in model.layout().parameters.iter().enumerate() {
        let own = [Group::YProjection, Group::Projections, Group::LogitScale];
        if own.contains(&parameter.group) {
            let name = parameter
                .name
                .replace("projections.vision", "vis_proj")
                .replace("projections.text", "txt_proj")
                .replace("projections.predictor_head", "pred_head")
                .replace("projections.y_head", "y_head");
            found.push((ParameterId(i), name));
        }
    }
    found
}

#[test]
fn a_step_has_the_outputs_loss_and_gradients_of_torch() {
    let mut step = Step::open();
    let machine = Machine::new();
    let mut gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
    let got = step.run(machine.cx(), &mut gradients);
    assert_close("visual", &got.visual, step.golden.get("out.s_v"), 1e-5);
    assert_close("predicted", &got.predicted, step.golden.get("out.pred"), EMBEDDING);
    assert_close("target", &got.target, step.golden.get("out.target"), EMBEDDING);
    assert!((got.loss - step.golden.scalar("out.loss")).abs() < f64::from(LOGIT), "{}", got.loss);
    let alpha = step.model.alpha(&step.parameters).unwrap().value;
    let e = step.golden.shape("out.pred")[1];
    let logits: Vec<f32> = got
        .predicted
        .chunks_exact(e)
        .flat_map(|p| got.target.chunks_exact(e).map(move |t| (p, t)))
        .map(|(p, t)| alpha * p.iter().zip(t).map(|(a, b)| a * b).sum::<f32>())
        .collect();
    assert_close("logits", &logits, step.golden.get("out.logits"), LOGIT);

    let flat = values(&gradients.flat);
    let by_name = step.by_name(&flat);
    let found: Vec<&str> = by_name.keys().map(String::as_str).collect();
    assert_eq!(found, step.golden.names("grad."), "every gradient is compared");
    let (_, different) = compare_gradients(&by_name, &step.golden, "grad.", GRADIENT);
    assert!(different.is_empty(), "{different:#?}");

    // A wrong input must fail: the query ids in reverse order.
    let (ids, ends) = (step.query.ids(), step.query.lengths.host().to_vec());
    let mut ids = ids.host_i32("test", "ids").unwrap().to_vec();
    ids.reverse();
    step.query = Packed::new(Device::Host, ids, ends).unwrap();
    gradients.zero(&Device::Host.compute_stream()).unwrap();
    let wrong = step.run(machine.cx(), &mut gradients);
    assert_differs("predicted", &wrong.predicted, step.golden.get("out.pred"), EMBEDDING);
    let by_name = step.by_name(&values(&gradients.flat));
    let (_, different) = compare_gradients(&by_name, &step.golden, "grad.", GRADIENT);
    assert!(different.len() * 10 > by_name.len() * 9, "{} of {}", different.len(), by_name.len());
}

/// Compares (after − before) / learning rate of one parameter with torch. Returns the comparison
/// and the number of elements left out.
///
/// Adam's first updates are g/(|g| + eps). If |g| is as small as eps or as the error of g, the
/// update is noise, in torch too, so such elements are left out. The error of g is 1e-4 of a
/// tensor's largest element; after three steps it is twenty times as large, because the gradient
/// changes with the parameters.
fn compare_updates(
    step: &Step,
    [before, after]: [&[f32]; 2],
    name: &str,
    which: &str,
    tolerance: f32,
) -> (Comparison, usize) {
    let golden = &step.golden;
    let text = name.starts_with("y_encoder.");
    let rate = golden.number("lr") * if text { golden.number("y_lr_mult") } else { 1.0 };
    let gradient = golden.get(&format!("grad.{name}"));
    let largest = gradient.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let noise = if which == "after1" { 1e-4 } else { 2e-3 };
    let meant = |i: &usize| gradient[*i] == 0.0 || gradient[*i].abs() > (noise * largest).max(1e-6);
    let kept: Vec<usize> = (0..gradient.len()).filter(meant).collect();
    #[expect(clippy::cast_possible_truncation, reason = "compared as f32")]
    let update = |after: &[f32]| -> Vec<f32> {
        let difference = |&i: &usize| f64::from(after[i]) - f64::from(before[i]);
        kept.iter().map(|i| (difference(i) / rate) as f32).collect()
    };
    let want = update(golden.get(&format!("out.{which}.{name}")));
    (Comparison::new(&update(after), &want, tolerance), gradient.len() - kept.len())
}

#[test]
fn three_steps_of_adamw_are_torch_s() {
    let mut step = Step::open();
    let machine = Machine::new();
    let cx = machine.cx();
    let golden = &step.golden;
    let betas = [0, 1].map(|i| golden.config["betas"][i].as_f64().unwrap());
    #[expect(clippy::cast_possible_truncation, reason = "a recipe's numbers are f32")]
    let recipe = schema::Optimizer {
        betas: betas.map(|b| b as f32),
        eps: golden.number("eps") as f32,
        weight_decay: golden.number("wd") as f32,
        multipliers: BTreeMap::from([("y_encoder".to_owned(), golden.number("y_lr_mult"))]),
        ..schema::Optimizer::default()
    };
    let (rate, losses) = (golden.number("lr"), golden.get("out.losses").to_vec());
    let mut optimizer = AdamW::new(step.model.layout(), Device::Host, &recipe).unwrap();
    let mut gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
    let before = step.by_name(&values(&step.parameters.trainable));
    let control = View::from_f32(&[1.0, 1.0], &[2]);
    for (k, want) in losses.iter().enumerate() {
        gradients.zero(&Device::Host.compute_stream()).unwrap();
        let loss = step.run(cx, &mut gradients).loss;
        // The error of the logits, increased by three noisy updates.
        assert!((loss - f64::from(*want)).abs() < 3e-4, "loss {k}: {loss}, torch has {want}");
        if k == 3 {
            break;
        }
        optimizer.step(cx, &mut step.parameters, &gradients, control, rate).unwrap();
        let after = step.by_name(&values(&step.parameters.trainable));
        // After one step: a weight near 1 is rounded to 6e-8, which is 1.2e-4 of the text encoder's
        // rate of 5e-4, and there are two roundings. After three steps: the second and third
        // gradients are computed from parameters that differ by the updates of the noisy elements.
        let (which, tolerance) = match k {
            0 => ("after1", 3e-4),
            2 => ("after3", 2e-2),
            _ => continue,
        };
        let (mut left_out, mut all) = (0, 0);
        for (name, after) in &after {
            let before = &before[name];
            let (right, out) = compare_updates(&step, [before, after], name, which, tolerance);
            assert!(right.is_close(), "{which} {name}: {right}");
            let (idle, _) = compare_updates(&step, [before, before], name, which, tolerance);
            assert!(!idle.is_close(), "{which} {name}: an optimizer that does nothing passes");
            left_out += out;
            all += after.len();
        }
        assert!(left_out * 20 < all, "{left_out} of {all} elements left out");
    }
}

#[test]
fn updates_of_another_rate_or_without_decay_differ() {
    let changes: [fn(&mut schema::Optimizer); 3] =
        [|o| o.weight_decay = 0.0, |o| o.betas[1] = 0.999, |o| o.multipliers = BTreeMap::new()];
    for (i, change) in changes.into_iter().enumerate() {
        let mut step = Step::open();
        let machine = Machine::new();
        let mut recipe = schema::Optimizer { weight_decay: 0.1, ..schema::Optimizer::default() };
        change(&mut recipe);
        let mut optimizer = AdamW::new(step.model.layout(), Device::Host, &recipe).unwrap();
        let mut gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
        let before = values(&step.parameters.trainable);
        let control = View::from_f32(&[1.0, 1.0], &[2]);
        for _ in 0..3 {
            gradients.zero(&Device::Host.compute_stream()).unwrap();
            step.run(machine.cx(), &mut gradients);
            optimizer.step(machine.cx(), &mut step.parameters, &gradients, control, 1e-2).unwrap();
        }
        let name = "y_encoder.layers.0.mlp.down_proj.weight";
        let (before, after) =
            (step.by_name(&before), step.by_name(&values(&step.parameters.trainable)));
        let pair = [&before[name][..], &after[name][..]];
        let (wrong, _) = compare_updates(&step, pair, name, "after3", 2e-2);
        assert!(!wrong.is_close(), "change {i}: {wrong}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let mut step = Step::open();
    let machine = Machine::new();
    let recipe = schema::Optimizer::default();
    let mut optimizer = AdamW::new(step.model.layout(), Device::Host, &recipe).unwrap();
    let gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
    let before = values(&step.parameters.trainable);
    let control = View::from_f32(&[1.0, 0.0], &[2]);
    optimizer.step(machine.cx(), &mut step.parameters, &gradients, control, 1e-2).unwrap();
    assert_eq!(before, values(&step.parameters.trainable));
    let control = View::from_f32(&[1.0, 1.0], &[2]);
    optimizer.step(machine.cx(), &mut step.parameters, &gradients, control, 1e-2).unwrap();
    assert!(!relative(&values(&step.parameters.trainable), &before, 1e-7).is_close());
}
