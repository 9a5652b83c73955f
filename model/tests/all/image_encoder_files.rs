//! Files of image encoders, those of PE-core, `SigLIP` 2 and CLIP, in the form in which they are
//! published, and exported ones.

use vljepa_kernels::Device;
use vljepa_model::weights::{Source, export, exported, load};
use vljepa_model::{ModelError, Parameters, VlJepa};
use vljepa_recipes::schema::{Clip, Loss, Model, Pe, Siglip2, XEncoder};

use crate::committed_files::{file, read, weights};
use crate::tiny;

/// A model whose X-encoder has the sizes of the file of `source`, but so many layers and pixels.
/// The files have two layers and positions for 32 pixels.
fn model(source: Source, num_layers: usize, image_size: usize) -> VlJepa {
    let (patch_size, hidden_size, num_heads, intermediate_size) = (8, 16, 2, 32);
    let x_encoder = match source {
        Source::Pe => {
            let sizes = Pe { patch_size, hidden_size, num_layers, num_heads, ..Pe::default() };
            XEncoder::Pe(Pe { intermediate_size, ..sizes })
        }
        Source::Clip => {
            let sizes = Clip { patch_size, hidden_size, num_layers, num_heads, ..Clip::default() };
            XEncoder::Clip(Clip { intermediate_size, ..sizes })
        }
        _ => {
            let sizes = Siglip2 { patch_size, hidden_size, num_layers, ..Siglip2::default() };
            XEncoder::Siglip2(Siglip2 { num_heads, intermediate_size, ..sizes })
        }
    };
    let recipe = Model { x_encoder, image_size, ..tiny::model() };
    VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap()
}

#[test]
fn pe_s_vision_tower_is_read_from_the_published_file_of_both_towers() {
    let model = model(Source::Pe, 2, 32);
    let (both, imported) = read(&model, Source::Pe, &file("pe.pt"));
    let (tower, alone) = read(&model, Source::Pe, &file("pe.safetensors"));
    assert!(both == tower && both.iter().any(|v| *v != 0.0));
    // Three tensors of tokens, two norms and 24 tensors of blocks.
    assert_eq!((imported.read, alone.read), (31, 31));
    assert_eq!((imported.unused.len(), alone.unused.len()), (9, 0), "{:?}", imported.unused);
}

#[test]
fn siglip_2_s_vision_tower_is_read_with_fused_queries_keys_and_values() {
    let model = model(Source::Siglip2, 2, 32);
    let path = file("siglip2.safetensors");
    let (_, imported) = read(&model, Source::Siglip2, &path);
    // Three tensors of tokens, the last norm and 32 tensors of blocks.
    assert_eq!((imported.read, imported.unused.len()), (37, 4), "{:?}", imported.unused);
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    load(&model, &mut parameters, Source::Siglip2, &path).unwrap();
    let qkv = &model.x_encoder.stack.blocks[1].attention.qkv;
    let fused = parameters.view(model.layout(), qkv.weight.id());
    let fused = fused.host_f32("test", "weights").unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (i, part) in ["q", "k", "v"].iter().enumerate() {
        let name = format!("vision_model.encoder.layers.1.self_attn.{part}_proj.weight");
        let halves = stored.tensor(&name).unwrap().data().to_vec();
        let half = |c: &[u8]| half::f16::from_le_bytes(c.try_into().unwrap()).to_f32();
        let values: Vec<f32> = halves.chunks_exact(2).map(half).collect();
        assert_eq!(fused[i * 256..][..256], values);
    }
}

#[test]
fn clip_s_vision_tower_is_read_without_its_projection_and_text_tower() {
    let (_, imported) = read(&model(Source::Clip, 2, 32), Source::Clip, &file("clip.safetensors"));
    // Three tensors of tokens, two norms and 32 tensors of blocks.
    assert_eq!((imported.read, imported.unused.len()), (39, 5), "{:?}", imported.unused);
}

#[test]
fn a_file_of_other_sizes_is_refused_and_nothing_is_read() {
    for (source, name, layer, in_layer, positions) in [
        (Source::Pe, "pe.pt", "resblocks.", 12, "visual.positional_embedding"),
        (Source::Siglip2, "siglip2.safetensors", "layers.", 16, "position_embedding.weight"),
        (Source::Clip, "clip.safetensors", "layers.", 16, "position_embedding.weight"),
    ] {
        for (layers, pixels) in [(1, 32), (3, 32), (2, 40)] {
            let model = model(source, layers, pixels);
            let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
            let error = load(&model, &mut parameters, source, &file(name)).unwrap_err();
            let (right, at) = match (layers, &error) {
                (1, ModelError::UnusedTensors { names, .. }) => (names.len() == in_layer, "1"),
                (3, ModelError::MissingTensors { names, .. }) => (names.len() == in_layer, "2"),
                (2, ModelError::MisshapenTensor { name, .. }) => (name.ends_with(positions), ""),
                _ => (false, ""),
            };
            let text = error.to_string();
            assert!(right && (at.is_empty() || text.contains(&format!("{layer}{at}"))), "{text}");
            assert!(weights(&parameters).iter().all(|v| *v == 0.0));
        }
    }
}

#[test]
fn exported_towers_have_published_names_and_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder_of = |source: Source| folder.path().join(source.name());
    for source in [Source::Pe, Source::Siglip2, Source::Clip] {
        let model = model(source, 2, 32);
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        parameters.initialise(model.layout(), 1).unwrap();
        export(&model, &parameters, &folder_of(source)).unwrap();
        let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
        for (source, path) in exported(&model, &folder_of(source)) {
            load(&model, &mut other, source, &path).unwrap();
        }
        assert_eq!(weights(&other), weights(&parameters));
    }
    let shape = |source: Source, name: &str| {
        let bytes = std::fs::read(folder_of(source).join(source.file())).unwrap();
        let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        written.tensor(name).unwrap().shape().to_vec()
    };
    assert_eq!(shape(Source::Pe, "visual.conv1.weight"), [16, 3, 8, 8]);
    assert_eq!(shape(Source::Pe, "visual.class_embedding"), [16]);
    assert_eq!(shape(Source::Pe, "visual.positional_embedding"), [17, 16]);
    assert_eq!(shape(Source::Pe, "visual.transformer.resblocks.1.attn.in_proj_bias"), [48]);
    let patches = "vision_model.embeddings.patch_embedding.weight";
    assert_eq!(shape(Source::Siglip2, patches), [16, 3, 8, 8]);
    assert_eq!(shape(Source::Clip, "vision_model.pre_layrnorm.weight"), [16]);
    let key = "vision_model.encoder.layers.1.self_attn.k_proj.weight";
    assert_eq!(shape(Source::Siglip2, key), [16, 16]);
}
