//! Forward and backward pass of a small model over a ragged batch: recompute, memory, completed
//! gradients.

use vljepa_kernels::testing::{bytes, indices, normal};
use vljepa_kernels::{Arena, Device, Packed, Stream, Tensor, View};
use vljepa_model::loss::{EmbeddingGradients, RegularisedShare};
use vljepa_model::{
    Context, Gathered, Gradients, Keep, Objective, OnReady, ParameterId, Parameters, Recompute,
    VlJepa,
};
use vljepa_recipes::schema::{Initialisation, Loss, LossKind, Model, Projection, Update};

use crate::tiny;

pub struct Step {
    pub model: VlJepa,
    pub parameters: Parameters,
    frames: Tensor,
    query: Packed,
    target: Packed,
    hashes: [u64; 3],
    stream: Stream,
    arena: Arena,
}

impl Step {
    /// Three rows: clips of two frames, queries of three, zero and one tokens, targets of two, five
    /// and two tokens.
    pub fn new(recipe: &Model, loss: &Loss) -> Self {
        let recipe = Model { initialisation: Initialisation::FanIn, ..recipe.clone() };
        let model = VlJepa::new(&recipe, loss, Device::Host).unwrap();
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        parameters.initialise(model.layout(), 3).unwrap();
        // Move norms and biases away from one and zero, which would hide mistakes.
        for (seed, buffer) in [(5, &mut parameters.trainable), (6, &mut parameters.frozen)] {
            let values = buffer.view_mut().host_f32_mut("test", "weights").unwrap();
            let noise = normal(seed, values.len());
            values.iter_mut().zip(noise).for_each(|(v, n)| *v += 0.1 * n);
        }
        let side = recipe.image_size;
        let shape = [3, 2, side, side, 3];
        Self {
            frames: Tensor::from_u8(bytes(7, shape.iter().product()), &shape),
            query: Packed::new(Device::Host, indices(8, 4, 32), vec![0, 3, 3, 4]).unwrap(),
            target: Packed::new(Device::Host, indices(9, 9, 32), vec![0, 2, 7, 9]).unwrap(),
            hashes: [1, 2, 1],
            model,
            parameters,
            stream: Stream::Host,
            arena: Arena::new(Device::Host, usize::MAX),
        }
    }

    pub fn tiny(kind: LossKind, mask_equal_targets: bool) -> Self {
        Self::new(&tiny::model(), &Loss { kind, mask_equal_targets, ..Loss::default() })
    }

