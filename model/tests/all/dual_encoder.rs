//! Dual encoders: their counts at published sizes, files in the published form, and refusals.

use serde_json::json;
use vljepa_kernels::testing::{assert_close, assert_differs, bytes};
use vljepa_kernels::{Arena, Device, Tensor};
use vljepa_model::weights::{Source, check, convert, export, exported, load, load_published};
use vljepa_model::{Context, DualEncoder, ModelError, Parameters, Tower, VlJepa};
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

/// Family of the text tower that belongs to an image tower.
fn text_family(family: &str) -> String {
    format!("{}_text", family.trim_end_matches("_resnet"))
}

/// A dual encoder of published sizes.
fn of_size(family: &str, size: &str) -> DualEncoder {
    let (x_encoder, image_size) = published(Role::XEncoder, family, size);
    let (mut y_encoder, _) = published(Role::YEncoder, &text_family(family), size);
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
///
/// RN50's file has 102,007,137 parameters: 23,474,016 weights of convolutions; weight and bias of
/// 26,624 channels of batch norms; 50 · 2,048 positions, three maps 2,048 · 2,049 and one 1,024 ·
/// 2,049 of the attention pooling; 63,690,240 of the text tower; the scale. In the model each
/// channel has one bias instead of weight and bias of its norm.
#[test]
fn dual_encoders_have_the_published_counts() {
    for (family, size, others, count) in [
        ("clip", "b32", 1, 151_277_313),
        ("clip", "b16", 1, 149_620_737),
        ("clip", "l14", 1, 427_616_513),
        ("clip", "l14_336", 1, 427_944_193),
        ("clip_resnet", "rn50", 1 + 26_624, 102_007_137),
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
        let planned = vljepa_recipes::cost::parameters(model.recipe());
        let of = |start: &str| model.layout().count(|p| p.name.starts_with(start));
        let counts = (of("x_encoder."), of("image_head."));
        assert_eq!(counts, (planned.x_encoder, planned.x_head), "{family} {size}");
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
    let x_encoder = if family == "clip_resnet" {
        json!({
            "family": family, "width": 2, "layers": [1, 2, 1, 1], "num_heads": 4,
            "weights": file(name),
        })
    } else {
        json!({
            "family": family, "patch_size": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
            "intermediate_size": 32, "weights": file(name),
        })
    };
    let model = json!({
        "kind": "dual_encoder",
        "image_size": 32,
        "embed_dim": output,
        "x_encoder": x_encoder,
        "y_encoder": {
            "family": text_family(family), "hidden_size": text, "num_layers": 2,
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

const FAMILIES: [(&str, Source, Source); 4] = [
    ("clip", Source::Clip, Source::ClipText),
    ("clip_resnet", Source::ClipResnet, Source::ClipText),
    ("siglip2", Source::Siglip2, Source::Siglip2Text),
    ("pe", Source::Pe, Source::PeText),
];

#[test]
fn a_file_of_both_towers_fills_every_parameter_and_leaves_only_the_similarities_scale() {
    // The ResNet's 22 batch norms have a counter each.
    for (family, others, counters) in
        [("clip", 1, 0), ("clip_resnet", 1, 22), ("siglip2", 2, 0), ("pe", 1, 0)]
    {
        let model = DualEncoder::new(&whole(family), Device::Host).unwrap();
        let mut parameters = parameters(&model);
        let read = load_published(&model, &mut parameters).unwrap();
        let [(_, images), (_, texts)] = &read[..] else { panic!("two encoders") };
        // What one tower leaves is the other tower, and scale and bias.
        assert_eq!(images.unused.len(), texts.read + others + counters, "{family}");
        assert_eq!(texts.unused.len(), images.read + others + counters, "{family}");
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
        if family == "clip_resnet" {
            let error = export(&model, &written, folder.path()).unwrap_err().to_string();
            assert!(error.contains("folded into its convolutions"), "{error}");
            continue;
        }
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

/// A convolution of the published names is the folded one but for rounding: a weight times the
/// factor of its channel, and the bias, computed here in f64 from the file.
#[test]
fn batch_norms_are_folded_into_the_convolutions_before_them() {
    let model = DualEncoder::new(&whole("clip_resnet"), Device::Host).unwrap();
    let mut parameters = parameters(&model);
    load_published(&model, &mut parameters).unwrap();
    let Tower::ResNet(resnet) = &model.tower else { panic!("a ResNet") };
    let bytes = std::fs::read(file("clip_resnet_whole.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str| -> Vec<f64> {
        let halves = stored.tensor(name).unwrap().data().to_vec();
        let half = |c: &[u8]| half::f16::from_le_bytes(c.try_into().unwrap()).to_f64();
        halves.chunks_exact(2).map(half).collect()
    };
    let map = resnet.blocks[2].spatial;
    let of = |weight: vljepa_model::Weight| {
        let view = parameters.view(model.layout(), weight.id());
        view.host_f32("test", "weights").unwrap().to_vec()
    };
    let (weight, bias) = (of(map.weight), of(map.bias.unwrap()));
    let name = "visual.layer2.1";
    let original = tensor(&format!("{name}.conv2.weight"));
    let vectors = ["weight", "bias", "running_mean", "running_var"];
    let [gamma, beta, mean, variance] = vectors.map(|v| tensor(&format!("{name}.bn2.{v}")));
    let channels = map.outputs();
    assert_eq!((channels, weight.len()), (4, 4 * 4 * 9));
    for output in 0..channels {
        let scale = gamma[output] / (variance[output] + 1e-5).sqrt();
        let want = beta[output] - scale * mean[output];
        assert!((f64::from(bias[output]) - want).abs() < 1e-7);
        for (input, pixel) in (0..channels).flat_map(|i| (0..9).map(move |p| (i, p))) {
            let want = scale * original[(output * channels + input) * 9 + pixel];
            let at = |pixel: usize| f64::from(weight[(output * 9 + pixel) * channels + input]);
            assert!((at(pixel) - want).abs() < 1e-7);
            assert!((at((pixel + 1) % 9) - want).abs() > 1e-7, "another pixel would be noticed");
        }
    }
}

#[test]
fn a_negative_variance_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let mut bytes = std::fs::read(file("clip_resnet_whole.safetensors")).unwrap();
    let at = {
        let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = stored.tensor("visual.layer3.0.bn2.running_var").unwrap().data().as_ptr();
        data as usize - bytes.as_ptr() as usize
    };
    // The sign of the second f16 number.
    bytes[at + 3] |= 0x80;
    std::fs::write(&path, bytes).unwrap();
    let model = DualEncoder::new(&whole("clip_resnet"), Device::Host).unwrap();
    let error = check(&model, Source::ClipResnet, &path).unwrap_err().to_string();
    assert!(error.contains("layer3.0.bn2.running_var holds the variance -1"), "{error}");
    assert!(error.contains("(element 1)"), "{error}");
    check(&model, Source::ClipText, &path).unwrap();
}

/// Frames are encoded in groups of 16. Sums of f32 may be in another order for another number of
/// rows, and embeddings have length one: equal within 1e-6.
#[test]
fn a_resnet_encodes_a_frame_alike_alone_and_among_many() {
    let model = DualEncoder::new(&whole("clip_resnet"), Device::Host).unwrap();
    let mut parameters = parameters(&model);
    load_published(&model, &mut parameters).unwrap();
    let arena = Arena::new(Device::Host, usize::MAX);
    let cx = Context { stream: &Device::Host.compute_stream(), arena: &arena };
    let embed = |pixels: &[u8]| {
        let frames = pixels.len() / (32 * 32 * 3);
        let frames = Tensor::from_u8(pixels.to_vec(), &[frames, 1, 32, 32, 3]);
        model.embed_frames(cx, &parameters, frames.view()).unwrap().to_f32().unwrap().into_owned()
    };
    let pixels = bytes(7, 18 * 32 * 32 * 3);
    let together = embed(&pixels);
    let alone: Vec<f32> = pixels.chunks(32 * 32 * 3).flat_map(&embed).collect();
    assert_close("frames", &together, &alone, 1e-6);
    assert_differs("frames, one later", &together[12..], &alone[..17 * 12], 1e-6);
}
