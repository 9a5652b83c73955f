//! What workers and the supervisor say to each other: one JSON object per line over TCP.
//!
//! A worker connects, says [`FromWorker::Hello`] and waits for [`FromSupervisor::Welcome`]. From then on it reports; the orders it
//! takes are [`FromSupervisor::Stop`], which all ranks agree on at a step boundary, and those about a [`CheckpointOrder`].

mod checkpoint;
mod drill;
mod health;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use checkpoint::{CheckpointOrder, FileEntry, Part};
pub use drill::{Act, Blow, Drill, DrillPlace};
pub use health::{Check, CheckName, Checked};

/// Environment variable that holds the run's token; a connection without it is refused.
pub const TOKEN_VARIABLE: &str = "VLJEPA_TOKEN";

/// Seconds between two signs of life of the supervisor.
pub const SIGN_OF_LIFE_S: u64 = 15;
/// Environment variables by which the launcher tells a process it starts itself which rank it is.
pub const RANK_VARIABLE: &str = "VLJEPA_RANK";
/// Ranks of the run.
pub const WORLD_SIZE_VARIABLE: &str = "VLJEPA_WORLD_SIZE";
/// The process's number among those of the run on its machine.
pub const LOCAL_RANK_VARIABLE: &str = "VLJEPA_LOCAL_RANK";
/// Processes of the run on its machine.
pub const LOCAL_WORLD_SIZE_VARIABLE: &str = "VLJEPA_LOCAL_WORLD_SIZE";
/// NCCL's own: 0 keeps it from reducing inside of NVLink switches, whose order of additions is their own.
pub const NVLS_VARIABLE: &str = "NCCL_NVLS_ENABLE";

/// What a worker process is asked to do; written as JSON beside the run and named on the worker's command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Train to the end of the last stage, evaluating as the recipe says, from the newest checkpoint that verifies.
    Train {
        /// 1 for the first start of this run directory, 2 for the second …
        attempt: u32,
        /// Ranks of this attempt: those of the recipe, or fewer where it goes on without lost nodes.
        world_size: usize,
        /// Faults to be made on purpose.
        drills: Vec<Drill>,
    },
    /// Look whether ranks could run on this node; prints a [`Checked`] per line.
    Check(Check),
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
        /// Number of the last collective that this rank has entered, counted from 1 in each attempt; 0 before the first.
        #[serde(default)]
        collective: u64,
    },
    /// First and only message of a connection that tries whether the supervisor can be reached.
    Knock {
        /// The run's token.
        token: String,
    },
    /// The id by which ranks on GPUs find each other (rank 0 only).
    NcclId {
        /// `ncclUniqueId`, base64.
        id: String,
    },
    /// A line of metrics (rank 0 only), as in `metrics.jsonl`.
    Metrics(Metrics),
    /// What a rank did since its last report of this kind (every rank, once per logging interval).
    Interval(Interval),
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
    /// This process got a signal that asks the run to save itself, as Slurm sends them to every process of a step.
    Signalled {
        /// Its number.
        number: i32,
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
    /// Operations of the model on rank 0 per second since the last line, 10¹²; what is computed twice counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    /// The same as a share of what the device can do at most; none where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Memory that rank 0's process holds, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Memory in use on rank 0's GPU, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_mib: Option<u64>,
    /// When, RFC 3339.
    pub time: String,
}

/// What one rank did since it last said so. Bounded: eight phases and five numbers; its host is known from its hello.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Steps done in the run when it ends.
    pub step: u64,
    /// Steps in it.
    pub steps: u64,
    /// Its length.
    pub seconds: f64,
    /// Seconds per phase. On a GPU the phases that compute are those of the interval's last step, waited for at the end of each
    /// phase, times the steps: otherwise the GPU's work would show in whatever phase waits for it.
    pub phase_s: std::collections::BTreeMap<Phase, f64>,
    /// As [`Metrics::tflops`], of this rank.
    pub tflops: f64,
    /// Memory that the process holds, MiB.
    pub memory_mib: u64,
    /// Memory in use on its GPU, MiB.
    #[serde(default)]
    pub device_memory_mib: Option<u64>,
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
    /// The supervisor is there; said every [`SIGN_OF_LIFE_S`] seconds.
    Alive,
    /// All ranks have connected, and this is the id that rank 0 made for them.
    NcclId {
        /// `ncclUniqueId`, base64.
        id: String,
    },
    /// Ranks that have not connected yet, said now and then while there are some.
    Absent {
        /// The first of them, at most sixteen.
        ranks: Vec<usize>,
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
    use super::{FromWorker, Interval, Metrics, Phase};

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
            tflops: None,
            mfu: None,
            memory_mib: None,
            device_memory_mib: None,
            time: String::new(),
        };
        let line = serde_json::to_string(&FromWorker::Metrics(metrics)).unwrap();
        let back: FromWorker = serde_json::from_str(&line).unwrap();
        let FromWorker::Metrics(back) = back else { panic!("{line}") };
        assert!(back.loss.is_nan() && back.gradient_norm.is_nan());
        assert_eq!(back.step, 3);
    }

    #[test]
    fn lines_of_metrics_written_before_rates_and_memory_were_recorded_are_read() {
        let old = r#"{"step":1,"total_steps":9,"stage":"one","samples":8,"loss":1.0,"gradient_norm":1.0,"learning_rate":0.1,
            "scale":14.0,"samples_per_s":10.0,"data_wait_fraction":0.0,"bad_samples":0,"phase_s":{"forward":0.1},"time":"t"}"#;
        let metrics: Metrics = serde_json::from_str(old).unwrap();
        assert_eq!((metrics.step, metrics.tflops, metrics.memory_mib), (1, None, None));
        assert!(serde_json::from_str::<Metrics>(&old.replace("samples", "sampels")).is_err());
    }

    #[test]
    fn an_interval_of_a_rank_is_a_few_hundred_bytes() {
        let phases = [
            Phase::Start,
            Phase::Data,
            Phase::Forward,
            Phase::Collective,
            Phase::Backward,
            Phase::Optimizer,
            Phase::Checkpoint,
            Phase::Evaluation,
        ];
        let interval = Interval {
            step: u64::MAX,
            steps: u64::MAX,
            seconds: f64::MIN_POSITIVE,
            phase_s: phases.map(|phase| (phase, f64::MIN_POSITIVE)).into(),
            tflops: f64::MIN_POSITIVE,
            memory_mib: u64::MAX,
            device_memory_mib: Some(u64::MAX),
        };
        let message = FromWorker::Interval(interval);
        let line = serde_json::to_string(&message).unwrap();
        assert!(line.len() < 640, "{} bytes", line.len());
        assert_eq!(serde_json::from_str::<FromWorker>(&line).unwrap(), message);
    }
}
