//! Action100M: videos of HowTo100M, each with a tree of segments that models described.
//!
//! The annotations are parquet files with one video per row: `video_uid`, `metadata`, and the tree
//! as the list `nodes`. They are also read as JSON, one video per line of a `.jsonl` file or one in
//! a `.json` file, where each of the three may be wrapped in a list of one element, as in the
//! sample that is published with the set. The videos are files of a folder, named by `video_uid`.
//!
//! Each node is an item: its stretch of the video, and its json with `node_id`, `parent_id`,
//! `level`, `start`, `end`, all texts as published, `video_uid` and `metadata`. Which of the texts
//! is drawn is a rule of the recipe (`field: gpt.action.brief`), so there is no `txt` member.
//!
//! - A text that is empty or "N/A", which the set writes where nothing is done, is dropped here:
//!   the reader of shards knows no sets and would draw it as a target.
//! - `metadata.transcript`, the speech of the whole video, is dropped: it describes no segment, no
//!   rule uses it, and every node of a video would repeat it.

mod node;
mod parquet;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::node::Video;
use self::parquet::Table;
use super::Give;
use super::files::{Annotations, MediaFolder};
use super::left_out::Reason;
use super::lines::{LineRange, Lines, split};
use crate::error::DataError;
use crate::json;
use crate::storage::{Location, Storage};

/// Texts of the set's own annotation, of which a node needs one by default.
const ANNOTATION: [&str; 4] =
    ["gpt.action.brief", "gpt.action.detailed", "gpt.summary.brief", "gpt.summary.detailed"];

/// Key of each node, by which the nodes of a line are counted.
const NODE_KEY: &str = "\"node_id\"";

/// Files of Action100M, and which of its nodes are kept.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Action100mOptions {
    /// File with annotations (`.parquet`, `.jsonl` or `.json`), or a local folder of such files.
    #[arg(long, value_name = "FILE")]
    pub annotations: String,
    /// Folder of the videos: `<video_uid>` with `.mp4`, `.mkv` or `.webm`.
    #[arg(long, value_name = "FOLDER")]
    pub videos: PathBuf,
    /// Texts of a node, as dotted names, of which it must have one. Recipes should draw no other
    /// texts, because a sample without the texts of a recipe is a bad one. Default: `gpt.action`
    /// and `gpt.summary`, each `brief` and `detailed`, which are the set's annotation; the others
    /// are captions that it was made from. Nodes that are too short have no such text.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = ANNOTATION)]
    pub texts: Vec<String>,
    /// First and last level of the tree to keep; 0 is the whole video. Default: all levels, because
    /// the paper names no selection.
    #[arg(long, value_name = "FIRST-LAST", value_parser = range::<u64>)]
    pub levels: Option<(u64, u64)>,
    /// Shortest and longest segment to keep, in seconds. Default: all lengths, because the paper
    /// names no selection, and nodes that are too short have no text.
    #[arg(long, value_name = "SHORTEST-LONGEST", value_parser = range::<f64>)]
    pub seconds: Option<(f64, f64)>,
}

/// Two numbers with `-` between them, the second one not below the first.
fn range<T: FromStr + PartialOrd>(text: &str) -> Result<(T, T), String> {
    let both = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
    both.filter(|(first, last): &(T, T)| first <= last)
        .ok_or_else(|| "give two numbers such as 2-30, the smaller one first".to_owned())
}

impl Action100mOptions {
    /// Options with the default values.
    #[must_use]
    pub fn new(annotations: impl Into<String>, videos: impl Into<PathBuf>) -> Self {
        Self {
            annotations: annotations.into(),
            videos: videos.into(),
            texts: ANNOTATION.map(str::to_owned).to_vec(),
            levels: None,
            seconds: None,
        }
    }
}

/// Annotations and videos of Action100M.
#[derive(Debug)]
pub struct Action100m {
    storage: Storage,
    files: Vec<SetFile>,
    videos: MediaFolder,
    options: Action100mOptions,
}

