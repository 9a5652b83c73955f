//! The hash of a recipe, which keys at their default do not enter.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::Recipe;

/// Returns the hexadecimal BLAKE3 hash of a recipe's keys that differ from their defaults.
pub(super) fn hash(recipe: &Recipe) -> serde_json::Result<String> {
    let mut tree = serde_json::to_value(recipe)?;
    let mut keys = Vec::new();
    list_keys(&tree, String::new(), &mut keys);
    for (parent, key) in keys {
        let Some(value) = object(&mut tree, &parent).and_then(|object| object.remove(&key)) else {
            continue;
        };
        let same = serde_json::from_value::<Recipe>(tree.clone()).is_ok_and(|less| less == *recipe);
        if let (false, Some(object)) = (same, object(&mut tree, &parent)) {
            object.insert(key, value);
        }
    }
    if let Some(predictor) = object(&mut tree, "/model/predictor") {
        earlier_layers(predictor);
    }
    if let Some(encoder) = object(&mut tree, "/model/y_encoder") {
        earlier_update(encoder);
    }
    Ok(blake3::hash(sorted(&tree).as_bytes()).to_hex().to_string())
}

/// Writes `layers` as `first_layer` and `num_layers`, as recipes had them first, so that their runs
/// keep their hash.
fn earlier_layers(predictor: &mut Map<String, Value>) {
    let Some(layers) = predictor.remove("layers") else { return };
    let [first, end] = [0, 1].map(|index| layers[index].as_u64().unwrap_or(0));
    for (key, value) in [("first_layer", first), ("num_layers", end.saturating_sub(first))] {
        if value != 8 {
            predictor.insert(key.to_owned(), value.into());
        }
    }
}

/// Writes `update: frozen` as `trainable: false`, as recipes had it first, so that their runs keep
/// their hash.
fn earlier_update(encoder: &mut Map<String, Value>) {
    if encoder.get("update").is_some_and(|update| update == "frozen") {
        encoder.remove("update");
        encoder.insert("trainable".to_owned(), false.into());
    }
}

/// JSON with sorted keys, whatever order the features of serde_json give to a map.
fn sorted(tree: &Value) -> String {
    match tree {
        Value::Object(object) => {
            let entries: BTreeMap<_, _> = object.iter().collect();
            let entry = |(key, value): (&String, _)| format!("{key:?}:{}", sorted(value));
            format!("{{{}}}", entries.into_iter().map(entry).collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(sorted).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

fn object<'a>(tree: &'a mut Value, pointer: &str) -> Option<&'a mut Map<String, Value>> {
    tree.pointer_mut(pointer)?.as_object_mut()
}

/// Appends each key below `at`, a JSON pointer, as the pointer of its parent and its name. Inner
/// keys come before outer ones.
fn list_keys(tree: &Value, at: String, keys: &mut Vec<(String, String)>) {
    match tree {
        Value::Object(object) => {
            for (key, value) in object {
                let escaped = key.replace('~', "~0").replace('/', "~1");
                list_keys(value, format!("{at}/{escaped}"), keys);
                keys.push((at.clone(), key.clone()));
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                list_keys(item, format!("{at}/{index}"), keys);
            }
        }
        _ => {}
    }
}
