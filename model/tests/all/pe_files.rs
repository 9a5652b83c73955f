//! Files of PE-core, in the form in which Meta publishes them, and exported ones.

use std::path::{Path, PathBuf};

use vljepa_kernels::Device;
use vljepa_model::weights::{Source, check, export, import, load};
use vljepa_model::{ModelError, Parameters, VlJepa};
use vljepa_recipes::schema::{Loss, Model, Pe, XEncoder};

use crate::tiny;

/// A model whose X-encoder has the sizes of `pe.pt`, but so many layers and pixels. The file has
/// two layers and positions for 32 pixels.
fn model(num_layers: usize, image_size: usize) -> VlJepa {
    let x_encoder = XEncoder::Pe(Pe {
        patch_size: 8,
        hidden_size: 16,
        num_layers,
        num_heads: 2,
        intermediate_size: 32,
        ..Pe::default()
    });
    let recipe = Model { x_encoder, image_size, ..tiny::model() };
    VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap()
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights").join(name)
}

fn weights(parameters: &Parameters) -> Vec<f32> {
    parameters.frozen.view().host_f32("test", "weights").unwrap().to_vec()
}

#[test]
fn the_vision_tower_is_read_from_the_published_file_of_both_towers() {
    let model = model(2, 32);
    let read = |name: &str| {
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        let imported = load(&model, &mut parameters, Source::Pe, &file(name)).unwrap();
        check(&model, Source::Pe, &file(name)).unwrap();
        (weights(&parameters), imported)
    };
    let ((both, imported), (tower, alone)) = (read("pe.pt"), read("pe.safetensors"));
    assert!(both == tower && both.iter().any(|v| *v != 0.0));
    // Three tensors of tokens, two norms and 24 tensors of blocks.
    assert_eq!((imported.read, alone.read), (31, 31));
    assert_eq!((imported.unused.len(), alone.unused.len()), (9, 0), "{:?}", imported.unused);
}

#[test]
fn a_file_of_other_sizes_is_refused_and_nothing_is_read() {
    for (layers, pixels, name) in
        [(1, 32, "resblocks.1"), (3, 32, "resblocks.2"), (2, 40, "visual.positional_embedding")]
    {
        let model = model(layers, pixels);
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        let error = load(&model, &mut parameters, Source::Pe, &file("pe.pt")).unwrap_err();
        let right = match layers {
            1 => matches!(&error, ModelError::UnusedTensors { names, .. } if names.len() == 12),
            3 => matches!(&error, ModelError::MissingTensors { names, .. } if names.len() == 12),
            _ => matches!(&error, ModelError::MisshapenTensor { .. }),
        };
        assert!(right && error.to_string().contains(name), "{error}");
        assert!(weights(&parameters).iter().all(|v| *v == 0.0));
    }
}

#[test]
fn an_exported_tower_has_published_names_and_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(2, 32);
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    parameters.initialise(model.layout(), 1).unwrap();
    export(&model, &parameters, folder.path()).unwrap();
    let bytes = std::fs::read(folder.path().join(Source::Pe.file())).unwrap();
    let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| written.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("visual.conv1.weight"), [16, 3, 8, 8]);
    assert_eq!(shape("visual.class_embedding"), [16]);
    assert_eq!(shape("visual.positional_embedding"), [17, 16]);
    assert_eq!(shape("visual.transformer.resblocks.1.attn.in_proj_bias"), [48]);
    let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
    import(&model, &mut other, folder.path()).unwrap();
    assert_eq!(weights(&other), weights(&parameters));
}
