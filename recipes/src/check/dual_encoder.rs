//! Rules for `model.kind: dual_encoder`.

use super::Problems;
use crate::schema::{
    Evaluation, Loss, Model, Optimizer, Predictor, Projection, Recipe, Task, TaskKind, Update,
};

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    trained(recipe, found);
    encoders(&recipe.model, found);
    evaluation(&recipe.evaluation, found);
}

/// Reports keys that only a model with training has. A resolved recipe writes their defaults.
fn trained(recipe: &Recipe, found: &mut Problems) {
    let defaults = Model::default();
    for (key, is_given, why) in [
        (
            "model.predictor",
            recipe.model.predictor != Predictor::default(),
            "a dual encoder has no predictor",
        ),
        (
            "model.projection_bias",
            recipe.model.projection_bias != defaults.projection_bias,
            "a dual encoder has no projections of ours",
        ),
        (
            "init",
            recipe.init.is_some(),
            "a dual encoder's weights are those that its encoders name",
        ),
        ("loss", recipe.loss != Loss::default(), "a dual encoder is not trained"),
        ("stages", !recipe.stages.is_empty(), "a dual encoder is not trained"),
        ("optimizer", recipe.optimizer != Optimizer::default(), "a dual encoder is not trained"),
    ] {
        if is_given {
            found.add(key, why, "remove it");
        }
    }
}

fn encoders(model: &Model, found: &mut Problems) {
    if model.y_encoder.projection() != Projection::None {
        let help = "remove it: a dual encoder's default is `none`";
        found.add("model.y_encoder.projection", "a dual encoder has its own embedding only", help);
    }
    if model.y_encoder.update() != Update::Frozen {
        let help = "remove it: a dual encoder's default is `frozen`";
        found.add("model.y_encoder.update", "a dual encoder is not trained", help);
    }
}

fn evaluation(evaluation: &Evaluation, found: &mut Problems) {
    if evaluation.tasks.is_empty() {
        let help = "add a task: a run of a dual encoder measures them and does nothing else";
        found.add("evaluation.tasks", "is empty", help);
    }
    for (index, Task { kind, query, .. }) in evaluation.tasks.iter().enumerate() {
        let key = format!("evaluation.tasks.{index}");
        if !query.is_empty() {
            found.add(format!("{key}.query"), "a dual encoder reads no queries", "remove it");
        }
        match kind {
            TaskKind::QuestionAnswering { .. } => {
                let help = "measure classification, retrieval or triplets";
                found.add(format!("{key}.kind"), "a dual encoder reads no questions", help);
            }
            TaskKind::Classification { .. } | TaskKind::Retrieval | TaskKind::Triplets => {}
        }
    }
}
