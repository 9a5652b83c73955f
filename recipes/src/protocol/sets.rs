//! Result of the worker's look at the files of evaluation sets.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Names;
use crate::schema::{Count, EvaluationSet, TaskKind};

/// An evaluation set and what is on this disk, as `vljepa-worker sets` prints it in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetReport {
    /// File of the set.
    pub file: PathBuf,
    /// What the set is measured with.
    pub kind: TaskKind,
    /// The set.
    pub set: EvaluationSet,
    /// What its folder holds.
    pub state: SetState,
}

/// What the folder of a set holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum SetState {
    /// The folder does not exist.
    Absent,
    /// An annotation file is missing or wrong.
    Unreadable {
        /// The error, with the path.
        error: String,
    },
    /// The annotations were read.
    Read(ReadSet),
}

/// Counts of a set whose annotations were read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadSet {
    /// Counts that the format has.
    pub counts: Vec<FoundCount>,
    /// Counts that differ, so that the set cannot be measured.
    pub errors: Vec<String>,
    /// Counts that differ and may.
    pub warnings: Vec<String>,
    /// Number of pictures and videos that the annotations name.
    pub files: usize,
    /// Messages about those that are missing.
    pub missing: Names,
    /// Number of samples without their picture or video, which count as wrong.
    pub samples_without_file: usize,
}

/// A count of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundCount {
    /// What is counted.
    pub count: Count,
    /// The number in the files.
    pub found: usize,
    /// The number that the set must have, if it is checked.
    pub expected: Option<usize>,
}
