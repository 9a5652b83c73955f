//! Reads and writes weights under their published tensor names.
//!
//! The model stores queries, keys and values as one matrix, and gate and up as another. Published
//! files store them as separate tensors. A [`Piece`] maps a published tensor to a part of a
//! parameter. Each [`Source`] has a list of pieces in its own module. Batch norms are folded into
//! the convolutions before them.

mod batch_norm;
mod built;
mod clip;
mod clip_resnet;
mod clip_text;
mod convert;
mod files;
mod gemma;
mod identify;
mod llama;
mod load;
mod naming;
mod parts;
mod pe;
mod pe_text;
mod projections;
mod siglip2;
mod siglip2_text;
mod sizes;
mod sonar;
mod vjepa2;
mod vjepa2_1;
mod write;

use std::path::{Path, PathBuf};

use vljepa_recipes::{Role, schema};

pub use self::batch_norm::BatchNorm;
pub use self::convert::convert;
pub use self::identify::identify;
use self::naming::{Extra, Naming};
pub use self::parts::Parts;
use self::sizes::{Shapes, Sizes};
use crate::error::first_names;
use crate::{Layout, ModelError, ParameterId, Parameters, Weight, YDecoder, YEncoder};

/// Published tensor, and the contiguous part of a parameter that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Name of the published tensor.
    pub name: String,
    /// Shape of the published tensor.
    pub shape: Vec<usize>,
    /// Parameter that holds the tensor.
    pub parameter: ParameterId,
    /// Index of the tensor's first element in the parameter. The others follow it.
    pub start: usize,
    /// Order of the tensor's elements in the parameter.
    pub order: Order,
    /// Batch norm of the tensor's output, which is folded into the parameter.
    pub norm: Option<BatchNorm>,
}

/// Order in which a parameter holds the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// That of the tensor.
    Same,
    /// That of the transpose of the tensor, which is a matrix.
    Transposed,
    /// The tensor is the weight of a convolution, (outputs, inputs, rows, columns); the parameter
    /// holds (outputs, rows, columns, inputs).
    ChannelsLast,
}

impl Piece {
    /// A piece that covers a whole parameter, with the parameter's shape.
    fn whole(name: impl Into<String>, weight: &Weight) -> Self {
        let (name, shape, parameter) = (name.into(), weight.shape().to_vec(), weight.id());
        Self { name, shape, parameter, start: 0, order: Order::Same, norm: None }
    }

    /// A piece that covers a whole matrix, which the file stores transposed.
    fn transposed(name: impl Into<String>, weight: &Weight) -> Self {
        let whole = Self::whole(name, weight);
        let shape = whole.shape.iter().rev().copied().collect();
        Self { shape, order: Order::Transposed, ..whole }
    }

    /// Pieces for consecutive row ranges of a fused matrix, or element ranges of a fused bias.
    /// `parts` holds (name, rows).
    fn fused(parts: &[(String, usize)], weight: &Weight) -> Vec<Self> {
        let width: usize = weight.shape()[1..].iter().product();
        let mut row = 0;
        let mut pieces = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let mut shape = weight.shape().to_vec();
            shape[0] = *rows;
            let start = row * width;
            pieces.push(Self { shape, start, ..Self::whole(name, weight) });
            row += rows;
        }
        pieces
    }

    /// Index of the tensor's element `i` among the elements of the parameter's part.
    #[must_use]
    pub fn index(&self, i: usize) -> usize {
        match (self.order, &self.shape[..]) {
            (Order::Transposed, [rows, columns]) => i % columns * rows + i / columns,
            (Order::ChannelsLast, [_, inputs, rows, columns]) => {
                let (output, i) = (i / (inputs * rows * columns), i % (inputs * rows * columns));
                let (input, pixel) = (i / (rows * columns), i % (rows * columns));
                (output * rows * columns + pixel) * inputs + input
            }
            _ => i,
        }
    }

    /// Number of elements of the tensor.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Published names and shapes of the tensor and of the vectors of its batch norm.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let of_norm = self
            .norm
            .iter()
            .flat_map(|norm| norm.names().into_iter().map(|name| (name, vec![norm.channels])));
        std::iter::once((self.name.clone(), self.shape.clone())).chain(of_norm)
    }
}

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
    /// The predictor's layers of Llama-3.2, counted from 0, as [`export`] writes them.
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
    /// one of [`Self::LlamaDecoder`] is a whole one.
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
            Self::SonarDecoder | Self::LlamaDecoder => "y_decoder/model.safetensors",
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
        let (text, head) = (&model.y_encoder.text, &model.y_encoder.head);
        match (self, &recipe.y_encoder) {
            (Self::VJepa2, _) => x_encoder.map(vjepa2::pieces).unwrap_or_default(),
            (Self::VJepa2_1, _) => x_encoder.map(vjepa2_1::pieces).unwrap_or_default(),
            (Self::Pe, _) => x_encoder.map(|x| pe::pieces(x, image_head)).unwrap_or_default(),
            (Self::Siglip2, _) => {
                x_encoder.map(|x| siglip2::pieces(x, image_head)).unwrap_or_default()
            }
            (Self::Clip, _) => x_encoder.map(|x| clip::pieces(x, image_head)).unwrap_or_default(),
            (Self::ClipResnet, _) => {
                let tower = resnet.zip(image_head);
                tower.map(|(resnet, head)| clip_resnet::pieces(resnet, head)).unwrap_or_default()
            }
            (Self::Llama, _) => {
                let first = recipe.predictor.layers[0];
                predictor.map(|p| llama::pieces(&p.text, first)).unwrap_or_default()
            }
            (Self::Predictor, _) => {
                predictor.map(|p| llama::pieces(&p.text, 0)).unwrap_or_default()
            }
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
            (Self::SonarDecoder, _) => y_decoder.map_or_else(Vec::new, sonar_decoder_pieces),
            (Self::LlamaDecoder, _) => y_decoder.map_or_else(Vec::new, llama_decoder_pieces),
            (Self::Projections, _) => projections::pieces(model.layout),
            (
                Self::Gemma
                | Self::Qwen3
                | Self::Sonar
                | Self::PeText
                | Self::ClipText
                | Self::Siglip2Text
                | Self::GemmaDense2
                | Self::GemmaDense3,
                _,
            ) => Vec::new(),
        }
    }

    /// The ways in which files name these tensors. The first is that of export.
    fn namings(self, model: Parts<'_>) -> Vec<Naming> {
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
            Self::Pe => vec![pe::naming(pieces)],
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
            Self::PeText => vec![pe_text::naming(pieces)],
            Self::ClipText => {
                let YEncoder { text, head, .. } = model.y_encoder;
                let original = (!pieces.is_empty()).then(|| clip_text::original(text, head));
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
            Self::LlamaDecoder => Some((Role::YDecoder, "llama")),
            Self::PeText => Some((Role::YEncoder, "pe_text")),
            Self::ClipText => Some((Role::YEncoder, "clip_text")),
            Self::Siglip2Text => Some((Role::YEncoder, "siglip2_text")),
            Self::Projections => None,
        }
    }
}

