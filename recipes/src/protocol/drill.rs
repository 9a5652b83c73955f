//! Fault drills: faults that a user injects to see a run survive them, for example with
//! `vljepa-launch RECIPE --drill kill:rank=1,step=5`.
//!
//! On the command line and in the job file a drill is one string:
//! `KIND:rank=R,step=S[,phase=P][,attempt=A][,seconds=T]`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Phase;
use crate::suggest::suggestion;

/// A fault that is injected in one attempt only, so that the next attempt runs undisturbed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Drill {
    /// Kind of the fault and its target.
    pub act: Act,
    /// Step in which the fault happens: the step being computed, counted from 0 as in heartbeats.
    /// For the points `checkpoint`, `evaluation` and `write` it is the number of completed steps,
    /// and for `load` it is 0.
    pub step: u64,
    /// Attempt in which the fault happens, counted from 1. Default: 1.
    pub attempt: u32,
}

/// Kind of a fault and its target.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// A rank fails once, when it reaches a point of the step.
    Fail {
        /// Number of the rank that fails.
        rank: usize,
        /// Way in which it fails.
        failure: Failure,
        /// Point of the step at which it fails.
        point: DrillPoint,
    },
    /// One gradient of a rank becomes NaN before gradients are summed over the ranks.
    Nan {
        /// Rank whose gradient becomes NaN.
        rank: usize,
    },
    /// A rank sleeps when it reaches a point of the step, in this step and in every later one.
    Slow {
        /// Number of the rank that sleeps.
        rank: usize,
        /// Duration of the sleep in seconds, 0 to 86,400.
        seconds: f64,
        /// Point of the step at which it sleeps.
        point: DrillPoint,
    },
    /// The launcher kills itself when a rank reports the step.
    KillSupervisor,
}

/// Way in which a rank fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// SIGKILL ends the process.
    Kill,
    /// SIGSTOP stops the process without ending it.
    Stop,
    /// The rank ends with a panic.
    Panic,
    /// The rank returns an error.
    Error,
    /// The process exits with code 0 and without a message.
    Exit,
}

/// Point of a step at which a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillPoint {
    /// The first entry into the phase in the step.
    Phase(Phase),
    /// The moment when the rank has written its part of the step's checkpoint but not reported it.
    Write,
}

impl Failure {
    const ALL: [Self; 5] = [Self::Kill, Self::Stop, Self::Panic, Self::Error, Self::Exit];

    /// Returns the name that drills use on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Panic => "panic",
            Self::Error => "error",
            Self::Exit => "exit",
        }
    }
}

impl DrillPoint {
    const ALL: [Self; 9] = [
        Self::Phase(Phase::Load),
        Self::Phase(Phase::Data),
        Self::Phase(Phase::Forward),
        Self::Phase(Phase::Collective),
        Self::Phase(Phase::Backward),
        Self::Phase(Phase::Optimizer),
        Self::Phase(Phase::Checkpoint),
        Self::Phase(Phase::Evaluation),
        Self::Write,
    ];

    /// Returns the name that drills use on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Phase(phase) => phase.name(),
            Self::Write => "write",
        }
    }
}

const NAN: &str = "nan";
const SLOW: &str = "slow";
const KILL_SUPERVISOR: &str = "kill-supervisor";

fn kinds() -> impl Iterator<Item = &'static str> {
    Failure::ALL.map(Failure::name).into_iter().chain([NAN, SLOW, KILL_SUPERVISOR])
}

impl Drill {
    /// Returns the rank that fails, or `None` if the launcher does.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        match self.act {
            Act::Fail { rank, .. } | Act::Nan { rank } | Act::Slow { rank, .. } => Some(rank),
            Act::KillSupervisor => None,
        }
    }
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { act, step, attempt } = self;
        match act {
            Act::Fail { rank, failure, point } => {
                write!(f, "{}:rank={rank},step={step},phase={}", failure.name(), point.name())?;
            }
            Act::Nan { rank } => write!(f, "{NAN}:rank={rank},step={step}")?,
            Act::Slow { rank, seconds, point } => {
                let point = point.name();
                write!(f, "{SLOW}:rank={rank},step={step},phase={point},seconds={seconds}")?;
            }
            Act::KillSupervisor => write!(f, "{KILL_SUPERVISOR}:step={step}")?,
        }
        write!(f, ",attempt={attempt}")
    }
}

impl FromStr for Drill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let failure = Failure::ALL.into_iter().find(|failure| failure.name() == kind);
        let keys: &[&str] = match (failure, kind) {
            (Some(_), _) => &["rank", "step", "phase", "attempt"],
            (None, NAN) => &["rank", "step", "attempt"],
            (None, SLOW) => &["rank", "step", "phase", "seconds", "attempt"],
            (None, KILL_SUPERVISOR) => &["step", "attempt"],
            (None, _) => return Err(no_such("kind of drill", kind, kinds())),
        };
        let mut values = Values::read(kind, rest, keys)?;
        let step = values.number("step")?.ok_or_else(|| missing(kind, "step", keys))?;
        let attempt = values.number("attempt")?.unwrap_or(1);
        if attempt == 0 {
            return Err("attempts are counted from 1".to_owned());
        }
        let point = values.point()?;
        let act = if kind == KILL_SUPERVISOR {
            Act::KillSupervisor
        } else {
            let rank = values.number("rank")?.ok_or_else(|| missing(kind, "rank", keys))?;
            match failure {
                Some(failure) => Act::Fail { rank, failure, point },
                None if kind == NAN => Act::Nan { rank },
                None => {
                    let seconds: f64 =
                        values.number("seconds")?.ok_or_else(|| missing(kind, "seconds", keys))?;
                    // A day is longer than any straggler and fits into a `Duration`.
                    if !(0.0..=86_400.0).contains(&seconds) {
                        return Err(format!("seconds={seconds}: use 0 to 86400"));
                    }
                    Act::Slow { rank, seconds, point }
                }
            }
        };
        Ok(Self { act, step, attempt })
    }
}

