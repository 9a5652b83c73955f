//! How pictures and texts are prepared, for the processors and tokenizers of transformers.

use serde_json::{Value, json};
use vljepa_recipes::schema::{Interpolation, Transform, XEncoder};

use super::configs::decimal;
use crate::VlJepa;

/// Shortest side of a resized frame over the side of the crop, in V-JEPA 2's preprocessing.
const RESIZED: [usize; 2] = [256, 224];

/// Shortest side to which pictures are resized, or `None` if they are squashed.
fn short_side(model: &VlJepa) -> Option<usize> {
    let size = model.recipe().image_size;
    match model.recipe().x_encoder.preprocessing().transform {
        Transform::ResizeCenterCrop | Transform::RandomResizedCrop => {
            Some(size * RESIZED[0] / RESIZED[1])
        }
        Transform::CenterCrop => Some(size),
        Transform::Squash => None,
    }
}

/// Mean and standard deviation of pixels, and how frames are resized.
pub(super) fn pixels(model: &VlJepa) -> Value {
    let normalisation = model.x_encoder.normalisation();
    let interpolation = model.recipe().x_encoder.preprocessing().interpolation;
    json!({
        "mean": normalisation.mean.map(decimal),
        "std": normalisation.std.map(decimal),
        "shortest_side": short_side(model),
        "interpolation": interpolation,
    })
}

/// Name and content of the file from which transformers makes the processor of pictures or clips.
pub(super) fn of_pictures(model: &VlJepa) -> (&'static str, Value) {
    let (size, short) = (model.recipe().image_size, short_side(model));
    let square = json!({"height": size, "width": size});
    let normalisation = model.x_encoder.normalisation();
    // Numbers of Pillow's filters.
    let resample = match model.recipe().x_encoder.preprocessing().interpolation {
        Interpolation::Bilinear => 2,
        Interpolation::Bicubic => 3,
    };
    let (name, kind, class) = match &model.recipe().x_encoder {
        XEncoder::Vjepa2(_) | XEncoder::Vjepa2_1(_) => {
            ("video_preprocessor_config.json", "video_processor_type", "VJEPA2VideoProcessor")
        }
        // This class crops as well, which those of the other families do not.
        XEncoder::Pe(_) | XEncoder::Siglip2(_) | XEncoder::Clip(_) | XEncoder::ClipResnet(_) => {
            ("preprocessor_config.json", "image_processor_type", "CLIPImageProcessor")
        }
    };
    let mut processor = json!({
        "do_convert_rgb": true,
        "do_resize": true,
        "size": short.map_or_else(|| square.clone(), |short| json!({"shortest_edge": short})),
        "resample": resample,
        "do_center_crop": short.is_some(),
        "crop_size": square,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": normalisation.mean.map(decimal),
        "image_std": normalisation.std.map(decimal),
    });
    processor[kind] = class.into();
    (name, processor)
}

/// `tokenizer_config.json` of texts of at most so many tokens.
pub(super) fn of_texts(max_tokens: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "padding_side": "right",
        "truncation_side": "right",
    })
}
