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
mod source;
mod vjepa2;
mod vjepa2_1;
mod write;

use std::path::{Path, PathBuf};

use vljepa_recipes::schema;

pub use self::batch_norm::BatchNorm;
pub use self::convert::convert;
pub use self::identify::identify;
pub use self::parts::Parts;
use self::source::decoder_namings;
pub use self::source::{Source, y_decoder_pieces};
use crate::error::first_names;
use crate::{Layout, ModelError, ParameterId, Parameters, Weight, YDecoder};

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

/// Published files of a recipe: `weights` of the parts of its model, and Dense layers from the
/// folders next to `EmbeddingGemma`'s file.
#[must_use]
pub fn published(recipe: &schema::Model) -> Vec<Published> {
    let mut files = Vec::new();
    let mut add = |source, path: &Path, key| {
        files.push(Published { source, path: path.to_owned(), key });
    };
    if let Some(path) = recipe.x_encoder.weights() {
        add(of_x_encoder(&recipe.x_encoder), path, "model.x_encoder.weights");
    }
    let (predictor, y_encoder) = match recipe.kind {
        schema::ModelKind::VlJepa
        | schema::ModelKind::YDecoder
        | schema::ModelKind::DualEncoder => {
            (recipe.predictor.weights.as_deref(), recipe.y_encoder.weights())
        }
        schema::ModelKind::Vlm => (None, None),
    };
    if let Some(path) = &predictor {
        let source = match recipe.predictor.family {
            schema::PredictorFamily::Llama => Source::Llama,
        };
        add(source, path, "model.predictor.weights");
    }
    if let Some(path) = y_encoder {
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
        let source = match decoder {
            schema::YDecoder::Sonar(_) => Source::SonarDecoder,
            schema::YDecoder::Llama(_) if recipe.learning_decoder().is_some() => {
                Source::LlamaDecoder
            }
            schema::YDecoder::Llama(_) => Source::TrainedDecoder,
        };
        add(source, path, "model.y_decoder.weights");
    }
    if let Some(path) = recipe.vlm().and_then(|l| l.weights.as_deref()) {
        add(Source::LanguageModel, path, "model.language_model.weights");
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
    let Parts { recipe, predictor, y_encoder, .. } = model.into();
    let mut sources = vec![of_x_encoder(&recipe.x_encoder)];
    sources.extend(predictor.map(|_| Source::Predictor));
    sources.extend(y_encoder.iter().flat_map(|_| of_y_encoder(&recipe.y_encoder)));
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

/// Writes a trained Y-decoder into `folder`, as `model.y_decoder.weights` of a VL-JEPA names it:
/// Llama under its published names, and `prefix.weight` (k·d, e) and `prefix.bias` of the map to
/// the prefix. Returns the name of the file.
///
/// # Errors
/// If the file cannot be written, or the model has no decoder that is trained.
pub fn export_decoder<'a>(
    model: impl Into<Parts<'a>>,
    parameters: &Parameters,
    folder: &Path,
) -> Result<&'static str, ModelError> {
    let (model, source) = (model.into(), Source::TrainedDecoder);
    let pieces = source.pieces(model);
    if pieces.is_empty() {
        let what = "is no decoder that is trained; use the published file".to_owned();
        return Err(ModelError::Config { key: "model.y_decoder.family".to_owned(), what });
    }
    write::write(model.layout, parameters, &pieces, &folder.join(source.file()))?;
    Ok(source.file())
}
