//! Curves of selective decoding (paper §4.5, Figure 4), as a file of the run directory holds them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Content of [`RunDirectory::selective`]: the curves of each task by its name.
///
/// [`RunDirectory::selective`]: crate::run_directory::RunDirectory::selective
pub type SelectiveCurves = BTreeMap<String, DecodingCurves>;

/// How well texts that are decoded along long videos tell what happens, by the number of decodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodingCurves {
    /// Number of videos, with those that could not be read.
    pub videos: usize,
    /// Number of annotations of all videos.
    pub annotations: usize,
    /// Duration in seconds of all videos that were read.
    pub seconds: f64,
    /// Frequency in decodes per second at which uniform and adaptive decoding are compared.
    pub compare_at: f64,
    /// How many times fewer decodes of mean embeddings at adaptive points than at uniform ones
    /// reach the score of uniform points at `compare_at`. `None` if adaptive points never reach
    /// it, or uniform points reach it at every frequency.
    pub saving: Option<Saving>,
    /// Uniform and adaptive points with exact and mean embeddings, four curves.
    pub curves: Vec<DecodingCurve>,
}

/// Ratio of the lowest frequencies at which uniform and adaptive points reach the same score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saving {
    /// The ratio. Below 1, adaptive points need more decodes.
    pub ratio: f64,
    /// Whether the lowest measured frequency already reaches the score, so that the saving may be
    /// larger than `ratio`.
    pub at_least: bool,
}

/// Scores of one way to decode, at frequencies in descending order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodingCurve {
    /// How points are chosen.
    pub points: DecodingPoints,
    /// What is decoded at a point.
    pub embedding: DecodedEmbedding,
    /// Scores at each frequency.
    pub scores: Vec<DecodingScore>,
}

/// How the points of a video are chosen at which texts are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodingPoints {
    /// In the middle of intervals of equal length.
    Uniform,
    /// In the middle of segments whose embeddings are similar.
    Adaptive,
}

/// What is decoded at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodedEmbedding {
    /// Embedding of the window at the point.
    Exact,
    /// Mean of the embeddings in the interval or segment.
    Mean,
}

/// Score of the texts that are decoded at a frequency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodingScore {
    /// Frequency of the recipe, in decodes per second.
    pub frequency: f64,
    /// Decodes per second over all videos. A video is decoded at least once, and at most once per
    /// window.
    pub decodes_per_s: f64,
    /// CIDEr-D, from 0 to 10.
    pub cider: f64,
    /// Ends of its 95 % interval for other annotations of such videos; `None` for fewer than two.
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
}
