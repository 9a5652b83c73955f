//! Weights files: round trips, and errors that name the problem of a damaged file.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use vljepa_kernels::Device;
use vljepa_model::weights::{Imported, Source, check, export, exported, load};
use vljepa_model::{ModelError, Parameters, VlJepa};
use vljepa_recipes::schema::Loss;

use crate::tiny;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn model() -> (VlJepa, Parameters) {
    let model = VlJepa::new(&tiny::model(), &Loss::default(), Device::Host).unwrap();
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    parameters.initialise(model.layout(), 1).unwrap();
    (model, parameters)
}

fn all(parameters: &Parameters) -> Vec<f32> {
    let read = |t: &vljepa_kernels::Tensor| t.view().host_f32("test", "weights").unwrap().to_vec();
    [read(&parameters.trainable), read(&parameters.frozen)].concat()
}

/// The matrix into the MLP of one of the predictor's layers.
fn matrix_of_predictor(model: &VlJepa, parameters: &Parameters, layer: usize) -> Vec<f32> {
    let id = model.predictor.text.stack.blocks[layer].mlp.up.weight.id();
    parameters.view(model.layout(), id).host_f32("test", "weights").unwrap().to_vec()
}

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |v: &TensorView<'_>| (v.dtype(), v.shape().to_vec(), v.data().to_vec());
    file.tensors().iter().map(|(name, v)| (name.clone(), tensor(v))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn what_is_exported_is_read_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (model, parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
    assert_ne!(all(&other), all(&parameters));
    for (source, path) in exported(&model, folder.path()) {
        let read = load(&model, &mut other, source, &path).unwrap();
        assert_eq!(check(&model, source, &path).unwrap(), read);
        assert_eq!(read.unused, Vec::<String>::new());
    }
    assert_eq!(all(&other), all(&parameters));
}

#[test]
fn exported_files_hold_published_names_with_fused_matrices_taken_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (model, parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let shape =
        |source: Source, name: &str| read(&folder.path().join(source.file()))[name].1.clone();
    let vision = "encoder.embeddings.patch_embeddings.proj.weight";
    assert_eq!(shape(Source::VJepa2, vision), [16, 3, 2, 16, 16]);
    assert_eq!(shape(Source::VJepa2, "encoder.layer.1.attention.key.bias"), [16]);
    assert_eq!(shape(Source::Llama, "layers.1.self_attn.k_proj.weight"), [8, 16]);
    assert_eq!(shape(Source::Llama, "layers.0.mlp.up_proj.weight"), [24, 16]);
    assert_eq!(shape(Source::Gemma, "layers.0.self_attn.q_norm.weight"), [8]);
    assert_eq!(shape(Source::GemmaDense2, "linear.weight"), [24, 16]);
    assert_eq!(shape(Source::Projections, "logit_scale"), [1]);
}

#[test]
fn prefixed_names_and_half_precision_are_read_and_extra_tensors_listed() {
    let folder = tempfile::tempdir().unwrap();
    let (model, parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let path = folder.path().join(Source::Llama.file());
    let plain = read(&path);
    for dtype in [Dtype::BF16, Dtype::F16] {
        let mut tensors = Tensors::new();
        for (name, (_, shape, data)) in &plain {
            let floats = data.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()));
            let halves = floats.flat_map(|v| match dtype {
                Dtype::BF16 => bf16::from_f32(v).to_le_bytes(),
                _ => f16::from_f32(v).to_le_bytes(),
            });
            tensors.insert(format!("model.{name}"), (dtype, shape.clone(), halves.collect()));
        }
        let extra = (dtype, vec![1], vec![0, 0]);
        tensors.insert("model.layers.9.input_layernorm.weight".to_owned(), extra);
        write(&path, &tensors);
        let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
        let Imported { read: count, unused } =
            load(&model, &mut other, Source::Llama, &path).unwrap();
        assert_eq!(unused, ["model.layers.9.input_layernorm.weight"]);
        assert_eq!(count, plain.len());
        let read = |p: &Parameters| matrix_of_predictor(&model, p, 0);
        let rounded = |v: &f32| match dtype {
            Dtype::BF16 => bf16::from_f32(*v).to_f32(),
            _ => f16::from_f32(*v).to_f32(),
        };
        let want: Vec<f32> = read(&parameters).iter().map(rounded).collect();
        assert_eq!(read(&other), want);
        assert_ne!(read(&other), read(&parameters));
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named_and_nothing_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (model, parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let path = folder.path().join(Source::Gemma.file());
    let whole = read(&path);
    let attempt = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        write(&path, &tensors);
        let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
        let error = load(&model, &mut other, Source::Gemma, &path).unwrap_err();
        assert!(all(&other).iter().all(|v| *v == 0.0));
        error
    };
    let missing = attempt(&|t| drop(t.remove("layers.1.self_attn.v_proj.weight")));
    assert!(matches!(&missing, ModelError::MissingTensors { names, .. } if names.len() == 1));
    assert!(missing.to_string().contains("layers.1.self_attn.v_proj.weight"), "{missing}");
    let misshapen = attempt(&|t| {
        t.get_mut("norm.weight").unwrap().1 = vec![4, 4];
    });
    assert!(misshapen.to_string().contains("norm.weight has shape [4, 4]"), "{misshapen}");
    let integers = attempt(&|t| {
        t.get_mut("norm.weight").unwrap().0 = Dtype::I32;
    });
    assert!(integers.to_string().contains("norm.weight holds I32"), "{integers}");
}

#[test]
fn a_number_that_is_not_finite_is_named_with_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (model, parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let path = folder.path().join(Source::Gemma.file());
    check(&model, Source::Gemma, &path).unwrap();
    let whole = read(&path);
    for (dtype, bits, said) in [
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec(), "NaN"),
        (Dtype::BF16, bf16::INFINITY.to_le_bytes().to_vec(), "inf"),
        (Dtype::F16, f16::NEG_INFINITY.to_le_bytes().to_vec(), "-inf"),
    ] {
        let mut tensors = whole.clone();
        let norm = tensors.get_mut("norm.weight").unwrap();
        (norm.0, norm.2) = (dtype, vec![0; 16 * bits.len()]);
        norm.2[3 * bits.len()..4 * bits.len()].copy_from_slice(&bits);
        write(&path, &tensors);
        let error = check(&model, Source::Gemma, &path).unwrap_err().to_string();
        assert!(error.contains(&format!("norm.weight holds {said} (element 3)")), "{error}");
        let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
        let loaded = load(&model, &mut other, Source::Gemma, &path).unwrap_err().to_string();
        assert_eq!(loaded, error);
    }
}