/// What [`load`] or [`check`] read. Displayed, it is a sentence for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Number of tensors that were read.
    pub read: usize,
    /// Names of the tensors in the file that the model does not use.
    pub unused: Vec<String>,
}

impl std::fmt::Display for Imported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tensors were read", self.read)?;
        if self.unused.is_empty() {
            return Ok(());
        }
        let names = first_names(&self.unused);
        write!(f, ", and {} are not used: {names}", self.unused.len())
    }
}

/// Reads the tensors of one source (f32, bf16 or f16) into `parameters`. The file is safetensors,
/// the index of several such files (`model.safetensors.index.json`), or a file of PyTorch (`.pt`,
/// `.pth`), which is read as data and never executed.
///
/// # Errors
/// If the file cannot be read or has another format, if a tensor of the model is missing, has
/// another shape or holds a number that is not finite, or if the file holds a tensor that the model
/// does not use and published files of this source do not have beside it: then the model has other
/// sizes than the file. The parameters change only after all tensors were found.
pub fn load<'a>(
    model: impl Into<Parts<'a>>,
    parameters: &mut Parameters,
    source: Source,
    path: &Path,
) -> Result<Imported, ModelError> {
    let model = model.into();
    load::load(model.layout, source.namings(model), parameters, path)
}

/// Reads the published tensors of a Y-decoder into `parameters`; see [`load`]. `layout` is that of
/// all parameters.
///
/// # Errors
/// Same as [`load`].
pub fn load_y_decoder(
    decoder: &YDecoder,
    layout: &Layout,
    parameters: &mut Parameters,
    path: &Path,
) -> Result<Imported, ModelError> {
    load::load(layout, decoder_namings(decoder), parameters, path)
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

/// The ways in which files name the published tensors of a Y-decoder.
fn decoder_namings(decoder: &YDecoder) -> Vec<Naming> {
    let model = &decoder.language_model;
    match decoder.prefix {
        None => sonar::decoder_namings(model),
        Some(_) => vec![Naming {
            pieces: llama::pieces(&model.text, 0),
            roots: &["model.", ""],
            cut: &[],
            extra: Extra::Llama { layers: 0..model.text.stack.blocks.len() },
            sizes: |file| file.text()?.predictor(),
        }],
    }
}

/// Checks that [`load`] would succeed, without parameters. Returns what it would return.
///
/// # Errors
/// Same as [`load`].
pub fn check<'a>(
    model: impl Into<Parts<'a>>,
    source: Source,
    path: &Path,
) -> Result<Imported, ModelError> {
    load::check(source.namings(model.into()), path)
}

/// Published file that the recipe names, or that lies beside one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Model that the file holds.
    pub source: Source,
    /// Path of the file.
    pub path: PathBuf,
    /// Recipe key that names the file.
    pub key: &'static str,
}

