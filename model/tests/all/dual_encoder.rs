//! Dual encoders: their counts at published sizes, files in the published form, and refusals.

use serde_json::json;
use vljepa_kernels::Device;
use vljepa_model::weights::{Source, check, convert, export, exported, load, load_published};
use vljepa_model::{DualEncoder, ModelError, Parameters, VlJepa};
use vljepa_recipes::schema::{Loss, Model};
use vljepa_recipes::{Role, published_models};

use crate::committed_files::{file, weights};
use crate::tiny;

/// Keys of a role that a dual encoder gets.
fn published(role: Role, family: &str, size: &str) -> (serde_json::Value, Option<usize>) {
    let fits =
        |m: &vljepa_recipes::PublishedModel| (m.role, m.family, m.size) == (role, family, size);
    let model = published_models().into_iter().find(fits).unwrap();
    (model.keys.into(), model.image_size)
}

/// A dual encoder of published sizes.
fn of_size(family: &str, size: &str) -> DualEncoder {
    let (x_encoder, image_size) = published(Role::XEncoder, family, size);
    let (mut y_encoder, _) = published(Role::YEncoder, &format!("{family}_text"), size);
    y_encoder["projection"] = "none".into();
    y_encoder["update"] = "frozen".into();
    let embed_dim = y_encoder["output_size"].clone();
    let model = json!({
        "kind": "dual_encoder", "x_encoder": x_encoder, "image_size": image_size,
        "y_encoder": y_encoder, "embed_dim": embed_dim,
    });
    DualEncoder::new(&serde_json::from_value(model).unwrap(), Device::Host).unwrap()
}

/// The towers are counted in `published.rs`. A head of CLIP is one matrix, d·e. An attention
/// pooling has a probe (d), four maps of attention (4·d·(d + 1)), a norm (2·d) and an MLP
/// (2·d·f + f + d); PE-core's is followed by a matrix d·e. Files hold one or two numbers more: the
/// scale of the similarities, and in `SigLIP` 2 their bias.
#[test]
fn dual_encoders_have_the_published_counts() {
    for (family, size, others, count) in [
        ("clip", "b32", 1, 151_277_313),
        ("clip", "b16", 1, 149_620_737),
        ("clip", "l14", 1, 427_616_513),
        ("clip", "l14_336", 1, 427_944_193),
        ("siglip2", "b16", 2, 375_234_050),
        ("siglip2", "l16", 2, 881_526_786),
        ("siglip2", "so400m16", 2, 1_135_670_962),
        // With the 576 positions of frames of 384² instead of 256: 1,871,885,426, as published.
        ("siglip2", "g_opt16", 2, 1_871_885_426 - 320 * 1536),
        // The vision towers have 93,672,960, 317,151,232 and 1,882,032,640.
        ("pe", "b16", 1, 447_659_521),
        ("pe", "l14", 1, 671_137_793),
        ("pe", "g14", 1, 2_419_266_561),
    ] {
        let model = of_size(family, size);
        assert_eq!(model.layout().count(|_| true) + others, count, "{family} {size}");
        assert_eq!(model.layout().count(|p| p.trainable), 0, "{family} {size}");
    }
}

/// Keys of the files of both towers, which `make.py` wrote.
fn whole(family: &str) -> Model {
    let name = if family == "pe" { "pe_whole.pt" } else { &format!("{family}_whole.safetensors") };
    let (text, output) = match family {
        "clip" => (12, 8),
        "siglip2" => (12, 16),
        _ => (16, 12),
    };
    let model = json!({
        "kind": "dual_encoder",
        "image_size": 32,
        "embed_dim": output,
        "x_encoder": {
            "family": family, "patch_size": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
            "intermediate_size": 32, "weights": file(name),
        },
        "y_encoder": {
            "family": format!("{family}_text"), "hidden_size": text, "num_layers": 2,
            "num_heads": 2, "intermediate_size": 32, "vocab_size": 9, "context_length": 6,
            "max_target_tokens": 6, "output_size": output, "weights": file(name),
            "update": "frozen", "projection": "none",
        },
    });
    serde_json::from_value(model).unwrap()
}

fn parameters(model: &DualEncoder) -> Parameters {
    Parameters::new(model.layout(), Device::Host).unwrap()
}

