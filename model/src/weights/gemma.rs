//! Tensor names of `EmbeddingGemma` as published (`google/embeddinggemma-300m`), without the prefix
//! `model.`, which only some files have.

use super::Piece;
use super::llama::{head_norms, matrices};
use super::sizes::{Shapes, Sizes};
use super::vjepa2::{linear, norm};
use crate::TextModel;
use crate::layers::Linear;

/// Pieces of the embeddings, the layers and the final norm.
pub(super) fn pieces(text: &TextModel) -> Vec<Piece> {
    let mut pieces = vec![Piece::whole("embed_tokens.weight", &text.embedding)];
    for (i, block) in text.stack.blocks.iter().enumerate() {
        let name = format!("layers.{i}");
        let mut add = |which: &str, of| norm(&mut pieces, &format!("{name}.{which}"), of);
        add("input_layernorm", &block.attention_norm);
        add("pre_feedforward_layernorm", &block.mlp_norm);
        let after = [
            ("post_attention_layernorm", &block.post_attention_norm),
            ("post_feedforward_layernorm", &block.post_mlp_norm),
        ];
        for (which, of) in after {
            of.iter().for_each(|of| add(which, of));
        }
        head_norms(&mut pieces, &name, block);
        matrices(&mut pieces, &name, block);
    }
    norm(&mut pieces, "norm", &text.stack.norm);
    pieces
}

/// Pieces of a Dense layer.
pub(super) fn dense(map: &Linear) -> Vec<Piece> {
    let mut pieces = Vec::new();
    linear(&mut pieces, "linear", map);
    pieces
}

/// Sizes that a Dense layer shows. The first layer has more rows than columns, the second fewer.
pub(super) fn dense_sizes(file: &Shapes<'_>, which: usize) -> Option<Sizes> {
    let [rows, columns] = *file.shape("linear.weight")? else { return None };
    let [wide, hidden] = if which == 0 { [rows, columns] } else { [columns, rows] };
    if wide <= hidden {
        return None;
    }
    let sizes = Sizes::default().shown("dense_heads", true);
    Some(sizes.shown("hidden_size", hidden).shown("dense_hidden_size", wide))
}
