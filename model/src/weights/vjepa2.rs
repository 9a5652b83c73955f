//! Tensor names of V-JEPA 2's encoder: in the format of Hugging Face transformers
//! (`facebook/vjepa2-vitl-fpc64-256`), and in Meta's own (`dl.fbaipublicfiles.com/vjepa2/vitl.pt`).

use super::Piece;
use super::naming::{Extra, Naming};
use super::sizes::{Shapes, Sizes};
use crate::XEncoder;
use crate::layers::{Linear, Norm};
use crate::x_encoder::Family;

/// Prefixes under which Meta's files hold an encoder. The average of the trained encoder comes
/// first, because `torch.hub` loads it (`src/hub/backbones.py` in facebookresearch/vjepa2).
pub(super) const META_ROOTS: &[&str] = &["target_encoder.", "ema_encoder.", "encoder.", ""];

/// Parts that wrappers put into the names of Meta's files.
pub(super) const META_CUT: &[&str] = &["module.", "backbone."];

/// Pieces of the encoder. The file's `predictor.*` tensors belong to V-JEPA 2's own predictor,
/// which VL-JEPA does not use. Empty if the encoder is of another family.
pub(super) fn pieces(encoder: &XEncoder) -> Vec<Piece> {
    let Family::Vjepa2(family) = &encoder.family else { return Vec::new() };
    let name = "encoder.embeddings.patch_embeddings.proj";
    let mut pieces = patch(name, &family.patch, family.patch_shape());
    for (i, block) in encoder.stack.blocks.iter().enumerate() {
        let name = format!("encoder.layer.{i}");
        norm(&mut pieces, &format!("{name}.norm1"), &block.attention_norm);
        let parts = ["query", "key", "value"].map(|part| format!("{name}.attention.{part}"));
        query_key_value(&mut pieces, &parts, &block.attention.qkv);
        linear(&mut pieces, &format!("{name}.attention.proj"), &block.attention.output);
        norm(&mut pieces, &format!("{name}.norm2"), &block.mlp_norm);
        linear(&mut pieces, &format!("{name}.mlp.fc1"), &block.mlp.up);
        linear(&mut pieces, &format!("{name}.mlp.fc2"), &block.mlp.down);
    }
    norm(&mut pieces, "encoder.layernorm", &encoder.stack.norm);
    pieces
}

/// Meta's own names. The file holds the trained encoder and its moving average, `target_encoder`.
/// Its positions, `pos_embed`, are not used: the model rotates queries and keys instead.
pub(super) fn original(encoder: &XEncoder) -> Naming {
    let mut pieces = Vec::new();
    if let Family::Vjepa2(family) = &encoder.family {
        pieces = patch("patch_embed.proj", &family.patch, family.patch_shape());
        meta_blocks(&mut pieces, encoder);
        norm(&mut pieces, "norm", &encoder.stack.norm);
    }
    let extra = Extra::Prefixes(&["pos_embed", "predictor.", "opt."]);
    Naming { pieces, roots: META_ROOTS, cut: META_CUT, extra, sizes: meta_sizes }
}

/// Sizes of an encoder of V-JEPA 2 or 2.1 under Meta's names.
pub(super) fn meta_sizes(file: &Shapes<'_>) -> Option<Sizes> {
    file.vision("patch_embed.proj.weight", "blocks.", "mlp.fc1.weight")
}

/// Sizes of the encoder under the names of transformers.
pub(super) fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    let patch = "encoder.embeddings.patch_embeddings.proj.weight";
    file.vision(patch, "encoder.layer.", "mlp.fc1.weight")
}

/// Adds the blocks under Meta's names.
pub(super) fn meta_blocks(pieces: &mut Vec<Piece>, encoder: &XEncoder) {
    for (i, block) in encoder.stack.blocks.iter().enumerate() {
        let name = format!("blocks.{i}");
        norm(pieces, &format!("{name}.norm1"), &block.attention_norm);
        linear(pieces, &format!("{name}.attn.qkv"), &block.attention.qkv);
        linear(pieces, &format!("{name}.attn.proj"), &block.attention.output);
        norm(pieces, &format!("{name}.norm2"), &block.mlp_norm);
        linear(pieces, &format!("{name}.mlp.fc1"), &block.mlp.up);
        linear(pieces, &format!("{name}.mlp.fc2"), &block.mlp.down);
    }
}

/// Pieces of a map of patches. Files store its weight as that of a convolution, (d, 3, tubelet,
/// patch, patch), whose elements have the same order. `kernel` holds the last three sizes.
pub(super) fn patch(name: &str, map: &Linear, kernel: [usize; 3]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    linear(&mut pieces, name, map);
    pieces[0].shape = [&[map.outputs(), 3][..], &kernel].concat();
    pieces
}

/// Adds weights and biases of queries, keys and values, which files with these three names store
/// apart.
pub(super) fn query_key_value(pieces: &mut Vec<Piece>, names: &[String; 3], qkv: &Linear) {
    for (kind, fused) in [("weight", Some(&qkv.weight)), ("bias", qkv.bias.as_ref())] {
        let parts = names.each_ref().map(|name| (format!("{name}.{kind}"), qkv.outputs() / 3));
        pieces.extend(fused.into_iter().flat_map(|fused| Piece::fused(&parts, fused)));
    }
}

/// Adds `<name>.weight` and, if the map has a bias, `<name>.bias`.
pub(super) fn linear(pieces: &mut Vec<Piece>, name: &str, linear: &Linear) {
    pieces.push(Piece::whole(format!("{name}.weight"), &linear.weight));
    pieces.extend(linear.bias.as_ref().map(|bias| Piece::whole(format!("{name}.bias"), bias)));
}

/// Adds `<name>.weight` and, for a layer norm, `<name>.bias`.
pub(super) fn norm(pieces: &mut Vec<Piece>, name: &str, norm: &Norm) {
    match norm {
        Norm::Rms { weight, .. } => pieces.push(Piece::whole(format!("{name}.weight"), weight)),
        Norm::Layer { weight, bias, .. } => {
            pieces.push(Piece::whole(format!("{name}.weight"), weight));
            pieces.push(Piece::whole(format!("{name}.bias"), bias));
        }
    }
}
