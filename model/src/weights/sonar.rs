//! Tensor names of SONAR's text encoder and decoder: in Meta's files (`sonar_text_encoder.pt`,
//! `sonar_text_decoder.pt`), and in those of transformers, which runs them as encoder and decoder
//! of M2M100, the model of NLLB-200. The rows of the table have the order of the tokenizer of
//! NLLB-200 in all of them.

use super::Piece;
use super::naming::{Extra, Naming};
use super::sizes::{Shapes, Sizes};
use super::vjepa2::{linear, norm, query_key_value};
use crate::{LanguageModel, TextModel};

/// Pieces of the final norm, the embeddings and the layers, as `M2M100Encoder` names them.
pub(super) fn pieces(text: &TextModel) -> Vec<Piece> {
    let mut pieces = Vec::new();
    norm(&mut pieces, "layer_norm", &text.stack.norm);
    pieces.push(Piece::whole("embed_tokens.weight", &text.embedding));
    for (i, block) in text.stack.blocks.iter().enumerate() {
        let name = format!("layers.{i}");
        norm(&mut pieces, &format!("{name}.self_attn_layer_norm"), &block.attention_norm);
        let parts = ["q", "k", "v"].map(|part| format!("{name}.self_attn.{part}_proj"));
        query_key_value(&mut pieces, &parts, &block.attention.qkv);
        linear(&mut pieces, &format!("{name}.self_attn.out_proj"), &block.attention.output);
        norm(&mut pieces, &format!("{name}.final_layer_norm"), &block.mlp_norm);
        linear(&mut pieces, &format!("{name}.fc1"), &block.mlp.up);
        linear(&mut pieces, &format!("{name}.fc2"), &block.mlp.down);
    }
    pieces
}

/// Pieces of the decoder, as `M2M100Decoder` names them.
pub(super) fn decoder_pieces(model: &LanguageModel) -> Vec<Piece> {
    let mut pieces = pieces(&model.text);
    for (i, [value, output]) in model.memory.iter().enumerate() {
        linear(&mut pieces, &format!("layers.{i}.encoder_attn.v_proj"), value);
        linear(&mut pieces, &format!("layers.{i}.encoder_attn.out_proj"), output);
    }
    pieces
}

/// Names in files of the decoder alone, in files of M2M100, and in Meta's file.
pub(super) fn decoder_namings(model: &LanguageModel) -> Vec<Naming> {
    let pieces = decoder_pieces(model);
    let naming = |pieces, roots, prefixes, layers, sizes| {
        let extra = Extra::SonarDecoder { prefixes, layers, count: model.memory.len() };
        Naming { pieces, roots, cut: &[], extra, sizes }
    };
    let shared = renamed(&pieces, "shared.weight", "decoder.");
    let tied: &[_] = &["lm_head."];
    let copies: &[_] = &["decoder.embed_tokens.", "encoder.", "lm_head."];
    let encoder: &[_] = &["encoder.", "model.encoder.", "lm_head.", "model.shared.", "shared."];
    let others: &[_] = &["version", "embed_positions.", "output_projection."];
    vec![
        naming(pieces.clone(), &[""], tied, "layers.", |f| sizes(f, "embed_tokens", "")),
        naming(shared, &["model.", ""], copies, "decoder.layers.", |f| {
            sizes(f, "shared", "decoder.")
        }),
        naming(pieces.clone(), &["decoder.", "model.decoder."], encoder, "layers.", |f| {
            sizes(f, "embed_tokens", "")
        }),
        naming(pieces, &["state_dict."], others, "layers.", |f| sizes(f, "embed_tokens", "")),
    ]
}

/// Names in files of the encoder alone, in files of M2M100, and in Meta's file.
pub(super) fn namings(pieces: Vec<Piece>) -> Vec<Naming> {
    let naming = |pieces, roots, extra, sizes| Naming { pieces, roots, cut: &[], extra, sizes };
    let decoder = Extra::Prefixes(&["decoder.", "model.decoder.", "lm_head."]);
    // M2M100 shares one table between encoder and decoder. Its file may hold no other.
    let shared = renamed(&pieces, "shared.weight", "encoder.");
    let copies = Extra::Prefixes(&["encoder.embed_tokens.", "decoder.", "lm_head."]);
    // Meta's file holds the table as a module beside the other tensors.
    let meta = renamed(&pieces, "embed_tokens.weight", "state_dict.");
    let others = Extra::Prefixes(&[
        "state_dict.version",
        "state_dict.embed_positions.",
        "state_dict.embed_tokens.",
    ]);
    vec![
        naming(pieces.clone(), &[""], Extra::Prefixes(&[]), |f| sizes(f, "embed_tokens", "")),
        naming(shared, &["model.", ""], copies, |f| sizes(f, "shared", "encoder.")),
        naming(pieces, &["encoder.", "model.encoder."], decoder, |f| sizes(f, "embed_tokens", "")),
        naming(meta, &[""], others, |f| sizes(f, "embed_tokens", "state_dict.")),
    ]
}

/// Sizes of an encoder or decoder whose table is the tensor `<table>.weight`, and whose other names
/// begin with `prefix`.
fn sizes(file: &Shapes<'_>, table: &str, prefix: &str) -> Option<Sizes> {
    file.plain_text(&format!("{table}.weight"), &format!("{prefix}layers."), "fc1.weight")
}

/// The same pieces with another name of the embeddings, and a prefix of the other names.
fn renamed(pieces: &[Piece], embeddings: &str, prefix: &str) -> Vec<Piece> {
    let name = |piece: &Piece| match piece.name.as_str() {
        "embed_tokens.weight" => embeddings.to_owned(),
        other => format!("{prefix}{other}"),
    };
    pieces.iter().map(|piece| Piece { name: name(piece), ..piece.clone() }).collect()
}
