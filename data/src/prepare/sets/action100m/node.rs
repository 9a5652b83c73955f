//! A video of Action100M and the nodes of its tree.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::Action100mOptions;
use crate::prepare::item::{Item, MediaSource, Visual};
use crate::prepare::sets::files::{number, span};
use crate::prepare::sets::left_out::{NO_TEXT, NOT_WANTED, Reason};
use crate::texts::nested_text;

/// Fields of a node that hold texts, or objects of texts.
const TEXTS: [&str; 4] = ["plm_caption", "plm_action", "llama3_caption", "gpt"];

/// Video with its tree.
pub(super) struct Video {
    pub(super) uid: String,
    metadata: Value,
    pub(super) nodes: Vec<Value>,
}

impl Video {
    /// Reads a row, whose fields may each be wrapped in a list of one element.
    pub(super) fn of(mut record: Map<String, Value>) -> Result<Self, Reason> {
        let missing = |name: &str| Reason::broken(format!("it has no `{name}`"));
        let mut take = |name: &str| match record.remove(name) {
            None | Some(Value::Null) => Err(missing(name)),
            Some(value) => Ok(value),
        };
        let uid = match unwrapped(take("video_uid")?, Value::is_string) {
            Value::String(uid) => uid,
            _ => return Err(Reason::broken("`video_uid` is not a text")),
        };
        let nodes = match unwrapped(take("nodes")?, Value::is_array) {
            Value::Array(nodes) => nodes,
            _ => return Err(Reason::broken("`nodes` is not a list")),
        };
        if nodes.is_empty() {
            return Err(Reason::broken("`nodes` is empty"));
        }
        let is_metadata = |value: &Value| value.is_object() || value.is_null();
        let mut metadata = take("metadata").map_or(Value::Null, |it| unwrapped(it, is_metadata));
        if let Value::Object(fields) = &mut metadata {
            fields.remove("transcript");
        }
        Ok(Self { uid, metadata, nodes })
    }

    /// The item of a node, whose video is the file at `path`.
    pub(super) fn item(
        &self,
        node: &Value,
        path: PathBuf,
        key: String,
        options: &Action100mOptions,
    ) -> Result<Item, Reason> {
        let Value::Object(mut json) = node.clone() else {
            return Err(Reason::broken("the node is not an object"));
        };
        let seconds = span(number(&json, "start")?, number(&json, "end")?)?;
        check_level(&json, options.levels)?;
        let length = seconds.end - seconds.start;
        if let Some((shortest, longest)) = options.seconds
            && !(shortest..=longest).contains(&length)
        {
            return Err(Reason::new(NOT_WANTED, format!("it lasts {length} s")));
        }
        for name in TEXTS {
            if let Some(text) = json.remove(name).and_then(usable) {
                json.insert(name.to_owned(), text);
            }
        }
        if !options.texts.iter().any(|name| nested_text(&json, name).is_some()) {
            let wanted = options.texts.join("`, `");
            return Err(Reason::new(NO_TEXT, format!("it has none of `{wanted}`")));
        }
        json.insert("video_uid".to_owned(), Value::from(&*self.uid));
        json.insert("metadata".to_owned(), self.metadata.clone());
        let visual = Visual::Clip { video: MediaSource::File(path), seconds: Some(seconds) };
        Ok(Item { key, visual, caption: None, json })
    }
}

/// The only element of a list, if `is_value` accepts it, or else the value itself.
fn unwrapped(value: Value, is_value: fn(&Value) -> bool) -> Value {
    match value {
        Value::Array(mut list) if list.len() == 1 && is_value(&list[0]) => list.remove(0),
        value => value,
    }
}

fn check_level(node: &Map<String, Value>, levels: Option<(u64, u64)>) -> Result<(), Reason> {
    let Some((first, last)) = levels else { return Ok(()) };
    match node.get("level").and_then(Value::as_u64) {
        Some(level) if (first..=last).contains(&level) => Ok(()),
        Some(level) => Err(Reason::new(NOT_WANTED, format!("it has level {level}"))),
        None => Err(Reason::broken("`level` is not a whole number")),
    }
}

/// The value without texts that are empty or "N/A", `null`, and objects that are empty then. `None`
/// if nothing is left.
fn usable(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) => {
            let trimmed = text.trim();
            let says = !trimmed.is_empty() && !trimmed.eq_ignore_ascii_case("n/a");
            says.then_some(Value::String(text))
        }
        Value::Object(fields) => {
            let kept = |(name, value)| Some((name, usable(value)?));
            let fields: Map<String, Value> = fields.into_iter().filter_map(kept).collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        value @ (Value::Bool(_) | Value::Number(_) | Value::Array(_)) => Some(value),
    }
}
