//! Reads the history of a run from its directory: metrics, events, scores, samples. Incomplete
//! lines, as a kill leaves them, are skipped.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vljepa_recipes::protocol::Metrics;
use vljepa_recipes::run_directory::RunDirectory;

use super::comparison::Comparison;
use super::events::Line;
use super::stragglers::RankTable;

/// One score of `scores.json`; values are fractions, but those of CIDEr reach 10, and savings are
/// factors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Score {
    pub value: f64,
    /// Ends of the 95 % interval; `None` for a saving.
    #[serde(default)]
    pub interval: Option<[f64; 2]>,
    /// Score of guessing.
    #[serde(default)]
    pub chance: Option<f64>,
    /// Score of always giving the most frequent answer.
    #[serde(default)]
    pub baseline: Option<f64>,
    /// Number of samples.
    #[serde(default)]
    pub n: u64,
    /// Number of samples that could not be read and count as wrong.
    #[serde(default)]
    pub unreadable: u64,
    /// Hash of what was measured; empty in files of earlier versions.
    #[serde(default)]
    pub measured: String,
}

/// One sample of `samples.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Sample {
    /// Images as `data:` URIs.
    pub frames: Vec<String>,
    /// The true text.
    #[serde(default)]
    pub caption: String,
    /// Question about the sample.
    #[serde(default)]
    pub query: Option<String>,
    /// Text that a Y-decoder writes for the predicted embedding.
    #[serde(default)]
    pub written: Option<String>,
    /// Texts whose embeddings are nearest to the predicted embedding, the nearest first.
    #[serde(default)]
    pub predictions: Vec<Prediction>,
    /// Whether the nearest text is the true one.
    #[serde(default)]
    pub correct: Option<bool>,
}

/// A text and its similarity to the predicted embedding.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Prediction {
    pub text: String,
    /// Cosine similarity.
    pub score: f64,
}

/// Metrics in the order of steps. If a step was computed again after a restart, only the last line
/// of the step counts.
pub(crate) fn metrics(directory: &RunDirectory) -> Vec<Metrics> {
    let mut by_step = BTreeMap::new();
    for line in lines::<Metrics>(&directory.metrics()) {
        // A line of an earlier step means that all later steps were computed again.
        by_step.split_off(&line.step);
        by_step.insert(line.step, line);
    }
    by_step.into_values().collect()
}

/// All events of the run, oldest first.
pub(crate) fn events(directory: &RunDirectory) -> Vec<Line> {
    lines(&directory.events())
}

/// The newest table of ranks, or `None` before the first interval or if the file is damaged.
pub(crate) fn ranks(directory: &RunDirectory) -> Option<RankTable> {
    serde_json::from_slice(&std::fs::read(directory.ranks()).ok()?).ok()
}

/// Comparison with the reproduced run, or `None` if the run reproduces none or the file is damaged.
pub(crate) fn reproduction(directory: &RunDirectory) -> Option<Comparison> {
    serde_json::from_slice(&std::fs::read(directory.reproduction()).ok()?).ok()
}

/// Scores by the name of their metric.
pub(crate) type Scores = BTreeMap<String, Score>;

/// Scores in a file; empty if there is none or it is damaged.
pub(crate) fn scores_of(file: &std::path::Path) -> Scores {
    std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Scores of every evaluation with its step, in the order of steps.
pub(crate) fn evaluations(directory: &RunDirectory) -> Vec<(u64, Scores)> {
    let steps = directory.evaluation_steps().into_iter();
    steps.map(|step| (step, scores_of(&directory.evaluation(step)))).collect()
}

/// Samples of the last evaluation with the model's predictions; empty before the first one. Samples
/// whose frames are not embedded images are left out.
pub(crate) fn samples(directory: &RunDirectory) -> Vec<Sample> {
    let samples: Vec<Sample> = std::fs::read(directory.path().join("samples.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    // The report must not load anything from a network, whatever the file contains.
    let embedded = |sample: &Sample| sample.frames.iter().all(|f| f.starts_with("data:image/"));
    samples.into_iter().filter(embedded).collect()
}

fn lines<T: DeserializeOwned>(file: &std::path::Path) -> Vec<T> {
    let text = std::fs::read(file).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use vljepa_recipes::protocol::{Metrics, Phase};

    use super::lines;

    /// Metrics of a step with the given loss and fixed other values.
    pub(crate) fn line(step: u64, loss: f64) -> Metrics {
        Metrics {
            step,
            total_steps: 100,
            stage: "clips".to_owned(),
            samples: step * 128,
            loss,
            gradient_norm: 1.0,
            learning_rate: 1e-3,
            scale: Some(14.0),
            gauges: None,
            samples_per_s: 500.0,
            data_wait_fraction: 0.01,
            bad_samples: 0,
            phase_s: BTreeMap::from([(Phase::Forward, 0.5), (Phase::Backward, 1.0)]),
            tflops: Some(1.5),
            mfu: Some(0.4),
            memory_mib: Some(700),
            device_memory_mib: None,
            data: None,
            time: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    #[test]
    fn a_line_cut_short_is_passed_over_and_the_others_are_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let whole = serde_json::to_string(&line(1, 2.0)).unwrap();
        std::fs::write(file.path(), format!("{whole}\n{whole}\n{}", &whole[..40])).unwrap();
        assert_eq!(lines::<Metrics>(file.path()).len(), 2);
    }
}
