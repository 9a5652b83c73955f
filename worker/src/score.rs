//! Scores a file of captions against files of references.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use vljepa_recipes::protocol::CaptionScores;
use vljepa_recipes::schema::CaptionMetric;

use crate::evaluation::captions::{Captioned, scores};
use crate::evaluation::truth::contents;

/// Compares the captions of the file `hypotheses` with those of the files `references`, and returns
/// [`CaptionScores`] as JSON. All files hold lines of which those of one number belong together, or
/// all are JSON in COCO's form.
///
/// # Errors
/// If the result cannot be written as JSON. Errors of the files are part of the result.
pub fn run(hypotheses: &Path, references: &[PathBuf]) -> anyhow::Result<String> {
    let found = score(hypotheses, references)
        .unwrap_or_else(|error| CaptionScores::Failed { error: format!("{error:#}") });
    Ok(serde_json::to_string(&found)?)
}

fn score(hypotheses: &Path, references: &[PathBuf]) -> anyhow::Result<CaptionScores> {
    let given = File::read(hypotheses)?;
    let right: Vec<File<'_>> =
        references.iter().map(|path| File::read(path)).collect::<anyhow::Result<_>>()?;
    if let Some(other) = right.iter().find(|file| file.json.is_some() != given.json.is_some()) {
        let (json, lines) = if given.json.is_some() { (&given, other) } else { (other, &given) };
        let (json, lines) = (json.path.display(), lines.path.display());
        anyhow::bail!("{json} is JSON, but {lines} holds lines of text");
    }
    let (captions, left_out) = match &given.json {
        Some(_) => of_pictures(&given, &right)?,
        None => (of_lines(&given, &right)?, 0),
    };
    let scores = scores(&captions, CaptionMetric::ALL)?;
    let [cider, bleu4, rouge_l] = scores.map(|score| score.value);
    Ok(CaptionScores::Scored { cider, bleu4, rouge_l, n: captions.len(), left_out })
}

/// A file of captions.
struct File<'a> {
    path: &'a Path,
    text: String,
    /// The text as JSON. `None` if it is lines.
    json: Option<Value>,
}

impl<'a> File<'a> {
    /// Reads a file. It is JSON if its name ends in `.json`, or if it is a list or an object of
    /// JSON.
    fn read(path: &'a Path) -> anyhow::Result<Self> {
        let text = String::from_utf8(contents(path)?).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            anyhow::anyhow!("line {line} of {} is not UTF-8", path.display())
        })?;
        let parsed = serde_json::from_str::<Value>(&text);
        let json = match parsed {
            Ok(json @ (Value::Array(_) | Value::Object(_))) => Some(json),
            Ok(_) | Err(_) if path.extension().is_none_or(|extension| extension != "json") => None,
            parsed => Some(parsed.with_context(|| format!("{} does not parse", path.display()))?),
        };
        Ok(Self { path, text, json })
    }

    fn lines(&self) -> Vec<&str> {
        self.text.lines().collect()
    }

    /// Captions in COCO's form, each with the id of its picture: a list, or the `annotations` of an
    /// object.
    fn captions(&self) -> anyhow::Result<Vec<(String, String)>> {
        let list = match &self.json {
            Some(Value::Object(fields)) => fields.get("annotations"),
            json => json.as_ref(),
        };
        let path = self.path.display();
        let list = list.with_context(|| format!("{path} has no list `annotations`"))?;
        let list: Vec<Annotation> = serde_json::from_value(list.clone())
            .with_context(|| format!("{path} is no list of `{{image_id, caption}}`"))?;
        let caption = |Annotation { image_id, caption }| match image_id {
            Value::String(id) => Ok((id, caption)),
            Value::Number(id) => Ok((id.to_string(), caption)),
            other => anyhow::bail!("{path} has the image_id {other}, no number and no text"),
        };
        list.into_iter().map(caption).collect()
    }
}

/// A caption in a JSON file of COCO.
#[derive(Deserialize)]
struct Annotation {
    image_id: Value,
    caption: String,
}

/// Captions of line i with the references of line i of each file. A blank reference is none.
fn of_lines(given: &File<'_>, right: &[File<'_>]) -> anyhow::Result<Vec<Captioned>> {
    let hypotheses = given.lines();
    let references: Vec<Vec<&str>> = right.iter().map(File::lines).collect();
    for (file, lines) in right.iter().zip(&references) {
        anyhow::ensure!(
            lines.len() == hypotheses.len(),
            "{} has {} lines, but {} has {}",
            file.path.display(),
            lines.len(),
            given.path.display(),
            hypotheses.len()
        );
    }
    let captioned = |(index, hypothesis): (usize, &&str)| {
        let references = references.iter().map(|lines| lines[index].to_owned());
        let references: Vec<String> = references.filter(|text| !text.trim().is_empty()).collect();
        let number = index + 1;
        anyhow::ensure!(
            !references.is_empty(),
            "line {number} is empty in all files of references"
        );
        Ok(Captioned { hypothesis: (*hypothesis).to_owned(), references })
    };
    hypotheses.iter().enumerate().map(captioned).collect()
}

/// Captions of pictures with the references of the same pictures, and the number of pictures that
/// have references and no caption.
fn of_pictures(given: &File<'_>, right: &[File<'_>]) -> anyhow::Result<(Vec<Captioned>, usize)> {
    let mut references: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in right {
        for (id, caption) in file.captions()? {
            references.entry(id).or_default().push(caption);
        }
    }
    let (path, mut seen) = (given.path.display(), BTreeSet::new());
    let mut captions = Vec::new();
    for (id, hypothesis) in given.captions()? {
        let of_picture = references.get(&id);
        let of_picture = of_picture.with_context(|| {
            format!("the picture with the image_id {id} in {path} has no reference")
        })?;
        captions.push(Captioned { hypothesis, references: of_picture.clone() });
        anyhow::ensure!(seen.insert(id.clone()), "{path} has the image_id {id} more than once");
    }
    anyhow::ensure!(!captions.is_empty(), "{path} holds no captions");
    Ok((captions, references.len() - seen.len()))
}
