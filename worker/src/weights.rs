//! Says which models a file of published weights holds, and copies them to a safetensors file.

use std::path::Path;

use vljepa_model::weights::{convert, identify};
use vljepa_recipes::protocol::Weights;

/// Looks at the file `file` and returns [`Weights`] as JSON. With `to`, copies the models of the
/// file to this new safetensors file, and describes that one.
///
/// # Errors
/// If the result cannot be written as JSON. Errors of the files are part of the result.
pub fn run(file: &Path, to: Option<&Path>) -> anyhow::Result<String> {
    let found = match to {
        None => identify(file),
        Some(to) => convert(file, to),
    };
    let found = found.unwrap_or_else(|error| Weights::Failed { error: error.to_string() });
    Ok(serde_json::to_string(&found)?)
}
