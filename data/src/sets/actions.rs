//! Sets of changes and the actions that explain them: WorldPrediction-WM.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, json};

use super::entries::Id;
use super::files::Annotations;
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
        candidates: Vec<Action>,
        answer: usize,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Action {
        Clip(String),
        Segment { video: String, start: f64, end: f64 },
    }
    let annotations = Annotations::read(root, samples)?;
    let mut set = OpenSet::default();
    for Item { id: Id(id), initial, r#final, candidates, answer } in
        annotations.json::<Vec<Item>>()?
    {
        let wrong = |reason: &str| annotations.wrong(format!("`{id}`: {reason}"));
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
        let second = Some(root.join(&r#final));
        let visual = SetVisual { path: root.join(&initial), seconds: None, second };
        let sample = |key: String, visual, json| SetSample {
            key,
            visual: Some(visual),
            texts: Texts::of(Ok(None), Ok(json)),
        };
        set.samples.push(sample(format!("{id}/change"), visual, change));
        for (number, action) in candidates.into_iter().enumerate() {
            let visual = match action {
                Action::Clip(path) => SetVisual::of(root.join(path), None),
                Action::Segment { video, start, end } if start < end => {
                    SetVisual::of(root.join(video), Some(start..end))
                }
                Action::Segment { start, end, .. } => {
                    return Err(wrong(&format!("an action from {start} s to {end} s is none")));
                }
            };
            json.insert("action".to_owned(), number.to_string().into());
            set.samples.push(sample(format!("{id}/{number}"), visual, json.clone()));
        }
    }
    Ok(set)
}
