//! Published models that weights come from, with their tensors, and the ways in which files name
//! them.

use vljepa_recipes::{Role, schema};

use super::naming::{Extra, Naming};
use super::sizes::{Shapes, Sizes};
use super::{
    Parts, Piece, clip, clip_resnet, clip_text, gemma, llama, pe, pe_text, projections, siglip2,
    siglip2_text, sonar, vjepa2, vjepa2_1,
};
use crate::{LanguageModel, YDecoder, YEncoder};

/// Published model, or part of one, that weights come from. Each source is a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// V-JEPA 2's encoder (`facebook/vjepa2-vitl-fpc64-256`, `model.safetensors`).
    VJepa2,
    /// V-JEPA 2.1's encoder (`vjepa2_1_vitl_dist_vitG_384.pt`).
    VJepa2_1,
    /// PE-core's vision tower (`facebook/PE-Core-L14-336`, `PE-Core-L14-336.pt`).
    Pe,
    /// `SigLIP` 2's vision tower (`google/siglip2-so400m-patch16-256`, `model.safetensors`).
    Siglip2,
    /// CLIP's vision transformer (`openai/clip-vit-large-patch14`, `model.safetensors`).
    Clip,
    /// CLIP's ResNet with its attention pooling (`timm/resnet50_clip.openai`,
    /// `open_clip_model.safetensors`). Only a dual encoder has it.
    ClipResnet,
    /// Llama-3.2 (`meta-llama/Llama-3.2-1B`, `model.safetensors`).
    Llama,
    /// The predictor's layers of Llama-3.2, counted from 0, as [`export`](super::export) writes
    /// them.
    Predictor,
    /// `EmbeddingGemma`'s transformer (`google/embeddinggemma-300m`, `model.safetensors`).
    Gemma,
    /// Qwen3-Embedding (`Qwen/Qwen3-Embedding-0.6B`, `model.safetensors`).
    Qwen3,
    /// SONAR's text encoder (`sonar_text_encoder.pt`).
    Sonar,
    /// SONAR's text decoder (`sonar_text_decoder.pt`).
    SonarDecoder,
    /// Llama-3.2 as Y-decoder (`meta-llama/Llama-3.2-1B`, `model.safetensors`).
    LlamaDecoder,
    /// Llama-3.2 as Y-decoder with the map to its prefix, as [`export_decoder`] writes it.
    ///
    /// [`export_decoder`]: super::export_decoder
    TrainedDecoder,
    /// Llama-3.2 as the language model of a VLM (`meta-llama/Llama-3.2-1B`, `model.safetensors`).
    LanguageModel,
    /// PE-core's text tower (`facebook/PE-Core-L14-336`, `PE-Core-L14-336.pt`).
    PeText,
    /// CLIP's text tower (`openai/clip-vit-large-patch14`, `model.safetensors`;
    /// `timm/resnet50_clip.openai`, `open_clip_model.safetensors`).
    ClipText,
    /// `SigLIP` 2's text tower (`google/siglip2-so400m-patch16-256`, `model.safetensors`).
    Siglip2Text,
    /// First Dense layer of `EmbeddingGemma` (`2_Dense/model.safetensors`).
    GemmaDense2,
    /// Second Dense layer of `EmbeddingGemma` (`3_Dense/model.safetensors`).
    GemmaDense3,
    /// Projections and temperature, which no published model has. Their names are this crate's own.
    Projections,
}

impl Source {
    /// Sources that files are recognised as. A file of [`Self::Predictor`] is a small Llama, and
    /// those of [`Self::LlamaDecoder`] and [`Self::LanguageModel`] are whole ones. A file of
    /// [`Self::TrainedDecoder`] is a whole one with a prefix.
    pub const RECOGNISED: [Self; 17] = [
        Self::VJepa2,
        Self::VJepa2_1,
        Self::Pe,
        Self::Siglip2,
        Self::Clip,
        Self::ClipResnet,
        Self::Llama,
        Self::Gemma,
        Self::Qwen3,
        Self::Sonar,
        Self::SonarDecoder,
        Self::PeText,
        Self::ClipText,
        Self::Siglip2Text,
        Self::GemmaDense2,
        Self::GemmaDense3,
        Self::Projections,
    ];

