//! Tensor names of Llama and Qwen3 in the format of Hugging Face transformers
//! (`meta-llama/Llama-3.2-1B`, `Qwen/Qwen3-Embedding-0.6B`), without the prefix `model.`, which
//! only some files have.

use super::Piece;
use super::vjepa2::{linear, norm};
use crate::TextModel;
use crate::layers::Block;

/// Pieces of the embeddings, the layers and the final norm. The model's first layer is number
/// `first_layer` in the file.
pub(super) fn pieces(text: &TextModel, first_layer: usize) -> Vec<Piece> {
    let mut pieces = vec![Piece::whole("embed_tokens.weight", &text.embedding)];
    for (i, block) in text.stack.blocks.iter().enumerate() {
        let name = format!("layers.{}", first_layer + i);
        norm(&mut pieces, &format!("{name}.input_layernorm"), &block.attention_norm);
        head_norms(&mut pieces, &name, block);
        matrices(&mut pieces, &name, block);
        norm(&mut pieces, &format!("{name}.post_attention_layernorm"), &block.mlp_norm);
    }
    norm(&mut pieces, "norm", &text.stack.norm);
    pieces
}

/// Adds the norms of queries and keys, which Llama does not have.
pub(super) fn head_norms(pieces: &mut Vec<Piece>, name: &str, block: &Block) {
    if let Some(norms) = &block.attention.norms {
        norm(pieces, &format!("{name}.self_attn.q_norm"), &norms.query);
        norm(pieces, &format!("{name}.self_attn.k_norm"), &norms.key);
    }
}

/// Adds the seven matrices of a layer whose names are the same in Llama, Qwen3 and Gemma.
pub(super) fn matrices(pieces: &mut Vec<Piece>, name: &str, block: &Block) {
    let heads = block.attention.heads;
    let (query, key_value) = (heads.query * heads.dim, heads.key_value * heads.dim);
    let part = |which: &str, rows| (format!("{name}.self_attn.{which}_proj.weight"), rows);
    let parts = [part("q", query), part("k", key_value), part("v", key_value)];
    pieces.extend(Piece::fused(&parts, &block.attention.qkv.weight));
    linear(pieces, &format!("{name}.self_attn.o_proj"), &block.attention.output);
    let part = |which| (format!("{name}.mlp.{which}_proj.weight"), block.mlp.down.inputs());
    pieces.extend(Piece::fused(&["gate", "up"].map(part), &block.mlp.up.weight));
    linear(pieces, &format!("{name}.mlp.down_proj"), &block.mlp.down);
}
