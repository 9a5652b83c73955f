//! The key `table`: rows of a table or figure of the paper that a run measures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::model::Model;
use crate::paper::Column;

/// A table or figure of the paper that a run computes. It has no stages: the run measures the
/// recipe's `evaluation.tasks` with the model of each row.
///
/// Without tasks, nothing is measured: the table shows the scores that the runs of its rows have
/// measured themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Name of the table or figure, such as `table1`. No default.
    pub of: String,
    /// Models by the names of their rows. A row with the name of one of the paper's rows is shown
    /// beside it. `--set run=DIR` makes the run in `DIR` the only row, under the name of the first
    /// row of the recipe that has a run. A row whose value is `null` is left out. With `table.runs:
    /// DIR`, relative runs are in that folder. No default.
    pub rows: BTreeMap<String, Row>,
    /// Metrics in the place of those of the paper's sets, by the names of the columns: `{ssv2:
    /// [motion_top1]}` shows the mean of the listed metrics. Such a column is shown
    /// beside the paper's, but not subtracted from it. Default: none.
    #[serde(default)]
    pub columns: BTreeMap<String, Vec<String>>,
    /// Whether tasks are left out whose sets are not on this disk, with a warning. The mean over
    /// sets that are not all there is not shown. Our default: false, so that such a task is an
    /// error.
    #[serde(default)]
    pub skip_absent_sets: bool,
}

impl Table {
    /// Metrics that make the score of a column.
    #[must_use]
    pub fn metrics<'a>(&'a self, column: &'a Column) -> &'a [String] {
        self.columns.get(&column.id).map_or_else(|| column.measure.metrics(), Vec::as_slice)
    }
}

/// A model that a table measures. Exactly one of `run`, `export` and `model` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Row {
    /// Directory of a run. Default: `null`.
    pub run: Option<PathBuf>,
    /// Step of the run's checkpoint. Default: `null`, the newest one that verifies.
    pub step: Option<u64>,
    /// Folder that `vljepa-launch export` wrote. Default: `null`.
    pub export: Option<PathBuf>,
    /// A dual encoder with published weights, written as the key `model` of a recipe. Default:
    /// `null`.
    pub model: Option<Box<Model>>,
    /// Row of the paper that this row is compared with. Default: the row of the same name.
    pub paper: Option<String>,
    /// Describes the row's model if it differs from the paper's. Shown beside the row. Default:
    /// `null`.
    pub note: Option<String>,
}

/// Weights of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowWeights<'a> {
    /// A checkpoint of a run: that of a step, or the newest one.
    Run(&'a Path, Option<u64>),
    /// An exported folder.
    Export(&'a Path),
    /// Published weights of a dual encoder.
    Model(&'a Model),
}

impl Row {
    /// Weights of the row. `None` in a recipe that was not checked and names none.
    #[must_use]
    pub fn weights(&self) -> Option<RowWeights<'_>> {
        let run = self.run.as_deref().map(|run| RowWeights::Run(run, self.step));
        let export = || self.export.as_deref().map(RowWeights::Export);
        run.or_else(export).or_else(|| self.model.as_deref().map(RowWeights::Model))
    }

    /// Name of the paper's row that a row called `name` is compared with. The paper may have none.
    #[must_use]
    pub fn in_paper<'a>(&'a self, name: &'a str) -> &'a str {
        self.paper.as_deref().unwrap_or(name)
    }
}
