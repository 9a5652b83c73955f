//! Hard-negative triplets of texts: SugarCrepe++ and VISLA. The json of a sample has `p1`, `p2`,
//! `n` and the subset as `split`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::entries::Id;
use super::files::Annotations;
use super::table::Dialect;
use super::{OpenSet, SetSample};
use crate::error::DataError;
use crate::texts::Texts;

/// Columns of p1, p2 and n in VISLA's files.
const VISLA_GENERIC: [&str; 3] = ["caption", "second positive", "negative_caption"];
const VISLA_SPATIAL: [&str; 3] = ["sent1", "sent2", "Best reference (Semantically close)"];

/// `SugarCrepe++`. The subset of a triplet is the name of its file.
pub(super) fn sugar_crepe_pp(root: &Path, files: &[PathBuf]) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Triplet {
        id: Id,
        caption: String,
        caption2: String,
        negative_caption: String,
    }
    let mut set = OpenSet::default();
    for file in files {
        let annotations = Annotations::read(root, file)?;
        let split = file.file_stem().unwrap_or_default().to_string_lossy();
        for triplet in annotations.json::<Vec<Triplet>>()? {
            let Triplet { id: Id(id), caption, caption2, negative_caption } = triplet;
            let texts = [&*caption, &*caption2, &*negative_caption];
            let sample = sample(format!("{split}_{id}"), texts, &split);
            set.samples.push(sample.map_err(|reason| annotations.wrong(reason))?);
        }
    }
    Ok(set)
}

/// VISLA: its subsets are `generic` and `spatial`.
pub(super) fn visla(root: &Path, generic: &Path, spatial: &Path) -> Result<OpenSet, DataError> {
    let mut set = OpenSet::default();
    for (split, file, names) in
        [("generic", generic, VISLA_GENERIC), ("spatial", spatial, VISLA_SPATIAL)]
    {
        let annotations = Annotations::read(root, file)?;
        let table = annotations.table(Dialect::Tabs)?;
        let columns = table.columns(names).map_err(|reason| annotations.wrong(reason))?;
        for (number, row) in table.rows.iter().enumerate() {
            let texts = columns.map(|column| row.values[column].as_str());
            let sample = sample(format!("{split}_{number}"), texts, split);
            let wrong = |reason| annotations.wrong(format!("line {}: {reason}", row.line));
            set.samples.push(sample.map_err(wrong)?);
        }
    }
    Ok(set)
}

fn sample(key: String, texts: [&str; 3], split: &str) -> Result<SetSample, String> {
    let mut json = Map::new();
    for (name, text) in ["p1", "p2", "n"].into_iter().zip(texts) {
        if text.trim().is_empty() {
            return Err(format!("a text of the triplet `{key}` is empty"));
        }
        json.insert(name.to_owned(), Value::from(text.trim()));
    }
    json.insert("split".to_owned(), split.into());
    Ok(SetSample { key, visual: None, texts: Texts::of(Ok(None), Ok(json)) })
}
