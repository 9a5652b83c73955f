//! Tensor names of V-JEPA 2.1's encoder in Meta's format
//! (`dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitl_dist_vitG_384.pt`).

use super::Piece;
use super::naming::{Extra, Naming};
use super::vjepa2::{META_CUT, META_ROOTS, meta_blocks, meta_sizes, norm, patch};
use crate::XEncoder;
use crate::x_encoder::Family;

/// Pieces of the encoder. Empty if it is of another family.
pub(super) fn pieces(encoder: &XEncoder) -> Vec<Piece> {
    let Family::Vjepa2_1(family) = &encoder.family else { return Vec::new() };
    let mut pieces = Vec::new();
    for (map, embedding, modality) in [
        ("patch_embed.proj", "video_mod_embed", &family.video),
        ("patch_embed_img.proj", "img_mod_embed", &family.image),
    ] {
        pieces.extend(patch(map, &modality.patch, modality.patch_shape()));
        let shape = vec![1, 1, modality.patch.outputs()];
        pieces.push(Piece { shape, ..Piece::whole(embedding, &modality.embedding) });
    }
    meta_blocks(&mut pieces, encoder);
    norm(&mut pieces, "norms_block.3", &encoder.stack.norm);
    pieces
}

/// Names in the published files. Distilled models are there as `ema_encoder`, the others as
/// `target_encoder`. Beside an encoder lie the norms of its earlier blocks, which only V-JEPA 2.1's
/// own training reads, its predictor, and the optimizer's state.
pub(super) fn naming(pieces: Vec<Piece>) -> Naming {
    let extra = Extra::Prefixes(&[
        "norms_block.0.",
        "norms_block.1.",
        "norms_block.2.",
        "predictor.",
        "opt.",
    ]);
    Naming { pieces, roots: META_ROOTS, cut: META_CUT, extra, sizes: meta_sizes }
}
