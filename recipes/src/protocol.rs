//! Messages between workers and the supervisor: one JSON object per line over TCP.
//!
//! A worker connects, sends [`FromWorker::Hello`] and waits for [`FromSupervisor::Welcome`]. Then
//! it sends reports. It obeys two orders: [`FromSupervisor::Stop`], which all ranks apply at the
//! same step boundary, and [`CheckpointOrder`].

mod checkpoint;
mod data;
mod drill;
mod health;
mod inputs;
mod job;
mod labels;
mod metrics;
mod probe;
mod resumed;
mod row;
mod score;
mod selective;
mod sets;
mod stream;
mod weights;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use checkpoint::{CheckpointOrder, FileEntry, Part};
pub use data::{DataPart, DataWork, KindWork};
pub use drill::{Act, Drill, DrillPoint, Failure};
pub use health::{
    CHECK_LIMIT_S, CLOCK_LIMIT_S, Check, CheckName, Checked, RELEASE_LIMIT_S,
    REPEATED_CHECK_LIMIT_S,
};
pub use inputs::Inputs;
pub use job::{Job, PROGRESS};
pub use labels::{LabelCount, LabelCounts};
pub use metrics::{Gauges, Metrics, Spread};
pub use probe::{LibraryName, LibraryReport, LoadedLibrary, SourceRate, SourceReport};
pub use resumed::Resumed;
pub use row::RowRecord;
pub use score::CaptionScores;
pub use selective::{
    DecodedEmbedding, DecodingCurve, DecodingCurves, DecodingPoints, DecodingScore, Saving,
    SelectiveCurves,
};
pub use sets::{FoundCount, ReadSet, SetReport, SetState};
pub use stream::{
    Lag, SMOOTHING, Speed, StreamCaption, StreamEnd, StreamEvent, StreamJob, StreamStart,
    StreamSummary, THRESHOLD, VideoSource,
};
pub use weights::{
    Extent, KnownModel, KnownWeights, Names, NearestModel, NearestSize, UnknownWeights, Weights,
};

/// Environment variable that holds the run's token. The supervisor refuses connections without it.
pub const TOKEN_VARIABLE: &str = "VLJEPA_TOKEN";

/// Seconds between two [`FromSupervisor::Alive`] messages: half of the smallest
/// `cluster.control.silence_s`.
pub const SIGN_OF_LIFE_S: u64 = 15;
/// Environment variable with the rank of a process that the launcher starts without MPI or Slurm.
pub const RANK_VARIABLE: &str = "VLJEPA_RANK";
/// Environment variable with the number of ranks of the run, set like [`RANK_VARIABLE`].
pub const WORLD_SIZE_VARIABLE: &str = "VLJEPA_WORLD_SIZE";
/// Environment variable with the rank among the run's processes on one machine, counted from 0 and
/// set like [`RANK_VARIABLE`].
pub const LOCAL_RANK_VARIABLE: &str = "VLJEPA_LOCAL_RANK";
/// Environment variable with the number of the run's processes on one machine, set like
/// [`RANK_VARIABLE`].
pub const LOCAL_WORLD_SIZE_VARIABLE: &str = "VLJEPA_LOCAL_WORLD_SIZE";
/// Environment variable of NCCL. 0 disables reductions inside NVLink switches, whose order of
/// additions is not fixed.
pub const NVLS_VARIABLE: &str = "NCCL_NVLS_ENABLE";

/// Phase of a step in which a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Setting up model, data and collectives.
    Start,
    /// Reading a checkpoint or other weights.
    Load,
    /// Waiting for a batch.
    Data,
    /// Forward pass through the encoders and the predictor.
    Forward,
    /// Gathering embeddings or reducing gradients.
    Collective,
    /// Backward pass through the encoders and the predictor.
    Backward,
    /// Updating the parameters with AdamW.
    Optimizer,
    /// Writing a checkpoint of the step.
    Checkpoint,
    /// Measuring the recipe's evaluation tasks.
    Evaluation,
}

impl Phase {
    /// All phases, in the order of their variants.
    pub const ALL: [Self; 9] = [
        Self::Start,
        Self::Load,
        Self::Data,
        Self::Forward,
        Self::Collective,
        Self::Backward,
        Self::Optimizer,
        Self::Checkpoint,
        Self::Evaluation,
    ];

