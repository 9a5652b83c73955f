//! One line of `metrics.jsonl`: what a logging interval of a run measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{DataWork, Phase};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Number of steps done in the run, over all stages.
    pub step: u64,
    /// Number of steps of the whole run.
    pub total_steps: u64,
    /// Name of the current stage.
    pub stage: String,
    /// Number of samples trained on in the run.
    pub samples: u64,
    /// Loss of the last step.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// Global norm of the last step's gradient, before clipping.
    #[serde(deserialize_with = "or_nan")]
    pub gradient_norm: f64,
    /// Learning rate of parameter groups with multiplier 1.
    pub learning_rate: f64,
    /// Scale α of InfoNCE. `None` with another objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Gauges of collapse of the last step. `None` for a Y-decoder, for a batch of one sample, or
    /// if an embedding was not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gauges: Option<Gauges>,
    /// Samples per second of all ranks since the last line.
    pub samples_per_s: f64,
    /// Fraction of the time since the last line that steps waited for data.
    pub data_wait_fraction: f64,
    /// Number of bad samples replaced so far in the run.
    pub bad_samples: u64,
    /// Seconds spent in each phase since the last line.
    pub phase_s: BTreeMap<Phase, f64>,
    /// Operations of the model per second on rank 0 since the last line, in units of 10¹².
    /// Recomputed operations count once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    /// `tflops` as a fraction of the device's peak; `None` if the peak is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Memory of rank 0's process in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Memory in use on rank 0's GPU in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_mib: Option<u64>,
    /// Work of rank 0's reader threads since the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataWork>,
    /// Time of the line, in RFC 3339.
    pub time: String,
}

impl Metrics {
    /// Seconds since the last line.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.phase_s.values().sum()
    }
}

/// Gauges of collapse, from at most 256 pairs of the global batch: their embeddings, normalised to
/// length one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gauges {
    /// Spread of the predicted embeddings.
    pub predicted: Spread,
    /// Spread of the target embeddings.
    pub target: Spread,
    /// Mean of ‖p − t‖² over pairs of prediction and target: 0 if all are equal, 2 if they are
    /// orthogonal (Wang and Isola, arXiv 2005.10242).
    pub alignment: f64,
}

/// How different n embeddings are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// exp of the entropy of the eigenvalues of their similarities, divided by n: 1 if all are
    /// equal, n if all are orthogonal (the Vendi score; Friedman and Dieng, arXiv 2210.02410). It
    /// is at most the width of an embedding.
    pub effective_rank: f64,
    /// Logarithm of the mean of e^(−2‖x − y‖²) over pairs: 0 if all are equal, −4 if all are
    /// orthogonal (Wang and Isola, arXiv 2005.10242).
    pub uniformity: f64,
}

/// Reads a number that may be null. JSON has neither NaN nor infinity, so both are written as null
/// and read as NaN.
fn or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
