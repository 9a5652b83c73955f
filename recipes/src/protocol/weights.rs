//! Result of the worker's look at a file of weights.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Most names that [`Names`] keeps.
const SHOWN: usize = 5;

/// Contents of a file of weights, as `vljepa-worker weights` prints it in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub enum Weights {
    /// The file holds at least one model that a recipe can use.
    Known(KnownWeights),
    /// The file holds no such model.
    Unknown(UnknownWeights),
    /// The file cannot be read, or its conversion cannot be written.
    Failed {
        /// The error, with the path.
        error: String,
    },
}

/// A file of weights with at least one model that a recipe can use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownWeights {
    /// Path of the file.
    pub path: PathBuf,
    /// Tensors of the file.
    pub all: Extent,
    /// Models in the file.
    pub models: Vec<KnownModel>,
    /// Tensors that belong to none of the models.
    pub unused: Names,
}

/// A model in a file of weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownModel {
    /// Name for people, such as `V-JEPA 2's encoder`.
    pub name: String,
    /// Recipe key that reads it, such as `model.x_encoder`.
    pub key: String,
    /// Value of `family` under this key, or `None` if the key has no families.
    pub family: Option<String>,
    /// Values of `size` for which the published model has these tensors. Empty if there are none.
    pub sizes: Vec<String>,
    /// Tensors that belong to the model.
    pub held: Extent,
    /// Keys of the recipe that the shapes of the tensors show.
    pub shown: Map<String, Value>,
    /// Nearest published size, if the model has none.
    pub nearest: Option<NearestSize>,
    /// Lines of a recipe that reads the model from the file.
    pub recipe: String,
}

/// A published size that differs from the model of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearestSize {
    /// Value of `size`.
    pub size: String,
    /// Values of the published model for the keys that differ.
    pub differs: Map<String, Value>,
}

/// A file of weights that hold no model that a recipe can use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnknownWeights {
    /// Path of the file.
    pub path: PathBuf,
    /// Tensors of the file.
    pub all: Extent,
    /// Names of the tensors.
    pub names: Names,
    /// Model that shares the most names with the file, if any model shares a name.
    pub nearest: Option<NearestModel>,
}

/// A model that a file nearly holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearestModel {
    /// Name for people, such as `V-JEPA 2's encoder`.
    pub name: String,
    /// Recipe key that would read it, such as `model.x_encoder`.
    pub key: String,
    /// Value of `family` under this key, or `None` if the key has no families.
    pub family: Option<String>,
    /// Tensors of the model that the file lacks.
    pub missing: Names,
    /// Tensors of the model that have another shape in the file, each with both shapes.
    pub misshapen: Names,
    /// Tensors of the file that the model does not have.
    pub unknown: Names,
}

/// Number and size of some tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// Types of the elements, such as `bf16`.
    pub types: Vec<String>,
}

/// The first of some names, and their number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// Number of all names.
    pub count: usize,
    /// The first names.
    pub first: Vec<String>,
}

impl FromIterator<String> for Names {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let mut all: Vec<String> = names.into_iter().collect();
        let count = all.len();
        all.truncate(SHOWN);
        Self { count, first: all }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.count > self.first.len() { ", …" } else { "" };
        write!(f, "{}{more}", self.first.join(", "))
    }
}
