//! Right answers by label, as a file of the run directory holds them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Content of [`RunDirectory::labels`]: for each task, its labels or answers with their samples or
/// questions.
///
/// [`RunDirectory::labels`]: crate::run_directory::RunDirectory::labels
pub type LabelCounts = BTreeMap<String, BTreeMap<String, LabelCount>>;

/// Samples or questions whose right answer is one label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelCount {
    /// Samples or questions for which the model prefers this label to all others.
    pub right: u64,
    /// Samples or questions with this label.
    pub n: u64,
}