#[test]
fn files_that_are_no_safetensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (model, mut parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let whole = std::fs::read(folder.path().join(Source::VJepa2.file())).unwrap();
    let mut attempt = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        load(&model, &mut parameters, Source::VJepa2, &path).unwrap_err().to_string()
    };
    assert!(attempt("cut.safetensors", &whole[..whole.len() - 1]).contains("cut short"));
    assert!(
        attempt("text.safetensors", b"a text that is long enough").contains("not a safetensors")
    );
    for (name, bytes, said) in [
        ("config.json", &b"{\"hidden_size\": 64}"[..], "it is a JSON file"),
        ("zip.safetensors", b"PK\x03\x04\x00\x00\x08\x08", "damaged or cut short"),
        ("gemma.gguf", b"GGUF\x03\x00\x00\x00\x00", "it is a GGUF file"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("page.safetensors", b"<!DOCTYPE html>", "is an HTML or XML page"),
        ("empty.safetensors", b"", "is empty (0 bytes)"),
        ("short.safetensors", b"abc", "cut short"),
    ] {
        let error = attempt(name, bytes);
        assert!(error.contains(name) && error.contains(said), "{name}: {error}");
    }
    let path = folder.path().join("nowhere.safetensors");
    let error = load(&model, &mut parameters, Source::VJepa2, &path).unwrap_err().to_string();
    assert!(error.contains("nowhere.safetensors"), "{error}");
}

