//! Published sizes, the change of a family, and keys of earlier recipes.

use std::fs;
use std::path::Path;

use crate::load::mistakes::GOOD;
use crate::schema::{
    ClipText, ClipTextSize, EmbeddingGemma, Interpolation, PeText, PeTextSize, Preprocessing,
    Qwen3Embedding, Qwen3EmbeddingSize, Sonar, Transform, Update, XEncoder, YEncoder,
};
use crate::{Loaded, load};

fn load_with(text: &str, sets: &[&str]) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.yaml");
    fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    load(&path, &sets).map_err(miette::Report::new).unwrap()
}

/// The paper's recipe on the host, which computes heads of any width.
fn pretrain(sets: &[&str]) -> Loaded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pretrain.yaml");
    let host = ["device=host", "precision=f32"];
    let sets: Vec<String> = host.iter().chain(sets).map(|set| (*set).to_owned()).collect();
    load(&path, &sets).map_err(miette::Report::new).unwrap()
}

#[test]
fn a_size_gives_the_keys_that_a_recipe_leaves_out() {
    let model = pretrain(&["model.x_encoder.size=vit_g_384"]).recipe.model;
    let XEncoder::Vjepa2(x) = &model.x_encoder else { panic!("another family") };
    assert_eq!((x.hidden_size, x.num_layers, x.num_heads), (1408, 40, 22));
    assert_eq!(model.image_size, 384);
    let own = ["model.x_encoder={size: vit_g_384, num_layers: 3}", "model.image_size=128"];
    let model = pretrain(&own).recipe.model;
    let XEncoder::Vjepa2(x) = &model.x_encoder else { panic!("another family") };
    assert_eq!((x.hidden_size, x.num_layers, model.image_size), (1408, 3, 128));

    let predictor = pretrain(&["model.predictor.size=3b"]).recipe.model.predictor;
    assert_eq!((predictor.hidden_size, predictor.layers), (3072, [14, 28]));
}

#[test]
fn text_encoders_of_all_families_fill_the_paper_s_recipe() {
    let family = |family: &str, more: &[&str]| {
        let first = format!("model.y_encoder.family={family}");
        let sets: Vec<&str> = [&[first.as_str()], more].concat();
        pretrain(&sets).recipe.model
    };
    assert_eq!(family("sonar", &[]).y_encoder, YEncoder::Sonar(Sonar::default()));
    let large = family("pe_text", &["model.y_encoder.size=g14"]).y_encoder;
    assert_eq!(large, YEncoder::PeText(PeText::of_size(PeTextSize::G14)));
    assert_eq!(large.max_target_tokens(), 72);
    let base = family("clip_text", &["model.y_encoder.size=b16"]).y_encoder;
    assert_eq!(base, YEncoder::ClipText(ClipText::of_size(ClipTextSize::B16)));
    let none = ["model.y_encoder.size=g_opt16", "model.y_encoder.projection=none"];
    let giant = family("siglip2_text", &none);
    assert_eq!((giant.embed_dim, giant.y_encoder.sizes().hidden_size), (1536, 1152));
    assert_eq!(giant.y_encoder.update(), Update::Frozen);
    // Without a projection, the shared embedding has the width of `text_projection`.
    let none = ["model.y_encoder.size=g14", "model.y_encoder.projection=none"];
    assert_eq!(family("pe_text", &none).embed_dim, 1280);
    assert_eq!(family("sonar", &none[1..]).embed_dim, 1024);
}

#[test]
fn another_family_leaves_the_files_and_sizes_of_the_one_before() {
    let before = pretrain(&["model.y_encoder.update=frozen"]);
    assert!(before.recipe.model.y_encoder.tokenizer().is_some());
    assert_eq!(before.warnings, Vec::<String>::new());

    let sets = ["model.y_encoder.update=frozen", "model.y_encoder.family=qwen3_embedding"];
    let loaded = pretrain(&sets);
    let expected = Qwen3Embedding { update: Update::Frozen, ..Qwen3Embedding::default() };
    assert_eq!(loaded.recipe.model.y_encoder, YEncoder::Qwen3Embedding(expected));
    let [removed, missing] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
    assert!(removed.starts_with("model.y_encoder:") && removed.ends_with("tokenizer, weights"));
    assert!(missing.starts_with("model.y_encoder.tokenizer is not set"), "{missing}");

    // The order of the flags does not matter.
    let family = "model.y_encoder.family=qwen3_embedding";
    let own = ["model.y_encoder.tokenizer=own.json", "model.y_encoder.size=4b"];
    for sets in [[family, own[0], own[1]], [own[0], own[1], family]] {
        let YEncoder::Qwen3Embedding(found) = pretrain(&sets).recipe.model.y_encoder else {
            panic!("another family")
        };
        assert_eq!(found.tokenizer.as_deref(), Some(Path::new("own.json")));
        let expected = Qwen3Embedding::of_size(Qwen3EmbeddingSize::B4);
        assert_eq!(found, Qwen3Embedding { tokenizer: found.tokenizer.clone(), ..expected });
    }

    // The family or size that a recipe has already changes nothing.
    let same = ["model.y_encoder.family=embedding_gemma", "model.x_encoder.size=vit_l"];
    let loaded = pretrain(&same);
    assert_eq!(loaded.recipe.model, pretrain(&[]).recipe.model);
    assert_eq!(loaded.hash, pretrain(&[]).hash);
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn an_extending_recipe_may_choose_another_family() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let sizes = "hidden_size: 64\n    num_layers: 2\n    weights: gemma.safetensors\n    tokenizer";
    write(
        "gemma.yaml",
        &GOOD.replace("  y_encoder:\n    tokenizer", &format!("  y_encoder:\n    {sizes}")),
    );
    write("qwen.yaml", "extends: gemma.yaml\nmodel: {y_encoder: {family: qwen3_embedding}}\n");
    let last =
        "extends: qwen.yaml\nmodel: {y_encoder: {family: embedding_gemma, tokenizer: t.json}}\n";
    let found = load(&write("last.yaml", last), &[]).unwrap();
    let expected = EmbeddingGemma { tokenizer: Some("t.json".into()), ..Default::default() };
    assert_eq!(found.recipe.model.y_encoder, YEncoder::EmbeddingGemma(expected));
    assert!(found.warnings[0].ends_with("hidden_size, num_layers, weights, tokenizer"));
}

