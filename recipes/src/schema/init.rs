//! The key `init`: trained weights that a run starts from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Trained weights that a run starts from.
///
/// They are read before the first step. The moments of the optimizer start at zero. A run that has
/// a checkpoint of its own continues from it and reads nothing of `init`, so the files may be gone.
///
/// The weights must have the names and shapes of the recipe's model, no more and no fewer. `init`
/// is written as one key: `init: {run: runs/pretrain}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Directory of another run, whose newest valid checkpoint is read: all weights of the model,
    /// trained and frozen, with projections and temperature. `model.*.weights` must then be `null`.
    /// An older checkpoint is exported with `--step` and named by `export`.
    Run(PathBuf),
    /// Folder that `vljepa-launch export` wrote: all weights of the model, with projections and
    /// temperature. `model.*.weights` must then be `null`.
    Export(PathBuf),
    /// File with the projections and the temperature only, such as `projections.safetensors` of an
    /// exported folder, or the index of several such files. The three encoders' weights come from
    /// `model.*.weights`, or are random.
    Weights(PathBuf),
}

impl Init {
    /// Key of the recipe that holds the path, such as `init.run`.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::Run(_) => "init.run",
            Self::Export(_) => "init.export",
            Self::Weights(_) => "init.weights",
        }
    }

    /// Path of the directory, folder or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Run(path) | Self::Export(path) | Self::Weights(path) => path,
        }
    }
}
