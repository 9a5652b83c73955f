//! Tensor names of PE-core's vision tower in Meta's format (`facebook/PE-Core-L14-336`,
//! `PE-Core-L14-336.pt`).

use vljepa_recipes::schema;

use super::naming::{Extra, Naming};
use super::sizes::{Shapes, Sizes};
use super::vjepa2::{linear, norm};
use super::{Parts, Piece};
use crate::XEncoder;
use crate::layers::{Block, Linear};
use crate::x_encoder::{Family, FramePooling, ImageHead, ImageTower};

/// Prefixes under which files hold the model.
pub(super) const META_ROOTS: &[&str] = &["", "state_dict.", "weights."];

/// Part that a wrapper puts into the names.
pub(super) const META_CUT: &[&str] = &["module."];

/// Pieces of the encoder and of its head, if the model has it. Empty if it is of another family.
pub(super) fn pieces(encoder: &XEncoder, head: Option<&ImageHead>) -> Vec<Piece> {
    let Family::Pe(family) = &encoder.family else { return Vec::new() };
    let mut pieces = image_patch("visual.conv1", family);
    if let Some(cls) = &family.cls {
        let shape = vec![family.patch.outputs()];
        pieces.push(Piece { shape, ..Piece::whole("visual.class_embedding", cls) });
    }
    pieces.push(Piece::whole("visual.positional_embedding", &family.positions));
    if let Some(first_norm) = &family.first_norm {
        norm(&mut pieces, "visual.ln_pre", first_norm);
    }
    resblocks(&mut pieces, "visual.transformer.resblocks", &encoder.stack.blocks);
    norm(&mut pieces, "visual.ln_post", &encoder.stack.norm);
    if let Some(head) = head {
        attention_pooling(&mut pieces, "visual.attn_pool", ["attn", "c_fc", "c_proj"], head);
        let projection = head.clip.maps.first();
        pieces.extend(projection.map(|map| Piece::transposed("visual.proj", &map.weight)));
    }
    pieces
}

/// Adds the attention pooling of a head. `attention`, `up` and `down` are names of its parts.
pub(super) fn attention_pooling(
    pieces: &mut Vec<Piece>,
    name: &str,
    [attention, up, down]: [&str; 3],
    head: &ImageHead,
) {
    let FramePooling::Attention(pooling) = &head.frame else { return };
    let probe = Piece::whole(format!("{name}.probe"), &pooling.probe);
    pieces.push(Piece { shape: vec![1, 1, pooling.output.outputs()], ..probe });
    in_projection(pieces, &format!("{name}.{attention}"), &pooling.qkv);
    linear(pieces, &format!("{name}.{attention}.out_proj"), &pooling.output);
    norm(pieces, &format!("{name}.layernorm"), &pooling.norm);
    linear(pieces, &format!("{name}.mlp.{up}"), &pooling.mlp.up);
    linear(pieces, &format!("{name}.mlp.{down}"), &pooling.mlp.down);
}

/// Adds the map of queries, keys and values as `torch.nn.MultiheadAttention` names it.
fn in_projection(pieces: &mut Vec<Piece>, name: &str, qkv: &Linear) {
    pieces.push(Piece::whole(format!("{name}.in_proj_weight"), &qkv.weight));
    let bias = qkv.bias.as_ref();
    pieces.extend(bias.map(|bias| Piece::whole(format!("{name}.in_proj_bias"), bias)));
}

/// Adds the blocks of a tower.
pub(super) fn resblocks(pieces: &mut Vec<Piece>, name: &str, blocks: &[Block]) {
    for (i, block) in blocks.iter().enumerate() {
        let name = format!("{name}.{i}");
        norm(pieces, &format!("{name}.ln_1"), &block.attention_norm);
        in_projection(pieces, &format!("{name}.attn"), &block.attention.qkv);
        linear(pieces, &format!("{name}.attn.out_proj"), &block.attention.output);
        norm(pieces, &format!("{name}.ln_2"), &block.mlp_norm);
        linear(pieces, &format!("{name}.mlp.c_fc"), &block.mlp.up);
        linear(pieces, &format!("{name}.mlp.c_proj"), &block.mlp.down);
    }
}

/// Pieces of the map of patches of an image encoder. Files store its weight as that of a
/// convolution, (d, 3, patch, patch), whose elements have the same order.
pub(super) fn image_patch(name: &str, tower: &ImageTower) -> Vec<Piece> {
    let mut pieces = Vec::new();
    linear(&mut pieces, name, &tower.patch);
    pieces[0].shape = vec![tower.patch.outputs(), 3, tower.patch_size(), tower.patch_size()];
    pieces
}

/// Names in the published files, which also hold the tower's pooling and projection, and the text
/// tower.
pub(super) fn naming(pieces: Vec<Piece>, later_than: Option<usize>) -> Naming {
    let prefixes = &[
        "visual.attn_pool.",
        "visual.proj",
        "token_embedding.",
        "positional_embedding",
        "transformer.",
        "ln_final.",
        "text_projection",
        "logit_scale",
    ];
    let extra = match later_than {
        None => Extra::Prefixes(prefixes),
        Some(count) => {
            Extra::LaterBlocks { prefixes, blocks: "visual.transformer.resblocks.", count }
        }
    };
    Naming { pieces, roots: META_ROOTS, cut: META_CUT, extra, sizes }
}

/// Number of blocks after which the blocks of a file are left out: those of an encoder without its
/// last norm, whose tokens come from within the published tower, as PLM's do. `None` if the file
/// must have no other blocks.
pub(super) fn blocks_taken(model: Parts<'_>) -> Option<usize> {
    match &model.recipe.x_encoder {
        schema::XEncoder::Pe(keys) if !keys.final_norm && model.image_head.is_none() => {
            Some(keys.num_layers)
        }
        _ => None,
    }
}

fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    let cls = file.shape("visual.class_embedding").is_some();
    let tensors = [
        "visual.conv1.weight",
        "visual.transformer.resblocks.",
        "mlp.c_fc.weight",
        "visual.positional_embedding",
    ];
    Some(file.image(tensors, usize::from(cls))?.shown("cls_token", cls))
}
