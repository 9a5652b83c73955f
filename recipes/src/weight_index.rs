//! The index of weights that are stored in several safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

/// Largest index that is read, in bytes. That of a model of 400 billion parameters has 100 kB.
const MAX_BYTES: u64 = 100 << 20;

/// Reads an index such as `model.safetensors.index.json`: the names of the files beside it, each
/// with the names of its tensors.
///
/// # Errors
/// A message if it is another JSON file, or names files that do not lie beside it.
///
/// # Example
/// ```
/// let index = br#"{"weight_map": {"norm.weight": "model-00001-of-00002.safetensors"}}"#;
/// let files = vljepa_recipes::weight_index::read(&index[..])?;
/// assert!(files["model-00001-of-00002.safetensors"].contains("norm.weight"));
/// # Ok::<_, String>(())
/// ```
pub fn read(index: impl Read) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_reader(index.take(MAX_BYTES))
        .map_err(|_| "it is a JSON file, but no index of weights; name the model's weights")?;
    let mut files = BTreeMap::<String, BTreeSet<String>>::new();
    for (tensor, name) in index.weight_map {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(format!("the index names {name}, which does not lie beside it"));
        }
        files.entry(name).or_default().insert(tensor);
    }
    Ok(files)
}
