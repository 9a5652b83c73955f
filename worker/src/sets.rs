//! Says what this disk holds of evaluation sets.

use std::path::PathBuf;

use vljepa_data::sets::OpenSet;
use vljepa_recipes::check::count_problems;
use vljepa_recipes::load_set;
use vljepa_recipes::protocol::{FoundCount, ReadSet, SetReport, SetState};
use vljepa_recipes::schema::{Count, EvaluationSet};

/// Reads the sets in the files and returns a list of [`SetReport`] as JSON.
///
/// # Errors
/// If the file of a set does not load. Errors of its annotations are part of the result.
pub fn run(files: &[PathBuf]) -> anyhow::Result<String> {
    let report = |file: &PathBuf| {
        let task = load_set(file)?;
        let (file, kind) = (file.clone(), task.kind);
        let set = task.set.ok_or_else(|| anyhow::anyhow!("{} holds no set", file.display()))?;
        let state = state(&set);
        anyhow::Ok(SetReport { file, kind, set, state })
    };
    let reports: Vec<SetReport> = files.iter().map(report).collect::<anyhow::Result<_>>()?;
    Ok(serde_json::to_string(&reports)?)
}

fn state(set: &EvaluationSet) -> SetState {
    if !set.root.is_dir() {
        return SetState::Absent;
    }
    let opened = match OpenSet::read(set) {
        Ok(opened) => opened,
        Err(error) => return SetState::Unreadable { error: error.to_string() },
    };
    let (errors, warnings) = count_problems(set, |count| opened.count(count));
    let (missing, samples_without_file) = opened.missing();
    let count = |count: Count| FoundCount {
        count,
        found: opened.count(count),
        expected: set.expect.of(count),
    };
    let counts = Count::ALL.into_iter().map(count);
    let counts = counts.filter(|it| it.found > 0 || it.expected.is_some()).collect();
    let missing = missing.into_iter().collect();
    let files = opened.files();
    SetState::Read(ReadSet { counts, errors, warnings, files, missing, samples_without_file })
}
