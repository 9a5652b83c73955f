//! Rules for models of `kind: vlm`, and for the keys that only they have.

use super::model::{query_groups, rope_scaling};
use super::{Problems, training, y_decoder};
use crate::schema::{
    Control, Init, LanguageModel, Loss, Model, ModelKind, Predictor, Recipe, TEXT, TaskKind,
    YEncoder,
};

const PART: &str = "model.language_model";

/// Reports what a VLM's recipe lacks, and keys that have no meaning for it. A resolved recipe
/// writes their defaults.
pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    training::needed(recipe, found);
    let defaults = Model::default();
    let model = &recipe.model;
    for (key, is_given, why) in [
        (
            "model.predictor",
            model.predictor != Predictor::default(),
            "a VLM has a language model instead of a predictor",
        ),
        (
            "model.y_encoder",
            model.y_encoder != YEncoder::default(),
            "a VLM has a language model instead of a Y-encoder",
        ),
        (
            "model.embed_dim",
            model.embed_dim != defaults.embed_dim,
            "a VLM predicts tokens, and has no shared embedding",
        ),
        (
            "model.projection_bias",
            model.projection_bias != defaults.projection_bias,
            "the two maps of a VLM's projector have biases, as PLM's",
        ),
        ("loss", recipe.loss != Loss::default(), "a VLM's loss is the cross-entropy of tokens"),
    ] {
        if is_given {
            found.add(key, why, "remove it");
        }
    }
    match &recipe.init {
        None | Some(Init::Run(_)) => {}
        Some(init @ (Init::Export(_) | Init::Weights(_))) => {
            found.add(init.key(), "a VLM is not exported", "write `init: {run: DIRECTORY}`");
        }
    }
    tasks(recipe, found);
}

/// Reports tasks that need embeddings, which a VLM does not have.
fn tasks(recipe: &Recipe, found: &mut Problems) {
    for (index, task) in recipe.evaluation.tasks.iter().enumerate() {
        let key = format!("evaluation.tasks.{index}");
        match task.kind {
            TaskKind::Retrieval
            | TaskKind::Triplets
            | TaskKind::WorldPrediction
            | TaskKind::SelectiveDecoding(_) => {
                let what = "compares embeddings, and a VLM predicts tokens";
                let help = "measure classification, question answering or captioning";
                found.add(format!("{key}.kind"), what, help);
            }
            TaskKind::Classification { .. }
            | TaskKind::QuestionAnswering { .. }
            | TaskKind::Captioning { .. } => {}
        }
        match task.control {
            Control::None | Control::SingleFrame | Control::Reversed => {}
            Control::Collapsed => {
                let what = "gives all samples the same embedding, and a VLM predicts tokens";
                found.add(format!("{key}.control"), what, "remove it, or use another control");
            }
        }
    }
}

/// Reports keys that only a VLM has.
pub(super) fn unused(recipe: &Recipe, found: &mut Problems) {
    if recipe.model.kind != ModelKind::Vlm && recipe.model.language_model.is_some() {
        found.add(PART, "only a VLM has it", "write `model.kind: vlm`");
    }
}

/// Reports sizes of the language model of which no model can be built, and templates that do not
/// say where question and answer go.
pub(super) fn sizes(model: &Model, found: &mut Problems) {
    if model.kind != ModelKind::Vlm {
        return;
    }
    let Some(l) = model.vlm() else {
        found.add(PART, "is null", "remove it: the default of this kind is `{family: llama}`");
        return;
    };
    found.positive(
        PART,
        &[
            ("hidden_size", l.hidden_size),
            ("num_layers", l.num_layers),
            ("num_heads", l.num_heads),
            ("num_kv_heads", l.num_kv_heads),
            ("head_dim", l.head_dim),
            ("intermediate_size", l.intermediate_size),
            ("vocab_size", l.vocab_size),
            ("max_question_tokens", l.max_question_tokens),
            ("max_answer_tokens", l.max_answer_tokens),
        ],
    );
    found
        .above_zero(PART, &[("rms_norm_eps", l.rms_norm_eps.into()), ("rope_theta", l.rope_theta)]);
    query_groups(PART, [l.num_heads, l.num_kv_heads, l.head_dim], found);
    rope_scaling(PART, l.rope_scaling.as_ref(), found);
    y_decoder::search(PART, l.search, found);
    if let Some(trained) = l.trained_layers.filter(|trained| *trained > l.num_layers) {
        let what = format!("{trained} layers are more than the {} of the model", l.num_layers);
        found.add(format!("{PART}.trained_layers"), what, "write `null` to train all");
    }
    template(l, found);
}

