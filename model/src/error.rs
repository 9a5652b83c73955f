//! The one error type of this crate.

use std::path::PathBuf;

use vljepa_kernels::KernelError;

/// What building, running, loading or saving a model can refuse.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An operation was given what it cannot compute, or the device failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Sizes of the recipe do not fit together.
    #[error("{key} is {found}; {needed}")]
    Config {
        /// The recipe's key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        needed: String,
    },
    /// A forward pass that kept nothing was asked for its backward pass.
    #[error(
        "{part}: its forward pass kept nothing to run backward from; call it with `keep: true`"
    )]
    NothingSaved {
        /// The part of the model.
        part: &'static str,
    },
    /// A file of weights cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Tensors of the model that a file of weights does not hold.
    #[error("{}: {} tensors are missing: {}", path.display(), names.len(), first(names))]
    MissingTensors {
        /// The file.
        path: PathBuf,
        /// Their published names.
        names: Vec<String>,
    },
    /// A tensor of another shape than the recipe's model has.
    #[error("{}: {name} has shape {found:?}, the recipe's model needs {needed:?}", path.display())]
    MisshapenTensor {
        /// The file.
        path: PathBuf,
        /// The published name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape the model needs.
        needed: Vec<usize>,
    },
}

/// The first few names, so that a wrong file does not fill the screen.
fn first(names: &[String]) -> String {
    let shown = names.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 6 { format!("{shown}, …") } else { shown }
}
