//! Events of a run, one JSON object per line of `events.jsonl`. The report reads them back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vljepa_recipes::clock;
use vljepa_recipes::protocol::{Phase, Resumed};
use vljepa_recipes::run_directory::{RunDirectory, append_line};

use super::provenance::{AttemptOutcome, ChangedShards};
use super::stragglers::Straggler;
use crate::terminal;

/// A line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Time of writing, RFC 3339.
    pub time: String,
    pub attempt: u32,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The next attempt does not use this node of the Slurm job.
    NodeLeftOut {
        node: String,
        /// The health checks that failed.
        reason: String,
    },
    /// The workers of an attempt are about to be started.
    AttemptStarted { world_size: usize, command: Vec<String> },
    /// The control plane accepted the connection of a worker.
    RankJoined { rank: usize, host: String, pid: u32, device: String, build: String },
    /// The control plane refused a connection.
    Refused {
        /// Address and port of the connection.
        peer: String,
        reason: String,
    },
    /// How long the start took, until rank 0 had its first batch or began to measure.
    Started(StartTimes),
    /// The run starts from the weights of another run.
    Initialised {
        /// Folder of the other run's checkpoint.
        checkpoint: PathBuf,
    },
    /// The run continues from a checkpoint.
    Resumed(Resumed),
    /// The run was submitted to Slurm.
    Submitted { job: String },
    /// A checkpoint is durable.
    Saved {
        step: u64,
        /// Name of the checkpoint's folder.
        name: String,
        /// Seconds that the step waited for the checkpoint.
        stall_s: f64,
        /// Seconds from the end of the step until the checkpoint was durable; 0 in files that do
        /// not record it.
        #[serde(default)]
        durable_s: f64,
    },
    /// The evaluation of a step finished.
    Scores {
        step: u64,
        /// Value of each metric, a fraction.
        values: BTreeMap<String, f64>,
    },
    /// A worker sent a warning, or the supervisor warns about a rank.
    Warning { rank: usize, text: String },
    /// A rank was slower than the others for several intervals.
    Straggler(Straggler),
    /// The shard list of a source differs from that of the previous attempt.
    ShardsChanged(ChangedShards),
    /// A signal, `vljepa-launch stop` or the end of the job's time asked the run to stop.
    StopRequested {
        /// [`StopSignal::name`](crate::supervise::StopSignal::name) of the request.
        signal: String,
    },
    /// A guard saw no sign of life of the supervisor for too long and requeues the job.
    SupervisorLost {
        job: String,
        /// Seconds without a sign of life.
        silent_s: u64,
    },
    /// A fault ended the attempt.
    Fault(Fault),
    /// Another attempt follows.
    Restart {
        /// Seconds until the next attempt starts.
        delay_s: f64,
    },
    /// All processes of the attempt have ended.
    AttemptEnded {
        outcome: AttemptOutcome,
        /// Last step that was reported.
        step: u64,
    },
}

/// Durations of the parts of an attempt's start, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct StartTimes {
    /// Seconds of the health checks, with the wait for nodes that recover.
    pub checks_s: f64,
    /// Seconds from the start of the processes until all ranks have connected.
    pub connect_s: f64,
    /// Seconds until the weights of a checkpoint or of a new run are on the device.
    pub load_s: f64,
    /// Seconds until the first batch is ready: catalogues, kernels, data.
    pub prepare_s: f64,
}

impl AttemptOutcome {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unfinished => "unfinished",
            Self::Completed => "completed",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::Failed => "failed",
        }
    }
}

/// Cause of a failed attempt and the rank that is to blame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub kind: FaultKind,
    /// The rank to blame, or `None` if no single rank can be named.
    pub rank: Option<usize>,
    /// Last known step of the rank.
    pub step: u64,
    /// Last known phase of the rank.
    pub phase: Phase,
    /// Details: the worker's own error, how its process ended, or how long it made no progress.
    pub error: String,
    /// Path of the log to read.
    pub log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FaultKind {
    /// The process ended without reporting an error.
    Died,
    /// The worker reported an error.
    Reported,
    /// The worker ended the run, because another attempt would end the same way.
    Ended,
    /// The rank made no progress for longer than the learned limit.
    Hung,
    /// The worker did not connect.
    NotStarted,
    /// The control plane refused the worker's connection.
    Refused,
    /// All ranks succeeded, but the run has no valid completion record.
    NoRecord,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, rank, step, phase, error, .. } = self;
        let who = rank.map_or_else(|| "the run".to_owned(), |rank| format!("rank {rank}"));
        let place = format!("in phase {} of step {step}", phase.name());
        match kind {
            FaultKind::Died => write!(f, "{who} died {place}: {error}"),
            FaultKind::Reported => write!(f, "{who} failed {place}: {error}"),
            FaultKind::Ended => write!(f, "{who} ended the run {place}: {error}"),
            FaultKind::Hung => write!(f, "{who} hangs {place}: {error}"),
            FaultKind::NotStarted => write!(f, "{who} did not start: {error}"),
            FaultKind::Refused => write!(f, "{who} was refused: {error}"),
            FaultKind::NoRecord => write!(f, "{who} ended without a completion record: {error}"),
        }
    }
}

/// Appends events of one attempt to the run's file.
#[derive(Debug, Clone)]
pub(crate) struct EventLog {
    directory: RunDirectory,
    attempt: u32,
}

impl EventLog {
    pub(crate) fn new(directory: &RunDirectory, attempt: u32) -> Self {
        Self { directory: directory.clone(), attempt }
    }

    /// Appends `event` with the current time. A failure is only printed: a full disk must not end a
    /// run that could continue.
    pub(crate) fn write(&self, event: Event) {
        let line = Line { time: clock::now_text(), attempt: self.attempt, event };
        let written = append_line(&self.directory.events(), &line);
        if let Err(error) = written {
            terminal::note(&format!("warning: events.jsonl: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::Phase;

    use super::{Event, Fault, FaultKind, Line};

    #[test]
    fn events_read_back_as_written() {
        let fault = Fault {
            kind: FaultKind::Died,
            rank: Some(1),
            step: 12,
            phase: Phase::Backward,
            error: "signal 9".to_owned(),
            log: "logs/x".to_owned(),
        };
        assert_eq!(fault.to_string(), "rank 1 died in phase backward of step 12: signal 9");
        let line = Line { time: "t".to_owned(), attempt: 2, event: Event::Fault(fault) };
        let text = serde_json::to_string(&line).unwrap();
        assert!(text.contains(r#""event":"fault","kind":"died","rank":1"#), "{text}");
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        assert!(serde_json::from_str::<Line>(&text.replace("fault", "folt")).is_err());
    }
}
