//! Files of text encoders, those of SONAR and of the text towers of PE-core, CLIP and `SigLIP` 2,
//! in the form in which they are published, and exported ones.

use vljepa_kernels::Device;
use vljepa_model::weights::{Source, check, export, exported, load};
use vljepa_model::{ModelError, Parameters, VlJepa};
use vljepa_recipes::schema::{
    ClipText, EmbeddingGemma, Loss, Model, PeText, Projection, Siglip2Text, Sonar, Update, YEncoder,
};

use crate::committed_files::{file, read, weights};
use crate::tiny;

/// A model whose Y-encoder has the sizes of the files of `source`, but so many layers. The files
/// have two.
fn model(source: Source, num_layers: usize) -> VlJepa {
    let (hidden_size, num_heads, intermediate_size, vocab_size) = (16, 2, 32, 9);
    let update = Update::Frozen;
    let (context_length, max_target_tokens) = (6, 6);
    let y_encoder = match source {
        Source::Sonar => {
            let keys = Sonar { hidden_size, num_layers, num_heads, vocab_size, ..Sonar::default() };
            YEncoder::Sonar(Sonar { intermediate_size, update, ..keys })
        }
        Source::PeText => {
            let keys = PeText { hidden_size, num_layers, num_heads, ..PeText::default() };
            let keys = PeText { intermediate_size, vocab_size, update, ..keys };
            YEncoder::PeText(PeText { context_length, max_target_tokens, output_size: 12, ..keys })
        }
        Source::ClipText => {
            let (hidden_size, output_size) = (12, 8);
            let keys = ClipText { hidden_size, num_layers, num_heads, ..ClipText::default() };
            let keys = ClipText { intermediate_size, vocab_size, output_size, ..keys };
            YEncoder::ClipText(ClipText { context_length, max_target_tokens, ..keys })
        }
        _ => {
            let (hidden_size, output_size) = (12, 16);
            let keys = Siglip2Text { hidden_size, num_layers, num_heads, ..Siglip2Text::default() };
            let keys = Siglip2Text { intermediate_size, vocab_size, output_size, ..keys };
            YEncoder::Siglip2Text(Siglip2Text { context_length, max_target_tokens, ..keys })
        }
    };
    let recipe = Model { y_encoder, ..tiny::model() };
    VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap()
}

#[test]
fn sonar_is_read_from_meta_s_file_and_from_that_of_m2m100() {
    let model = model(Source::Sonar, 2);
    let (meta, imported) = read(&model, Source::Sonar, &file("sonar.pt"));
    let (m2m100, in_m2m100) = read(&model, Source::Sonar, &file("m2m100.safetensors"));
    assert!(meta == m2m100 && meta.iter().any(|v| *v != 0.0));
    // The table, the last norm and 32 tensors of layers.
    assert_eq!((imported.read, in_m2m100.read), (35, 35));
    let (unused, decoder) = (imported.unused, in_m2m100.unused);
    let others = ["embed_positions._float_tensor", "embed_tokens.weight", "version"];
    assert_eq!(unused, others.map(|name| format!("state_dict.{name}")));
    assert!(decoder.len() == 2 && decoder.iter().all(|name| name.starts_with("model.decoder.")));
}

#[test]
fn pe_s_text_tower_is_read_with_its_projection_transposed() {
    let model = model(Source::PeText, 2);
    let path = file("pe_text.pt");
    let (_, imported) = read(&model, Source::PeText, &path);
    // Table, positions, projection, the last norm and 24 tensors of blocks.
    assert_eq!((imported.read, imported.unused.len()), (29, 3), "{:?}", imported.unused);
    let folder = tempfile::tempdir().unwrap();
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    load(&model, &mut parameters, Source::PeText, &path).unwrap();
    export(&model, &parameters, folder.path()).unwrap();
    let bytes = std::fs::read(folder.path().join(Source::PeText.file())).unwrap();
    let written = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let written = written.tensor("text_projection").unwrap();
    assert_eq!(written.shape(), [16, 12]);
    let number = |c: &[u8]| f32::from_le_bytes(c.try_into().unwrap());
    let published: Vec<f32> = written.data().chunks_exact(4).map(number).collect();
    let map = &model.y_encoder.head.maps[0];
    let held = parameters.view(model.layout(), map.weight.id());
    let held = held.host_f32("test", "projection").unwrap();
    assert_eq!(map.weight.shape(), [12, 16]);
    let turned: Vec<f32> = (0..16 * 12).map(|i| held[i % 12 * 16 + i / 12]).collect();
    assert_eq!(published, turned);
    assert_ne!(published, held);
}

