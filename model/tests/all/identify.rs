//! Which models files of weights hold, and copies of them as safetensors.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use vljepa_kernels::Device;
use vljepa_model::weights::{Source, convert, export, exported, identify, load};
use vljepa_model::{Parameters, VlJepa};
use vljepa_recipes::protocol::{KnownWeights, NearestModel, UnknownWeights, Weights};
use vljepa_recipes::schema::{Loss, Model, Projection};

use crate::committed_files::file;
use crate::{gemma, tiny};

fn known(found: Weights) -> KnownWeights {
    match found {
        Weights::Known(known) => known,
        other => panic!("{other:?}"),
    }
}

fn unknown(path: &Path) -> UnknownWeights {
    match identify(path).unwrap() {
        Weights::Unknown(unknown) => unknown,
        other => panic!("{other:?}"),
    }
}

/// Name, type, shape and bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Files, their family, and their numbers of tensors of the model and others.
const FILES: [(&str, &str, usize, usize); 9] = [
    ("vjepa2.pt", "vjepa2", 28, 33),
    ("vjepa2.safetensors", "vjepa2", 36, 0),
    ("vjepa2_1.pt", "vjepa2_1", 32, 46),
    ("vjepa2_1_dist.pt", "vjepa2_1", 32, 7),
    ("vjepa2_1.safetensors", "vjepa2_1", 32, 6),
    ("pe.pt", "pe", 31, 9),
    ("pe.safetensors", "pe", 31, 0),
    ("siglip2.safetensors", "siglip2", 37, 4),
    ("clip.safetensors", "clip", 39, 5),
];

#[test]
fn a_file_is_recognised_by_its_tensors_and_not_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qwen3.gguf");
    for (name, family, tensors, others) in FILES {
        std::fs::copy(file(name), &path).unwrap();
        let found = known(identify(&path).unwrap());
        let [model] = &found.models[..] else { panic!("{name}: {:?}", found.models) };
        assert_eq!(
            (model.key.as_str(), model.family.as_deref()),
            ("model.x_encoder", Some(family))
        );
        assert_eq!((model.held.tensors, found.unused.count), (tensors, others), "{name}");
        assert_eq!(found.all.tensors, tensors + others, "{name}");
        let sizes = ["hidden_size", "intermediate_size", "num_layers", "patch_size"];
        assert_eq!(sizes.map(|key| model.shown[key].as_u64()), [16, 32, 2, 8].map(Some), "{name}");
        assert!(model.sizes.is_empty() && model.nearest.is_some(), "{name}");
    }
}

#[test]
fn files_of_text_encoders_show_their_sizes() {
    for (name, family, tensors, hidden_size) in [
        ("sonar.pt", "sonar", 2 * 16 + 3, 16),
        ("pe_text.pt", "pe_text", 2 * 12 + 5, 16),
        ("clip_whole.safetensors", "clip_text", 2 * 16 + 5, 12),
        ("siglip2_whole.safetensors", "siglip2_text", 2 * 16 + 6, 12),
    ] {
        let found = known(identify(&file(name)).unwrap());
        let of_family =
            |m: &&vljepa_recipes::protocol::KnownModel| m.family.as_deref() == Some(family);
        let model = found.models.iter().find(of_family).unwrap();
        assert_eq!(
            (model.key.as_str(), model.held.tensors),
            ("model.y_encoder", tensors),
            "{name}"
        );
        let sizes =
            ["hidden_size", "num_layers", "vocab_size"].map(|key| model.shown[key].as_u64());
        assert_eq!(sizes, [hidden_size, 2, 9].map(Some), "{name}");
    }
}

#[test]
fn a_file_of_clip_s_resnet_holds_both_towers_and_neither_of_pe_core() {
    let found = known(identify(&file("clip_resnet_whole.safetensors")).unwrap());
    let families: Vec<_> = found.models.iter().filter_map(|m| m.family.as_deref()).collect();
    assert_eq!(families, ["clip_resnet", "clip_text"]);
    let [tower, text] = &found.models[..] else { panic!("two towers") };
    // 22 convolutions with five tensors each, positions, and weight and bias of four maps.
    assert_eq!((tower.held.tensors, text.held.tensors), (5 * 22 + 9, 2 * 12 + 5));
    assert_eq!(tower.shown["layers"], serde_json::json!([1, 2, 1, 1]));
    assert!(tower.shown["width"] == 2 && text.shown["output_size"] == 12);
    assert!(tower.recipe.contains("  kind: dual_encoder\n"), "{}", tower.recipe);
    assert!(tower.recipe.contains("    layers: [1, 2, 1, 1]\n"), "{}", tower.recipe);
    let pe = known(identify(&file("pe_whole.pt")).unwrap());
    assert!(pe.models.iter().all(|m| m.family.as_deref().unwrap().starts_with("pe")));
}

