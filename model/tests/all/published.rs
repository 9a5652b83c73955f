//! Published models at their full size, as names and shapes: the numbers of tensors and parameters
//! that their files hold, and files of which only the header is written.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use vljepa_kernels::Device;
use vljepa_model::weights::{Piece, Source, identify, y_decoder_pieces};
use vljepa_model::{DualEncoder, LayoutBuilder, VlJepa, Vlm, YDecoder};
use vljepa_recipes::protocol::{KnownWeights, Weights};
use vljepa_recipes::schema::{Initialisation, Loss};
use vljepa_recipes::{PublishedModel, Role, published_models};

/// Tensors and parameters of the published files, without those that no recipe reads.
///
/// The tensors are counted by their published names: those of a layer, and those outside the
/// layers. A layer of a vision transformer has weight and bias of two norms, of the output of
/// attention and of two MLP matrices, and of queries, keys and values: as one (Meta, 12 in all) or
/// three (transformers, 16). Outside the layers, every vision transformer has weight and bias of
/// its last norm. A layer of a text transformer has seven matrices and two norms; Qwen3 adds two
/// norms of heads and Gemma two more of results. Outside are the embedding and the last norm.
///
/// A block of CLIP's ResNet has three convolutions, and one more if it is the first of its stage; a
/// batch norm has four vectors, of which two are no parameters but are counted.
///
/// The parameters are those that the models' authors state, or follow from the sizes of their
/// configs. Full models were added up as a check: CLIP L/14 (427,616,513) and `SigLIP` 2 g-opt at
/// 384 (1,871,885,426).
const PUBLISHED: [(&str, &str, usize, usize); 44] = [
    // Outside: weight and bias of the patches.
    ("vjepa2", "vit_l", 24 * 16 + 4, 303_885_312),
    ("vjepa2", "vit_h", 32 * 16 + 4, 631_648_000),
    ("vjepa2", "vit_g", 40 * 16 + 4, 1_012_173_952),
    ("vjepa2", "vit_g_384", 40 * 16 + 4, 1_012_173_952),
    // Outside: weight and bias of two maps of patches, two embeddings. The authors' counts include
    // three more norms.
    ("vjepa2_1", "vit_b", 12 * 12 + 8, 86_833_152 - 6 * 768),
    ("vjepa2_1", "vit_l", 24 * 12 + 8, 304_680_960 - 6 * 1024),
    ("vjepa2_1", "vit_g", 40 * 12 + 8, 1_013_267_968 - 6 * 1408),
    ("vjepa2_1", "vit_gigantic", 48 * 12 + 8, 1_845_216_768 - 6 * 1664),
    // Outside: patches, positions, the first norm, and the cls token, which G14 lacks.
    ("pe", "b16", 12 * 12 + 7, 85_799_424),
    ("pe", "l14", 24 * 12 + 7, 303_507_456),
    ("pe", "g14", 50 * 12 + 6, 1_851_736_576),
    // Outside: weight and bias of the patches, positions.
    ("siglip2", "b16", 12 * 16 + 5, 85_843_200),
    ("siglip2", "l16", 24 * 16 + 5, 303_361_024),
    ("siglip2", "so400m16", 27 * 16 + 5, 412_649_712),
    ("siglip2", "g_opt16", 40 * 16 + 5, 1_134_838_272),
    // Outside: patches, positions, the cls token, the first norm.
    ("clip", "b32", 12 * 16 + 7, 87_456_000),
    ("clip", "b16", 12 * 16 + 7, 85_799_424),
    ("clip", "l14", 24 * 16 + 7, 303_179_776),
    ("clip", "l14_336", 24 * 16 + 7, 303_507_456),
    // Outside: three convolutions, positions, weight and bias of four maps. The file has 38,316,896
    // parameters in this tower, and mean and variance of 26,624 channels.
    ("clip_resnet", "rn50", 5 * (3 * 16 + 4) + 5 * 3 + 9, 38_316_896 + 2 * 26_624),
    ("llama", "1b", 16 * 9 + 2, 1_235_814_400),
    ("llama", "3b", 28 * 9 + 2, 3_212_749_824),
    ("embedding_gemma", "300m", 24 * 13 + 2, 302_863_104),
    ("qwen3_embedding", "0.6b", 28 * 11 + 2, 595_776_512),
    ("qwen3_embedding", "4b", 36 * 11 + 2, 4_021_774_336),
    ("qwen3_embedding", "8b", 36 * 11 + 2, 7_567_295_488),
    // A layer has the tensors of a vision transformer's. Outside: the embedding, and weight and
    // bias of the last norm.
    ("sonar", "basic", 24 * 16 + 3, 766_091_264),
    // Outside: the embedding, positions, weight and bias of the last norm, the projection.
    ("pe_text", "b16", 24 * 12 + 5, 353_986_560),
    ("pe_text", "l14", 24 * 12 + 5, 353_986_560),
    ("pe_text", "g14", 24 * 12 + 5, 537_233_920),
    // Outside: the embedding, positions, weight and bias of the last norm, the projection.
    ("clip_text", "b32", 12 * 16 + 5, 63_428_096),
    ("clip_text", "b16", 12 * 16 + 5, 63_428_096),
    ("clip_text", "l14", 12 * 16 + 5, 123_650_304),
    ("clip_text", "l14_336", 12 * 16 + 5, 123_650_304),
    ("clip_text", "rn50", 12 * 16 + 5, 63_690_240),
    // Outside: the same, and the bias of the head.
    ("siglip2_text", "b16", 12 * 16 + 6, 282_303_744),
    ("siglip2_text", "l16", 24 * 16 + 6, 565_570_560),
    ("siglip2_text", "so400m16", 27 * 16 + 6, 707_782_896),
    ("siglip2_text", "g_opt16", 27 * 16 + 6, 708_225_648),
    // Y-decoders: the whole Llama. SONAR's decoder is its encoder with two more maps in a layer.
    ("llama", "1b", 16 * 9 + 2, 1_235_814_400),
    ("llama", "3b", 28 * 9 + 2, 3_212_749_824),
    ("sonar", "basic", 24 * (16 + 4) + 3, 766_091_264 + 24 * 2 * 1024 * 1025),
    // Language models of a VLM.
    ("llama", "1b", 16 * 9 + 2, 1_235_814_400),
    ("llama", "3b", 28 * 9 + 2, 3_212_749_824),
];