const FAMILIES: [(&str, Source, Source); 3] = [
    ("clip", Source::Clip, Source::ClipText),
    ("siglip2", Source::Siglip2, Source::Siglip2Text),
    ("pe", Source::Pe, Source::PeText),
];

#[test]
fn a_file_of_both_towers_fills_every_parameter_and_leaves_only_the_similarities_scale() {
    for (family, others) in [("clip", 1), ("siglip2", 2), ("pe", 1)] {
        let model = DualEncoder::new(&whole(family), Device::Host).unwrap();
        let mut parameters = parameters(&model);
        let read = load_published(&model, &mut parameters).unwrap();
        let [(_, images), (_, texts)] = &read[..] else { panic!("two encoders") };
        // What one tower leaves is the other tower, and scale and bias.
        assert_eq!(images.unused.len(), texts.read + others, "{family}");
        assert_eq!(texts.unused.len(), images.read + others, "{family}");
        let written = parameters.frozen.to_f32().unwrap();
        for parameter in &model.layout().parameters {
            let values = &written[parameter.range.clone()];
            assert!(values.iter().any(|v| *v != 0.0), "{family}: {}", parameter.name);
        }
    }
}

#[test]
fn a_head_is_needed_by_a_dual_encoder_and_not_by_vl_jepa() {
    for (family, source, name, missing) in [
        ("siglip2", Source::Siglip2, "siglip2.safetensors", 10),
        ("pe", Source::Pe, "pe.safetensors", 12),
    ] {
        let keys = whole(family);
        let dual = DualEncoder::new(&keys, Device::Host).unwrap();
        let error = check(&dual, source, &file(name)).unwrap_err();
        let ModelError::MissingTensors { names, .. } = &error else { panic!("{error}") };
        assert_eq!(names.len(), missing, "{names:?}");
        let vl_jepa = Model { x_encoder: keys.x_encoder, image_size: 32, ..tiny::model() };
        let vl_jepa = VlJepa::new(&vl_jepa, &Loss::default(), Device::Host).unwrap();
        check(&vl_jepa, source, &file(name)).unwrap();
        assert_eq!(vl_jepa.layout().count(|p| p.name.starts_with("image_head.")), 0);
    }
}

#[test]
fn exported_dual_encoders_are_read_again() {
    for (family, x, y) in FAMILIES {
        let model = DualEncoder::new(&whole(family), Device::Host).unwrap();
        let mut written = parameters(&model);
        written.initialise(model.layout(), 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        export(&model, &written, folder.path()).unwrap();
        let files: Vec<_> = exported(&model, folder.path()).collect();
        assert_eq!(files.iter().map(|(source, _)| *source).collect::<Vec<_>>(), [x, y]);
        let mut read = parameters(&model);
        for (source, path) in files {
            assert!(load(&model, &mut read, source, &path).unwrap().unused.is_empty());
        }
        assert!(weights(&read) == weights(&written));
    }
}

#[test]
fn a_converted_file_holds_the_heads_too() {
    let folder = tempfile::tempdir().unwrap();
    for (family, x, y) in FAMILIES {
        let keys = whole(family);
        let model = DualEncoder::new(&keys, Device::Host).unwrap();
        let copy = folder.path().join(format!("{family}.safetensors"));
        convert(keys.x_encoder.weights().unwrap(), &copy).unwrap();
        let mut read = parameters(&model);
        let unused = [x, y].map(|tower| load(&model, &mut read, tower, &copy).unwrap().unused);
        assert!(unused.iter().flatten().all(|name| !name.contains("logit")), "{unused:?}");
        let mut original = parameters(&model);
        load_published(&model, &mut original).unwrap();
        assert!(weights(&read) == weights(&original), "{family}");
    }
}

#[test]
fn towers_that_are_no_pair_are_refused_by_key() {
    let (clip, pe) = (whole("clip"), whole("pe"));
    let (y_encoder, embed_dim) = (clip.y_encoder, clip.embed_dim);
    let error = DualEncoder::new(&Model { y_encoder, embed_dim, ..pe }, Device::Host).unwrap_err();
    assert!(error.to_string().starts_with("model.y_encoder.family: "), "{error}");
}
