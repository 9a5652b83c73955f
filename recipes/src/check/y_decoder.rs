//! Rules for models of `kind: y_decoder`, and for the keys that only they have.

use super::model::{heads_divide, query_groups, rope_scaling};
use super::{Problems, training};
use crate::schema::{
    EmbeddingSource, LossKind, Model, ModelKind, Projection, Recipe, Search, Stage, TaskKind,
    YDecoder, YEncoder,
};

/// Reports missing keys of a recipe that trains a Y-decoder or only measures one.
pub(super) fn needed(recipe: &Recipe, found: &mut Problems) {
    if recipe.init.is_none() && !learns_from_texts(recipe) {
        let what = "is null, but a Y-decoder decodes the embeddings of a trained VL-JEPA";
        found.add("init", what, "write `init: {run: DIRECTORY}`");
    }
    let Some(decoder) = recipe.model.decoder() else { return };
    if decoder.trainable() {
        training::needed(recipe, found);
        return;
    }
    length(recipe, decoder, found);
    if !recipe.stages.is_empty() {
        let help = "write `stages: []`: the run measures `evaluation.tasks`";
        found.add("stages", "SONAR's decoder is not trained", help);
    }
}

/// Whether only texts and a published Y-encoder are needed: nothing is predicted.
fn learns_from_texts(recipe: &Recipe) -> bool {
    let y = &recipe.model.y_encoder;
    let embeds = y.weights().is_some() && y.projection() == Projection::None;
    let of_targets = |stage: &Stage| match stage.decoding.unwrap_or_default().embeddings {
        EmbeddingSource::Targets => true,
        EmbeddingSource::Predictions => false,
    };
    embeds && recipe.evaluation.tasks.is_empty() && recipe.stages.iter().all(of_targets)
}

/// Reports missing keys of the Y-decoder of a VL-JEPA, which is frozen.
pub(super) fn behind(recipe: &Recipe, found: &mut Problems) {
    let Some(decoder) = recipe.model.decoder() else { return };
    if decoder.weights().is_none() {
        let what = "is null, but a model of `kind: vl_jepa` does not train its Y-decoder";
        let help = "name the file that `vljepa-launch export` wrote of a run of `kind: y_decoder`, \
                    or SONAR's";
        found.add("model.y_decoder.weights", what, help);
    }
    length(recipe, decoder, found);
}

/// Reports a loss whose predictions have another length than the decoder was trained with.
fn length(recipe: &Recipe, decoder: &YDecoder, found: &mut Problems) {
    match (decoder, recipe.loss.kind) {
        (YDecoder::Sonar(_), LossKind::InfoNce | LossKind::Cosine) => {
            let what = "gives embeddings length one, but SONAR's decoder reads their own length";
            let help = "train VL-JEPA with `loss: {kind: l2}`, and name the same loss here";
            found.add("loss.kind", what, help);
        }
        (YDecoder::Llama(_), _)
        | (_, LossKind::L1 | LossKind::L2 | LossKind::VicReg | LossKind::SigReg) => {}
    }
}

/// Reports keys that only a model with a Y-decoder has.
pub(super) fn unused(recipe: &Recipe, found: &mut Problems) {
    let (what, help) = ("only a model with a Y-decoder has it", "write `model.kind: y_decoder`");
    match recipe.model.kind {
        ModelKind::YDecoder => return,
        ModelKind::VlJepa => {}
        ModelKind::DualEncoder | ModelKind::Vlm => {
            if recipe.model.y_decoder.is_some() {
                found.add("model.y_decoder", what, help);
            }
        }
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        if stage.decoding.is_some() {
            let what = "only a model that trains a Y-decoder has it";
            found.add(format!("stages.{index}.decoding"), what, help);
        }
    }
    let writes = recipe.model.decoder().is_some() || recipe.model.vlm().is_some();
    for (index, task) in recipe.evaluation.tasks.iter().enumerate() {
        let (kind, what) = match task.kind {
            TaskKind::Captioning { .. } if !writes => {
                ("captioning", "only a model with a Y-decoder and a VLM write captions")
            }
            TaskKind::SelectiveDecoding(_) if !writes => {
                ("selective_decoding", "only a model with a Y-decoder decodes texts of embeddings")
            }
            TaskKind::Captioning { .. }
            | TaskKind::SelectiveDecoding(_)
            | TaskKind::Classification { .. }
            | TaskKind::Retrieval
            | TaskKind::QuestionAnswering { .. }
            | TaskKind::Triplets
            | TaskKind::WorldPrediction => continue,
        };
        let help = "name a trained decoder in `model.y_decoder`, or remove the task";
        found.add(format!("evaluation.tasks.{index}.kind.{kind}"), what, help);
    }
}