/// Published files of a recipe: `weights` of the X-encoder, the predictor and the Y-encoder, and
/// Dense layers from the folders next to `EmbeddingGemma`'s file.
#[must_use]
pub fn published(recipe: &schema::Model) -> Vec<Published> {
    let mut files = Vec::new();
    let mut add = |source, path: &Path, key| {
        files.push(Published { source, path: path.to_owned(), key });
    };
    if let Some(path) = recipe.x_encoder.weights() {
        add(of_x_encoder(&recipe.x_encoder), path, "model.x_encoder.weights");
    }
    if let Some(path) = &recipe.predictor.weights {
        let source = match recipe.predictor.family {
            schema::PredictorFamily::Llama => Source::Llama,
        };
        add(source, path, "model.predictor.weights");
    }
    if let Some(path) = recipe.y_encoder.weights() {
        for source in of_y_encoder(&recipe.y_encoder) {
            let dense = match source {
                Source::GemmaDense2 => Some("2_Dense/model.safetensors"),
                Source::GemmaDense3 => Some("3_Dense/model.safetensors"),
                _ => None,
            };
            let path = dense.map_or_else(|| path.to_owned(), |dense| path.with_file_name(dense));
            add(source, &path, "model.y_encoder.weights");
        }
    }
    if let Some(decoder) = recipe.decoder()
        && let Some(path) = decoder.weights()
    {
        add(of_y_decoder(decoder), path, "model.y_decoder.weights");
    }
    files
}

/// Reads every published file that the recipe names. Returns each file with what was read.
///
/// # Errors
/// Same as [`load`].
pub fn load_published<'a>(
    model: impl Into<Parts<'a>>,
    parameters: &mut Parameters,
) -> Result<Vec<(PathBuf, Imported)>, ModelError> {
    let model = model.into();
    published(model.recipe)
        .into_iter()
        .map(|Published { source, path, .. }| {
            let imported = load(model, parameters, source, &path)?;
            Ok((path, imported))
        })
        .collect()
}

/// Files of a folder that [`export`] writes for this model. It has no Y-decoder.
pub fn exported<'a>(
    model: impl Into<Parts<'a>>,
    folder: &Path,
) -> impl Iterator<Item = (Source, PathBuf)> {
    let Parts { recipe, predictor, .. } = model.into();
    let mut sources = vec![of_x_encoder(&recipe.x_encoder)];
    sources.extend(predictor.map(|_| Source::Predictor));
    sources.extend(of_y_encoder(&recipe.y_encoder));
    sources.extend(predictor.map(|_| Source::Projections));
    sources.into_iter().map(|source| (source, folder.join(source.file())))
}

fn of_x_encoder(encoder: &schema::XEncoder) -> Source {
    match encoder {
        schema::XEncoder::Vjepa2(_) => Source::VJepa2,
        schema::XEncoder::Vjepa2_1(_) => Source::VJepa2_1,
        schema::XEncoder::Pe(_) => Source::Pe,
        schema::XEncoder::Siglip2(_) => Source::Siglip2,
        schema::XEncoder::Clip(_) => Source::Clip,
        schema::XEncoder::ClipResnet(_) => Source::ClipResnet,
    }
}

fn of_y_encoder(encoder: &schema::YEncoder) -> Vec<Source> {
    match encoder {
        schema::YEncoder::EmbeddingGemma(keys) if keys.dense_heads => {
            vec![Source::Gemma, Source::GemmaDense2, Source::GemmaDense3]
        }
        schema::YEncoder::EmbeddingGemma(_) => vec![Source::Gemma],
        schema::YEncoder::Qwen3Embedding(_) => vec![Source::Qwen3],
        schema::YEncoder::Sonar(_) => vec![Source::Sonar],
        schema::YEncoder::PeText(_) => vec![Source::PeText],
        schema::YEncoder::ClipText(_) => vec![Source::ClipText],
        schema::YEncoder::Siglip2Text(_) => vec![Source::Siglip2Text],
    }
}

fn of_y_decoder(decoder: &schema::YDecoder) -> Source {
    match decoder {
        schema::YDecoder::Llama(_) => Source::LlamaDecoder,
        schema::YDecoder::Sonar(_) => Source::SonarDecoder,
    }
}

/// Writes all weights into `folder`, one safetensors file per source, under the published names and
/// shapes.
///
/// # Errors
/// If a file cannot be written, or the model has a ResNet, whose batch norms are no longer apart.
pub fn export<'a>(
    model: impl Into<Parts<'a>>,
    parameters: &Parameters,
    folder: &Path,
) -> Result<(), ModelError> {
    let model = model.into();
    if model.resnet.is_some() {
        let what = "the batch norms of a ResNet are folded into its convolutions, so it cannot be \
                    written under its published names; use the published file";
        return Err(ModelError::Config {
            key: "model.x_encoder.family".to_owned(),
            what: what.to_owned(),
        });
    }
    for (source, path) in exported(model, folder) {
        write::write(model.layout, parameters, &source.pieces(model), &path)?;
    }
    Ok(())
}
