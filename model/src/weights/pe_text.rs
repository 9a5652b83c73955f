//! Tensor names of PE-core's text tower in Meta's format (`facebook/PE-Core-L14-336`,
//! `PE-Core-L14-336.pt`).

use super::Piece;
use super::naming::{Extra, Naming};
use super::pe::{META_CUT, META_ROOTS, resblocks};
use super::sizes::{Shapes, Sizes};
use super::vjepa2::norm;
use crate::layers::Positions;
use crate::{Head, TextModel};

/// Pieces of the embeddings, the positions, the layers, the final norm and the projection.
pub(super) fn pieces(text: &TextModel, head: &Head) -> Vec<Piece> {
    let mut pieces = vec![Piece::whole("token_embedding.weight", &text.embedding)];
    if let Positions::Learned(positions) = &text.positions {
        pieces.push(Piece::whole("positional_embedding", positions));
    }
    resblocks(&mut pieces, "transformer.resblocks", &text.stack.blocks);
    norm(&mut pieces, "ln_final", &text.stack.norm);
    let projection = head.maps.first();
    pieces.extend(projection.map(|map| Piece::transposed("text_projection", &map.weight)));
    pieces
}

/// Names in the published files, which also hold the vision tower. CLIP's text tower has the same
/// names, but lies beside another tower.
pub(super) fn naming(pieces: Vec<Piece>) -> Naming {
    let extra = Extra::Prefixes(&[
        "visual.conv1.",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.ln_",
        "visual.transformer.",
        "visual.attn_pool.",
        "visual.proj",
        "logit_scale",
    ]);
    Naming { pieces, roots: META_ROOTS, cut: META_CUT, extra, sizes }
}

pub(super) fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    let tensors = [
        "token_embedding.weight",
        "transformer.resblocks.",
        "mlp.c_fc.weight",
        "positional_embedding",
    ];
    file.text_tower(tensors, *file.shape("text_projection")?.get(1)?)
}
