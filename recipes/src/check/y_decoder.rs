//! Rules for models of `kind: y_decoder`, and for the keys that only they have.

use super::model::{heads_divide, query_groups, rope_scaling};
use super::{Problems, training};
use crate::schema::{
    LossKind, Model, ModelKind, Projection, Recipe, Search, TaskKind, YDecoder, YEncoder,
};

/// Reports missing keys of a Y-decoder's recipe.
pub(super) fn needed(recipe: &Recipe, found: &mut Problems) {
    if recipe.init.is_none() {
        let what = "is null, but a Y-decoder decodes the embeddings of a trained VL-JEPA";
        found.add("init", what, "write `init: {run: DIRECTORY}`");
    }
    let Some(decoder) = recipe.model.decoder() else { return };
    if decoder.trainable() {
        training::needed(recipe, found);
        return;
    }
    match recipe.loss.kind {
        LossKind::InfoNce | LossKind::Cosine => {
            let what = "gives embeddings length one, but SONAR's decoder reads their own length";
            let help = "train VL-JEPA with `loss: {kind: l2}`, and name the same loss here";
            found.add("loss.kind", what, help);
        }
        LossKind::L1 | LossKind::L2 | LossKind::VicReg | LossKind::SigReg => {}
    }
    if !recipe.stages.is_empty() {
        let help = "write `stages: []`: the run measures `evaluation.tasks`";
        found.add("stages", "SONAR's decoder is not trained", help);
    }
}

/// Reports keys that only a Y-decoder has.
pub(super) fn unused(recipe: &Recipe, found: &mut Problems) {
    if recipe.model.kind == ModelKind::YDecoder {
        return;
    }
    let (what, help) = ("only a model with a Y-decoder has it", "write `model.kind: y_decoder`");
    if recipe.model.y_decoder.is_some() {
        found.add("model.y_decoder", what, help);
    }
    for (index, stage) in recipe.stages.iter().enumerate() {
        if stage.decoding.is_some() {
            found.add(format!("stages.{index}.decoding"), what, help);
        }
    }
    let writes = recipe.model.kind == ModelKind::Vlm;
    for (index, task) in recipe.evaluation.tasks.iter().enumerate() {
        if matches!(task.kind, TaskKind::Captioning { .. }) && !writes {
            let what = "only a model with a Y-decoder and a VLM write captions";
            found.add(format!("evaluation.tasks.{index}.kind.captioning"), what, help);
        }
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
    if model.kind != ModelKind::YDecoder {
        return;
    }
    let Some(decoder) = model.decoder() else {
        found.add(PART, "is null", "remove it: the default of this kind is `{family: llama}`");
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

    #[test]
    fn what_a_decoder_cannot_be_is_refused_by_key() {
        assert_eq!(problems(&[]), "");
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
            (&["evaluation.tasks.0.kind={captioning: {names: []}}"], "names: is empty"),
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
        let found = problems(&["model.kind=vl_jepa"]);
        for key in [
            "model.y_decoder: only a model with a Y-decoder",
            "stages.0.decoding: only a model",
            "evaluation.tasks.0.kind.captioning: only a model",
        ] {
            assert!(found.contains(key), "`{key}` is not in {found}");
        }
    }
}
