//! Result of the worker's check of the files that a recipe names.

use serde::{Deserialize, Serialize};

use crate::check::Problem;

/// State of the files that a recipe names, as `vljepa-worker inputs` prints it in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// Files that cannot be used, so that the run cannot start.
    pub problems: Vec<Problem>,
    /// Files of which a part is not used, one message each.
    pub warnings: Vec<String>,
}