    pub fn cx(&self) -> Context<'_> {
        Context { stream: &self.stream, arena: &self.arena }
    }

    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Predicted and target embeddings of a forward pass that keeps nothing.
    pub fn embeddings(&self) -> (Tensor, Tensor) {
        let (model, parameters, cx) = (&self.model, &self.parameters, self.cx());
        let visual =
            model.x_encoder.forward(cx, parameters, self.frames.view(), Keep::Nothing).unwrap();
        let predicted =
            model.predictor.forward(cx, parameters, &visual, &self.query, Keep::Nothing).unwrap();
        let target = model.y_encoder.forward(cx, parameters, &self.target, Keep::Nothing).unwrap();
        assert!(visual.saved.is_none() && predicted.saved.is_none() && target.saved.is_none());
        (predicted.embedding, target.embedding)
    }

    fn gathered<'a>(&'a self, predicted: &'a Tensor, target: &'a Tensor) -> Gathered<'a> {
        let hashes = Some(View::from_u64(&self.hashes, &[3]));
        Gathered { predicted: predicted.view(), target: target.view(), hashes, rows: 0..3 }
    }

    pub fn loss(&self) -> f64 {
        let (predicted, target) = self.embeddings();
        match self.model.objective {
            Objective::InfoNce(info_nce) => {
                let gathered = self.gathered(&predicted, &target);
                let alpha = self.model.alpha(&self.parameters).unwrap();
                let statistics = info_nce.statistics(self.cx(), alpha, &gathered).unwrap();
                info_nce.loss(&statistics, 3).unwrap()
            }
            Objective::Distance(distance) => {
                distance.loss(self.cx(), predicted.view(), target.view(), 3).unwrap()
            }
            Objective::VicReg(_) | Objective::SigReg(_) => {
                self.regularised([predicted.view(), target.view()]).0.read().unwrap()
            }
        }
    }

    /// Loss and gradients of an objective with a regulariser.
    fn regularised(&self, embeddings: [View<'_>; 2]) -> (RegularisedShare, EmbeddingGradients) {
        let (cx, e) = (self.cx(), embeddings[0].shape()[1]);
        match self.model.objective {
            Objective::VicReg(loss) => {
                let sums = loss.sums(cx, embeddings).unwrap();
                let moments = loss.moments(cx, embeddings, sums.view(), 3).unwrap();
                loss.backward(cx, embeddings, &moments, 3).unwrap()
            }
            Objective::SigReg(loss) => {
                let directions = loss.directions(cx, 5, e).unwrap();
                let mut projected = loss.project(cx, embeddings, directions).unwrap();
                loss.backward(cx, embeddings, &mut projected, 3).unwrap()
            }
            Objective::InfoNce(_) | Objective::Distance(_) => panic!("no regulariser"),
        }
    }

    /// Forward and backward pass. Returns the predicted and target embeddings, and adds to
    /// `gradients`.
    pub fn backward(&self, gradients: &mut Gradients, keep: Keep) -> (Vec<f32>, Vec<f32>) {
        self.backward_with(gradients, keep, &mut |_, _| {})
    }

    fn backward_with(
        &self,
        gradients: &mut Gradients,
        keep: Keep,
        on_ready: &mut OnReady<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (model, parameters, cx) = (&self.model, &self.parameters, self.cx());
        let mut visual = model.x_encoder.forward(cx, parameters, self.frames.view(), keep).unwrap();
        let predicted =
            model.predictor.forward(cx, parameters, &visual, &self.query, keep).unwrap();
        let trained = model.trained_y_encoder();
        let target = trained.forward(cx, parameters, &self.target, keep).unwrap();
        let d = match model.objective {
            Objective::InfoNce(info_nce) => {
                let gathered = self.gathered(&predicted.embedding, &target.embedding);
                let alpha = model.alpha(parameters).unwrap();
                let statistics = info_nce.statistics(cx, alpha, &gathered).unwrap();
                let (r, c) = (statistics.predicted_lse.view(), statistics.target_lse.view());
                info_nce.backward(cx, alpha, &gathered, r, c, gradients).unwrap()
            }
            Objective::Distance(distance) => {
                let (p, t) = (predicted.embedding.view(), target.embedding.view());
                distance.backward(cx, p, t, 3).unwrap()
            }
            Objective::VicReg(_) | Objective::SigReg(_) => {
                self.regularised([predicted.embedding.view(), target.embedding.view()]).1
            }
        };
        let (d_target, d_predicted) = (d.target.view(), d.predicted.view());
        model
            .trained_y_encoder()
            .backward(cx, parameters, target.saved, d_target, gradients, on_ready)
            .unwrap();
        let saved = predicted.saved;
        let d_visual = model
            .predictor
            .backward(cx, parameters, saved, d_predicted, gradients, on_ready)
            .unwrap();
        assert_eq!(d_visual.is_some(), model.x_encoder.trainable);
        if let Some(d_visual) = d_visual {
            let (saved, d) = (visual.saved.take(), d_visual);
            model.x_encoder.backward(cx, parameters, saved, d, gradients, on_ready).unwrap();
        }
        let read = |t: &Tensor| t.to_f32().unwrap().into_owned();
        (read(&predicted.embedding), read(&target.embedding))
    }

    pub fn gradients(&self) -> Gradients {
        let mut gradients = Gradients::new(self.model.layout(), Device::Host).unwrap();
        self.backward(&mut gradients, Keep::EVERYTHING);
        gradients
    }
}

#[test]
fn forward_again_gives_the_same_bits_whether_it_keeps_or_not() {
    let step = Step::tiny(LossKind::InfoNce, false);
    let mut gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
    let (predicted, target) = step.backward(&mut gradients, Keep::EVERYTHING);
    // GradCache embeds without keeping state, then runs forward again for backward. Both passes
    // must agree bit for bit.
    for _ in 0..2 {
        let (p, t) = step.embeddings();
        assert_eq!(*p.to_f32().unwrap(), predicted);
        assert_eq!(*t.to_f32().unwrap(), target);
    }
    let again = step.gradients();
    let read = |g: &Gradients| g.flat.to_f32().unwrap().into_owned();
    assert_eq!(read(&gradients), read(&again));
    assert!(read(&again).iter().any(|v| *v != 0.0));
}

#[test]
fn gradients_do_not_change_after_they_were_announced_and_all_are_announced() {
    for (kind, frozen) in
        [(LossKind::InfoNce, false), (LossKind::InfoNce, true), (LossKind::L2, false)]
    {
        let step = Step::tiny(kind, frozen);
        let mut gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
        let mut announced: Vec<(usize, Vec<f32>)> = Vec::new();
        let mut on_ready = |gradients: &mut Gradients, end: usize| {
            announced.push((end, gradients.flat.view().part(0, &[end]).to_f32().unwrap().to_vec()));
        };
        step.backward_with(&mut gradients, Keep::EVERYTHING, &mut on_ready);
        let last = gradients.flat.to_f32().unwrap();
        for (end, then) in &announced {
            assert_eq!(then[..], last[..*end], "announced up to {end} of {}", last.len());
        }
        let ends: Vec<usize> = announced.iter().map(|(end, _)| *end).collect();
        assert!(ends.is_sorted(), "{ends:?}");
        assert_eq!(ends.last(), Some(&last.len()), "{ends:?}");
        // At least the two predictor blocks and the end of each part are announced. Gradients that
        // are announced late could not be reduced early.
        assert!(ends[0] * 2 < last.len() && ends.len() >= 4, "{ends:?} of {}", last.len());
    }
}