fn template(l: &LanguageModel, found: &mut Problems) {
    let texts = l.template.texts();
    let key = |which: &str| format!("{PART}.template.custom.{which}");
    let count = |text: &str| text.matches(TEXT).count();
    if count(&texts.before) > 0 {
        let what = format!("has `{TEXT}`, but neither question nor answer goes there");
        found.add(key("before"), what, "remove it");
    }
    if count(&texts.question) > 1 {
        let what = format!("has several `{TEXT}`, where the question goes");
        found.add(key("question"), what, "write it once, or leave it out to read no question");
    }
    if count(&texts.answer) != 1 {
        let what = format!("has {} times `{TEXT}`, where the answer goes", count(&texts.answer));
        found.add(key("answer"), what, "write it once: `{}<|end_of_text|>`");
    } else if texts.answer.ends_with(TEXT) {
        let what = "ends with the answer, so that nothing tells where an answer ends";
        found.add(key("answer"), what, "write a token after it: `{}<|end_of_text|>`");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::load;

    /// Problems of the baseline with these `--set` flags.
    fn problems(sets: &[&str]) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vlm_baseline.yaml");
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        match load(&path, &sets) {
            Ok(_) => String::new(),
            Err(error) => format!("{:?}", miette::Report::new(error)),
        }
    }

    #[test]
    fn what_a_vlm_cannot_be_is_refused_by_key() {
        assert_eq!(problems(&[]), "");
        let texts = |text: &str| format!("model.language_model.template={{custom: {{{text}}}}}");
        let template = [
            "before: '{}', question: '', answer: '{}.'",
            "before: '', question: '{}{}', answer: '{}.'",
            "before: '', question: '', answer: 'x'",
            "before: '', question: '', answer: 'x {}'",
        ]
        .map(texts);
        let task = "evaluation.tasks=[{name: a, shards: a.tar, kind: retrieval}]";
        let stream = "evaluation.tasks=[{name: a, shards: a.tar, kind: {selective_decoding: {}}}]";
        for (set, said) in [
            ("stages=[]", "stages: is empty"),
            ("model.language_model=null", "model.language_model: is null"),
            ("model.language_model.num_kv_heads=3", "num_kv_heads: 32 query heads"),
            ("model.language_model.trained_layers=17", "trained_layers: 17 layers are more"),
            ("model.language_model.search={sample: {temperature: 0}}", "temperature: is 0"),
            ("model.embed_dim=64", "model.embed_dim: a VLM predicts tokens"),
            ("model.predictor.hidden_size=64", "model.predictor: a VLM has a language model"),
            ("model.y_encoder.prompt=x", "model.y_encoder: a VLM has a language model"),
            ("loss.kind=l2", "loss: a VLM's loss is the cross-entropy"),
            ("init={export: x}", "init.export: a VLM is not exported"),
            (task, "evaluation.tasks.0.kind: compares embeddings"),
            (stream, "evaluation.tasks.0.kind: compares embeddings"),
            (&template[0], "before: has `{}`"),
            (&template[1], "question: has several `{}`"),
            (&template[2], "answer: has 0 times"),
            (&template[3], "answer: ends with the answer"),
        ] {
            let found = problems(&[set]).replace("\n  │ ", " ");
            assert!(found.contains(said), "{set}: `{said}` is not in {found}");
        }
    }

    #[test]
    fn only_a_vlm_has_a_language_model_of_its_own() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
        let error = load(&path, &["model.language_model={}".to_owned()]).unwrap_err();
        let error = format!("{:?}", miette::Report::new(error));
        assert!(error.contains("model.language_model: only a VLM has it"), "{error}");
    }
}
