//! What workers and the supervisor say to each other: one JSON object per line over TCP.
//!
//! A worker connects, says [`FromWorker::Hello`] and waits for [`FromSupervisor::Welcome`]. From then on it reports; the orders it
//! takes are [`FromSupervisor::Stop`], which all ranks agree on at a step boundary, and those about a [`CheckpointOrder`].

mod checkpoint;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use checkpoint::{CheckpointOrder, FileEntry, Part};

/// Environment variable that holds the run's token; a connection without it is refused.
pub const TOKEN_VARIABLE: &str = "VLJEPA_TOKEN";

/// What a worker process is asked to do; written as JSON beside the run and named on the worker's command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Train to the end of the last stage, evaluating as the recipe says, from the newest checkpoint that verifies.
    Train {
        /// 1 for the first start of this run directory, 2 for the second …
        attempt: u32,
    },
    /// Measure the recipe's tasks with the newest checkpoint.
    Evaluate,
    /// Rank answers to a question about one picture or clip.
    Ask {
        /// A jpg, png, mp4 …
        file: PathBuf,
        /// The query.
        question: String,
        /// Candidates.
        answers: Vec<String>,
    },
    /// Rank the samples of shards by a text.
    Search {
        /// Shards, as a source's `shards`.
        shards: String,
        /// The text.
        text: String,
        /// Results wanted.
        limit: usize,
    },
    /// Write the newest checkpoint's weights under published names.
    Export {
        /// A folder that is made.
        folder: PathBuf,
    },
    /// Make a checkpoint of step 0 from published weights.
    Import {
        /// A folder as `export` writes it.
        folder: PathBuf,
    },
}

/// Where in a step a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Model, data and collectives are being set up.
    Start,
    /// Waiting for a batch.
    Data,
    /// Forward through the encoders.
    Forward,
    /// Gathering embeddings or reducing gradients.
    Collective,
    /// Backward through the encoders.
    Backward,
    /// Updating parameters.
    Optimizer,
    /// Writing a checkpoint.
    Checkpoint,
    /// Measuring scores.
    Evaluation,
}

impl Phase {
    /// The word that messages use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Collective => "collective",
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
            Self::Checkpoint => "checkpoint",
            Self::Evaluation => "evaluation",
        }
    }
}

/// From a worker to the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// First message of a connection.
    Hello(Hello),
    /// Alive, and where: sent when the phase changes and every second, at most ten times a second.
    Heartbeat {
        /// Step of the run that is being computed.
        step: u64,
        /// Where in it.
        phase: Phase,
    },
    /// A line of metrics (rank 0 only), as in `metrics.jsonl`.
    Metrics(Metrics),
    /// A checkpoint is complete and durable (rank 0 only).
    Saved {
        /// Its step.
        step: u64,
        /// Its folder's name.
        name: String,
        /// Seconds the step waited for it.
        stall_s: f64,
        /// Seconds from the step's end until it was durable.
        durable_s: f64,
    },
    /// This rank's part of a checkpoint is durable, or failed.
    Part {
        /// The checkpoint's step.
        step: u64,
        /// Which.
        part: Part,
    },
    /// A checkpoint was given up, and nothing is left of it (rank 0 only).
    NotSaved {
        /// Its step.
        step: u64,
        /// Why.
        error: String,
    },
    /// Scores were measured (rank 0 only).
    Scores {
        /// At which step.
        step: u64,
        /// Metric to value, fractions.
        values: std::collections::BTreeMap<String, f64>,
    },
    /// Something a person should know, which does not end the run.
    Warning {
        /// One line.
        text: String,
    },
    /// The job is over for this rank.
    Finished {
        /// How.
        outcome: Outcome,
        /// At which step.
        step: u64,
    },
    /// This rank cannot go on; the process ends after this message.
    Failed {
        /// At which step.
        step: u64,
        /// Where in it.
        phase: Phase,
        /// What was wrong, with its causes, one line.
        error: String,
    },
}

/// Who a worker is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The run's token.
    pub token: String,
    /// Rank.
    pub rank: usize,
    /// Ranks of the run.
    pub world_size: usize,
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// What computes.
    pub device: String,
    /// The build: version and hash of the binary.
    pub build: String,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
}

/// One line of metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Steps done in the run, over all stages.
    pub step: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// Name of the stage.
    pub stage: String,
    /// Samples seen in the run.
    pub samples: u64,
    /// Loss of this step.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    #[serde(deserialize_with = "or_nan")]
    pub gradient_norm: f64,
    /// Learning rate (of groups with multiplier 1).
    pub learning_rate: f64,
    /// InfoNCE's α.
    #[serde(deserialize_with = "or_nan")]
    pub scale: f64,
    /// Samples of all ranks per second since the last line.
    pub samples_per_s: f64,
    /// Share of the time since the last line that the step waited for data.
    pub data_wait_fraction: f64,
    /// Samples left out as bad so far.
    pub bad_samples: u64,
    /// Seconds spent per phase since the last line.
    pub phase_s: std::collections::BTreeMap<Phase, f64>,
    /// When, RFC 3339.
    pub time: String,
}

/// JSON has neither NaN nor infinity: they are written as null, and null is read as NaN, so that a step whose loss was not finite
/// is a line like any other.
fn or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All that was asked is done.
    Completed,
    /// Stopped on request after saving.
    Stopped,
}

/// From the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromSupervisor {
    /// The worker belongs to this run.
    Welcome,
    /// It does not; it ends with this reason.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// Save at the next step boundary that all ranks agree on, then end.
    Stop,
    /// About a checkpoint whose parts are reported.
    Checkpoint {
        /// What to do or to know.
        order: CheckpointOrder,
    },
}

#[cfg(test)]
mod tests {
    use super::{FromWorker, Metrics};

    #[test]
    fn a_line_of_metrics_survives_numbers_that_are_not_finite() {
        let metrics = Metrics {
            step: 3,
            total_steps: 9,
            stage: "one".to_owned(),
            samples: 24,
            loss: f64::NAN,
            gradient_norm: f64::INFINITY,
            learning_rate: 1e-3,
            scale: 14.0,
            samples_per_s: 10.0,
            data_wait_fraction: 0.0,
            bad_samples: 0,
            phase_s: std::collections::BTreeMap::new(),
            time: String::new(),
        };
        let line = serde_json::to_string(&FromWorker::Metrics(metrics)).unwrap();
        let back: FromWorker = serde_json::from_str(&line).unwrap();
        let FromWorker::Metrics(back) = back else { panic!("{line}") };
        assert!(back.loss.is_nan() && back.gradient_norm.is_nan());
        assert_eq!(back.step, 3);
    }
}