#[test]
fn text_towers_of_clip_and_siglip_2_are_read_from_the_published_files_of_both_towers() {
    for (source, name, read_tensors, unused) in [
        // Table, positions, projection, the last norm and 32 tensors of layers. Unused: three of
        // tokens, two norms and 32 of the vision tower's layers, its projection and the scale.
        (Source::ClipText, "clip_whole.safetensors", 37, 39 + 2),
        // The same, and the bias of the head. Unused: three of tokens, a norm, 32 of layers and
        // eleven of the attention pooling, scale and bias.
        (Source::Siglip2Text, "siglip2_whole.safetensors", 38, 37 + 11 + 2),
    ] {
        let model = model(source, 2);
        let (found, imported) = read(&model, source, &file(name));
        assert!(found.iter().any(|v| *v != 0.0));
        assert_eq!((imported.read, imported.unused.len()), (read_tensors, unused), "{name}");
        // A file of the vision tower and of parts of the text tower.
        let part = name.replace("_whole", "");
        let error = check(&model, source, &file(&part));
        assert!(matches!(error, Err(ModelError::MissingTensors { .. })), "{error:?}");
    }
}

#[test]
fn a_text_encoder_of_other_sizes_is_refused_and_nothing_is_read() {
    for (source, name, in_layer) in [
        (Source::Sonar, "sonar.pt", 16),
        (Source::Sonar, "m2m100.safetensors", 16),
        (Source::PeText, "pe_text.pt", 12),
        (Source::ClipText, "clip_whole.safetensors", 16),
        (Source::Siglip2Text, "siglip2_whole.safetensors", 16),
    ] {
        for layers in [1, 3] {
            let model = model(source, layers);
            let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
            let error = load(&model, &mut parameters, source, &file(name)).unwrap_err();
            let right = match (layers, &error) {
                (1, ModelError::UnusedTensors { names, .. })
                | (3, ModelError::MissingTensors { names, .. }) => names.len() == in_layer,
                _ => false,
            };
            assert!(right, "{name}: {error}");
            assert!(weights(&parameters).iter().all(|v| *v == 0.0));
        }
    }
    // PE's two towers are not taken for each other.
    let error = check(&model(Source::PeText, 2), Source::PeText, &file("pe.safetensors"));
    assert!(matches!(error, Err(ModelError::MissingTensors { .. })), "{error:?}");
}

#[test]
fn exported_text_encoders_are_read_again() {
    let gemma = |projection| {
        let mut recipe = tiny::model();
        let keys = EmbeddingGemma { projection, ..crate::gemma(&mut recipe).clone() };
        let embed_dim = if projection == Projection::None { 16 } else { recipe.embed_dim };
        let recipe = Model { y_encoder: YEncoder::EmbeddingGemma(keys), embed_dim, ..recipe };
        VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap()
    };
    // Gemma's Dense layers are exported with and without a projection.
    for model in [
        model(Source::Sonar, 2),
        model(Source::PeText, 2),
        model(Source::ClipText, 2),
        model(Source::Siglip2Text, 2),
        gemma(Projection::Linear),
        gemma(Projection::None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        parameters.initialise(model.layout(), 1).unwrap();
        export(&model, &parameters, folder.path()).unwrap();
        let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
        for (source, path) in exported(&model, folder.path()) {
            load(&model, &mut other, source, &path).unwrap();
        }
        assert_eq!(weights(&other), weights(&parameters));
        let trained = |p: &Parameters| p.trainable.to_f32().unwrap().into_owned();
        assert_eq!(trained(&other), trained(&parameters));
    }
}
