//! Samples as the readers make them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::files::{Annotations, fill};
use super::{OpenSet, SetSample, SetVisual};
use crate::error::DataError;
use crate::texts::Texts;

/// Field of a sample's json that holds its label.
const LABEL: &str = "label";

/// A file of a template below the root of a set.
pub(super) struct Template<'a> {
    pub(super) root: &'a Path,
    pub(super) text: &'a str,
    /// File whose annotations fill the template, for messages.
    pub(super) annotations: &'a Annotations,
}

impl Template<'_> {
    pub(super) fn path(&self, fields: &[(&str, &str)]) -> Result<PathBuf, DataError> {
        let path = fill(self.text, fields).map_err(|reason| self.annotations.wrong(reason))?;
        Ok(self.root.join(path))
    }
}

/// Sample with a label.
pub(super) fn labelled(
    key: String,
    path: PathBuf,
    seconds: Option<Range<f64>>,
    label: &str,
) -> SetSample {
    let json = Map::from_iter([(LABEL.to_owned(), label.into())]);
    let visual = Some(SetVisual::of(path, seconds));
    SetSample { key, visual, texts: Texts::of(Ok(None), Ok(json)) }
}

/// Sample with captions. The first is its caption; all of them are the list `captions` of its json.
pub(super) fn captioned(key: String, visual: SetVisual, captions: &[String]) -> SetSample {
    let json = Map::from_iter([("captions".to_owned(), captions.into())]);
    let caption = captions.first().cloned();
    SetSample { key, visual: Some(visual), texts: Texts::of(Ok(caption), Ok(json)) }
}

/// Labels that are their own texts.
pub(super) fn own_texts(labels: impl IntoIterator<Item = String>) -> BTreeMap<String, Vec<String>> {
    labels.into_iter().map(|label| (label.clone(), vec![label])).collect()
}

/// Questions about pictures, grouped by picture, so that each is decoded once. Pictures come in the
/// order of their first questions.
#[derive(Default)]
pub(super) struct Asked {
    pictures: Vec<(String, PathBuf, Vec<Value>)>,
    known: BTreeMap<String, usize>,
    ids: BTreeMap<String, ()>,
}

/// A question as published.
pub(super) struct Published<'a> {
    /// Id, unique among the questions of the set.
    pub(super) id: String,
    pub(super) question: &'a str,
    pub(super) answer: &'a str,
    /// Part of the set, which becomes the kind of the question.
    pub(super) kind: &'a str,
}

impl Asked {
    /// Adds a question about a picture.
    ///
    /// # Errors
    /// A message if the id was added before.
    pub(super) fn add(
        &mut self,
        picture: &str,
        path: PathBuf,
        question: Published<'_>,
    ) -> Result<(), String> {
        let Published { id, question, answer, kind } = question;
        let asked = json!({"question": question, "answer": answer, "kind": kind});
        if self.ids.insert(id.clone(), ()).is_some() {
            return Err(format!("two questions have the id `{id}`"));
        }
        let next = self.pictures.len();
        let index = *self.known.entry(picture.to_owned()).or_insert(next);
        if index == next {
            self.pictures.push((picture.to_owned(), path, Vec::new()));
        }
        self.pictures[index].2.push(asked);
        Ok(())
    }

    /// The set of all pictures with their questions.
    pub(super) fn into_set(self, labels: BTreeMap<String, Vec<String>>) -> OpenSet {
        let sample = |(key, path, questions): (String, PathBuf, Vec<Value>)| {
            let json = Map::from_iter([("questions".to_owned(), Value::Array(questions))]);
            let visual = Some(SetVisual::of(path, None));
            SetSample { key, visual, texts: Texts::of(Ok(None), Ok(json)) }
        };
        OpenSet { samples: self.pictures.into_iter().map(sample).collect(), labels }
    }
}
