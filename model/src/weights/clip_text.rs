//! Tensor names of CLIP's text tower in the format of Hugging Face transformers
//! (`openai/clip-vit-large-patch14`, `model.safetensors`).

use super::Piece;
use super::naming::{Extra, Naming};
use super::siglip2_text::{PLAIN, tower};
use super::sizes::{Shapes, Sizes};
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
