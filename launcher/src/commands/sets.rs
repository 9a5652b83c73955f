//! `vljepa-launch sets`: which evaluation sets there are, what this disk holds of them, and where
//! they are published.

use std::path::{Path, PathBuf};

use vljepa_recipes::load_set;
use vljepa_recipes::protocol::{FoundCount, ReadSet, SetReport, SetState};
use vljepa_recipes::schema::{Count, Expected, TaskKind};

use super::jobs::{path_error, row, show_json};
use crate::error::LaunchError;
use crate::programs::{self, Programs};
use crate::{cli, terminal};

/// Folder of the sets that come with this repository.
const FOLDER: &str = "recipes/evaluate/sets";

/// Prints a line for each set, and then what is wrong with those on this disk.
pub(crate) async fn sets(arguments: &cli::Sets) -> Result<u8, LaunchError> {
    let files = match &arguments.files[..] {
        [] => files_of(Path::new(FOLDER))?,
        files => files.to_vec(),
    };
    for file in &files {
        load_set(file)?;
    }
    let reports = programs::sets(&Programs::find()?, &files).await?;
    if arguments.json {
        show_json(&reports)?;
    } else {
        terminal::result(&text(&reports));
    }
    let wrong = |report: &SetReport| match &report.state {
        SetState::Absent => false,
        SetState::Unreadable { .. } => true,
        SetState::Read(read) => !read.errors.is_empty(),
    };
    Ok(if reports.iter().any(wrong) { 2 } else { 0 })
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>, LaunchError> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    if files.is_empty() {
        let help = "hold no set; name files of sets, or start in the folder of the repository";
        return Err(path_error("the sets", folder, help));
    }
    Ok(files)
}

fn text(reports: &[SetReport]) -> String {
    let mut rows = vec![row(["set", "task", "expected", "here", "published at"])];
    rows.extend(reports.iter().map(|SetReport { kind: of_set, set, state, .. }| {
        row([&set.name, kind(of_set), &expected(&set.expect), &here(state), &set.source])
    }));
    let mut text = terminal::table(&rows);
    for SetReport { set, state, .. } in reports {
        let name = &set.name;
        match state {
            SetState::Absent => {}
            SetState::Unreadable { error } => text += &format!("\n\n{name}: {error}"),
            SetState::Read(read) => {
                for problem in read.errors.iter().chain(&read.warnings) {
                    text += &format!("\n\n{name}: it holds {problem}");
                }
                if read.missing.count > 0 {
                    let (missing, samples) = (&read.missing, read.samples_without_file);
                    text += &format!(
                        "\n\n{name}: {} of {} pictures or videos are missing, so that {samples} \
                         samples count as wrong: {missing}",
                        missing.count, read.files
                    );
                }
            }
        }
    }
    text
}

fn kind(kind: &TaskKind) -> &'static str {
    match kind {
        TaskKind::Classification { .. } => "classification",
        TaskKind::Retrieval => "retrieval",
        TaskKind::QuestionAnswering { .. } => "question answering",
        TaskKind::Triplets => "triplets",
        TaskKind::WorldPrediction => "world prediction",
        TaskKind::Captioning { .. } => "captioning",
        TaskKind::SelectiveDecoding(_) => "selective decoding",
    }
}

/// Counts that the files of a set must have.
fn expected(expected: &Expected) -> String {
    let count = |count: Count| Some(format!("{} {}", number(expected.of(count)?), count.name()));
    Count::ALL.into_iter().filter_map(count).collect::<Vec<_>>().join(", ")
}

/// What is on this disk.
fn here(state: &SetState) -> String {
    let read = match state {
        SetState::Absent => return "no".to_owned(),
        SetState::Unreadable { .. } => return "unreadable".to_owned(),
        SetState::Read(read) => read,
    };
    let count = |it: &FoundCount| match it.expected {
        Some(expected) if expected != it.found => {
            format!("{} of {} {}", number(it.found), number(expected), it.count.name())
        }
        _ => format!("{} {}", number(it.found), it.count.name()),
    };
    let ReadSet { counts, files, missing, .. } = read;
    let mut parts: Vec<String> = counts.iter().map(count).collect();
    if missing.count > 0 {
        parts.push(format!("{} of {} files missing", number(missing.count), number(*files)));
    }
    parts.join(", ")
}

fn number(number: usize) -> String {
    terminal::thousands(u64::try_from(number).unwrap_or(u64::MAX))
}
