//! Sets with captions of clips: tables (MSR-VTT, MSVD, YouCook2, PVD) and lines of JSON (DREAM-1K,
//! VDC).

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::entries::Id;
use super::files::Annotations;
use super::items::{Template, captioned};
use super::table::{Dialect, Row, Table};
use super::{OpenSet, SetVisual};
use crate::error::DataError;
use crate::texts::nested_text;

/// Columns of a table that are read by name.
pub(super) struct Columns<'a> {
    /// Columns that together identify a clip.
    pub(super) key: &'a [String],
    pub(super) caption: &'a str,
    /// Start and end in seconds.
    pub(super) seconds: Option<&'a [String; 2]>,
}

/// CSV with a clip per row. With a `separator`, a cell holds several captions.
pub(super) fn table(
    root: &Path,
    name: &Path,
    columns: &Columns<'_>,
    separator: Option<&str>,
    videos: &str,
) -> Result<OpenSet, DataError> {
    let annotations = Annotations::read(root, name)?;
    let wrong = |reason| annotations.wrong(reason);
    let table = annotations.table(Dialect::Commas)?;
    let keys: Vec<usize> = columns
        .key
        .iter()
        .map(|name| table.column(name))
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    let caption = table.column(columns.caption).map_err(wrong)?;
    let seconds = columns.seconds.map(|[start, end]| table.columns([start, end])).transpose();
    let seconds = seconds.map_err(wrong)?;
    let template = Template { root, text: videos, annotations: &annotations };
    let mut set = OpenSet::default();
    for row in &table.rows {
        let of_line = |reason| annotations.wrong(format!("line {}: {reason}", row.line));
        let key: Vec<&str> = keys.iter().map(|&column| row.values[column].trim()).collect();
        let cell = row.values[caption].as_str();
        let captions: Vec<String> = match separator {
            Some(separator) => cell.split(separator).map(clean).collect(),
            None => vec![clean(cell)],
        };
        if captions.iter().any(String::is_empty) {
            return Err(of_line("a caption is empty".to_owned()));
        }
        let seconds = seconds.map(|columns| times(row, columns)).transpose().map_err(of_line)?;
        let visual = SetVisual::of(template.path(&fields(&table, row))?, seconds);
        set.samples.push(captioned(key.join("_"), visual, &captions));
    }
    Ok(set)
}

fn clean(text: &str) -> String {
    text.trim().to_owned()
}

fn fields<'a>(table: &'a Table, row: &'a Row) -> Vec<(&'a str, &'a str)> {
    let values = row.values.iter().map(|value| value.trim());
    table.header.iter().map(String::as_str).zip(values).collect()
}

fn times(row: &Row, columns: [usize; 2]) -> Result<Range<f64>, String> {
    let time = |column: usize| {
        let value = row.values[column].trim();
        value.parse::<f64>().map_err(|_| format!("`{value}` is not a number of seconds"))
    };
    Ok(time(columns[0])?..time(columns[1])?)
}

/// DREAM-1K. The caption is the reference of the last message.
pub(super) fn dream1k(root: &Path, annotations: &Path, videos: &str) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Line {
        messages: Vec<Message>,
        vid: Id,
        idx: Id,
    }
    #[derive(Deserialize)]
    struct Message {
        content: Vec<Content>,
    }
    #[derive(Deserialize)]
    struct Content {
        reference: Option<String>,
    }
    let annotations = Annotations::read(root, annotations)?;
    let template = Template { root, text: videos, annotations: &annotations };
    let mut set = OpenSet::default();
    for (number, line) in annotations.json_lines::<Line>()? {
        let Line { messages, vid: Id(vid), idx: Id(idx) } = line;
        let last = messages.last().map(|message| &message.content[..]).unwrap_or_default();
        let caption = last.iter().find_map(|content| content.reference.as_deref()).map(clean);
        let caption = caption.filter(|caption| !caption.is_empty()).ok_or_else(|| {
            annotations.wrong(format!("line {number}: the last message has no `reference`"))
        })?;
        let path = template.path(&[("vid", &vid), ("idx", &idx)])?;
        let visual = SetVisual::of(path, None);
        set.samples.push(captioned(vid, visual, &[caption]));
    }
    Ok(set)
}

/// Video Detailed Captions: one of the captions of each video.
pub(super) fn vdc(
    root: &Path,
    annotations: &Path,
    caption: &str,
    videos: &str,
) -> Result<OpenSet, DataError> {
    let annotations = Annotations::read(root, annotations)?;
    let template = Template { root, text: videos, annotations: &annotations };
    let mut set = OpenSet::default();
    for (number, line) in annotations.json_lines::<Map<String, Value>>()? {
        let field = |name: &str| {
            nested_text(&line, name).filter(|text| !text.trim().is_empty()).ok_or_else(|| {
                let known: Vec<&str> = line.keys().map(String::as_str).collect();
                let known = known.join(", ");
                annotations.wrong(format!("line {number} has no text `{name}`, only {known}"))
            })
        };
        let id = field("video_id")?;
        // Only some copies have the name beside the id.
        let name = nested_text(&line, "video_name").unwrap_or(id);
        let path = template.path(&[("video_id", id), ("video_name", name)])?;
        let visual = SetVisual::of(path, None);
        set.samples.push(captioned(id.to_owned(), visual, &[clean(field(caption)?)]));
    }
    Ok(set)
}
