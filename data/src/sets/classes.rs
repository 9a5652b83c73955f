//! Sets with one label per picture or clip: ImageNet, Something-Something v2, Kinetics, and the
//! keysteps of Ego-Exo4D.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::OpenSet;
use super::entries::{Entries, Id};
use super::files::Annotations;
use super::items::{Template, labelled, own_texts};
use super::table::Dialect;
use crate::decode::Media;
use crate::error::DataError;

/// ImageNet. The label of a picture is the WordNet id of its folder, because two classes share a
/// name (`crane`).
pub(super) fn image_folders(
    root: &Path,
    images: &Path,
    names: &Path,
) -> Result<OpenSet, DataError> {
    let names = Annotations::read(root, names)?;
    let mut set = OpenSet::default();
    for (number, line) in (1..).zip(names.text().lines()) {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (id, all) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let text = all.split(',').next().unwrap_or_default().trim();
        if text.is_empty() {
            return Err(names.wrong(format!("line {number} has no name after the id `{id}`")));
        }
        if set.labels.insert(id.to_owned(), vec![text.to_owned()]).is_some() {
            return Err(names.wrong(format!("line {number} repeats the id `{id}`")));
        }
    }
    for label in set.labels.keys() {
        for path in pictures(&root.join(images).join(label))? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            set.samples.push(labelled(format!("{label}/{name}"), path, None, label));
        }
    }
    Ok(set)
}

/// Pictures in a folder, sorted by name. A folder that does not exist has none: the number of
/// samples shows that it is missing.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut pictures = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io("list", folder))? {
        let path = entry.map_err(DataError::io("list", folder))?.path();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if Media::of_extension(&extension) == Some(Media::Image) {
            pictures.push(path);
        }
    }
    pictures.sort();
    Ok(pictures)
}

/// Something-Something v2. A label is a template without its brackets.
pub(super) fn something_something(
    root: &Path,
    annotations: &Path,
    labels: &Path,
    videos: &str,
) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Clip {
        id: Id,
        template: String,
    }
    let without_brackets = |template: &str| template.replace(['[', ']'], "");
    let file = Annotations::read(root, labels)?;
    let Entries(labels): Entries<Id> = file.json()?;
    let labels = own_texts(labels.into_iter().map(|(label, _)| without_brackets(&label)));
    let annotations = Annotations::read(root, annotations)?;
    let videos = Template { root, text: videos, annotations: &annotations };
    let mut samples = Vec::new();
    for Clip { id: Id(id), template } in annotations.json::<Vec<Clip>>()? {
        let label = without_brackets(&template);
        if !labels.contains_key(&label) {
            let reason = format!("the label `{label}` of the clip {id} is not among the labels");
            return Err(annotations.wrong(reason));
        }
        let path = videos.path(&[("id", &id)])?;
        samples.push(labelled(id, path, None, &label));
    }
    Ok(OpenSet { samples, labels })
}

/// Kinetics. The labels are those that appear in the file.
pub(super) fn kinetics(
    root: &Path,
    annotations: &Path,
    videos: &str,
) -> Result<OpenSet, DataError> {
    let annotations = Annotations::read(root, annotations)?;
    let table = annotations.table(Dialect::Commas)?;
    let names = ["label", "youtube_id", "time_start", "time_end"];
    let columns = table.columns(names).map_err(|reason| annotations.wrong(reason))?;
    let videos = Template { root, text: videos, annotations: &annotations };
    let mut set = OpenSet::default();
    for row in &table.rows {
        let values = columns.map(|column| row.values[column].trim());
        let fields: Vec<(&str, &str)> = names.into_iter().zip(values).collect();
        let [label, id, start, _] = values;
        let path = videos.path(&fields)?;
        set.labels.entry(label.to_owned()).or_insert_with(|| vec![label.to_owned()]);
        set.samples.push(labelled(format!("{id}_{start}"), path, None, label));
    }
    Ok(set)
}

/// Keysteps of Ego-Exo4D. The label of a segment is the id of its step, because steps of several
/// scenarios share a name.
pub(super) fn ego_exo4d_keysteps(
    root: &Path,
    segments: &Path,
    labels: &Path,
    (videos, trimmed): (&str, bool),
) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct File {
        segments: Vec<Segment>,
    }
    #[derive(Deserialize)]
    struct Segment {
        ego_segment_name: String,
        take_uid: String,
        take_name: String,
        start_time: f64,
        end_time: f64,
        label_id: Id,
    }
    let file = Annotations::read(root, labels)?;
    let table = file.table(Dialect::Commas)?;
    let columns = table.columns(["label_id", "step_name"]).map_err(|reason| file.wrong(reason))?;
    let mut labels = BTreeMap::new();
    for row in &table.rows {
        let [id, name] = columns.map(|column| row.values[column].trim().to_owned());
        if labels.insert(id.clone(), vec![name]).is_some() {
            return Err(file.wrong(format!("line {} repeats the label `{id}`", row.line)));
        }
    }
    let annotations = Annotations::read(root, segments)?;
    let videos = Template { root, text: videos, annotations: &annotations };
    let mut samples = Vec::new();
    for segment in annotations.json::<File>()?.segments {
        let Id(label) = segment.label_id;
        let name = segment.ego_segment_name;
        if !labels.contains_key(&label) {
            let reason = format!("the label {label} of the segment {name} is not among the labels");
            return Err(annotations.wrong(reason));
        }
        let path = videos.path(&[
            ("ego_segment_name", &name),
            ("take_name", &segment.take_name),
            ("take_uid", &segment.take_uid),
        ])?;
        let seconds = (!trimmed).then_some(segment.start_time..segment.end_time);
        samples.push(labelled(name, path, seconds, &label));
    }
    Ok(OpenSet { samples, labels })
}