#[test]
fn the_first_names_of_the_layers_load_and_keep_their_hash() {
    let layers = |sets: &[&str]| load_with(GOOD, sets);
    let (p, n, f) =
        ("model.predictor.layers", "model.predictor.num_layers", "model.predictor.first_layer");
    let old = layers(&[&format!("{n}=3")]);
    assert_eq!(old.recipe.model.predictor.layers, [8, 11]);
    let both = layers(&[&format!("{n}=3"), &format!("{f}=0")]);
    let new = layers(&[&format!("{p}=[0, 3]")]);
    assert_eq!(new.recipe.model.predictor.layers, [0, 3]);
    assert_eq!(both.hash, new.hash);
    assert_ne!(old.hash, new.hash);
    assert_eq!(layers(&[&format!("{p}=[8, 16]")]).hash, layers(&[]).hash);
}

#[test]
fn the_first_name_of_the_update_loads_and_keeps_its_hash() {
    let load = |set: &str| load_with(GOOD, &[&format!("model.y_encoder.{set}")]);
    assert_eq!(load("trainable=false").recipe.model.y_encoder.update(), Update::Frozen);
    assert_eq!(load("trainable=false").hash, load("update=frozen").hash);
    assert_eq!(load("trainable=true").hash, load_with(GOOD, &[]).hash);
    assert_ne!(load("update=frozen").hash, load_with(GOOD, &[]).hash);
}

#[test]
fn without_a_projection_the_shared_embedding_is_as_wide_as_that_of_the_text_encoder() {
    let width = |sets: &[&str]| load_with(GOOD, sets).recipe.model.embed_dim;
    let none = "model.y_encoder.projection=none";
    assert_eq!([width(&[]), width(&[none])], [1536, 768]);
    assert_eq!(width(&[none, "model.y_encoder.family=qwen3_embedding"]), 1024);
    assert_eq!(width(&[none, "model.embed_dim=768"]), 768);
}

#[test]
fn a_stage_of_images_repeats_them_as_often_as_the_encoder_needs() {
    let frames = |sets: &[&str]| pretrain(sets).recipe.stages[0].frames;
    assert_eq!(frames(&[]), 2);
    for family in ["vjepa2_1", "clip", "siglip2", "pe"] {
        assert_eq!(frames(&[&format!("model.x_encoder.family={family}")]), 1, "{family}");
    }
    assert_eq!(frames(&["stages.0.frames=4"]), 4);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pretrain.yaml");
    let clips = ["stages.0.mixture={datacomp: 1, action100m: 1}".to_owned()];
    let error = format!("{:?}", miette::Report::new(load(&path, &clips).unwrap_err()));
    assert!(error.contains("frames"), "{error}");
}

#[test]
fn sources_are_preprocessed_as_the_encoder_s_family_was_unless_they_say_otherwise() {
    let transforms = |sets: &[&str]| {
        let loaded = pretrain(sets);
        let of = |name: &str| loaded.recipe.data.sources[name].transform;
        (of("datacomp"), of("action100m"), loaded.recipe.model.x_encoder.preprocessing())
    };
    let vjepa = Preprocessing::default();
    let own = Transform::RandomResizedCrop;
    assert_eq!(transforms(&[]), (own, Transform::ResizeCenterCrop, vjepa));
    let (transform, interpolation) = (Transform::CenterCrop, Interpolation::Bicubic);
    let clip = Preprocessing { transform, interpolation };
    assert_eq!(transforms(&["model.x_encoder.family=clip"]), (own, transform, clip));
    let squashed = Preprocessing { transform: Transform::Squash, ..vjepa };
    for set in ["family=siglip2", "family=pe", "transform=squash"] {
        let found = transforms(&[&format!("model.x_encoder.{set}")]);
        assert_eq!(found, (own, Transform::Squash, squashed), "{set}");
    }
    let whole = "data.sources.action100m.transform=squash";
    assert_eq!(transforms(&[whole]), (own, Transform::Squash, vjepa));
    // A default that is written changes no hash.
    let written = "data.sources.action100m.transform=resize_center_crop";
    assert_eq!(pretrain(&[written]).hash, pretrain(&[]).hash);
    assert_ne!(pretrain(&[whole]).hash, pretrain(&[]).hash);
}