impl TryFrom<String> for Drill {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Drill> for String {
    fn from(drill: Drill) -> Self {
        drill.to_string()
    }
}

/// The `key=value` pairs of a drill.
struct Values<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Values<'a> {
    fn read(kind: &str, text: &'a str, keys: &[&str]) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(format!("`{pair}` has no `=`; write {}", form(kind, keys)));
            };
            if !keys.contains(&key) {
                return Err(no_such(&format!("key of `{kind}`"), key, keys.iter().copied()));
            }
            if values.insert(key, value).is_some() {
                return Err(format!("`{key}` is given twice"));
            }
        }
        Ok(Self(values))
    }

    fn number<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(text) = self.0.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{key}={text}: `{text}` is not a valid number"))
    }

    fn point(&self) -> Result<DrillPoint, String> {
        let Some(text) = self.0.get("phase") else { return Ok(DrillPoint::Phase(Phase::Forward)) };
        let point = DrillPoint::ALL.into_iter().find(|point| point.name() == *text);
        point.ok_or_else(|| no_such("phase", text, DrillPoint::ALL.map(DrillPoint::name)))
    }
}

fn form(kind: &str, keys: &[&str]) -> String {
    let parts: Vec<String> = keys.iter().map(|key| format!("{key}=…")).collect();
    format!("{kind}:{}", parts.join(","))
}

fn missing(kind: &str, key: &str, keys: &[&str]) -> String {
    format!("a drill `{kind}` needs {key}; write {}", form(kind, keys))
}

fn no_such<'a>(what: &str, typed: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let near = suggestion(typed, names.iter().copied()).map(|text| format!("; {text}"));
    format!("`{typed}` is not a {what}; valid are {}{}", names.join(", "), near.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{Act, Drill, DrillPoint, Failure};
    use crate::protocol::{Job, Phase};

    #[test]
    fn drills_read_back_as_they_are_written() {
        for (text, full) in [
            ("kill:rank=1,step=5", "kill:rank=1,step=5,phase=forward,attempt=1"),
            ("stop:step=0,rank=0,phase=write", "stop:rank=0,step=0,phase=write,attempt=1"),
            ("exit:rank=3,step=9,phase=data,attempt=2", "exit:rank=3,step=9,phase=data,attempt=2"),
            ("nan:rank=1,step=2", "nan:rank=1,step=2,attempt=1"),
            (
                "slow:rank=1,step=5,seconds=0.2",
                "slow:rank=1,step=5,phase=forward,seconds=0.2,attempt=1",
            ),
            ("kill-supervisor:step=4,attempt=3", "kill-supervisor:step=4,attempt=3"),
        ] {
            let drill: Drill = text.parse().unwrap();
            assert_eq!(drill.to_string(), full);
            assert_eq!(full.parse::<Drill>().unwrap(), drill);
        }
        let job = Job::Train {
            attempt: 1,
            world_size: 2,
            drills: vec![Drill {
                act: Act::Fail {
                    rank: 1,
                    failure: Failure::Panic,
                    point: DrillPoint::Phase(Phase::Collective),
                },
                step: 7,
                attempt: 1,
            }],
        };
        let text = serde_json::to_string(&job).unwrap();
        assert!(text.contains(r#""panic:rank=1,step=7,phase=collective,attempt=1""#), "{text}");
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }

    #[test]
    fn mistakes_list_what_is_possible() {
        for (text, wrong) in [
            (
                "kil:rank=1,step=5",
                "`kil` is not a kind of drill; valid are kill, stop, panic, error, exit, nan, slow, kill-supervisor; did you mean `kill`?",
            ),
            ("", "`` is not a kind of drill"),
            ("kill", "a drill `kill` needs step; write kill:rank=…,step=…,phase=…,attempt=…"),
            ("kill:step=5", "needs rank"),
            (
                "kill:rank=1,step=5,phase=foward",
                "`foward` is not a phase; valid are load, data, forward, collective, backward, optimizer, checkpoint, evaluation, write; did you mean `forward`?",
            ),
            (
                "kill:rank=1,step=5,when=now",
                "`when` is not a key of `kill`; valid are rank, step, phase, attempt",
            ),
            ("nan:rank=1,step=5,phase=data", "`phase` is not a key of `nan`"),
            ("kill:rank=1,step=-5", "step=-5"),
            ("kill:rank=one,step=5", "rank=one"),
            ("kill:rank=1,rank=2,step=5", "`rank` is given twice"),
            ("kill:rank", "`rank` has no `=`"),
            ("kill:rank=1,step=5,attempt=0", "counted from 1"),
            ("slow:rank=1,step=5", "needs seconds"),
            ("slow:rank=1,step=5,seconds=inf", "use 0 to 86400"),
            ("slow:rank=1,step=5,seconds=-1", "use 0 to 86400"),
            ("kill-supervisor:rank=0,step=5", "`rank` is not a key of `kill-supervisor`"),
        ] {
            let said = text.parse::<Drill>().unwrap_err();
            assert!(said.contains(wrong), "{text}: {said}");
        }
    }
}
