//! EPIC-KITCHENS-100: segments of long videos, with a verb class and a noun class each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::OpenSet;
use super::files::Annotations;
use super::items::{Template, labelled, own_texts};
use super::table::Dialect;
use crate::error::DataError;

/// Columns of the segments that are read.
const COLUMNS: [&str; 7] = [
    "narration_id",
    "participant_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "verb_class",
    "noun_class",
];

/// Reads the segments. The label of a segment is the pair of its classes, verb first, as texts; the
/// labels are the pairs that appear in the file.
pub(super) fn read(
    root: &Path,
    annotations: &Path,
    [verbs, nouns]: [&PathBuf; 2],
    videos: &str,
) -> Result<OpenSet, DataError> {
    let (verbs, nouns) = (classes(root, verbs)?, classes(root, nouns)?);
    let annotations = Annotations::read(root, annotations)?;
    let table = annotations.table(Dialect::Commas)?;
    let columns = table.columns(COLUMNS).map_err(|reason| annotations.wrong(reason))?;
    let videos = Template { root, text: videos, annotations: &annotations };
    let (mut samples, mut labels) = (Vec::new(), BTreeSet::new());
    for row in &table.rows {
        let wrong = |reason: String| annotations.wrong(format!("line {}: {reason}", row.line));
        let [key, participant, video, start, stop, verb, noun] =
            columns.map(|column| row.values[column].trim());
        let class = |classes: &BTreeMap<String, String>, id: &str, what: &str| {
            let class = classes.get(id).cloned();
            class.ok_or_else(|| wrong(format!("there is no {what} class {id}")))
        };
        let label = format!("{} {}", class(&verbs, verb, "verb")?, class(&nouns, noun, "noun")?);
        let seconds = seconds(start).map_err(wrong)?..seconds(stop).map_err(wrong)?;
        let path = videos.path(&[("participant_id", participant), ("video_id", video)])?;
        samples.push(labelled(key.to_owned(), path, Some(seconds), &label));
        labels.insert(label);
    }
    Ok(OpenSet { samples, labels: own_texts(labels) })
}

/// Texts of classes by their numbers. A key such as `board:chopping` names the kind of thing first,
/// and `turn-on` is two words.
fn classes(root: &Path, name: &Path) -> Result<BTreeMap<String, String>, DataError> {
    let file = Annotations::read(root, name)?;
    let table = file.table(Dialect::Commas)?;
    let columns = table.columns(["id", "key"]).map_err(|reason| file.wrong(reason))?;
    let mut classes = BTreeMap::new();
    for row in &table.rows {
        let [id, key] = columns.map(|column| row.values[column].trim());
        let words: Vec<&str> = key.rsplit(':').collect();
        let text = words.join(" ").replace('-', " ");
        if classes.insert(id.to_owned(), text).is_some() {
            return Err(file.wrong(format!("line {} repeats the class {id}", row.line)));
        }
    }
    Ok(classes)
}

/// Seconds of a time `HH:mm:ss.SS`.
fn seconds(time: &str) -> Result<f64, String> {
    let wrong = || format!("`{time}` is no time of the form 00:01:02.50");
    let parts: Vec<&str> = time.split(':').collect();
    let [hours, minutes, seconds] = parts[..] else { return Err(wrong()) };
    let whole = |part: &str| part.parse::<u32>().map(f64::from).map_err(|_| wrong());
    let seconds: f64 = seconds.parse().map_err(|_| wrong())?;
    let total = whole(hours)? * 3600.0 + whole(minutes)? * 60.0 + seconds;
    if total.is_finite() && seconds >= 0.0 { Ok(total) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_of_day_become_seconds() {
        assert_eq!(seconds("00:00:00.14"), Ok(0.14));
        assert_eq!(seconds("01:02:03.50"), Ok(3723.5));
        for time in ["", "1.5", "00:01", "00:00:nan", "00:00:-1", "00:-1:00", "x:00:00"] {
            assert!(seconds(time).unwrap_err().contains("no time"), "{time}");
        }
    }
}