/// Names and shapes.
type Tensors = Vec<(String, Vec<usize>)>;

fn source(published: &PublishedModel) -> Source {
    let family = Some((published.role, published.family));
    Source::RECOGNISED.into_iter().find(|source| source.family() == family).unwrap()
}

/// Tensors of a published model, after `change` of its keys.
fn tensors_of(published: &PublishedModel, change: impl Fn(&mut Map<String, Value>)) -> Tensors {
    let mut keys = published.keys.clone();
    if published.role == Role::Predictor {
        // The file holds all layers. The recipe's key takes the last of them.
        keys["layers"][0] = 0.into();
    }
    change(&mut keys);
    let mut model = json!({published.role.key(): keys});
    if let Some(size) = published.image_size {
        model["image_size"] = size.into();
    }
    if published.role == Role::YDecoder {
        let model = serde_json::from_value(model).unwrap();
        let mut layout = LayoutBuilder::new(Initialisation::default());
        return tensors(&y_decoder_pieces(&YDecoder::new(&mut layout, &model, Device::Host)));
    }
    if published.role == Role::LanguageModel {
        model["kind"] = "vlm".into();
        let vlm = Vlm::new(&serde_json::from_value(model).unwrap(), Device::Host).unwrap();
        return tensors(&Source::LanguageModel.pieces(&vlm));
    }
    let source = source(published);
    if source == Source::ClipResnet {
        model["kind"] = "dual_encoder".into();
        model["embed_dim"] = 1024.into();
        model["y_encoder"] = json!({
            "family": "clip_text", "output_size": 1024, "projection": "none", "update": "frozen",
        });
        let model = serde_json::from_value(model).unwrap();
        return tensors(&source.pieces(&DualEncoder::new(&model, Device::Host).unwrap()));
    }
    let model = serde_json::from_value(model).unwrap();
    tensors(&source.pieces(&VlJepa::new(&model, &Loss::default(), Device::Host).unwrap()))
}

fn tensors(pieces: &[Piece]) -> Tensors {
    pieces.iter().flat_map(Piece::tensors).collect()
}

