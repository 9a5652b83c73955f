//! Tensor names of CLIP's ResNet in `OpenAI`'s format, as `open_clip` keeps them
//! (`timm/resnet50_clip.openai`, `open_clip_model.safetensors`).

use super::naming::{Extra, Naming};
use super::sizes::{Shapes, Sizes};
use super::vjepa2::{linear, query_key_value};
use super::{BatchNorm, Order, Piece};
use crate::layers::Linear;
use crate::x_encoder::{Bottleneck, FramePooling, ImageHead, ResNet};

/// Start of the names of the attention pooling, which no other image tower has.
pub(super) const POOLING: &str = "visual.attnpool.";

/// Pieces of the tower and of its attention pooling.
pub(super) fn pieces(resnet: &ResNet, head: &ImageHead) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (i, map) in (1..).zip(&resnet.stem) {
        pieces.push(convolution(format!("visual.conv{i}"), format!("visual.bn{i}"), map, 3));
    }
    let (mut stage, mut block) = (0, 0);
    for bottleneck in &resnet.blocks {
        // The first block of a stage has a shortcut of its own, and no other.
        (stage, block) =
            if bottleneck.shortcut.is_some() { (stage + 1, 0) } else { (stage, block + 1) };
        bottleneck_pieces(&mut pieces, &format!("visual.layer{stage}.{block}"), bottleneck);
    }
    if let FramePooling::MeanAttention(pooling) = &head.frame {
        pieces.push(Piece::whole(format!("{POOLING}positional_embedding"), &pooling.positions));
        let parts = ["q_proj", "k_proj", "v_proj"].map(|part| format!("{POOLING}{part}"));
        query_key_value(&mut pieces, &parts, &pooling.qkv);
    }
    for map in &head.clip.maps {
        linear(&mut pieces, &format!("{POOLING}c_proj"), map);
    }
    pieces
}

fn bottleneck_pieces(pieces: &mut Vec<Piece>, name: &str, bottleneck: &Bottleneck) {
    let Bottleneck { reduce, spatial, expand, shortcut, .. } = bottleneck;
    for (i, map, kernel) in [(1, reduce, 1), (2, spatial, 3), (3, expand, 1)] {
        pieces.push(convolution(format!("{name}.conv{i}"), format!("{name}.bn{i}"), map, kernel));
    }
    let name = format!("{name}.downsample");
    let shortcut = shortcut.as_ref();
    pieces
        .extend(shortcut.map(|map| convolution(format!("{name}.0"), format!("{name}.1"), map, 1)));
}

/// A convolution of `kernel`² pixels with the batch norm after it.
fn convolution(name: String, norm: String, map: &Linear, kernel: usize) -> Piece {
    let (channels, inputs) = (map.outputs(), map.inputs() / (kernel * kernel));
    let bias = map.bias.as_ref();
    Piece {
        shape: vec![channels, inputs, kernel, kernel],
        order: Order::ChannelsLast,
        norm: bias.map(|bias| BatchNorm { name: norm, channels, bias: bias.id() }),
        ..Piece::whole(format!("{name}.weight"), &map.weight)
    }
}

/// Names in the published files, which also hold the text tower and the scale of the similarities.
pub(super) fn naming(pieces: Vec<Piece>) -> Naming {
    let extra = Extra::BatchNorms(&[
        "token_embedding.",
        "positional_embedding",
        "transformer.",
        "ln_final.",
        "text_projection",
        "logit_scale",
    ]);
    Naming { pieces, roots: &[""], cut: &[], extra, sizes }
}

fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    let width = file.rows("visual.conv3.weight")?;
    let mut layers = Vec::new();
    for stage in 1..=4 {
        let blocks = file.layers(&format!("visual.layer{stage}."))?;
        layers.push((blocks.start == 0).then_some(blocks.end)?);
    }
    let pixels = file.rows(&format!("{POOLING}positional_embedding"))?.checked_sub(1)?;
    let side = pixels.isqrt();
    let sizes = Sizes::default()
        .shown("width", width)
        .shown("layers", layers)
        .assumed("num_heads", 1)
        .other("embed_dim", file.rows(&format!("{POOLING}c_proj.weight"))?);
    let stride = vljepa_recipes::schema::ClipResnet::STRIDE;
    (side * side == pixels).then(|| sizes.other("image_size", stride * side))
}
