//! Keys of an evaluation task that decodes texts along long videos.

use serde::{Deserialize, Serialize};

/// Shortest time between two windows in seconds. Videos have at most 100 frames a second or so.
pub const SHORTEST_STRIDE_S: f64 = 0.01;

/// Keys of [`TaskKind::SelectiveDecoding`].
///
/// [`TaskKind::SelectiveDecoding`]: super::TaskKind::SelectiveDecoding
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectiveDecoding {
    /// Length in seconds of the window of frames that is embedded. Each window has the task's
    /// number of `frames`. Unstated by the paper; our default: 2, the order of one atomic action.
    pub window_s: f64,
    /// Seconds from the start of a window to the start of the next one. A video is decoded at most
    /// once per window. Unstated by the paper; our default: 0.5, because the paper decodes up to
    /// twice a second.
    pub stride_s: f64,
    /// Numbers of decodes per second at which the texts are scored. Default: the paper's range in
    /// 12 steps, from 2 and 1 down to 0.01.
    pub frequencies: Vec<f64>,
    /// One of `frequencies`, whose scores are metrics. The saving is the ratio of the lowest
    /// frequencies at which uniform and adaptive points reach the score that uniform points have
    /// here. Default: 1, as in the paper.
    pub compare_at: f64,
}

impl Default for SelectiveDecoding {
    fn default() -> Self {
        let frequencies = [2.0, 1.0, 0.63, 0.4, 0.25, 0.16, 0.1, 0.063, 0.04, 0.025, 0.016, 0.01];
        Self { window_s: 2.0, stride_s: 0.5, frequencies: frequencies.to_vec(), compare_at: 1.0 }
    }
}