fn parameters(tensors: &Tensors) -> usize {
    tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

#[test]
fn every_published_model_has_as_many_tensors_and_parameters_as_its_file() {
    let models = published_models();
    let names: Vec<_> = models.iter().map(|model| (model.family, model.size)).collect();
    assert_eq!(PUBLISHED.map(|(family, size, ..)| (family, size)).as_slice(), names);
    for (model, (family, size, tensors, count)) in models.iter().zip(PUBLISHED) {
        let held = tensors_of(model, |_| {});
        assert_eq!((held.len(), parameters(&held)), (tensors, count), "{family} {size}");
    }
}

#[test]
fn another_width_or_number_of_layers_changes_the_counts() {
    for (model, (.., tensors, count)) in published_models().iter().zip(PUBLISHED) {
        let fewer = tensors_of(model, |keys| match keys.get_mut("num_layers") {
            Some(layers) => *layers = (layers.as_u64().unwrap() - 1).into(),
            None => keys["layers"][0] = 1.into(),
        });
        assert!(fewer.len() < tensors && parameters(&fewer) < count, "{}", model.size);
        let wider = tensors_of(model, |keys| {
            let key = if keys.contains_key("width") { "width" } else { "intermediate_size" };
            let width = &mut keys[key];
            *width = (width.as_u64().unwrap() + 2).into();
        });
        assert!(wider.len() == tensors && parameters(&wider) > count, "{}", model.size);
    }
}

/// Writes the header of a safetensors file. The numbers take no space on the disk.
fn write_header(path: &Path, tensors: &Tensors) {
    let (mut infos, mut start) = (Vec::new(), 0);
    for (name, shape) in tensors {
        let end = start + 2 * shape.iter().product::<usize>();
        let (dtype, shape) = (Dtype::BF16, shape.clone());
        infos.push((name.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
        start = end;
    }
    let header = serde_json::to_vec(&Metadata::new(None, infos).unwrap()).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + start) as u64).unwrap();
}

fn known(path: &Path) -> KnownWeights {
    match identify(path).unwrap() {
        Weights::Known(known) => known,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_file_of_every_published_model_is_recognised_with_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    for (published, (family, size, tensors, count)) in published_models().iter().zip(PUBLISHED) {
        write_header(&path, &tensors_of(published, |_| {}));
        let found = known(&path);
        let [model] = &found.models[..] else { panic!("{family} {size}: {:?}", found.models) };
        // Files of V-JEPA 2 do not show the frames of their model, and some text towers of PE-core
        // and of CLIP have the same sizes.
        let sizes = match (family, size) {
            ("vjepa2", "vit_g" | "vit_g_384") => vec!["vit_g", "vit_g_384"],
            ("pe_text", "b16" | "l14") => vec!["b16", "l14"],
            ("clip_text", "b32" | "b16") => vec!["b32", "b16"],
            ("clip_text", "l14" | "l14_336") => vec!["l14", "l14_336"],
            _ => vec![size],
        };
        assert_eq!(model.family.as_deref(), Some(family));
        assert_eq!(model.sizes, sizes, "{family}");
        assert_eq!((model.held.tensors, model.held.parameters), (tensors, count as u64));
        assert_eq!((model.nearest.as_ref(), found.unused.count), (None, 0));
        let line = format!("size: {}", sizes[0]);
        assert!(
            model.recipe.contains(&line) && !model.recipe.contains("image_size"),
            "{}",
            model.recipe
        );
    }
}

#[test]
fn files_of_other_frames_layers_and_sizes_are_described_by_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let models = published_models();
    let published = |family: &str, size: &str| {
        models.iter().find(|model| (model.family, model.size) == (family, size)).unwrap()
    };
    // Learned positions for frames of 384².
    let wide = PublishedModel { image_size: Some(384), ..published("siglip2", "b16").clone() };
    write_header(&path, &tensors_of(&wide, |_| {}));
    let found = known(&path).models.remove(0);
    assert_eq!(found.sizes, ["b16"]);
    assert!(found.recipe.contains("  image_size: 384\n"), "{}", found.recipe);

    // The layers that a recipe takes, as `export` writes them.
    let llama = published("llama", "1b");
    write_header(&path, &tensors_of(llama, |keys| keys["layers"][0] = 8.into()));
    assert_eq!(known(&path).models[0].sizes, ["1b"]);
    write_header(&path, &tensors_of(llama, |keys| keys["layers"][0] = 9.into()));
    let found = known(&path).models.remove(0);
    assert_eq!(found.nearest.unwrap().differs, *json!({"layers": [8, 16]}).as_object().unwrap());

    let layers = |keys: &mut Map<String, Value>| keys["num_layers"] = 23.into();
    for (family, size) in [("vjepa2", "vit_l"), ("pe", "l14"), ("embedding_gemma", "300m")] {
        write_header(&path, &tensors_of(published(family, size), layers));
        let found = known(&path).models.remove(0);
        assert_eq!((found.family.as_deref(), found.sizes.len()), (Some(family), 0));
        let nearest = found.nearest.unwrap();
        assert_eq!(nearest.size, size);
        assert_eq!(nearest.differs, *json!({"num_layers": 24}).as_object().unwrap());
        assert!(found.recipe.contains("    num_layers: 23\n"), "{}", found.recipe);
    }
    // Heads are no part of the shapes of Llama, but their products are.
    write_header(&path, &tensors_of(llama, |keys| keys["num_kv_heads"] = 4.into()));
    assert_eq!(known(&path).models[0].sizes, Vec::<String>::new());
}
