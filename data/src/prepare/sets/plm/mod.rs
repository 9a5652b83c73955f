//! Finetuning sets of the Perception Language Model (PLM): conversations about pictures and videos.
//!
//! A registry in YAML names the data sets: `name: {annotation: FILE.jsonl, root_dir: FOLDER}`. Each
//! line of an annotation file is a conversation about the picture, pictures or part of a video that
//! it names. [Its documentation](https://github.com/facebookresearch/perception_models) calls the
//! layout the format of custom data sets.
//!
//! Each answer becomes a sample with its question, and the samples of a conversation share their
//! pictures or video. So an epoch trains on each answer once, and the counts of the paper (25M
//! samples of question answering, §3.2) are counts of samples. One sample for a whole conversation
//! would draw one of its questions per epoch.

mod record;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::record::Record;
use super::Give;
use super::files::{Annotations, MediaFolder};
use super::lines::{LineRange, Lines, split};
use crate::error::DataError;
use crate::storage::{Location, Storage};

/// Text in each message that answers, by which the answers of a line are counted.
const ANSWER: &str = "\"assistant\"";

/// Which data sets are read.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct PlmOptions {
    /// Path or URL of the registry. Relative paths in it start at the working directory, as PLM
    /// reads them.
    #[arg(long, value_name = "FILE")]
    pub registry: String,
    /// Names of the data sets to read. All of the registry, in the order of their names, if it is
    /// empty.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub datasets: Vec<String>,
}

/// Data sets of a registry.
#[derive(Debug)]
pub struct Plm {
    storage: Storage,
    options: PlmOptions,
    datasets: Vec<Dataset>,
}

#[derive(Debug)]
struct Dataset {
    name: String,
    annotations: Annotations,
    media: MediaFolder,
}

/// Stretch of lines of one data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlmPart {
    dataset: String,
    lines: LineRange,
}

/// Entry of the registry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    annotation: String,
    root_dir: PathBuf,
}

impl Plm {
    /// Reads the registry and opens the annotations of its data sets.
    ///
    /// # Errors
    /// If the registry or an annotation file cannot be read, a data set is not in the registry, or
    /// a `root_dir` is not a folder.
    pub fn open(storage: &Storage, options: &PlmOptions) -> Result<Self, DataError> {
        let unusable =
            |reason: String| DataError::BadLocation { location: options.registry.clone(), reason };
        let location = Location::parse(&options.registry).map_err(unusable)?;
        let mut entries = entries(&storage.read(&location)?).map_err(unusable)?;
        let names: Vec<String> = if options.datasets.is_empty() {
            entries.keys().cloned().collect()
        } else {
            options.datasets.clone()
        };
        let mut datasets = Vec::with_capacity(names.len());
        for name in names {
            let Some(entry) = entries.remove(&name) else {
                let known = entries.keys().map(String::as_str).collect::<Vec<_>>().join("`, `");
                let reason = format!(
                    "it has no data set `{name}`, or the set is named twice; others are `{known}`"
                );
                return Err(unusable(reason));
            };
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 100 || !name.chars().all(allowed) {
                let reason = format!(
                    "the data set `{name}` cannot be part of a key; give it a name of up to 100 \
                     letters, digits, `-` and `_`"
                );
                return Err(unusable(reason));
            }
            datasets.push(Dataset {
                annotations: Annotations::find(storage, &entry.annotation)?,
                media: MediaFolder::open(&entry.root_dir)?,
                name,
            });
        }
        Ok(Self { storage: storage.clone(), options: options.clone(), datasets })
    }

    /// What tells the set from another one: names with values.
    pub(super) fn identity(&self) -> BTreeMap<String, String> {
        let PlmOptions { registry, datasets } = &self.options;
        let version = Annotations::hash(self.datasets.iter().map(|set| &set.annotations));
        let identity = [
            ("--registry", registry.clone()),
            ("--datasets", datasets.join(",")),
            ("hash of the versions of the annotations", version),
        ];
        identity.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Stretches of lines with about `items` answers each. Reads the annotation files once.
    ///
    /// # Errors
    /// If an annotation file cannot be read, or has changed since the set was opened.
    pub fn parts(&self, items: usize) -> Result<Vec<PlmPart>, DataError> {
        let mut parts = Vec::new();
        for dataset in &self.datasets {
            let file = dataset.annotations.open(&self.storage)?;
            let part = |lines| PlmPart { dataset: dataset.name.clone(), lines };
            parts.extend(split(&file, ANSWER, items)?.into_iter().map(part));
        }
        Ok(parts)
    }

    /// Gives the answers of a part, each with its question. Their keys are the name of the data
    /// set, the line and the number of the answer in the line, both counted from 1. A conversation
    /// that cannot be used at all is left out as one item.
    ///
    /// # Errors
    /// If the annotation file cannot be read or has changed, or `give` fails.
    pub fn read(&self, part: &PlmPart, give: &mut Give<'_>) -> Result<(), DataError> {
        let Some(dataset) = self.datasets.iter().find(|set| set.name == part.dataset) else {
            let location = part.dataset.clone();
            let reason = "the part is of a data set that was not opened".to_owned();
            return Err(DataError::BadLocation { location, reason });
        };
        let file = dataset.annotations.open(&self.storage)?;
        let mut lines = Lines::of(&file, &part.lines)?;
        while let Some(line) = lines.next_line()? {
            let (name, number) = (&dataset.name, line.number);
            let record = line.record().and_then(|fields| Record::of(fields, &dataset.media));
            let place = format!("{name} line {number}");
            let record = match record {
                Ok(record) => record,
                Err(reason) => {
                    give(Err(reason.of(place)))?;
                    continue;
                }
            };
            for (turn, answer) in (1..).zip(&record.turns) {
                give(match answer {
                    Ok(answer) => Ok(record.item(format!("{name}-{number:08}-{turn:03}"), answer)),
                    Err(reason) => Err(reason.clone().of(format!("{place}, answer {turn}"))),
                })?;
            }
        }
        Ok(())
    }
}

fn entries(registry: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let text = str::from_utf8(registry).map_err(|error| format!("it is not a text: {error}"))?;
    let entries: BTreeMap<String, Entry> = serde_saphyr::from_str(text).map_err(|error| {
        format!(
            "{}; a data set is `name: {{annotation: FILE.jsonl, root_dir: FOLDER}}`",
            error.without_snippet()
        )
    })?;
    if entries.is_empty() {
        return Err("it names no data set".to_owned());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
