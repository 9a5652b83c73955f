//! Record of a measured row of a table.

use serde::{Deserialize, Serialize};

/// Record of a measured row of a table, the file [`RunDirectory::row_json`].
///
/// [`RunDirectory::row_json`]: crate::RunDirectory::row_json
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowRecord {
    /// Step of the checkpoint that was measured. `None` for an export or published weights.
    pub step: Option<u64>,
    /// Names of the tasks that were left out, because their sets were not on the disk.
    pub left_out: Vec<String>,
}
