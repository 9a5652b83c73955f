//! Counts, order, alignment and initial values of the parameters; sizes that are refused.

use std::collections::BTreeSet;

use vljepa_kernels::Device;
use vljepa_model::{AdamW, Group, Parameters, VlJepa};
use vljepa_recipes::cost::parameters;
use vljepa_recipes::schema::{
    Clip, ClipSize, ClipText, ClipTextSize, Loss, Model, Optimizer, Pe, PeSize, PeText, PeTextSize,
    Qwen3Embedding, Siglip2, Siglip2Size, Siglip2Text, Siglip2TextSize, Sonar, Update, VJepa2,
    VJepa2_1, VJepa2_1Size, VJepa2Size, XEncoder, YEncoder,
};

use crate::tiny;

fn published() -> VlJepa {
    VlJepa::new(&Model::default(), &Loss::default(), Device::Host).unwrap()
}

#[test]
fn the_paper_s_model_has_the_published_numbers_of_parameters() {
    let model = published();
    let layout = model.layout();
    let under = |prefix: &str| layout.count(|p| p.name.starts_with(prefix));
    // The encoder of facebook/vjepa2-vitl-fpc64-256.
    assert_eq!(under("x_encoder."), 303_885_312);
    // Eight layers of meta-llama/Llama-3.2-1B, and its token embeddings.
    assert_eq!(under("predictor.layers."), 486_572_032);
    assert_eq!(under("predictor.embedding."), 262_668_288);
    // google/embeddinggemma-300m, without its Dense layers.
    assert_eq!(under("y_encoder."), 302_863_104);
    assert_eq!(under("projections.y_head."), 1_181_184);
    // The predictor's "490M trainable parameters" (paper §3.1): layers, norm, vision projection,
    // head.
    let trained = |name: &str| {
        let projections = ["projections.vision.", "projections.predictor_head."];
        name.starts_with("predictor.") || projections.iter().any(|p| name.starts_with(p))
    };
    assert_eq!(layout.count(|p| p.trainable && trained(&p.name)), 491_820_544);
    assert_eq!(layout.count(|p| !p.trainable), 303_885_312 + 262_668_288);
}

#[test]
fn trainable_parameters_lie_aligned_in_the_order_backward_completes_them() {
    let model = published();
    let mut end = 0;
    let mut groups = Vec::new();
    for parameter in model.layout().parameters.iter().filter(|p| p.trainable) {
        assert_eq!(parameter.range.start % 64, 0, "{}", parameter.name);
        assert!(parameter.range.start >= end, "{}", parameter.name);
        assert!(parameter.range.start < end + 64, "no holes");
        end = parameter.range.end;
        let part = parameter.name.split('.').next().unwrap().to_owned();
        if groups.last() != Some(&part) && part != "projections" {
            groups.push(part);
        }
        assert_eq!(
            parameter.decay,
            parameter.shape.len() > 1 && parameter.group != Group::LogitScale
        );
    }
    assert_eq!(groups, ["logit_scale", "y_encoder", "predictor"]);
    assert_eq!(model.layout().trainable_len, end.next_multiple_of(64));
    let names: BTreeSet<&str> = model.layout().parameters.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names.len(), model.layout().parameters.len());
}

#[test]
fn first_weights_depend_on_seed_and_name_only() {
    let draw = |change: fn(&mut Model), seed| {
        let mut recipe = tiny::model();
        change(&mut recipe);
        let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        parameters.initialise(model.layout(), seed).unwrap();
        let id = model.predictor.text.stack.blocks[0].mlp.up.weight.id();
        parameters.view(model.layout(), id).host_f32("test", "weights").unwrap().to_vec()
    };
    let first = draw(|_| (), 1);
    assert_eq!(first, draw(|m| tiny::vjepa2(m).num_layers = 1, 1));
    assert_eq!(first, draw(|m| crate::gemma(m).update = Update::Frozen, 1));
    assert_ne!(first, draw(|_| (), 2));
}