#[derive(Debug)]
struct SetFile {
    name: String,
    kind: Kind,
    annotations: Annotations,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Parquet,
    /// One video per line.
    Lines,
    /// One video.
    Single,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        match Path::new(name).extension()?.to_str()? {
            "parquet" => Some(Self::Parquet),
            "jsonl" => Some(Self::Lines),
            "json" => Some(Self::Single),
            _ => None,
        }
    }
}

/// Stretch of the videos of one annotation file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action100mPart {
    /// Number of the file in the set, counted from 0.
    file: usize,
    name: String,
    videos: Videos,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Videos {
    /// Rows `start` to `end` − 1 of a row group.
    Rows {
        group: usize,
        start: usize,
        end: usize,
    },
    Lines(LineRange),
    /// The one video of the file.
    Single,
}

impl Action100m {
    /// Finds the annotation files and opens each.
    ///
    /// # Errors
    /// If there is no annotation file, one cannot be read, the folder of the videos does not exist,
    /// or the options want no node.
    pub fn open(storage: &Storage, options: &Action100mOptions) -> Result<Self, DataError> {
        let unusable = |reason: &str| DataError::BadLocation {
            location: options.annotations.clone(),
            reason: reason.to_owned(),
        };
        let paths = annotation_files(&options.annotations)?;
        if paths.is_empty() {
            return Err(unusable("the folder has no .parquet, .jsonl or .json file"));
        }
        if options.texts.is_empty() {
            return Err(unusable("no text is wanted; name one such as `gpt.action.brief`"));
        }
        if options.levels.is_some_and(|(first, last)| first > last) {
            return Err(unusable("the first level that is wanted is above the last"));
        }
        if options.seconds.is_some_and(|(from, to)| !(from..=to).contains(&from)) {
            return Err(unusable("the shortest length that is wanted is above the longest"));
        }
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
            let Some(kind) = Kind::of(&name) else {
                return Err(unusable("the name does not end in .parquet, .jsonl or .json"));
            };
            files.push(SetFile { name, kind, annotations: Annotations::find(storage, &path)? });
        }
        let videos = MediaFolder::open(&options.videos)?;
        Ok(Self { storage: storage.clone(), files, videos, options: options.clone() })
    }

    /// What tells the set from another one: names with values.
    pub(super) fn identity(&self) -> BTreeMap<String, String> {
        let Action100mOptions { annotations, videos, texts, levels, seconds } = &self.options;
        let files = self.files.iter().map(|file| &file.annotations);
        let identity = [
            ("--annotations", annotations.clone()),
            ("hash of the versions of the annotations", Annotations::hash(files)),
            ("--videos", videos.display().to_string()),
            ("--texts", texts.join(",")),
            ("--levels", format!("{levels:?}")),
            ("--seconds", format!("{seconds:?}")),
        ];
        identity.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Stretches of videos with about `items` nodes each; a video is in one part as a whole. Reads
    /// the footers of the parquet files, and whole `.jsonl` files.
    ///
    /// # Errors
    /// If a file cannot be read, has changed since the set was opened, or lacks a column.
    pub fn parts(&self, items: usize) -> Result<Vec<Action100mPart>, DataError> {
        let mut parts = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            let stretches = match file.kind {
                Kind::Parquet => self.rows(file, items)?,
                Kind::Lines => {
                    let opened = file.annotations.open(&self.storage)?;
                    split(&opened, NODE_KEY, items)?.into_iter().map(Videos::Lines).collect()
                }
                Kind::Single => vec![Videos::Single],
            };
            let part = |videos| Action100mPart { file: number, name: file.name.clone(), videos };
            parts.extend(stretches.into_iter().map(part));
        }
        Ok(parts)
    }

    /// Gives the nodes of a part. Their keys are the numbers of the file, of its row or line, and
    /// of the node: the file is counted from 0 in the order of the names, the row and node as in
    /// the file from 0, and the line from 1.
    ///
    /// # Errors
    /// If the file cannot be read, has changed or lacks a column, or `give` fails.
    pub fn read(&self, part: &Action100mPart, give: &mut Give<'_>) -> Result<(), DataError> {
        let Some(file) = self.files.get(part.file).filter(|file| file.name == part.name) else {
            let location = part.name.clone();
            let reason = "the part is of a file that is not in the set".to_owned();
            return Err(DataError::BadLocation { location, reason });
        };
        match &part.videos {
            Videos::Rows { group, start, end } => {
                let table = self.table(file)?;
                let unusable = |reason| file.annotations.unusable(reason);
                let mut rows = table.rows(*group, *start, *end).map_err(unusable)?;
                while let Some((row, record)) = rows.next_row().map_err(unusable)? {
                    let place = format!("{} row {row}", file.name);
                    self.give_video(Ok(record), part.file, row, &place, give)?;
                }
                Ok(())
            }
            Videos::Lines(range) => {
                let opened = file.annotations.open(&self.storage)?;
                let mut lines = Lines::of(&opened, range)?;
                while let Some(line) = lines.next_line()? {
                    let number = line.number;
                    let place = format!("{} line {number}", file.name);
                    self.give_video(line.record(), part.file, number, &place, give)?;
                }
                Ok(())
            }
            Videos::Single => {
                file.annotations.open(&self.storage)?;
                let bytes = self.storage.read(file.annotations.location())?;
                let record = match json::parse(&bytes) {
                    Ok(Value::Object(record)) => Ok(record),
                    Ok(_) => Err(Reason::broken("the file is not a JSON object")),
                    Err(error) => Err(Reason::broken(format!("it cannot be parsed: {error}"))),
                };
                self.give_video(record, part.file, 0, &file.name, give)
            }
        }
    }

    fn table(&self, file: &SetFile) -> Result<Table, DataError> {
        let opened = file.annotations.open(&self.storage)?;
        Table::open(opened, &self.options.texts).map_err(|reason| file.annotations.unusable(reason))
    }

    /// Splits the row groups of a parquet file. The number of nodes in a row group is in the
    /// footer of the file, and its rows are taken to be of equal size.
    fn rows(&self, file: &SetFile, items: usize) -> Result<Vec<Videos>, DataError> {
        let mut stretches = Vec::new();
        for (group, (rows, nodes)) in self.table(file)?.groups().into_iter().enumerate() {
            let per_part = items.max(1).saturating_mul(rows) / nodes.max(1);
            let per_part = per_part.clamp(1, rows.max(1));
            let stretch = |start: usize| {
                let end = rows.min(start.saturating_add(per_part));
                Videos::Rows { group, start, end }
            };
            stretches.extend((0..rows).step_by(per_part).map(stretch));
        }
        Ok(stretches)
    }

    fn give_video(
        &self,
        record: Result<Map<String, Value>, Reason>,
        file: usize,
        row: u64,
        place: &str,
        give: &mut Give<'_>,
    ) -> Result<(), DataError> {
        let video = match record.and_then(Video::of) {
            Ok(video) => video,
            Err(reason) => return give(Err(reason.of(place))),
        };
        let path = self.videos.video(&video.uid, &["mp4", "mkv", "webm"]);
        for (number, node) in video.nodes.iter().enumerate() {
            let item = path.clone().and_then(|path| {
                let key = format!("{file:05}-{row:06}-{number:04}");
                video.item(node, path, key, &self.options)
            });
            let place = || format!("{place}, video {}, node {number}", video.uid);
            give(item.map_err(|reason| reason.of(place())))?;
        }
        Ok(())
    }
}

/// Annotation files that a path names, sorted by name.
fn annotation_files(annotations: &str) -> Result<Vec<String>, DataError> {
    let location = Location::parse(annotations)
        .map_err(|reason| DataError::BadLocation { location: annotations.to_owned(), reason })?;
    let folder = match location {
        Location::Local(path) if path.is_dir() => path,
        Location::Local(_) | Location::Remote(_) => return Ok(vec![annotations.to_owned()]),
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).map_err(DataError::io("list", &folder))? {
        let path = entry.map_err(DataError::io("list", &folder))?.path();
        let Some(path) = path.to_str() else {
            let location = path.display().to_string();
            let reason = "its name is not UTF-8; rename it".to_owned();
            return Err(DataError::BadLocation { location, reason });
        };
        if Kind::of(path).is_some() {
            paths.push(path.to_owned());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;
