//! Tensor names of CLIP's text tower: in the format of Hugging Face transformers
//! (`openai/clip-vit-large-patch14`, `model.safetensors`), and in `OpenAI`'s own, as `open_clip`
//! keeps it (`timm/resnet50_clip.openai`, `open_clip_model.safetensors`).

use super::naming::{Extra, Naming};
use super::siglip2_text::{PLAIN, tower};
use super::sizes::{Shapes, Sizes};
use super::{Piece, clip_resnet, pe_text};
use crate::{Head, TextModel};

/// Pieces of the embeddings, the positions, the layers, the final norm and the projection.
pub(super) fn pieces(text: &TextModel, head: &Head) -> Vec<Piece> {
    let mut pieces = tower(text);
    let projection = head.maps.first();
    pieces.extend(projection.map(|map| Piece::whole("text_projection.weight", &map.weight)));
    pieces
}

/// Names in the published files, which also hold the vision tower, its projection, and the scale of
/// the similarities. `position_ids` are the numbers from 0.
pub(super) fn naming(pieces: Vec<Piece>) -> Naming {
    let extra = Extra::Prefixes(&[
        "text_model.embeddings.position_ids",
        "vision_model.",
        "visual_projection.",
        "logit_scale",
    ]);
    Naming { pieces, roots: &[""], cut: &[], extra, sizes }
}

fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    file.text_tower(PLAIN, file.rows("text_projection.weight")?)
}

/// `OpenAI`'s own names, which are those of PE-core's text tower. Files also hold the ResNet and
/// the scale of the similarities.
pub(super) fn original(text: &TextModel, head: &Head) -> Naming {
    let extra = Extra::Prefixes(&[
        "visual.conv",
        "visual.bn",
        "visual.layer",
        clip_resnet::POOLING,
        "logit_scale",
    ]);
    Naming {
        pieces: pe_text::pieces(text, head),
        roots: &[""],
        cut: &[],
        extra,
        sizes: original_sizes,
    }
}

/// Sizes of a text tower beside a ResNet. Without one, the names do not tell CLIP's from PE-core's.
fn original_sizes(file: &Shapes<'_>) -> Option<Sizes> {
    file.shape(&format!("{}c_proj.weight", clip_resnet::POOLING))?;
    pe_text::sizes(file)
}
