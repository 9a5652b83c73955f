//! Identity of a model: its weights, and what else determines the values that it gives.

use serde_json::{Value, json};
use vljepa_recipes::Recipe;

use super::embed::Embeds;
use crate::rank::environment::hash_file;

/// Hash of the weights and of the keys of the recipe that determine what they compute. A file of
/// weights or a tokenizer counts with its content, not with its path.
///
/// # Errors
/// Fails if the device fails or a tokenizer cannot be read.
pub(super) fn hash(recipe: &Recipe, model: Embeds<'_>) -> anyhow::Result<blake3::Hash> {
    let weights = match model {
        Embeds::VlJepa(engine) => engine.weights_hash()?,
        Embeds::DualEncoder(engine) => engine.weights_hash()?,
        Embeds::Vlm(engine) => engine.weights_hash()?,
    };
    let Recipe { device, precision, loss, seed, .. } = recipe;
    let mut keys = json!([recipe.model, device, precision, loss, seed]);
    without_paths(&mut keys)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(weights.as_bytes()).update(keys.to_string().as_bytes());
    Ok(hasher.finalize())
}

/// Replaces the paths of tokenizers by the hashes of the files, and removes those of weights.
fn without_paths(value: &mut Value) -> anyhow::Result<()> {
    match value {
        Value::Object(keys) => {
            keys.remove("weights");
            for (key, value) in keys {
                match value {
                    Value::String(path) if key == "tokenizer" => {
                        *value = hash_file(path.as_str().as_ref())?.to_string().into();
                    }
                    _ => without_paths(value)?,
                }
            }
            Ok(())
        }
        Value::Array(values) => values.iter_mut().try_for_each(without_paths),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_counts_with_its_content_and_weights_with_neither() {
        let folder = tempfile::tempdir().unwrap();
        let of = |file: &str, content: &str, weights: &str| {
            let path = folder.path().join(file);
            std::fs::write(&path, content).unwrap();
            let mut keys =
                json!([{"x": {"tokenizer": path, "weights": weights, "layers": [0, 2]}}]);
            without_paths(&mut keys).unwrap();
            keys
        };
        assert_eq!(of("a", "words", "a.pt"), of("b", "words", "b.pt"));
        assert_ne!(of("a", "words", "a.pt"), of("a", "other words", "a.pt"));
        assert!(without_paths(&mut json!({"tokenizer": "/not/there"})).is_err());
    }
}