    /// Path of the source's file in an export folder.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::VJepa2
            | Self::VJepa2_1
            | Self::Pe
            | Self::Siglip2
            | Self::Clip
            | Self::ClipResnet => "x_encoder/model.safetensors",
            Self::Llama | Self::Predictor => "predictor/model.safetensors",
            Self::Gemma
            | Self::Qwen3
            | Self::Sonar
            | Self::PeText
            | Self::ClipText
            | Self::Siglip2Text => "y_encoder/model.safetensors",
            Self::SonarDecoder | Self::LlamaDecoder | Self::TrainedDecoder => {
                "y_decoder/model.safetensors"
            }
            Self::LanguageModel => "language_model/model.safetensors",
            Self::GemmaDense2 => "y_encoder/2_Dense/model.safetensors",
            Self::GemmaDense3 => "y_encoder/3_Dense/model.safetensors",
            Self::Projections => "projections.safetensors",
        }
    }

    /// Published tensors of this source that `model` holds, under the names of export. Empty if
    /// the recipe's encoder is of another family.
    #[must_use]
    pub fn pieces<'a>(self, model: impl Into<Parts<'a>>) -> Vec<Piece> {
        let model = model.into();
        let Parts { recipe, x_encoder, resnet, image_head, predictor, y_decoder, .. } = model;
        let language_model = model.language_model;
        match self {
            Self::VJepa2 => x_encoder.map(vjepa2::pieces).unwrap_or_default(),
            Self::VJepa2_1 => x_encoder.map(vjepa2_1::pieces).unwrap_or_default(),
            Self::Pe => x_encoder.map(|x| pe::pieces(x, image_head)).unwrap_or_default(),
            Self::Siglip2 => x_encoder.map(|x| siglip2::pieces(x, image_head)).unwrap_or_default(),
            Self::Clip => x_encoder.map(|x| clip::pieces(x, image_head)).unwrap_or_default(),
            Self::ClipResnet => {
                let tower = resnet.zip(image_head);
                tower.map(|(resnet, head)| clip_resnet::pieces(resnet, head)).unwrap_or_default()
            }
            Self::Llama => {
                let first = recipe.predictor.layers[0];
                predictor.map(|p| llama::pieces(&p.text, first)).unwrap_or_default()
            }
            Self::Predictor => predictor.map(|p| llama::pieces(&p.text, 0)).unwrap_or_default(),
            Self::SonarDecoder => y_decoder.map_or_else(Vec::new, sonar_decoder_pieces),
            Self::LlamaDecoder => y_decoder.map_or_else(Vec::new, llama_decoder_pieces),
            Self::TrainedDecoder => y_decoder.map_or_else(Vec::new, trained_decoder_pieces),
            Self::LanguageModel => {
                language_model.map(|l| llama::pieces(&l.text, 0)).unwrap_or_default()
            }
            Self::Projections => projections::pieces(model.layout),
            Self::Gemma
            | Self::Qwen3
            | Self::Sonar
            | Self::PeText
            | Self::ClipText
            | Self::Siglip2Text
            | Self::GemmaDense2
            | Self::GemmaDense3 => {
                let y = model.y_encoder;
                y.map_or_else(Vec::new, |y| self.y_pieces(&recipe.y_encoder, y))
            }
        }
    }

    /// Published tensors of a Y-encoder. Empty if it is of another family.
    fn y_pieces(self, keys: &schema::YEncoder, y_encoder: &YEncoder) -> Vec<Piece> {
        let YEncoder { text, head, .. } = y_encoder;
        match (self, keys) {
            (Self::Gemma, schema::YEncoder::EmbeddingGemma(_)) => gemma::pieces(text),
            (Self::Qwen3, schema::YEncoder::Qwen3Embedding(_)) => llama::pieces(text, 0),
            (Self::Sonar, schema::YEncoder::Sonar(_)) => sonar::pieces(text),
            (Self::PeText, schema::YEncoder::PeText(_)) => pe_text::pieces(text, head),
            (Self::ClipText, schema::YEncoder::ClipText(_)) => clip_text::pieces(text, head),
            (Self::Siglip2Text, schema::YEncoder::Siglip2Text(_)) => {
                siglip2_text::pieces(text, head)
            }
            (Self::GemmaDense2, schema::YEncoder::EmbeddingGemma(keys)) if keys.dense_heads => {
                gemma::dense(&head.maps[0])
            }
            (Self::GemmaDense3, schema::YEncoder::EmbeddingGemma(keys)) if keys.dense_heads => {
                gemma::dense(&head.maps[1])
            }
            _ => Vec::new(),
        }
    }

    /// The ways in which files name these tensors. The first is that of export.
    pub(super) fn namings(self, model: Parts<'_>) -> Vec<Naming> {
        let pieces = self.pieces(model);
        let naming = |roots, extra, sizes: fn(&Shapes<'_>) -> Option<Sizes>| {
            let pieces = pieces.clone();
            Naming { pieces, roots, cut: &[], extra, sizes }
        };
        let (plain, both): (&[_], &[_]) = (&[""], &["model.", ""]);
        let no_extra = Extra::Prefixes(&[]);
        match self {
            Self::VJepa2 => {
                let published = naming(plain, Extra::Prefixes(&["predictor."]), vjepa2::sizes);
                let original = model.x_encoder.map(vjepa2::original);
                std::iter::once(published).chain(original).collect()
            }
            Self::VJepa2_1 => vec![vjepa2_1::naming(pieces)],
            Self::Pe => vec![pe::naming(pieces, pe::blocks_taken(model))],
            Self::Siglip2 => vec![siglip2::naming(pieces)],
            Self::Clip => vec![clip::naming(pieces)],
            Self::ClipResnet => vec![clip_resnet::naming(pieces)],
            Self::Llama => {
                let [first, end] = model.recipe.predictor.layers;
                let layers = first..end;
                vec![naming(both, Extra::Llama { layers }, |file| file.text()?.predictor())]
            }
            Self::Predictor => {
                vec![naming(plain, no_extra, |file| file.text()?.predictor())]
            }
            Self::Gemma => vec![naming(both, no_extra, |file| file.text()?.encoder())],
            Self::Qwen3 => {
                let extra = Extra::Prefixes(&["lm_head."]);
                vec![naming(both, extra, |file| file.text()?.encoder())]
            }
            Self::Sonar => sonar::namings(pieces),
            Self::SonarDecoder | Self::LlamaDecoder => {
                model.y_decoder.map_or_else(Vec::new, decoder_namings)
            }
            Self::TrainedDecoder => {
                vec![naming(plain, no_extra, |file| file.text()?.predictor())]
            }
            Self::LanguageModel => {
                let model = model.language_model;
                model.map_or_else(Vec::new, |model| vec![llama_naming(model)])
            }
            Self::PeText => vec![pe_text::naming(pieces)],
            Self::ClipText => {
                let y_encoder = model.y_encoder.filter(|_| !pieces.is_empty());
                let original = y_encoder.map(|y| clip_text::original(&y.text, &y.head));
                std::iter::once(clip_text::naming(pieces)).chain(original).collect()
            }
            Self::Siglip2Text => vec![siglip2_text::naming(pieces)],
            Self::GemmaDense2 => vec![naming(plain, no_extra, |file| gemma::dense_sizes(file, 0))],
            Self::GemmaDense3 => vec![naming(plain, no_extra, |file| gemma::dense_sizes(file, 1))],
            Self::Projections => vec![naming(plain, no_extra, projections::sizes)],
        }
    }

    /// The published model's name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VJepa2 => "V-JEPA 2's encoder",
            Self::VJepa2_1 => "V-JEPA 2.1's encoder",
            Self::Pe => "PE-core's vision tower",
            Self::Siglip2 => "SigLIP 2's vision tower",
            Self::Clip => "CLIP's vision tower",
            Self::ClipResnet => "CLIP's ResNet",
            Self::Llama | Self::Predictor => "Llama-3.2",
            Self::Gemma => "EmbeddingGemma's transformer",
            Self::Qwen3 => "Qwen3-Embedding",
            Self::Sonar => "SONAR's text encoder",
            Self::SonarDecoder => "SONAR's text decoder",
            Self::LlamaDecoder => "Llama-3.2 as Y-decoder",
            Self::TrainedDecoder => "an exported Y-decoder",
            Self::LanguageModel => "Llama-3.2 as language model",
            Self::PeText => "PE-core's text tower",
            Self::ClipText => "CLIP's text tower",
            Self::Siglip2Text => "SigLIP 2's text tower",
            Self::GemmaDense2 => "EmbeddingGemma's first Dense layer",
            Self::GemmaDense3 => "EmbeddingGemma's second Dense layer",
            Self::Projections => "projections and temperature of an exported model",
        }
    }

    /// Role and value of `family` with which a recipe reads this source. `None` for
    /// [`Self::Projections`], which the key `init.weights` names.
    #[must_use]
    pub fn family(self) -> Option<(Role, &'static str)> {
        match self {
            Self::VJepa2 => Some((Role::XEncoder, "vjepa2")),
            Self::VJepa2_1 => Some((Role::XEncoder, "vjepa2_1")),
            Self::Pe => Some((Role::XEncoder, "pe")),
            Self::Siglip2 => Some((Role::XEncoder, "siglip2")),
            Self::Clip => Some((Role::XEncoder, "clip")),
            Self::ClipResnet => Some((Role::XEncoder, "clip_resnet")),
            Self::Llama | Self::Predictor => Some((Role::Predictor, "llama")),
            Self::Gemma | Self::GemmaDense2 | Self::GemmaDense3 => {
                Some((Role::YEncoder, "embedding_gemma"))
            }
            Self::Qwen3 => Some((Role::YEncoder, "qwen3_embedding")),
            Self::Sonar => Some((Role::YEncoder, "sonar")),
            Self::SonarDecoder => Some((Role::YDecoder, "sonar")),
            Self::LlamaDecoder | Self::TrainedDecoder => Some((Role::YDecoder, "llama")),
            Self::LanguageModel => Some((Role::LanguageModel, "llama")),
            Self::PeText => Some((Role::YEncoder, "pe_text")),
            Self::ClipText => Some((Role::YEncoder, "clip_text")),
            Self::Siglip2Text => Some((Role::YEncoder, "siglip2_text")),
            Self::Projections => None,
        }
    }
}

