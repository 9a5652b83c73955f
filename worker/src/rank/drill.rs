//! Fault drills: faults that this rank injects into itself because the job asks for them. The rank
//! logs each drill before it happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use vljepa_recipes::protocol::{Act, Drill, DrillPoint, Failure, Job, Phase};

/// The drills of one rank in one attempt. Clones share which drills have happened.
#[derive(Debug, Clone, Default)]
pub struct Drills {
    armed: Arc<[Armed]>,
}

#[derive(Debug)]
struct Armed {
    drill: Drill,
    /// Whether the drill has happened: a process that continues after SIGSTOP is not stopped again.
    done: AtomicBool,
}

impl Drills {
    /// Selects the drills of a job that belong to this rank and this attempt.
    #[must_use]
    pub fn of(job: &Job, rank: usize) -> Self {
        let Job::Train { attempt: this, drills, .. } = job else { return Self::default() };
        let own = drills.iter().filter(|d| d.rank() == Some(rank) && d.attempt == *this);
        let armed = own.map(|drill| Armed { drill: drill.clone(), done: AtomicBool::new(false) });
        Self { armed: armed.collect() }
    }

    /// Runs the drills that are due when this rank enters `phase` of `step`.
    ///
    /// # Errors
    /// Fails if an injected fault is an error.
    pub fn at(&self, step: u64, phase: Phase) -> anyhow::Result<()> {
        self.run_due(step, DrillPoint::Phase(phase))
    }

    /// Runs the drills that are due after this rank's part of the checkpoint of `step` was written
    /// and before it is reported.
    ///
    /// # Errors
    /// Fails if an injected fault is an error.
    pub fn at_write(&self, step: u64) -> anyhow::Result<()> {
        self.run_due(step, DrillPoint::Write)
    }

    /// Returns whether a NaN must be put into this rank's gradients in this step.
    #[must_use]
    pub fn spoil(&self, step: u64) -> bool {
        let nan = |armed: &&Armed| matches!(armed.drill.act, Act::Nan { .. });
        self.armed.iter().filter(nan).any(|armed| armed.first_time_in(step))
    }

    fn run_due(&self, step: u64, here: DrillPoint) -> anyhow::Result<()> {
        for armed in self.armed.iter() {
            match armed.drill.act {
                Act::Fail { failure, point, .. } if point == here && armed.first_time_in(step) => {
                    strike(failure, &armed.drill)?;
                }
                Act::Slow { seconds, point, .. } if point == here && step >= armed.drill.step => {
                    if !armed.done.swap(true, Ordering::Relaxed) {
                        tracing::warn!("drill {} begins", armed.drill);
                    }
                    sleep(Duration::from_secs_f64(seconds));
                }
                Act::Fail { .. } | Act::Slow { .. } | Act::Nan { .. } | Act::KillSupervisor => {}
            }
        }
        Ok(())
    }
}

impl Armed {
    /// Returns whether the drill is due in this step, at most once, and logs it.
    fn first_time_in(&self, step: u64) -> bool {
        let due = step == self.drill.step && !self.done.swap(true, Ordering::Relaxed);
        if due {
            tracing::warn!("drill {}", self.drill);
        }
        due
    }
}

fn strike(failure: Failure, drill: &Drill) -> anyhow::Result<()> {
    match failure {
        Failure::Kill => Ok(raise(Signal::SIGKILL)?),
        Failure::Stop => Ok(raise(Signal::SIGSTOP)?),
        Failure::Panic => panic!("drill {drill}"),
        Failure::Error => Err(anyhow::anyhow!("drill {drill}")),
        Failure::Exit => exit(),
    }
}

#[expect(clippy::exit, reason = "the drill is a process that ends without a word")]
fn exit() -> ! {
    std::process::exit(0)
}

#[expect(clippy::disallowed_methods, reason = "the drill is a rank that does nothing for a while")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn drills(texts: &[&str], attempt: u32, rank: usize) -> Drills {
        let drills = texts.iter().map(|text| text.parse().unwrap()).collect();
        Drills::of(&Job::Train { attempt, world_size: 2, drills }, rank)
    }

    #[test]
    fn a_drill_happens_once_at_its_place_in_its_attempt_and_to_its_rank() {
        let text = ["error:rank=1,step=5,phase=backward", "error:rank=1,step=6,phase=write"];
        for (attempt, rank) in [(2, 1), (1, 0)] {
            let others = drills(&text, attempt, rank);
            assert!(others.at(5, Phase::Backward).is_ok() && others.at_write(6).is_ok());
        }
        let own = drills(&text, 1, 1);
        assert!(own.at(5, Phase::Forward).is_ok() && own.at(4, Phase::Backward).is_ok());
        let error = own.clone().at(5, Phase::Backward).unwrap_err().to_string();
        assert_eq!(error, "drill error:rank=1,step=5,phase=backward,attempt=1");
        assert!(own.at(5, Phase::Backward).is_ok(), "once");
        assert!(own.at(6, Phase::Checkpoint).is_ok());
        assert!(own.at_write(6).is_err());
    }

    #[test]
    fn a_nan_spoils_one_step_and_a_slow_rank_stays_slow() {
        let own = drills(&["nan:rank=0,step=2", "slow:rank=0,step=3,seconds=0.02"], 1, 0);
        assert!(!own.spoil(1) && own.spoil(2) && !own.spoil(2) && !own.spoil(3));
        let time = |step| {
            let start = Instant::now();
            own.at(step, Phase::Forward).unwrap();
            start.elapsed() >= Duration::from_millis(20)
        };
        assert_eq!([2, 3, 4].map(time), [false, true, true]);
    }
}