/// Reports stages whose noise is no length.
pub(super) fn stages(recipe: &Recipe, found: &mut Problems) {
    for (index, stage) in recipe.stages.iter().enumerate() {
        let noise = stage.decoding.unwrap_or_default().noise;
        if !(noise.is_finite() && noise >= 0.0) {
            let key = format!("stages.{index}.decoding.noise");
            found.add(key, format!("is {noise}"), "give it 0 or more");
        }
    }
}

/// Reports sizes of the decoder of which no model can be built.
pub(super) fn sizes(model: &Model, found: &mut Problems) {
    const PART: &str = "model.y_decoder";
    let Some(decoder) = model.decoder() else {
        if model.kind == ModelKind::YDecoder {
            found.add(PART, "is null", "remove it: the default of this kind is `{family: llama}`");
        }
        return;
    };
    found.positive(PART, &[("vocab_size", decoder.vocab_size())]);
    search(PART, decoder.search(), found);
    match decoder {
        YDecoder::Llama(d) => {
            found.positive(
                PART,
                &[
                    ("prefix_tokens", d.prefix_tokens),
                    ("hidden_size", d.hidden_size),
                    ("num_layers", d.num_layers),
                    ("num_heads", d.num_heads),
                    ("num_kv_heads", d.num_kv_heads),
                    ("head_dim", d.head_dim),
                    ("intermediate_size", d.intermediate_size),
                ],
            );
            let positive = [("rms_norm_eps", d.rms_norm_eps.into()), ("rope_theta", d.rope_theta)];
            found.above_zero(PART, &positive);
            query_groups(PART, [d.num_heads, d.num_kv_heads, d.head_dim], found);
            rope_scaling(PART, d.rope_scaling.as_ref(), found);
            at_least(PART, d.max_tokens, 2, "a word and the end of the text", found);
        }
        YDecoder::Sonar(d) => {
            found.positive(
                PART,
                &[
                    ("num_layers", d.num_layers),
                    ("num_heads", d.num_heads),
                    ("intermediate_size", d.intermediate_size),
                ],
            );
            found.above_zero(PART, &[("layer_norm_eps", d.layer_norm_eps.into())]);
            heads_divide(PART, d.hidden_size, d.num_heads, found);
            if d.hidden_size < 4 || !d.hidden_size.is_multiple_of(2) {
                let what =
                    format!("{} elements cannot hold the sinusoids of positions", d.hidden_size);
                found.add("model.y_decoder.hidden_size", what, "use an even number of at least 4");
            }
            at_least(PART, d.max_tokens, 4, "start, language, a word and the end", found);
            sonar_space(model, d.hidden_size, found);
        }
    }
}

/// Reports encoders whose embeddings SONAR's decoder was not trained to decode.
fn sonar_space(model: &Model, width: usize, found: &mut Problems) {
    let y = &model.y_encoder;
    if !matches!(y, YEncoder::Sonar(_)) || y.projection() != Projection::None {
        let what = "SONAR's decoder decodes the embeddings of SONAR's encoder only";
        let help = "write `model.y_encoder: {family: sonar, projection: none}`, or choose `llama`";
        found.add("model.y_decoder.family", what, help);
    } else if width != model.embed_dim {
        let what = format!("{width} is not the embedding's {} elements", model.embed_dim);
        found.add("model.y_decoder.hidden_size", what, format!("write {}", model.embed_dim));
    }
}

fn at_least(part: &str, tokens: usize, least: usize, of: &str, found: &mut Problems) {
    if tokens < least {
        let what = format!("{tokens} tokens have no room for {of}");
        found.add(format!("{part}.max_tokens"), what, format!("give it at least {least}"));
    }
}

