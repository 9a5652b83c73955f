//! Point from which a run continues, and what it computes again.

use serde::{Deserialize, Serialize};

/// A run continues from a checkpoint. Lines of `metrics.jsonl` that are of later steps are dropped,
/// so this message keeps what these steps cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resumed {
    /// Step of the checkpoint.
    pub from_step: u64,
    /// Number of logged steps after it, which are computed again.
    pub lost_steps: u64,
    /// Seconds in which these steps were computed, with their checkpoints and evaluations, and
    /// without the start-up of their attempt.
    pub lost_s: f64,
    /// Seconds of steps up to `from_step` whose line was dropped because its interval ended after
    /// `from_step`.
    pub kept_s: f64,
    /// Time of the last dropped line in RFC 3339, or `None` if no line was dropped.
    pub lost_until: Option<String>,
}
