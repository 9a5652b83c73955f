//! Tensor names of V-JEPA 2's encoder: in the format of Hugging Face transformers
//! (`facebook/vjepa2-vitl-fpc64-256`), and in Meta's own (`dl.fbaipublicfiles.com/vjepa2/vitl.pt`).

use vljepa_recipes::schema;

use super::Piece;
use super::naming::{Extra, Naming};
use crate::XEncoder;
use crate::layers::{Linear, Norm};

/// Pieces of the encoder. The file's `predictor.*` tensors belong to V-JEPA 2's own predictor,
/// which VL-JEPA does not use.
pub(super) fn pieces(encoder: &XEncoder, recipe: &schema::Model) -> Vec<Piece> {
    let x = recipe.x_encoder.sizes();
    let mut pieces = patch("encoder.embeddings.patch_embeddings.proj", encoder, &x);
    for (i, block) in encoder.stack.blocks.iter().enumerate() {
        let name = format!("encoder.layer.{i}");
        norm(&mut pieces, &format!("{name}.norm1"), &block.attention_norm);
        let qkv = &block.attention.qkv;
        for (kind, fused) in [("weight", Some(&qkv.weight)), ("bias", qkv.bias.as_ref())] {
            let part = |which| (format!("{name}.attention.{which}.{kind}"), x.hidden_size);
            if let Some(fused) = fused {
                pieces.extend(Piece::fused(&["query", "key", "value"].map(part), fused));
            }
        }
        linear(&mut pieces, &format!("{name}.attention.proj"), &block.attention.output);
        norm(&mut pieces, &format!("{name}.norm2"), &block.mlp_norm);
        linear(&mut pieces, &format!("{name}.mlp.fc1"), &block.mlp.up);
        linear(&mut pieces, &format!("{name}.mlp.fc2"), &block.mlp.down);
    }
    norm(&mut pieces, "encoder.layernorm", &encoder.stack.norm);
    pieces
}

/// Meta's own names. The file holds the trained encoder and its moving average, `target_encoder`,
/// which `torch.hub` loads (`src/hub/backbones.py` in facebookresearch/vjepa2). Its positions,
/// `pos_embed`, are not used: the model rotates queries and keys instead.
pub(super) fn original(encoder: &XEncoder, recipe: &schema::Model) -> Naming {
    let mut pieces = patch("patch_embed.proj", encoder, &recipe.x_encoder.sizes());
    for (i, block) in encoder.stack.blocks.iter().enumerate() {
        let name = format!("blocks.{i}");
        norm(&mut pieces, &format!("{name}.norm1"), &block.attention_norm);
        linear(&mut pieces, &format!("{name}.attn.qkv"), &block.attention.qkv);
        linear(&mut pieces, &format!("{name}.attn.proj"), &block.attention.output);
        norm(&mut pieces, &format!("{name}.norm2"), &block.mlp_norm);
        linear(&mut pieces, &format!("{name}.mlp.fc1"), &block.mlp.up);
        linear(&mut pieces, &format!("{name}.mlp.fc2"), &block.mlp.down);
    }
    norm(&mut pieces, "norm", &encoder.stack.norm);
    Naming {
        pieces,
        roots: &["target_encoder.", "ema_encoder.", "encoder.", ""],
        cut: &["module.", "backbone."],
        extra: Extra::Prefixes(&["pos_embed", "predictor.", "opt."]),
    }
}

/// Pieces of the map of patches. Files store its weight as that of a convolution, (d, 3, tubelet,
/// patch, patch), whose elements have the same order.
fn patch(name: &str, encoder: &XEncoder, x: &schema::VisionSizes) -> Vec<Piece> {
    let mut pieces = Vec::new();
    linear(&mut pieces, name, &encoder.patch);
    pieces[0].shape = vec![x.hidden_size, 3, x.tubelet_size, x.patch_size, x.patch_size];
    pieces
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
