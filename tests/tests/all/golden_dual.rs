//! Compares whole dual encoders: CLIP and `SigLIP` 2 with Hugging Face transformers, PE-core and
//! CLIP's ResNet with second implementations in PyTorch.

use serde_json::json;
use vljepa_kernels::testing::{assert_close, assert_differs};
use vljepa_kernels::{Device, Packed};
use vljepa_model::layers::Pooling;
use vljepa_model::weights::{Source, load};
use vljepa_model::{DualEncoder, Parameters};

use crate::golden::{Golden, Machine, integer, values};

/// Tolerance for embeddings of length one; `tests/golden/README.md` derives it.
const TOLERANCE: f32 = 1e-6;

const SOURCES: [(Source, Source); 4] = [
    (Source::Clip, Source::ClipText),
    (Source::ClipResnet, Source::ClipText),
    (Source::Siglip2, Source::Siglip2Text),
    (Source::Pe, Source::PeText),
];

/// The golden dual encoder of a family.
fn open((x, y): (Source, Source)) -> (Golden, DualEncoder, Parameters) {
    let [(_, x_family), (_, y_family)] = [x, y].map(|source| source.family().unwrap());
    let golden = Golden::open(&format!("dual_{x_family}"));
    let own = matches!(x, Source::Pe | Source::ClipResnet);
    let names = if own {
        ["width", "layers", "heads"]
    } else {
        ["hidden_size", "num_hidden_layers", "num_attention_heads"]
    };
    let [width, layers, heads] = names;
    let size = |part: &str, key: &str| golden.size(&format!("{part}.{key}"));
    let of = |part: &str, key: &str| if own { size(part, key) } else { golden.size(key) };
    let mlp = |part: &str| match (own, part) {
        (false, _) => size(part, "intermediate_size"),
        (true, "vision") => size(part, "mlp_width"),
        (true, _) => 4 * size(part, "width"),
    };
    let output = if own { size("text", "output_dim") } else { golden.size("output_size") };
    let context_length = of("text", "context_length");
    let x_encoder = match x {
        Source::ClipResnet => json!({
            "family": x_family,
            "width": size("vision", width),
            "layers": golden.config["vision.layers"],
            "num_heads": size("vision", heads),
        }),
        _ => json!({
            "family": x_family,
            "patch_size": of("vision", "patch_size"),
            "hidden_size": size("vision", width),
            "num_layers": size("vision", layers),
            "num_heads": size("vision", heads),
            "intermediate_size": mlp("vision"),
        }),
    };
    let keys = json!({
        "kind": "dual_encoder",
        "image_size": of("vision", "image_size"),
        "embed_dim": output,
        "x_encoder": x_encoder,
        "y_encoder": {
            "family": y_family,
            "hidden_size": size("text", width),
            "num_layers": size("text", layers),
            "num_heads": size("text", heads),
            "intermediate_size": mlp("text"),
            "vocab_size": of("text", "vocab_size"),
            "context_length": context_length,
            "max_target_tokens": context_length,
            "output_size": output,
            "update": "frozen",
            "projection": "none",
        },
    });
    let model = DualEncoder::new(&serde_json::from_value(keys).unwrap(), Device::Host).unwrap();
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    for source in [x, y] {
        load(&model, &mut parameters, source, &golden.weights()).unwrap();
    }
    (golden, model, parameters)
}

/// Embeddings of the golden texts, of so many tokens each.
fn texts(
    (golden, model, parameters): &(Golden, DualEncoder, Parameters),
    lengths: [usize; 3],
) -> Vec<f32> {
    let width = golden.shape("in.input_ids")[1];
    let rows = golden.get("in.input_ids").chunks(width).zip(lengths);
    let (mut ids, mut ends) = (Vec::new(), vec![0]);
    for (row, length) in rows {
        ids.extend(row[..length].iter().map(|&id| integer(id)));
        ends.push(i32::try_from(ids.len()).unwrap());
    }
    let texts = Packed::new(Device::Host, ids, ends).unwrap();
    values(&model.embed_texts(Machine::new().cx(), parameters, &texts).unwrap())
}

#[test]
fn embeddings_of_clips_are_means_over_frames_of_the_published_ones() {
    for sources in SOURCES {
        let (golden, model, parameters) = open(sources);
        let frames = golden.frames("in.frames");
        let machine = Machine::new();
        let got = values(&model.embed_frames(machine.cx(), &parameters, frames.view()).unwrap());
        let name = format!("{sources:?}");
        assert_close(&name, &got, golden.get("out.frames"), TOLERANCE);
        let wrong = golden.names("wrong.");
        assert!(wrong.len() >= 2, "{wrong:?}");
        for wrong in wrong {
            let other = golden.get(&format!("wrong.{wrong}"));
            assert_differs(&format!("{name} {wrong}"), &got, other, TOLERANCE);
        }
    }
}

#[test]
fn embeddings_of_texts_are_the_published_ones() {
    let (real, padded) = ([4, 8, 2], [8; 3]);
    for sources in SOURCES {
        let mut opened = open(sources);
        let (right, wrong) = match sources.0 {
            // The padding of these models is not read. Its last token is not the end of the text.
            Source::Clip | Source::ClipResnet | Source::Pe => (real, padded),
            _ => (padded, real),
        };
        let want = opened.0.get("out.texts").to_vec();
        let name = format!("{sources:?}");
        assert_close(&name, &texts(&opened, right), &want, TOLERANCE);
        assert_differs(&name, &texts(&opened, wrong), &want, TOLERANCE);
        opened.1.y_encoder.head.pooling = Pooling::Mean;
        assert_differs(&name, &texts(&opened, right), &want, TOLERANCE);
    }
}
