//! Error type of this crate.

use std::path::PathBuf;

use vljepa_kernels::KernelError;

/// Errors from building, running, loading or saving a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An operation rejected its arguments, or the device failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A size in the recipe is out of range or does not fit the other sizes.
    #[error("{key}: {what}")]
    Config {
        /// Recipe key, such as `model.image_size`.
        key: String,
        /// Description of the mistake with the values.
        what: String,
    },
    /// A backward pass was called, but the forward pass had saved no state for it.
    #[error(
        "{part}: the forward pass saved no state for backward; call forward with `Keep::Needed`"
    )]
    NothingSaved {
        /// Part of the model: `x_encoder`, `predictor` or `y_encoder`.
        part: &'static str,
    },
    /// A weights file cannot be read or written.
    #[error("cannot read or write {}: {cause}", path.display())]
    File {
        /// Path of the weights file.
        path: PathBuf,
        /// Error from the operating system.
        cause: std::io::Error,
    },
    /// The contents of a weights file are damaged or not supported.
    #[error("{}: {reason}", path.display())]
    Format {
        /// Path of the weights file.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// A weights file lacks tensors that the model needs.
    #[error("{}: {} tensors are missing: {}", path.display(), names.len(), first_names(names))]
    MissingTensors {
        /// Path of the weights file.
        path: PathBuf,
        /// Published names of the missing tensors.
        names: Vec<String>,
    },
    /// A weights file holds tensors that the model does not use and that its published files do not
    /// have beside those of the model: the model has other sizes than the file.
    #[error(
        "{}: the recipe's model does not use {} of its tensors: {}",
        path.display(),
        names.len(),
        first_names(names)
    )]
    UnusedTensors {
        /// Path of the weights file.
        path: PathBuf,
        /// Names of the tensors in the file.
        names: Vec<String>,
    },
    /// A tensor in a weights file has a different shape than in the recipe's model.
    #[error("{}: {name} has shape {found:?}, the recipe's model needs {needed:?}", path.display())]
    MisshapenTensor {
        /// Path of the weights file.
        path: PathBuf,
        /// Published name of the tensor.
        name: String,
        /// Shape of the tensor in the file.
        found: Vec<usize>,
        /// Shape that the model needs.
        needed: Vec<usize>,
    },
    /// A tensor in a weights file holds NaN or an infinite number.
    #[error(
        "{}: {name} holds {value} (element {index}); take the file from its source again",
        path.display()
    )]
    NotFinite {
        /// Path of the weights file.
        path: PathBuf,
        /// Published name of the tensor.
        name: String,
        /// Index of the first such element.
        index: usize,
        /// Value of this element.
        value: f32,
    },
}

/// Joins the first six names, so that a wrong file does not fill the screen.
pub(crate) fn first_names(names: &[String]) -> String {
    let shown = names.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 6 { format!("{shown}, …") } else { shown }
}