#[test]
fn a_header_whose_length_looks_like_another_format_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (model, parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let path = folder.path().join(Source::Projections.file());
    let bytes = std::fs::read(&path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    // The first bytes of a pickle, of gzip, and of JSON.
    for start in [0x0280u64, 0x8b1f, 0x7b] {
        let padded = (0..).map(|i| start + 0x1_0000 * i).find(|n| *n > length as u64).unwrap();
        let mut changed = padded.to_le_bytes().to_vec();
        changed.extend(&bytes[8..8 + length]);
        changed.resize(8 + usize::try_from(padded).unwrap(), b' ');
        changed.extend(&bytes[8 + length..]);
        std::fs::write(&path, changed).unwrap();
        check(&model, Source::Projections, &path).unwrap();
    }
}

/// A model whose X-encoder has the sizes of `tests/weights/vjepa2.pt`, but so many layers. The file
/// has two.
fn model_of_published(layers: usize) -> VlJepa {
    let mut recipe = tiny::model();
    let keys = tiny::vjepa2(&mut recipe);
    keys.patch_size = 8;
    keys.num_layers = layers;
    VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap()
}

#[test]
fn the_published_file_of_pytorch_gives_the_weights_of_the_one_of_transformers() {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights");
    let model = model_of_published(2);
    let read = |name: &str| {
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        let path = weights.join(name);
        let imported = load(&model, &mut parameters, Source::VJepa2, &path).unwrap();
        (all(&parameters), imported)
    };
    let (ours, imported) = read("vjepa2.pt");
    let (transformers, split) = read("vjepa2.safetensors");
    assert!(ours == transformers && ours.iter().any(|v| *v != 0.0));
    // Queries, keys and values are one tensor in the first file. Its other encoder, positions,
    // predictor and optimizer are not used.
    assert_eq!((imported.read, split.read), (28, 36));
    assert_eq!(imported.unused.len(), 28 + 2 + 1 + 2);
    assert!(imported.unused.contains(&"target_encoder.module.backbone.pos_embed".to_owned()));
    assert!(split.unused.is_empty());
}

#[test]
fn a_file_of_a_larger_model_is_refused_and_nothing_is_read() {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights");
    let model = model_of_published(1);
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    for (name, layer, count) in [
        ("vjepa2.pt", "target_encoder.module.backbone.blocks.1.attn.proj.bias", 12),
        ("vjepa2.safetensors", "encoder.layer.1.attention.key.bias", 16),
    ] {
        let path = weights.join(name);
        let error = load(&model, &mut parameters, Source::VJepa2, &path).unwrap_err();
        let ModelError::UnusedTensors { names, .. } = &error else { panic!("{error}") };
        assert_eq!(names.len(), count, "{names:?}");
        assert!(names.contains(&layer.to_owned()), "{names:?}");
        assert!(check(&model, Source::VJepa2, &path).is_err());
    }
    assert!(all(&parameters).iter().all(|v| *v == 0.0));
}

#[test]
fn several_files_with_an_index_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let (model, parameters) = model();
    export(&model, &parameters, folder.path()).unwrap();
    let whole = read(&folder.path().join(Source::Llama.file()));
    let name_of = |part: usize| format!("model-{part:05}-of-00002.safetensors");
    let part = |name: &str| if name.starts_with("layers.1") { 2 } else { 1 };
    for number in [1, 2] {
        let tensors: Tensors =
            whole.clone().into_iter().filter(|(name, _)| part(name) == number).collect();
        write(&folder.path().join(name_of(number)), &tensors);
    }
    let index = folder.path().join("model.safetensors.index.json");
    let map: BTreeMap<&String, String> =
        whole.keys().map(|name| (name, name_of(part(name)))).collect();
    let write_index = |map: &BTreeMap<&String, String>| {
        let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        std::fs::write(&index, text.to_string()).unwrap();
    };
    let attempt = || {
        let mut other = Parameters::new(model.layout(), Device::Host).unwrap();
        let loaded = load(&model, &mut other, Source::Llama, &index);
        loaded.map(|imported| {
            let weights = |p: &Parameters| matrix_of_predictor(&model, p, 1);
            assert_eq!(weights(&other), weights(&parameters));
            imported.read
        })
    };
    write_index(&map);
    assert_eq!(attempt().unwrap(), whole.len());
    // A tensor that is in the other file.
    let norm = "norm.weight".to_owned();
    let mut wrong = map.clone();
    wrong.insert(&norm, name_of(2));
    write_index(&wrong);
    let error = attempt().unwrap_err().to_string();
    assert!(error.contains("00002-of-00002") && error.contains("norm.weight"), "{error}");
    // A file of another folder, and one that is not there.
    wrong.insert(&norm, "../model.safetensors".to_owned());
    write_index(&wrong);
    let error = attempt().unwrap_err().to_string();
    assert!(error.contains("../model.safetensors, which does not lie beside it"), "{error}");
    write_index(&map);
    std::fs::remove_file(folder.path().join(name_of(2))).unwrap();
    let error = attempt().unwrap_err().to_string();
    assert!(error.contains("00002-of-00002.safetensors"), "{error}");
}
