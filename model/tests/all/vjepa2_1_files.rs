//! Files of V-JEPA 2.1: those in the form in which Meta publishes them, and exported ones.

use std::path::{Path, PathBuf};

use vljepa_kernels::Device;
use vljepa_model::weights::{Imported, Source, check, export, exported, load};
use vljepa_model::{ModelError, Parameters, VlJepa};
use vljepa_recipes::schema::{Loss, Model, VJepa2_1, XEncoder};

use crate::tiny;

const SOURCE: Source = Source::VJepa2_1;

/// A model whose X-encoder has the sizes of `vjepa2_1.pt`, but so many layers. The file has two.
fn model(num_layers: usize) -> VlJepa {
    let x_encoder = XEncoder::Vjepa2_1(VJepa2_1 {
        patch_size: 8,
        hidden_size: 16,
        num_layers,
        num_heads: 2,
        intermediate_size: 32,
        ..VJepa2_1::default()
    });
    let recipe = Model { x_encoder, ..tiny::model() };
    VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap()
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights").join(name)
}

fn weights(parameters: &Parameters) -> Vec<f32> {
    parameters.frozen.view().host_f32("test", "weights").unwrap().to_vec()
}

fn read(model: &VlJepa, name: &str) -> (Vec<f32>, Imported) {
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    let imported = load(model, &mut parameters, SOURCE, &file(name)).unwrap();
    check(model, SOURCE, &file(name)).unwrap();
    (weights(&parameters), imported)
}

#[test]
fn both_forms_of_published_files_give_the_averaged_encoder() {
    let model = model(2);
    let (average, plain) = read(&model, "vjepa2_1.safetensors");
    let (whole, imported) = read(&model, "vjepa2_1.pt");
    let (distilled, _) = read(&model, "vjepa2_1_dist.pt");
    // The trained encoder of the first `.pt` is all zeros.
    assert!(average.iter().any(|v| *v != 0.0));
    assert!(whole == average && distilled == average);
    // Two maps and two embeddings, 24 tensors of blocks and the last norm.
    assert_eq!((imported.read, plain.read), (32, 32));
    // Three norms of the average; the trained encoder, the predictor and the optimizer.
    let norms: Vec<_> = (0..3).flat_map(|i| ["bias", "weight"].map(|kind| (i, kind))).collect();
    let names: Vec<_> = norms.iter().map(|(i, kind)| format!("norms_block.{i}.{kind}")).collect();
    assert_eq!(plain.unused, names);
    assert_eq!(imported.unused.len(), 6 + 38 + 1 + 1);
    let trained = "encoder.module.backbone.norms_block.3.weight".to_owned();
    assert!(imported.unused.contains(&trained), "{:?}", imported.unused);
}

#[test]
fn a_file_of_other_sizes_or_of_v_jepa_2_is_refused_and_nothing_is_read() {
    for (layers, name) in [(1, "vjepa2_1.pt"), (3, "vjepa2_1.pt"), (2, "vjepa2.pt")] {
        let model = model(layers);
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        let error = load(&model, &mut parameters, SOURCE, &file(name)).unwrap_err();
        match (layers, &error) {
            (1, ModelError::UnusedTensors { names, .. }) => {
                let layer = "target_encoder.module.backbone.blocks.1.attn.qkv.weight".to_owned();
                assert!(names.len() == 12 && names.contains(&layer), "{names:?}");
            }
            (3, ModelError::MissingTensors { names, .. }) => {
                let layer = "target_encoder.blocks.2.attn.qkv.weight".to_owned();
                assert!(names.len() == 12 && names.contains(&layer), "{names:?}");
            }
            (2, ModelError::MissingTensors { names, .. }) => {
                let image = "target_encoder.patch_embed_img.proj.weight".to_owned();
                assert!(names.contains(&image), "{names:?}");
            }
            _ => panic!("{error}"),
        }
        assert!(weights(&parameters).iter().all(|v| *v == 0.0));
        assert!(check(&model, SOURCE, &file(name)).is_err());
    }
}

#[test]
fn an_exported_encoder_has_published_names_and_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(2);
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    parameters.initialise(model.layout(), 1).unwrap();
    export(&model, &parameters, folder.path()).unwrap();
    let bytes = std::fs::read(folder.path().join(SOURCE.file())).unwrap();
    let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| written.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("patch_embed.proj.weight"), [16, 3, 2, 8, 8]);
    assert_eq!(shape("patch_embed_img.proj.weight"), [16, 3, 1, 8, 8]);
    assert_eq!(shape("img_mod_embed"), [1, 1, 16]);
    assert_eq!(shape("blocks.1.attn.qkv.weight"), [48, 16]);
    assert_eq!(shape("norms_block.3.bias"), [16]);
    let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
    for (source, path) in exported(&model, folder.path()) {
        load(&model, &mut other, source, &path).unwrap();
    }
    assert_eq!(weights(&other), weights(&parameters));
}
