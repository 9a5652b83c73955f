//! Rules for `model.kind: dual_encoder`.

use super::{Problem, Problems};
use crate::schema::{
    Evaluation, Loss, Model, Optimizer, Pe, Predictor, Projection, Recipe, Task, TaskKind, Update,
    XEncoder, YEncoder,
};

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    trained(recipe, found);
    found.list.extend(pair(&recipe.model));
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
        (
            "checkpoints.keep_best",
            recipe.checkpoints.keep_best.is_some(),
            "a dual encoder has no checkpoints",
        ),
        ("optimizer", recipe.optimizer != Optimizer::default(), "a dual encoder is not trained"),
    ] {
        if is_given {
            found.add(key, why, "remove it");
        }
    }
}

/// Returns the problems that keep the encoders of a model from being a dual encoder. A recipe's
/// [`check`](super::check) and the dual encoder itself apply the same rules.
#[must_use]
pub fn pair(model: &Model) -> Vec<Problem> {
    let mut found = Problems::default();
    frozen(model, &mut found);
    families(model, &mut found);
    of_tokens(model, &mut found);
    found.list
}

/// Reports encoders that were not trained together.
fn families(model: &Model, found: &mut Problems) {
    let (x, y) = (&model.x_encoder, &model.y_encoder);
    let (own, fits) = match x {
        XEncoder::Clip(_) | XEncoder::ClipResnet(_) => {
            ("clip_text", matches!(y, YEncoder::ClipText(_)))
        }
        XEncoder::Siglip2(_) => ("siglip2_text", matches!(y, YEncoder::Siglip2Text(_))),
        XEncoder::Pe(_) => ("pe_text", matches!(y, YEncoder::PeText(_))),
        XEncoder::Vjepa2(_) | XEncoder::Vjepa2_1(_) => {
            let help = "write `clip`, `clip_resnet`, `siglip2` or `pe`";
            found.add("model.x_encoder.family", "was not trained with a text encoder", help);
            return;
        }
    };
    if !fits {
        let what = "was not trained with this X-encoder";
        found.add("model.y_encoder.family", what, format!("write `{own}`"));
    }
    let (width, output) = (x.sizes().hidden_size, y.sizes().output_size);
    if matches!(x, XEncoder::Siglip2(_)) && fits && width != output {
        let what = format!("{output} elements are not the {width} of the X-encoder's embedding");
        let help = format!("write {width}, or the same `size` for both encoders");
        found.add("model.y_encoder.output_size", what, help);
    }
    const HEADS: usize = Pe::POOLING_HEADS;
    if matches!(x, XEncoder::Pe(_)) && !width.is_multiple_of(HEADS) {
        let what =
            format!("{width} is not divisible by the {HEADS} heads of the attention pooling");
        found.add("model.x_encoder.hidden_size", what, format!("use a multiple of {HEADS}"));
    }
}

/// Reports keys of visual tokens, which a dual encoder does not have.
fn of_tokens(model: &Model, found: &mut Problems) {
    let (pool, final_norm) = match &model.x_encoder {
        XEncoder::Clip(x) => (x.pool, !x.final_norm),
        XEncoder::Siglip2(x) => (x.pool, true),
        XEncoder::Pe(x) => (x.pool, x.final_norm),
        XEncoder::Vjepa2(_) | XEncoder::Vjepa2_1(_) | XEncoder::ClipResnet(_) => return,
    };
    let what = "is a key of visual tokens, which a dual encoder does not have";
    if pool != 1 {
        found.add("model.x_encoder.pool", what, "remove it");
    }
    if !final_norm {
        found.add("model.x_encoder.final_norm", what, "remove it");
    }
}

fn frozen(model: &Model, found: &mut Problems) {
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
            TaskKind::Classification { .. }
            | TaskKind::Retrieval
            | TaskKind::Triplets
            | TaskKind::WorldPrediction
            | TaskKind::Captioning { .. }
            | TaskKind::SelectiveDecoding(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pair;
    use crate::schema::{
        Clip, ClipResnet, ClipText, Model, Pe, PeText, Projection, Siglip2, Siglip2Size,
        Siglip2Text, Update, XEncoder, YEncoder,
    };

    fn clip_text() -> YEncoder {
        let (projection, update) = (Projection::None, Update::Frozen);
        YEncoder::ClipText(ClipText { projection, update, ..ClipText::default() })
    }

    fn siglip2_text() -> YEncoder {
        let projection = Projection::None;
        YEncoder::Siglip2Text(Siglip2Text { projection, ..Siglip2Text::default() })
    }

    fn pe_text() -> YEncoder {
        let (projection, update) = (Projection::None, Update::Frozen);
        YEncoder::PeText(PeText { projection, update, ..PeText::default() })
    }

    fn keys(x_encoder: XEncoder, y_encoder: YEncoder) -> Vec<String> {
        let problems = pair(&Model { x_encoder, y_encoder, ..Model::default() });
        problems.into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn only_towers_that_were_trained_together_are_a_pair() {
        let towers = [
            (XEncoder::Clip(Clip::default()), clip_text()),
            (XEncoder::Siglip2(Siglip2::default()), siglip2_text()),
            (XEncoder::Pe(Pe::default()), pe_text()),
        ];
        for (i, (x, _)) in towers.iter().enumerate() {
            for (j, (_, y)) in towers.iter().enumerate() {
                let wrong = if i == j { vec![] } else { vec!["model.y_encoder.family"] };
                assert_eq!(keys(x.clone(), y.clone()), wrong);
            }
        }
        assert_eq!(keys(XEncoder::default(), clip_text()), ["model.x_encoder.family"]);
        // The text towers of CLIP's vision transformers and of its ResNet are one family.
        let resnet = || XEncoder::ClipResnet(ClipResnet::default());
        assert_eq!(keys(resnet(), clip_text()), Vec::<String>::new());
        assert_eq!(keys(resnet(), pe_text()), ["model.y_encoder.family"]);
    }

    #[test]
    fn a_pair_has_one_width_no_projection_and_no_keys_of_tokens() {
        let other = XEncoder::Siglip2(Siglip2::of_size(Siglip2Size::B16));
        assert_eq!(keys(other, siglip2_text()), ["model.y_encoder.output_size"]);
        let odd = XEncoder::Pe(Pe { hidden_size: 36, ..Pe::default() });
        assert_eq!(keys(odd, pe_text()), ["model.x_encoder.hidden_size"]);
        let tokens = XEncoder::Clip(Clip { pool: 2, final_norm: true, ..Clip::default() });
        let wrong = ["model.x_encoder.pool", "model.x_encoder.final_norm"];
        assert_eq!(keys(tokens, clip_text()), wrong);
        let trained = YEncoder::PeText(PeText::default());
        let wrong = ["model.y_encoder.projection", "model.y_encoder.update"];
        assert_eq!(keys(XEncoder::Pe(Pe::default()), trained), wrong);
    }
}
