//! Tensor names of CLIP's vision transformer in the format of Hugging Face transformers
//! (`openai/clip-vit-large-patch14`, `model.safetensors`).

use super::Piece;
use super::naming::{Extra, Naming};
use super::pe::image_patch;
use super::siglip2::{VISION, layers};
use super::sizes::{Shapes, Sizes};
use super::vjepa2::norm;
use crate::XEncoder;
use crate::x_encoder::{Family, ImageHead};

/// Pieces of the encoder and of its head, if the model has it. Empty if it is of another family.
pub(super) fn pieces(encoder: &XEncoder, head: Option<&ImageHead>) -> Vec<Piece> {
    let Family::Clip(tower) = &encoder.family else { return Vec::new() };
    let mut pieces = image_patch("vision_model.embeddings.patch_embedding", tower);
    if let Some(cls) = &tower.cls {
        let (name, shape) =
            ("vision_model.embeddings.class_embedding", vec![tower.patch.outputs()]);
        pieces.push(Piece { shape, ..Piece::whole(name, cls) });
    }
    let positions = "vision_model.embeddings.position_embedding.weight";
    pieces.push(Piece::whole(positions, &tower.positions));
    if let Some(first_norm) = &tower.first_norm {
        // The published name has this spelling.
        norm(&mut pieces, "vision_model.pre_layrnorm", first_norm);
    }
    layers(&mut pieces, "vision_model", &encoder.stack);
    norm(&mut pieces, "vision_model.post_layernorm", &encoder.stack.norm);
    let projection = head.and_then(|head| head.clip.maps.first());
    pieces.extend(projection.map(|map| Piece::whole("visual_projection.weight", &map.weight)));
    pieces
}

/// Names in the published files, which also hold the text tower, both projections and the scale of
/// the similarities. `position_ids` are the numbers from 0.
pub(super) fn naming(pieces: Vec<Piece>) -> Naming {
    let extra = Extra::Prefixes(&[
        "vision_model.embeddings.position_ids",
        "visual_projection.",
        "text_model.",
        "text_projection.",
        "logit_scale",
    ]);
    Naming { pieces, roots: &[""], cut: &[], extra, sizes }
}

fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    file.image(VISION, 1)
}