    /// Returns the phase's name in messages and drills.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Load => "load",
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

/// Kind of a collective operation between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveKind {
    /// Every rank receives the parts of all ranks.
    AllGather,
    /// Every rank receives the sum over all ranks.
    AllReduce,
    /// Every rank receives its part of the sum over all ranks.
    ReduceScatter,
    /// Every rank receives the data of rank 0.
    Broadcast,
}

impl CollectiveKind {
    /// Returns the name for messages, such as `all-gather`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AllGather => "all-gather",
            Self::AllReduce => "all-reduce",
            Self::ReduceScatter => "reduce-scatter",
            Self::Broadcast => "broadcast",
        }
    }
}

/// Message from a worker to the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// First message of a worker's connection.
    Hello(Hello),
    /// Sign of life with the rank's position. It is sent each second and when the phase changes,
    /// but at most ten times per second.
    Heartbeat {
        /// Step that is being computed, counted from 0 over all stages.
        step: u64,
        /// Phase of that step.
        phase: Phase,
        /// Number of the last collective that this rank has entered, counted from 1 in each
        /// attempt; 0 before the first.
        #[serde(default)]
        collective: u64,
        /// Kind of that collective while it is not complete on this rank.
        #[serde(default)]
        inside: Option<CollectiveKind>,
        /// Number of pieces of work outside of steps that this rank has done in this attempt:
        /// chunks of evaluations, and pieces of files that it has read, hashed or written.
        #[serde(default)]
        work: u64,
    },
    /// Only message of a connection that tests whether the supervisor can be reached.
    Knock {
        /// Token of the run.
        token: String,
    },
    /// Rank 0 can communicate with the other ranks (rank 0 only).
    Rendezvous {
        /// `ncclUniqueId`, encoded in base64; empty for ranks on CPUs.
        id: String,
    },
    /// One line of `metrics.jsonl` (rank 0 only).
    Metrics(Metrics),
    /// Summary of a logging interval (every rank).
    Interval(Interval),
    /// The run starts from the weights of another run (rank 0 only).
    Initialised {
        /// Folder of the other run's checkpoint.
        checkpoint: PathBuf,
    },
    /// The run continues from a checkpoint, or from its start after logged steps were lost (rank 0
    /// only).
    Resumed(Resumed),
    /// A checkpoint is complete and durable (rank 0 only).
    Saved {
        /// Step of the checkpoint.
        step: u64,
        /// Name of the checkpoint's folder.
        name: String,
        /// Seconds that training waited for the checkpoint.
        stall_s: f64,
        /// Seconds from the end of the step until the checkpoint was durable.
        durable_s: f64,
    },
    /// This rank has written its part of a checkpoint, or failed to.
    Part {
        /// Step of the checkpoint.
        step: u64,
        /// File of the part, or the error.
        part: Part,
    },
    /// A checkpoint was given up, and all its files were removed (rank 0 only).
    NotSaved {
        /// Step of the checkpoint.
        step: u64,
        /// Reason why it was given up.
        error: String,
    },
    /// Scores of an evaluation (rank 0 only).
    Scores {
        /// Number of steps done when the scores were measured.
        step: u64,
        /// Value of each metric.
        values: std::collections::BTreeMap<String, f64>,
    },
    /// A message for the user that does not end the run.
    Warning {
        /// Text of one line.
        text: String,
    },
    /// This process received a signal that asks the run to save. Slurm sends such signals to every
    /// process of a job step.
    Signalled {
        /// Number of the signal, such as 10 for SIGUSR1.
        number: i32,
    },
    /// This rank has finished its job.
    Finished {
        /// Whether the job is complete.
        outcome: Outcome,
        /// Number of steps done.
        step: u64,
    },
    /// This rank cannot continue; its process exits after this message.
    Failed {
        /// Step of the failure, counted like that of a heartbeat.
        step: u64,
        /// Phase of that step.
        phase: Phase,
        /// Error with its causes, on one line.
        error: String,
    },
    /// This rank ends the run, because another attempt would end the same way; its process exits
    /// after this message.
    Ended {
        /// Step of the end, counted like that of a heartbeat.
        step: u64,
        /// Phase of that step.
        phase: Phase,
        /// Reason, on one line.
        error: String,
    },
}