#[test]
fn a_multiplier_of_an_unknown_group_is_refused() {
    let model = VlJepa::new(&tiny::model(), &Loss::default(), Device::Host).unwrap();
    let mut recipe = Optimizer::default();
    assert!(AdamW::new(model.layout(), Device::Host, &recipe).is_ok());
    recipe.multipliers.insert("y_encodr".to_owned(), 0.05);
    let error = AdamW::new(model.layout(), Device::Host, &recipe).unwrap_err().to_string();
    assert!(error.contains("y_encodr") && error.contains("y_encoder"), "{error}");
}

#[test]
fn the_y_projection_learns_at_the_rate_of_the_projections_unless_it_has_its_own() {
    let rate = |multipliers: &[(&str, f64)]| {
        let multipliers = multipliers.iter().map(|(name, factor)| ((*name).to_owned(), *factor));
        Group::YProjection.multiplier(&multipliers.collect())
    };
    assert_eq!(rate(&[("y_encoder", 0.05)]).to_bits(), 1f64.to_bits());
    assert_eq!(rate(&[("projections", 0.5)]).to_bits(), 0.5f64.to_bits());
    let both = [("projections", 0.5), ("y_projection", 0.05)];
    assert_eq!(rate(&both).to_bits(), 0.05f64.to_bits());
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_key() {
    type Change = (fn(&mut Model), &'static str);
    let changes: [Change; 5] = [
        (|m| tiny::vjepa2(m).num_heads = 0, "model.x_encoder.num_heads"),
        (|m| tiny::vjepa2(m).num_heads = 3, "model.x_encoder.hidden_size"),
        (|m| m.image_size = 33, "model.image_size"),
        (|m| m.predictor.num_kv_heads = 3, "model.predictor.num_kv_heads"),
        (|m| crate::gemma(m).full_attention_every = 0, "model.y_encoder.full_attention_every"),
    ];
    for (change, key) in changes {
        let mut recipe = tiny::model();
        change(&mut recipe);
        let error = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap_err().to_string();
        assert!(error.starts_with(key), "{key}: {error}");
    }
}

#[test]
fn x_encoders_of_all_families_have_as_many_parameters_as_are_planned() {
    for (x_encoder, image_size) in [
        (XEncoder::Vjepa2(VJepa2::of_size(VJepa2Size::VitG384)), 384),
        (XEncoder::Vjepa2_1(VJepa2_1::of_size(VJepa2_1Size::VitB)), 384),
        (XEncoder::Vjepa2_1(VJepa2_1::of_size(VJepa2_1Size::VitGigantic)), 384),
        (XEncoder::Pe(Pe::of_size(PeSize::L14)), 336),
        (XEncoder::Pe(Pe::of_size(PeSize::G14)), 448),
        (XEncoder::Siglip2(Siglip2::of_size(Siglip2Size::So400m16)), 256),
        (XEncoder::Clip(Clip::of_size(ClipSize::B32)), 224),
    ] {
        let recipe = Model { x_encoder, image_size, ..Model::default() };
        let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
        let count = model.layout().count(|p| p.name.starts_with("x_encoder."));
        assert_eq!(count, parameters(&recipe).x_encoder, "{:?}", recipe.x_encoder);
    }
}

#[test]
fn y_encoders_of_all_families_have_as_many_parameters_as_are_planned() {
    for y_encoder in [
        YEncoder::Qwen3Embedding(Qwen3Embedding::default()),
        YEncoder::Sonar(Sonar::default()),
        YEncoder::PeText(PeText::of_size(PeTextSize::B16)),
        YEncoder::PeText(PeText::of_size(PeTextSize::G14)),
        YEncoder::ClipText(ClipText::of_size(ClipTextSize::B16)),
        YEncoder::Siglip2Text(Siglip2Text::of_size(Siglip2TextSize::GOpt16)),
    ] {
        let recipe = Model { y_encoder, ..Model::default() };
        let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
        let (layout, planned) = (model.layout(), parameters(&recipe));
        let count = layout.count(|p| p.name.starts_with("y_encoder."));
        assert_eq!(count, planned.y_encoder(), "{:?}", recipe.y_encoder);
        let head = layout.count(|p| p.name.starts_with("projections.y_head."));
        assert_eq!(head, planned.y_head, "{:?}", recipe.y_encoder);
        let trained = layout.count(|p| p.trainable);
        assert_eq!(trained, planned.trainable, "{:?}", recipe.y_encoder);
    }
}