#[test]
fn every_exported_file_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let with_projection = tiny::model();
    let mut without = Model { embed_dim: 16, projection_bias: false, ..tiny::model() };
    gemma(&mut without).projection = Projection::None;
    for recipe in [with_projection, without] {
        let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
        let parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        export(&model, &parameters, folder.path()).unwrap();
        for (source, path) in exported(&model, folder.path()) {
            let found = known(identify(&path).unwrap());
            let [model] = &found.models[..] else { panic!("{source:?}: {:?}", found.models) };
            assert_eq!((model.name.as_str(), found.unused.count), (source.name(), 0), "{source:?}");
            let of_init = source == Source::Projections;
            assert_eq!(model.recipe.starts_with("init:\n  weights: "), of_init, "{}", model.recipe);
        }
    }
}

#[test]
fn a_copy_holds_the_model_bit_for_bit_and_at_most_a_head_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    for (name, family, tensors, _) in FILES {
        let copy = folder.path().join(family).join(name);
        let written = known(convert(&file(name), &copy).unwrap());
        assert_eq!(written.path, copy);
        let extent = &written.models[0].held;
        assert_eq!((extent.tensors, extent.types.as_slice()), (tensors, &["f16".to_owned()][..]));
        assert_eq!(written.all.tensors, tensors + written.unused.count);
        let of_a_head =
            |name: &String| ["attn_pool", "head.", "proj"].iter().any(|part| name.contains(part));
        assert!(written.unused.first.iter().all(of_a_head), "{:?}", written.unused);
        assert_eq!(written.models[0].family.as_deref(), Some(family));
        // The copy of a copy is the same file.
        let again = folder.path().join("again");
        convert(&copy, &again).unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&again).unwrap());
        std::fs::remove_file(again).unwrap();
        assert!(!folder.path().join(family).join(format!("{name}.part")).exists());
    }
    let mut recipe = tiny::model();
    tiny::vjepa2(&mut recipe).patch_size = 8;
    let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
    let weights = |path: &Path| {
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        load(&model, &mut parameters, Source::VJepa2, path).unwrap();
        parameters.trainable.view().host_f32("test", "weights").unwrap().to_vec()
    };
    let original = weights(&file("vjepa2.pt"));
    assert!(original.iter().any(|v| *v != 0.0));
    assert_eq!(weights(&folder.path().join("vjepa2/vjepa2.pt")), original);
}

#[test]
fn a_copy_needs_a_new_file_and_finite_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("weights"), folder.path().join("copy"));
    let change = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let bytes = std::fs::read(file("pe.safetensors")).unwrap();
        let whole = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<Tensor> = (whole.tensors().into_iter())
            .map(|(name, v)| (name, v.dtype(), v.shape().to_vec(), v.data().to_vec()))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
    };
    let refused = |said: &str| {
        let error = convert(&path, &copy).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    // An infinite number in f16.
    change(&|tensors| tensors[3].3[..2].copy_from_slice(&[0x00, 0x7c]));
    refused("holds inf (element 0)");
    change(&|tensors| {
        let last = tensors.last_mut().unwrap();
        last.1 = Dtype::I16;
    });
    refused("holds I16, but f32, bf16 or f16 is needed");
    assert!(std::fs::read_dir(folder.path()).unwrap().count() == 1, "nothing is left behind");

    change(&|_| {});
    std::fs::write(&copy, "mine").unwrap();
    refused("copy: it exists already");
    assert_eq!(std::fs::read(&copy).unwrap(), b"mine");
    std::fs::remove_file(&copy).unwrap();
    convert(&path, &copy).unwrap();

    // No model: nothing is written.
    change(&|tensors| tensors.truncate(20));
    let other = folder.path().join("other");
    assert!(matches!(convert(&path, &other), Ok(Weights::Unknown(_))));
    assert!(!other.exists());
}

#[test]
fn a_file_without_a_model_is_compared_with_the_nearest_one() {
    let found = unknown(&file("tensors4.pt"));
    assert_eq!(found.names.count, found.all.tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let bytes = std::fs::read(file("clip.safetensors")).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = whole.tensors();
    tensors.retain(|(name, _)| !name.contains("layers.1.layer_norm1"));
    let extra = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    tensors.push(("vision_model.extra".to_owned(), extra));
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let UnknownWeights { nearest, .. } = unknown(&path);
    let NearestModel { family, missing, misshapen, unknown, .. } = nearest.unwrap();
    assert_eq!(family.as_deref(), Some("clip"));
    let layer = "vision_model.encoder.layers.1.layer_norm1";
    assert_eq!(missing.first, [format!("{layer}.weight"), format!("{layer}.bias")]);
    assert_eq!((misshapen.count, unknown.first), (0, vec!["vision_model.extra".to_owned()]));
}
