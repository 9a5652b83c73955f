//! Sets of changes and the actions that explain them: WorldPrediction-WM.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::entries::Id;
use super::files::{Annotations, fill};
use super::{OpenSet, SetSample, SetVisual};
use crate::error::DataError;
use crate::texts::Texts;

/// WorldPrediction-WM. A question becomes one sample of its two pictures, with the number of the
/// right action as answer, and one sample for each action.
pub(super) fn world_prediction(root: &Path, samples: &Path) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        id: Id,
        initial: String,
        r#final: String,
        candidates: Vec<Value>,
        answer: usize,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Segment {
        video: String,
        start: f64,
        end: f64,
    }
    let annotations = Annotations::read(root, samples)?;
    let mut set = OpenSet::default();
    for Item { id: Id(id), initial, r#final, candidates, answer } in
        annotations.json::<Vec<Item>>()?
    {
        let wrong = |reason: &str| annotations.wrong(format!("`{id}`: {reason}"));
        let below = |path: &str| Ok(root.join(fill(path, &[]).map_err(|what| wrong(&what))?));
        if candidates.len() < 2 {
            return Err(wrong("there are fewer than two candidates"));
        }
        if answer >= candidates.len() {
            return Err(wrong(&format!("there is no candidate {answer}, counted from 0")));
        }
        let mut json = Map::from_iter([("item".to_owned(), id.clone().into())]);
        let question = json!([{"question": "change", "answer": answer.to_string(), "kind": ""}]);
        let mut change = json.clone();
        change.insert("questions".to_owned(), question);
        let second = Some(below(&r#final)?);
        let visual = SetVisual { path: below(&initial)?, seconds: None, second };
        let sample = |key: String, visual, json| SetSample {
            key,
            visual: Some(visual),
            texts: Texts::of(Ok(None), Ok(json)),
        };
        set.samples.push(sample(format!("{id}/change"), visual, change));
        for (number, action) in candidates.into_iter().enumerate() {
            let visual = match action {
                Value::String(path) => SetVisual::of(below(&path)?, None),
                segment => {
                    let Segment { video, start, end } = serde_json::from_value(segment)
                        .map_err(|error| wrong(&format!("candidate {number}: {error}")))?;
                    if start >= end {
                        let what = format!("ends at {end} s, before its start at {start} s");
                        return Err(wrong(&format!("candidate {number} {what}")));
                    }
                    SetVisual::of(below(&video)?, Some(start..end))
                }
            };
            json.insert("action".to_owned(), number.to_string().into());
            set.samples.push(sample(format!("{id}/{number}"), visual, json.clone()));
        }
    }
    Ok(set)
}
