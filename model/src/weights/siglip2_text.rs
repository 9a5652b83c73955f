//! Tensor names of `SigLIP` 2's text tower at fixed resolution, in the format of Hugging Face
//! transformers (`google/siglip2-so400m-patch16-256`, `model.safetensors`).

use super::Piece;
use super::naming::{Extra, Naming};
use super::siglip2::layers;
use super::sizes::{Shapes, Sizes};
use super::vjepa2::{linear, norm};
use crate::layers::Positions;
use crate::{Head, TextModel};

/// Tensors that show the sizes of the encoder, or of CLIP's: embeddings, layers, MLP, positions.
pub(super) const PLAIN: [&str; 4] = [
    "text_model.embeddings.token_embedding.weight",
    "text_model.encoder.layers.",
    "mlp.fc1.weight",
    "text_model.embeddings.position_embedding.weight",
];

/// Pieces of the embeddings, the positions, the layers, the final norm and the head.
pub(super) fn pieces(text: &TextModel, head: &Head) -> Vec<Piece> {
    let mut pieces = tower(text);
    if let Some(map) = head.maps.first() {
        linear(&mut pieces, "text_model.head", map);
    }
    pieces
}

/// Pieces up to the final norm, whose names are those of CLIP too.
pub(super) fn tower(text: &TextModel) -> Vec<Piece> {
    let [table, _, _, positions_name] = PLAIN;
    let mut pieces = vec![Piece::whole(table, &text.embedding)];
    if let Positions::Learned(positions) = &text.positions {
        pieces.push(Piece::whole(positions_name, positions));
    }
    layers(&mut pieces, "text_model", &text.stack);
    norm(&mut pieces, "text_model.final_layer_norm", &text.stack.norm);
    pieces
}

/// Names in the published files, which also hold the vision tower, and scale and bias of the
/// similarities. `position_ids` are the numbers from 0.
pub(super) fn naming(pieces: Vec<Piece>) -> Naming {
    let extra = Extra::Prefixes(&[
        "text_model.embeddings.position_ids",
        "vision_model.",
        "logit_scale",
        "logit_bias",
    ]);
    Naming { pieces, roots: &[""], cut: &[], extra, sizes }
}

fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    file.text_tower(PLAIN, file.rows("text_model.head.weight")?)
}
