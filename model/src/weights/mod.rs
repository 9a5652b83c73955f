//! Published weights: reading and writing them under their published tensor names.
//!
//! The model stores queries, keys and values as one matrix, and gate and up as one; files hold them apart. A [`Piece`] says which
//! published tensor is which part of which parameter; there is one list per source, in a file of its own.

mod gemma;
mod llama;
mod projections;
mod read;
mod vjepa2;
mod write;

use std::path::Path;

use crate::{ModelError, ParameterId, Parameters, VlJepa, Weight};

/// A published tensor and the contiguous part of a parameter that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The published name.
    pub name: String,
    /// The published shape.
    pub shape: Vec<usize>,
    /// The parameter that holds it.
    pub parameter: ParameterId,
    /// First of its elements in the parameter; the others follow.
    pub start: usize,
}

impl Piece {
    /// A whole parameter under its own shape.
    fn whole(name: impl Into<String>, weight: &Weight) -> Self {
        let shape = weight.shape().to_vec();
        Self { name: name.into(), shape, parameter: weight.id(), start: 0 }
    }

    /// Consecutive row ranges of a fused matrix, or elements of a fused bias.
    fn fused(parts: &[(String, usize)], weight: &Weight) -> Vec<Self> {
        let width: usize = weight.shape()[1..].iter().product();
        let mut row = 0;
        let mut pieces = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let mut shape = weight.shape().to_vec();
            shape[0] = *rows;
            let start = row * width;
            pieces.push(Self { name: name.clone(), shape, parameter: weight.id(), start });
            row += rows;
        }
        pieces
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where weights are published, or were trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// V-JEPA 2's encoder (`facebook/vjepa2-vitl-fpc64-256`, `model.safetensors`).
    VJepa2,
    /// Llama-3.2 (`meta-llama/Llama-3.2-1B`, `model.safetensors`).
    Llama,
    /// `EmbeddingGemma`'s transformer (`google/embeddinggemma-300m`, `model.safetensors`).
    Gemma,
    /// Its first Dense layer (`2_Dense/model.safetensors`).
    GemmaDense2,
    /// Its second Dense layer (`3_Dense/model.safetensors`).
    GemmaDense3,
    /// What no published model has: projections and temperature, under our own names.
    Projections,
}

impl Source {
    /// All sources.
    pub const ALL: [Self; 6] = [
        Self::VJepa2,
        Self::Llama,
        Self::Gemma,
        Self::GemmaDense2,
        Self::GemmaDense3,
        Self::Projections,
    ];

    /// The file of an export folder.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::VJepa2 => "vjepa2.safetensors",
            Self::Llama => "llama.safetensors",
            Self::Gemma => "gemma.safetensors",
            Self::GemmaDense2 => "2_Dense/model.safetensors",
            Self::GemmaDense3 => "3_Dense/model.safetensors",
            Self::Projections => "projections.safetensors",
        }
    }

    /// The published tensors of this source that `model` holds.
    #[must_use]
    pub fn pieces(self, model: &VlJepa) -> Vec<Piece> {
        match self {
            Self::VJepa2 => vjepa2::pieces(&model.x_encoder, model.recipe()),
            Self::Llama => {
                llama::pieces(&model.predictor.text, model.recipe().predictor.first_layer)
            }
            Self::Gemma => gemma::pieces(&model.y_encoder.text),
            Self::GemmaDense2 => gemma::dense(&model.y_encoder.head, 0),
            Self::GemmaDense3 => gemma::dense(&model.y_encoder.head, 1),
            Self::Projections => projections::pieces(model),
        }
    }

    /// A prefix that some files put before every name of this source and others do not.
    fn optional_prefix(self) -> &'static str {
        match self {
            Self::Llama | Self::Gemma => "model.",
            Self::VJepa2 | Self::GemmaDense2 | Self::GemmaDense3 | Self::Projections => "",
        }
    }
}

/// Reads the tensors of one source from a safetensors file into `parameters`: f32, bf16 or f16. Returns the names in the file that the
/// model has no place for (layers it does not use, other heads), for the log.
///
/// # Errors
/// When the file cannot be read, is not safetensors, or a tensor of the model is missing or has another shape. Nothing is read
/// into the parameters unless all tensors are there.
pub fn load(
    model: &VlJepa,
    parameters: &mut Parameters,
    source: Source,
    path: &Path,
) -> Result<Vec<String>, ModelError> {
    read::load(model, parameters, source, path)
}

/// Reads every published file that the recipe names (`weights` of the three encoders; Dense layers from the folders beside
/// `EmbeddingGemma`'s file). Returns file and name of every tensor the model has no place for.
///
/// # Errors
/// As [`load`].
pub fn load_published(
    model: &VlJepa,
    parameters: &mut Parameters,
) -> Result<Vec<String>, ModelError> {
    let recipe = model.recipe();
    let mut files = Vec::new();
    files.extend(recipe.x_encoder.weights.as_ref().map(|p| (Source::VJepa2, p.clone())));
    files.extend(recipe.predictor.weights.as_ref().map(|p| (Source::Llama, p.clone())));
    if let Some(path) = &recipe.y_encoder.weights {
        files.push((Source::Gemma, path.clone()));
        if recipe.y_encoder.dense_heads {
            let beside = |file: Source| path.with_file_name("").join(file.file());
            files.push((Source::GemmaDense2, beside(Source::GemmaDense2)));
            files.push((Source::GemmaDense3, beside(Source::GemmaDense3)));
        }
    }
    let mut extra = Vec::new();
    for (source, path) in files {
        let names = load(model, parameters, source, &path)?;
        extra.extend(names.into_iter().map(|name| format!("{}: {name}", path.display())));
    }
    Ok(extra)
}

/// Writes all weights into `folder`, one safetensors file per source, under the published names and shapes.
///
/// # Errors
/// When a file cannot be written.
pub fn export(model: &VlJepa, parameters: &Parameters, folder: &Path) -> Result<(), ModelError> {
    for source in Source::ALL {
        let pieces = source.pieces(model);
        if !pieces.is_empty() {
            write::write(model, parameters, &pieces, &folder.join(source.file()))?;
        }
    }
    Ok(())
}

/// Reads a folder that [`export`] wrote.
///
/// # Errors
/// As [`load`].
pub fn import(
    model: &VlJepa,
    parameters: &mut Parameters,
    folder: &Path,
) -> Result<(), ModelError> {
    for source in Source::ALL {
        if !source.pieces(model).is_empty() {
            load(model, parameters, source, &folder.join(source.file()))?;
        }
    }
    Ok(())
}