/// Reports a search that is none.
pub(super) fn search(part: &str, search: Search, found: &mut Problems) {
    match search {
        Search::Greedy => {}
        Search::Beam { width, length_penalty } => {
            if width < 2 {
                let what = format!("{width} beams are no search");
                let help = "give it at least 2, or write `search: greedy`";
                found.add(format!("{part}.search.beam.width"), what, help);
            }
            if !length_penalty.is_finite() {
                let key = format!("{part}.search.beam.length_penalty");
                found.add(key, format!("is {length_penalty}"), "give it a number such as 1");
            }
        }
        Search::Sample { temperature } => {
            let part = format!("{part}.search.sample");
            found.above_zero(&part, &[("temperature", temperature.into())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::load;

    /// Problems of the quickstart's decoder with these `--set` flags.
    fn problems(sets: &[&str]) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart_decoder.yaml");
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        match load(&path, &sets) {
            Ok(_) => String::new(),
            Err(error) => format!("{:?}", miette::Report::new(error)),
        }
    }

    /// The first task as one of selective decoding.
    fn selective(keys: &str) -> String {
        format!("evaluation.tasks.0.kind={{selective_decoding: {{{keys}}}}}")
    }

    #[test]
    fn what_a_decoder_cannot_be_is_refused_by_key() {
        assert_eq!(problems(&[]), "");
        assert_eq!(problems(&[&selective("")]), "");
        let sonar = "model.y_decoder={family: sonar}";
        for (sets, said) in [
            (&["init=null"][..], "init: is null"),
            (&["stages=[]"], "stages: is empty"),
            (&["model.y_decoder=null"], "model.y_decoder: is null"),
            (&["model.y_decoder.num_kv_heads=3"], "model.y_decoder.num_kv_heads: 4 query heads"),
            (&["model.y_decoder.head_dim=15"], "model.y_decoder.head_dim: 15 is odd"),
            (&["model.y_decoder.prefix_tokens=0"], "model.y_decoder.prefix_tokens: is 0"),
            (&["model.y_decoder.max_tokens=1"], "model.y_decoder.max_tokens: 1 tokens have no"),
            (&["model.y_decoder.search={sample: {temperature: 0}}"], "temperature: is 0"),
            (&["model.y_decoder.search={beam: {width: 1, length_penalty: 1}}"], "width: 1 beams"),
            (&["stages.0.decoding.noise=-1"], "stages.0.decoding.noise: is -1"),
            (&["evaluation.tasks.0.kind={captioning: {names: []}}"], "captioning: has neither"),
            (
                &["evaluation.tasks.0.kind={captioning: {references: ['']}}"],
                "references.0: is empty",
            ),
            (&[&selective("window_s: 0")], "selective_decoding.window_s: is 0"),
            (&[&selective("stride_s: 2")], "frequencies.0: is 2 decodes per second, but there is"),
            (&[&selective("frequencies: []")], "selective_decoding.frequencies: is empty"),
            (&[&selective("frequencies: [1, -1]")], "selective_decoding.frequencies.1: is -1"),
            (&[&selective("frequencies: [1, 1]")], "1 is not below the frequency before it"),
            (&[&selective("compare_at: 0.7")], "compare_at: 0.7 is none of the `frequencies`"),
            (&[&selective("window: 1")], "window"),
            (&[&selective(""), "evaluation.tasks.0.parts=[a]"], "parts: only questions"),
            (&[sonar], "stages: SONAR's decoder is not trained"),
            (&[sonar], "loss.kind: gives embeddings length one"),
            (&[sonar], "model.y_decoder.family: SONAR's decoder decodes the embeddings of SONAR"),
        ] {
            let found = problems(sets).replace("\n  │ ", " ");
            assert!(found.contains(said), "{sets:?}: `{said}` is not in {found}");
        }
    }

    #[test]
    fn only_a_model_with_a_decoder_has_its_keys() {
        let plain = ["model.kind=vl_jepa", "model.y_decoder=null"];
        for (sets, keys) in [
            // A VL-JEPA does not train its decoder.
            (&plain[..1], &["model.y_decoder.weights: is null", "stages.0.decoding: only"][..]),
            (&plain, &["stages.0.decoding: only", "tasks.0.kind.captioning: only a model"]),
            (
                &[plain[0], plain[1], &selective("")],
                &["tasks.0.kind.selective_decoding: only a model with a Y-decoder"],
            ),
        ] {
            let found = problems(sets);
            for key in keys {
                assert!(found.contains(key), "{sets:?}: `{key}` is not in {found}");
            }
        }
        let behind = ["model.kind=vl_jepa", "model.y_decoder.weights=decoder.safetensors"];
        let no_decoding = ["stages.0.decoding=null", "stages.1.decoding=null"];
        assert_eq!(problems(&[behind, no_decoding].concat()), "");
    }

    #[test]
    fn a_decoder_that_learns_from_texts_needs_no_vl_jepa() {
        let texts = [
            "init=null",
            "loss.kind=l2",
            "loss.mask_equal_targets=false",
            "model.y_encoder.update=frozen",
            "model.y_encoder.projection=none",
            "model.y_encoder.weights=text.safetensors",
            "evaluation.tasks=[]",
            "stages.1.decoding.embeddings=targets",
        ];
        assert_eq!(problems(&texts), "");
        // Without one of the last three, something is predicted, or there is nothing to embed with.
        for last in 5..texts.len() {
            let sets = [&texts[..last], &texts[last + 1..]].concat();
            assert!(problems(&sets).contains("init: is null"), "without {}", texts[last]);
        }
    }
}
