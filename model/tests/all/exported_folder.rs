//! The folder that `export` writes for Python, against configurations and tensor names of
//! transformers in `tests/golden/transformers`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vljepa_kernels::Device;
use vljepa_model::{Parameters, VlJepa, transformers};
use vljepa_recipes::schema::{
    Clip, Loss, Model, Pe, PeText, Predictor, Qwen3Embedding, Siglip2, Sonar, VJepa2_1, XEncoder,
    YEncoder,
};

use crate::tiny;

/// Number of frames of a clip.
const FRAMES: usize = 4;

/// Tensors of `VJEPA2Model`'s own predictor, which an export does not have.
const MISSING: usize = 7;

/// Models with each family that transformers has, by the name of their golden folder.
fn cases() -> [(&'static str, Model); 3] {
    let (patch_size, hidden_size, num_layers, num_heads) = (8, 16, 2, 2);
    let clip = Clip { patch_size, hidden_size, num_layers, num_heads, ..Clip::default() };
    let siglip2 = Siglip2 { patch_size, hidden_size, num_layers, num_heads, ..Siglip2::default() };
    let (num_kv_heads, head_dim, vocab_size, intermediate_size) = (1, 8, 32, 24);
    let qwen3 = Qwen3Embedding { hidden_size, num_layers, num_heads, ..Qwen3Embedding::default() };
    let qwen3 = Qwen3Embedding { num_kv_heads, head_dim, vocab_size, intermediate_size, ..qwen3 };
    let sonar = Sonar { hidden_size, num_layers, num_heads, vocab_size, ..Sonar::default() };
    [
        ("vjepa2_gemma", tiny::model()),
        (
            "clip_qwen3",
            Model {
                x_encoder: XEncoder::Clip(Clip { intermediate_size, ..clip }),
                y_encoder: YEncoder::Qwen3Embedding(qwen3),
                ..tiny::model()
            },
        ),
        (
            "siglip2_sonar",
            Model {
                x_encoder: XEncoder::Siglip2(Siglip2 { intermediate_size, ..siglip2 }),
                y_encoder: YEncoder::Sonar(Sonar { intermediate_size, ..sonar }),
                ..tiny::model()
            },
        ),
    ]
}

fn golden(case: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/transformers");
    golden.join(case)
}

/// Exports the model of a recipe, and returns the names of the files.
fn export(recipe: &Model, folder: &Path) -> Vec<String> {
    let model = VlJepa::new(recipe, &Loss::default(), Device::Host).unwrap();
    let parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    transformers::export(&model, &parameters, FRAMES, folder).unwrap()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

/// Names and shapes of the tensors of a file.
fn tensors(path: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect()
}

/// Differences between an exported folder and a golden one.
fn differences(folder: &Path, golden: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for part in ["x_encoder", "predictor", "y_encoder"] {
        let name = format!("{part}/config.json");
        let same = json(&folder.join(&name)) == json(&golden.join(&name));
        wrong.extend((!same).then_some(name));
        let file = format!("{part}/model.safetensors");
        let found = tensors(&folder.join(&file));
        let wanted = json(&golden.join(part).join("tensors.json"));
        let mut wanted: BTreeMap<String, Vec<usize>> = serde_json::from_value(wanted).unwrap();
        let all = wanted.len();
        wanted.retain(|name, _| part != "x_encoder" || !name.starts_with("predictor."));
        assert!([0, MISSING].contains(&(all - wanted.len())));
        wrong.extend((found != wanted).then_some(file));
    }
    let name = "vl_jepa.json";
    let same = json(&folder.join(name)) == json(&golden.join(name));
    wrong.extend((!same).then(|| name.to_owned()));
    wrong
}

#[test]
fn exports_have_the_configurations_and_tensors_of_transformers() {
    for (case, recipe) in cases() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("exported").join(case);
        export(&recipe, &folder);
        let wrong = differences(&folder, &golden(case));
        let advice = "compare the folders; copy the json files if the change is right, and run \
                      tensors.py there";
        let (found, wanted) = (folder.display(), golden(case));
        assert!(wrong.is_empty(), "{wrong:?} of {found} and {}: {advice}", wanted.display());
    }
}

#[test]
fn an_export_of_another_model_differs_from_the_golden_folder() {
    let folder = tempfile::tempdir().unwrap();
    let other = tiny::model();
    let predictor = Predictor { layers: [0, 1], ..other.predictor.clone() };
    export(&Model { predictor, ..other }, folder.path());
    let wrong = differences(folder.path(), &golden("vjepa2_gemma"));
    assert_eq!(wrong, ["predictor/config.json", "predictor/model.safetensors"]);
}

#[test]
fn layers_of_the_predictor_are_counted_from_zero_and_read_again() {
    use vljepa_model::weights::{check, exported};
    let folder = tempfile::tempdir().unwrap();
    let later = Predictor { layers: [8, 10], ..tiny::model().predictor };
    let recipe = Model { predictor: later, ..tiny::model() };
    export(&recipe, folder.path());
    assert!(differences(folder.path(), &golden("vjepa2_gemma")).is_empty());
    let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
    for (source, path) in exported(&model, folder.path()) {
        check(&model, source, &path).unwrap();
    }
}

#[test]
fn an_export_that_transformers_cannot_run_says_why_and_has_no_configuration() {
    let tiny = tiny::model;
    let mut theta = tiny();
    tiny::vjepa2(&mut theta).rope_theta = 500.0;
    let x = |x_encoder| Model { x_encoder, ..tiny() };
    let y = |y_encoder| Model { y_encoder, ..tiny() };
    let eps = Sonar { layer_norm_eps: 1e-6, ..Sonar::default() };
    for (recipe, said) in [
        (x(XEncoder::Pe(Pe::default())), "PE-core's vision tower"),
        (x(XEncoder::Vjepa2_1(VJepa2_1::default())), "V-JEPA 2.1"),
        (y(YEncoder::PeText(PeText::default())), "PE-core's text tower"),
        (y(YEncoder::Sonar(eps)), "layer_norm_eps 0.000001"),
        (theta.clone(), "rope_theta 500"),
    ] {
        let reason = transformers::unsupported(&recipe).unwrap();
        assert!(reason.contains(said), "{reason}");
    }
    assert!(cases().iter().all(|(_, recipe)| transformers::unsupported(recipe).is_none()));
    let folder = tempfile::tempdir().unwrap();
    let files = export(&theta, folder.path());
    assert!(!files.contains(&"x_encoder/config.json".to_owned()), "{files:?}");
    assert!(files.contains(&"y_encoder/config.json".to_owned()), "{files:?}");
    assert!(json(&folder.path().join("vl_jepa.json"))["unsupported"].is_string());
}

#[test]
fn tokenizers_are_copied_with_the_greatest_number_of_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = folder.path().join("words.json");
    std::fs::write(&tokenizer, "{}").unwrap();
    let mut recipe = tiny::model();
    recipe.predictor.tokenizer = Some(tokenizer);
    recipe.predictor.max_query_tokens = 77;
    let out = folder.path().join("out");
    let files = export(&recipe, &out);
    assert_eq!(json(&out.join("predictor/tokenizer.json")), json!({}));
    let config = json(&out.join("predictor/tokenizer_config.json"));
    assert_eq!(config["model_max_length"], 77);
    assert!(!files.contains(&"y_encoder/tokenizer.json".to_owned()), "the recipe names none");
    let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
    let parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    std::fs::remove_file(folder.path().join("words.json")).unwrap();
    let error = transformers::export(&model, &parameters, FRAMES, &out).unwrap_err();
    assert!(error.to_string().contains("words.json"), "{error}");
}