/// Published tensors that a Y-decoder holds, under the names of export.
#[must_use]
pub fn y_decoder_pieces(decoder: &YDecoder) -> Vec<Piece> {
    match decoder.prefix {
        None => sonar::decoder_pieces(&decoder.language_model),
        Some(_) => llama::pieces(&decoder.language_model.text, 0),
    }
}

/// Published tensors of SONAR's decoder; empty for another family.
fn sonar_decoder_pieces(decoder: &YDecoder) -> Vec<Piece> {
    match decoder.prefix {
        None => sonar::decoder_pieces(&decoder.language_model),
        Some(_) => Vec::new(),
    }
}

/// Published tensors of a Llama decoder; empty for another family.
fn llama_decoder_pieces(decoder: &YDecoder) -> Vec<Piece> {
    match decoder.prefix {
        None => Vec::new(),
        Some(_) => llama::pieces(&decoder.language_model.text, 0),
    }
}

/// All tensors of a Llama decoder; empty for another family.
fn trained_decoder_pieces(decoder: &YDecoder) -> Vec<Piece> {
    let mut pieces = llama_decoder_pieces(decoder);
    if let Some(prefix) = &decoder.prefix {
        vjepa2::linear(&mut pieces, "prefix", &prefix.map);
    }
    pieces
}

/// The ways in which files name the published tensors of a Y-decoder.
pub(super) fn decoder_namings(decoder: &YDecoder) -> Vec<Naming> {
    let model = &decoder.language_model;
    match decoder.prefix {
        None => sonar::decoder_namings(model),
        Some(_) => vec![llama_naming(model)],
    }
}

/// Names of a whole Llama, with its layers counted from 0.
fn llama_naming(model: &LanguageModel) -> Naming {
    Naming {
        pieces: llama::pieces(&model.text, 0),
        roots: &["model.", ""],
        cut: &[],
        extra: Extra::Llama { layers: 0..model.text.stack.blocks.len() },
        sizes: |file| file.text()?.predictor(),
    }
}