/// Identity of a worker, by which the supervisor accepts or refuses it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Token of the run, from [`TOKEN_VARIABLE`].
    pub token: String,
    /// Rank of the worker, counted from 0.
    pub rank: usize,
    /// Number of ranks of the attempt.
    pub world_size: usize,
    /// Host name of the worker's machine.
    pub host: String,
    /// Process id on that machine.
    pub pid: u32,
    /// Description of the device, such as the GPU's name or the number of host threads.
    pub device: String,
    /// Version of the worker and the first digits of its binary's hash.
    pub build: String,
    /// Hash of the resolved recipe ([`crate::Loaded::hash`]).
    pub recipe_hash: String,
}

/// Summary of one rank's logging interval. It is small, nine phases and six numbers at most,
/// because every rank sends it; the rank's host is known from its [`Hello`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Number of steps done in the run at the end of the interval.
    pub step: u64,
    /// Number of steps in the interval.
    pub steps: u64,
    /// Duration of the interval in seconds.
    pub seconds: f64,
    /// Seconds spent in each phase. On a GPU, the phases that compute are measured in the
    /// interval's last step only, with a wait at the end of each phase, and multiplied by the
    /// number of steps. Without the wait, the GPU's work would count for the phase that happens to
    /// wait for it.
    pub phase_s: std::collections::BTreeMap<Phase, f64>,
    /// Rate of this rank, as [`Metrics::tflops`].
    pub tflops: f64,
    /// Memory of the process in MiB.
    pub memory_mib: u64,
    /// Memory in use on the rank's GPU in MiB; `None` on the host.
    #[serde(default)]
    pub device_memory_mib: Option<u64>,
}

/// Result of a job that ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole job is done.
    Completed,
    /// The job stopped on request after it saved a checkpoint.
    Stopped,
}

/// Message from the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromSupervisor {
    /// The worker is accepted.
    Welcome,
    /// The worker does not belong to this run and must exit.
    Refused {
        /// Reason, and advice to the user.
        reason: String,
    },
    /// Sign of life, sent every [`SIGN_OF_LIFE_S`] seconds.
    Alive,
    /// All ranks have connected and may send messages to each other.
    Rendezvous {
        /// Rank 0's `ncclUniqueId`, encoded in base64; empty for ranks on CPUs.
        id: String,
    },
    /// Some ranks have not connected yet. It is repeated while ranks are missing.
    Absent {
        /// The first missing ranks, at most sixteen.
        ranks: Vec<usize>,
    },
    /// Save at the next step boundary that all ranks agree on, then exit.
    Stop,
    /// Order about a checkpoint whose parts were reported.
    Checkpoint {
        /// Order for this rank.
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
            scale: Some(14.0),
            gauges: None,
            samples_per_s: 10.0,
            data_wait_fraction: 0.0,
            bad_samples: 0,
            phase_s: std::collections::BTreeMap::new(),
            tflops: None,
            mfu: None,
            memory_mib: None,
            device_memory_mib: None,
            data: None,
            time: String::new(),
        };
        let line = serde_json::to_string(&FromWorker::Metrics(metrics)).unwrap();
        let back: FromWorker = serde_json::from_str(&line).unwrap();
        let FromWorker::Metrics(back) = back else { panic!("{line}") };
        assert!(back.loss.is_nan() && back.gradient_norm.is_nan());
        assert_eq!(back.step, 3);
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        // serde_json's faster reader is wrong in the last bit of this number.
        let saved = |durable_s| FromWorker::Saved {
            step: 5,
            name: "step-5".to_owned(),
            stall_s: 0.1 + 0.2,
            durable_s,
        };
        let number = 1.844_674_407_375_516_2e21_f64;
        let line = serde_json::to_string(&saved(number)).unwrap();
        assert_eq!(serde_json::from_str::<FromWorker>(&line).unwrap(), saved(number));
        let neighbour = f64::from_bits(number.to_bits() - 1);
        assert_ne!(serde_json::from_str::<FromWorker>(&line).unwrap(), saved(neighbour));
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
