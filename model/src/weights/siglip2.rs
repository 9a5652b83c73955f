//! Tensor names of `SigLIP` 2's vision tower at fixed resolution, in the format of Hugging Face
//! transformers (`google/siglip2-so400m-patch16-256`, `model.safetensors`).

use super::Piece;
use super::naming::{Extra, Naming};
use super::pe::{attention_pooling, image_patch};
use super::sizes::{Shapes, Sizes};
use super::vjepa2::{linear, norm, query_key_value};
use crate::XEncoder;
use crate::layers::Stack;
use crate::x_encoder::{Family, ImageHead};

/// Tensors that show the sizes of the encoder, or of CLIP's: convolution, layers, MLP, positions.
pub(super) const VISION: [&str; 4] = [
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.encoder.layers.",
    "mlp.fc1.weight",
    "vision_model.embeddings.position_embedding.weight",
];

/// Pieces of the encoder and of its head, if the model has it. Empty if it is of another family.
pub(super) fn pieces(encoder: &XEncoder, head: Option<&ImageHead>) -> Vec<Piece> {
    let Family::Siglip2(tower) = &encoder.family else { return Vec::new() };
    let mut pieces = image_patch("vision_model.embeddings.patch_embedding", tower);
    let positions = "vision_model.embeddings.position_embedding.weight";
    pieces.push(Piece::whole(positions, &tower.positions));
    layers(&mut pieces, "vision_model", &encoder.stack);
    norm(&mut pieces, "vision_model.post_layernorm", &encoder.stack.norm);
    if let Some(head) = head {
        attention_pooling(&mut pieces, "vision_model.head", ["attention", "fc1", "fc2"], head);
    }
    pieces
}

/// Adds the layers of the tower `model`, whose names are those of CLIP too.
pub(super) fn layers(pieces: &mut Vec<Piece>, model: &str, stack: &Stack) {
    for (i, block) in stack.blocks.iter().enumerate() {
        let name = format!("{model}.encoder.layers.{i}");
        norm(pieces, &format!("{name}.layer_norm1"), &block.attention_norm);
        let parts = ["q_proj", "k_proj", "v_proj"].map(|part| format!("{name}.self_attn.{part}"));
        query_key_value(pieces, &parts, &block.attention.qkv);
        linear(pieces, &format!("{name}.self_attn.out_proj"), &block.attention.output);
        norm(pieces, &format!("{name}.layer_norm2"), &block.mlp_norm);
        linear(pieces, &format!("{name}.mlp.fc1"), &block.mlp.up);
        linear(pieces, &format!("{name}.mlp.fc2"), &block.mlp.down);
    }
}

/// Names in the published files, which also hold the tower's attention pooling, the text tower, and
/// scale and bias of the similarities. `position_ids` are the numbers from 0.
pub(super) fn naming(pieces: Vec<Piece>) -> Naming {
    let extra = Extra::Prefixes(&[
        "vision_model.head.",
        "vision_model.embeddings.position_ids",
        "text_model.",
        "logit_scale",
        "logit_bias",
    ]);
    Naming { pieces, roots: &[""], cut: &[], extra, sizes }
}

fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    file.image(VISION, 0)
}
