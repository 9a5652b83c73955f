//! What happened in a run, one JSON object per line in `events.jsonl`; the report and `status` read it back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vljepa_recipes::clock;
use vljepa_recipes::protocol::Phase;
use vljepa_recipes::run_directory::{RunDirectory, append_line};

use crate::provenance::ChangedShards;
use crate::supervise::Straggler;
use crate::terminal;

/// A line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// When, RFC 3339.
    pub time: String,
    /// Which attempt.
    pub attempt: u32,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A node that Slurm gave takes no part in the next attempt.
    NodeLeftOut {
        /// Its name.
        node: String,
        /// What its health check found.
        reason: String,
    },
    /// Workers were started.
    AttemptStarted {
        /// Ranks.
        world_size: usize,
        /// The command.
        command: Vec<String>,
    },
    /// A worker was welcomed.
    RankJoined {
        /// Rank.
        rank: usize,
        /// Where.
        host: String,
        /// Process.
        pid: u32,
        /// What computes.
        device: String,
        /// Which build.
        build: String,
    },
    /// A connection was turned away.
    Refused {
        /// From where.
        peer: String,
        /// Why.
        reason: String,
    },
    /// A checkpoint is durable.
    Saved {
        /// Step.
        step: u64,
        /// Folder.
        name: String,
        /// Seconds the step waited.
        stall_s: f64,
        /// Seconds until it was durable; 0 where that was not written down.
        #[serde(default)]
        durable_s: f64,
    },
    /// Scores were measured.
    Scores {
        /// Step.
        step: u64,
        /// Metric to value.
        values: BTreeMap<String, f64>,
    },
    /// A worker warns.
    Warning {
        /// Rank.
        rank: usize,
        /// One line.
        text: String,
    },
    /// A rank has been slower than the others for a while.
    Straggler(Straggler),
    /// A source's shards are others than in the attempt before.
    ShardsChanged(ChangedShards),
    /// A stop was asked for.
    StopRequested {
        /// By which signal.
        signal: String,
    },
    /// A guard has heard nothing of the supervisor for too long, and puts its job into the queue again.
    SupervisorLost {
        /// The job.
        job: String,
        /// Seconds without a sign.
        silent_s: u64,
    },
    /// Something ended the attempt.
    Fault(Fault),
    /// The attempt starts again.
    Restart {
        /// Seconds from now.
        delay_s: f64,
    },
    /// The attempt is over.
    AttemptEnded {
        /// `completed`, `stopped`, `failed` or `killed`.
        outcome: AttemptOutcome,
        /// Last step known.
        step: u64,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AttemptOutcome {
    /// It is running, or its launcher was killed before it could write its end.
    Unfinished,
    /// All that was asked is done.
    Completed,
    /// Stopped on request after saving.
    Stopped,
    /// Stopped at once by a second signal.
    Killed,
    /// A fault ended it.
    Failed,
}

impl AttemptOutcome {
    /// The word that people read.
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

/// What ended an attempt, and who.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// The rank to blame, where one can be.
    pub rank: Option<usize>,
    /// Its last step.
    pub step: u64,
    /// Its last phase.
    pub phase: Phase,
    /// Details: the worker's own error, how its process ended, for how long it stood still.
    pub error: String,
    /// Where to read on.
    pub log: String,
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FaultKind {
    /// The process ended without a word.
    Died,
    /// The worker said what was wrong.
    Reported,
    /// No progress for longer than the learned limit.
    Hung,
    /// It did not come up.
    NotStarted,
    /// It came up and was turned away.
    Refused,
    /// All ranks ended well, but there is no valid completion record.
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

    /// Writes one. A full disk must not end a run that could go on, so a failure is only shown.
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