#[test]
fn what_is_computed_again_gives_the_same_bits_in_less_memory() {
    let outcome = |recompute| {
        let step = Step::tiny(LossKind::InfoNce, false);
        let mut gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
        step.backward(&mut gradients, Keep::Needed(recompute));
        (gradients.flat.to_f32().unwrap().into_owned(), step.arena().held_bytes())
    };
    let (everything, most) = outcome(Recompute::None);
    let (without_mlps, less) = outcome(Recompute::Mlp);
    let (inputs, least) = outcome(Recompute::Block);
    assert_eq!(everything, without_mlps);
    assert_eq!(everything, inputs);
    assert!(everything.iter().any(|v| *v != 0.0));
    assert!(most > less && less > least, "{most} {less} {least}");
}

#[test]
fn a_second_step_takes_no_more_memory_than_the_first() {
    let step = Step::tiny(LossKind::InfoNce, false);
    step.gradients();
    let held = step.arena().held_bytes();
    for _ in 0..3 {
        step.gradients();
    }
    assert_eq!(step.arena().held_bytes(), held);
}

#[test]
fn backward_without_kept_state_is_an_error() {
    let step = Step::tiny(LossKind::InfoNce, false);
    let mut gradients = Gradients::new(step.model.layout(), Device::Host).unwrap();
    let d = [0.0; 36];
    let d = View::from_f32(&d, &[3, 12]);
    let result = step.model.predictor.backward(
        step.cx(),
        &step.parameters,
        None,
        d,
        &mut gradients,
        &mut |_, _| {},
    );
    assert!(result.unwrap_err().to_string().contains("predictor"));
}

#[test]
fn the_recipe_decides_whether_the_y_side_trains_its_encoder_and_its_projection() {
    for (update, projection, kind) in [
        (Update::Train, Projection::Linear, LossKind::InfoNce),
        (Update::Train, Projection::None, LossKind::InfoNce),
        (Update::Frozen, Projection::Linear, LossKind::InfoNce),
        (Update::Frozen, Projection::None, LossKind::L2),
        (Update::Ema { decay: 0.9 }, Projection::Linear, LossKind::L2),
    ] {
        let mut recipe = tiny::model();
        let keys = crate::gemma(&mut recipe);
        (keys.update, keys.projection) = (update, projection);
        if projection == Projection::None {
            recipe.embed_dim = 16;
        }
        let step = Step::new(&recipe, &Loss { kind, ..Loss::default() });
        let layout = step.model.layout();
        let gradients = step.gradients();
        let learns = |name: &str| {
            let index = layout.parameters.iter().position(|p| p.name == name)?;
            let parameter = &layout.parameters[index];
            Some(
                parameter.trainable && {
                    let d = gradients.view(layout, ParameterId(index));
                    d.host_f32("test", "gradient").unwrap().iter().any(|v| *v != 0.0)
                },
            )
        };
        let trained = update == Update::Train;
        for name in ["layers.0.mlp.down.weight", "dense_2.weight", "norm.weight"] {
            let under = |copy: &str| learns(&format!("{copy}.{name}"));
            // The average lies in the buffer of the trained parameters, and gets no gradient.
            assert_eq!(under("y_encoder"), Some(trained), "{name}");
            assert_eq!(under("y_trained"), update.averages().then_some(true), "{name}");
        }
        let head = (projection == Projection::Linear).then_some(!update.averages());
        assert_eq!(learns("projections.y_head.weight"), head);
        assert_eq!(learns("projections.predictor_head.weight"), Some(true));
    }
}

#[test]
fn every_family_averages_all_weights_of_its_text_encoder() {
    let towers = ["pe_text", "clip_text", "siglip2_text"];
    for family in ["embedding_gemma", "qwen3_embedding", "sonar"].into_iter().chain(towers) {
        let y_encoder = serde_json::json!({
            "family": family, "hidden_size": 16, "num_layers": 1, "num_heads": 8,
            "intermediate_size": 24, "vocab_size": 32, "update": {"ema": {"decay": 0.9}},
        });
        let y_encoder = serde_json::from_value(y_encoder).unwrap();
        let recipe = Model { y_encoder, ..tiny::model() };
        let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
        let parameters = &model.layout().parameters;
        let under = |copy: &str| -> Vec<_> {
            let own = parameters.iter().filter(|p| p.name.starts_with(copy));
            own.map(|p| (p.name[copy.len()..].to_owned(), p.shape.clone(), p.trainable)).collect()
        };
        let (average, trained) = (under("y_encoder."), under("y_trained."));
        assert!(average.len() >= 10 && average.iter().all(|p| p.2), "{family}");
        let head = |p: &&(String, Vec<usize>, bool)| !p.0.starts_with("head.");
        assert_eq!(trained.iter().filter(head).cloned().collect::<Vec<_>>(), average, "{family}");
    }
}

#[test]
fn without_a_projection_the_shared_embedding_has_the_width_of_the_encoder() {
    let mut recipe = tiny::model();
    crate::gemma(&mut recipe).projection = Projection::None;
    let build = |recipe: &Model| VlJepa::new(recipe, &Loss::default(), Device::Host);
    let error = build(&recipe).unwrap_err().to_string();
    assert!(error.contains("model.embed_dim") && error.contains("16 elements"), "{error}");
    recipe.embed_dim = 16;
    assert!(build(&recipe).is_ok());
}
