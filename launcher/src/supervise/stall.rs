//! When a rank counts as hung: limits learned from the run's own steps. Pure; the caller brings the time.
//!
//! Two signs, with limits of their own:
//!
//! - **Silence.** Heartbeats come every second from a thread that touches neither files nor the device, so it runs while a step computes,
//!   waits for storage or saves. Ten of them missing while other ranks' arrive means a stopped process, a dead machine or a cut
//!   network. A machine under load cannot delay it so long: the kernel gives each runnable thread its turn of a few milliseconds, so
//!   even a thousand of them are served within some three seconds. A process that starts may hold its memory map while it locks pages
//!   for transfers, which stops all its threads, so starting has a limit of its own. When no rank is heard at all, this machine's
//!   own network is the likelier cause, and twice the time is given. Time in which the supervisor itself did not run is not counted.
//! - **Standing still.** A rank that reports stays in one phase of one step. The limit is learned: 1.5 of the slowest of the stage's last
//!   50 steps, plus a floor (`cluster.restart.hang_floor_s`) for pauses of the machine; a phase is only part of a step, so the first term
//!   alone is generous. Data waits on storage, whose failovers last tens of seconds: after that limit the rank is named, and only
//!   after three floors is it hung. The first step of a
//!   stage compiles, fills caches and has new shapes: it has the limit of a start, as have saving and evaluating (or ten of the longest
//!   seen), whose duration says nothing about a step's. Ranks wait for each other, so all have the time of the one that may take
//!   longest: a rank in a collective is not blamed while another evaluates.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::Phase;
use vljepa_recipes::schema::Recipe;

/// Steps that are remembered.
const RECENT: usize = 50;
/// A rank that was heard so recently reports: three heartbeats.
const REPORTS: Duration = Duration::from_secs(3);

/// Bounds of the learned limits.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Beyond 1.5 of the slowest recent step: `cluster.restart.hang_floor_s`.
    pub floor: Duration,
    /// Until the first step of a stage is done, and for phases whose duration says nothing about a step's:
    /// `cluster.start_timeout_s`.
    pub start: Duration,
    /// How long a rank may say nothing while others report.
    pub silence: Duration,
    /// The same while it starts.
    pub start_silence: Duration,
    /// Steps of the run at which its stages end.
    pub stage_ends: Vec<u64>,
}

impl Limits {
    pub(crate) fn new(recipe: &Recipe) -> Self {
        let ends = recipe.stages.iter().scan(0_u64, |steps, stage| {
            *steps = steps.saturating_add(stage.steps);
            Some(*steps)
        });
        Self {
            floor: Duration::from_secs(recipe.cluster.restart.hang_floor_s),
            start: Duration::from_secs(recipe.cluster.start_timeout_s),
            silence: Duration::from_secs(10),
            start_silence: Duration::from_secs(60),
            stage_ends: ends.collect(),
        }
    }

    fn stage(&self, step: u64) -> usize {
        self.stage_ends.partition_point(|end| *end <= step)
    }
}

/// Durations of the recent steps of the newest stage.
#[derive(Debug, Default)]
pub(super) struct StepTimes {
    stage: usize,
    recent: VecDeque<Duration>,
    longest_aside: Duration,
}

impl StepTimes {
    /// A step took so long.
    pub(super) fn step(&mut self, limits: &Limits, step: u64, duration: Duration) {
        let stage = limits.stage(step);
        if self.stage != stage {
            self.recent.clear();
            self.stage = stage;
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(duration);
    }

    /// A checkpoint or an evaluation took so long.
    pub(super) fn aside(&mut self, duration: Duration) {
        self.longest_aside = self.longest_aside.max(duration);
    }

    /// How long a rank may stay in one phase of one step.
    pub(super) fn limit(&self, limits: &Limits, step: u64, phase: Phase) -> Duration {
        let start = limits.start.max(limits.floor);
        match (phase, self.slowest(limits, step)) {
            (Phase::Start, _) | (_, None) => start,
            (Phase::Checkpoint | Phase::Evaluation, Some(_)) => start.max(self.longest_aside * 10),
            (Phase::Data, Some(slowest)) => pause(slowest, limits) + limits.floor * 2,
            (
                Phase::Forward | Phase::Collective | Phase::Backward | Phase::Optimizer,
                Some(slowest),
            ) => pause(slowest, limits),
        }
    }

    /// The slowest of the stage's recent steps, when `step` is of that stage and not its first.
    fn slowest(&self, limits: &Limits, step: u64) -> Option<Duration> {
        self.recent.iter().max().copied().filter(|_| self.stage == limits.stage(step))
    }
}

/// What neither a slow step nor a pause of the machine explains.
fn pause(slowest: Duration, limits: &Limits) -> Duration {
    slowest * 3 / 2 + limits.floor
}

/// Where a rank is, since when, and when it was last heard.
#[derive(Debug, Clone)]
pub(super) struct Position {
    pub(super) step: u64,
    pub(super) phase: Phase,
    /// Since when it is in this phase of this step.
    pub(super) since: Instant,
    /// When it last said anything.
    pub(super) heard: Instant,
    /// Number of the last collective it has entered; 0 before the first.
    pub(super) collective: u64,
}

/// A rank that stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hang {
    pub(super) rank: usize,
    pub(super) step: u64,
    pub(super) phase: Phase,
    pub(super) still_for: Duration,
    /// It does not even report.
    pub(super) silent: bool,
    /// Number of the last collective it has entered.
    pub(super) collective: u64,
    /// The highest such number of any rank.
    pub(super) ahead: u64,
}

impl std::fmt::Display for Hang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { still_for, silent, collective, ahead, phase, .. } = self;
        let how =
            if *silent { "it does not report any more" } else { "it reports, but stands still" };
        write!(f, "no progress for {:.0} s; {how}", still_for.as_secs_f64())?;
        match (*collective, *ahead) {
            (_, 0) => Ok(()),
            (own, others) if own < others => {
                write!(f, "; it has come to collective {own}, others wait in collective {others}")
            }
            (own, _) if *phase == Phase::Collective && !silent => {
                write!(f, "; all ranks are in collective {own}: the network between them hangs")
            }
            (own, _) => write!(f, "; all ranks have come to collective {own}"),
        }
    }
}

/// The rank to blame when one stands still too long: a silent one before one that reports, then the one that has entered fewest
/// collectives, then the one that is furthest behind, and one that computes before one that waits in a collective, because the
/// others wait for it there.
pub(super) fn find_hang<'a>(
    ranks: impl Iterator<Item = (usize, &'a Position)> + Clone,
    times: &StepTimes,
    limits: &Limits,
    now: Instant,
) -> Option<Hang> {
    let silence = |p: &Position| now.saturating_duration_since(p.heard);
    let still = |p: &Position| now.saturating_duration_since(p.since);
    let somebody_reports = ranks.clone().any(|(_, p)| silence(p) <= REPORTS);
    let is_silent = |p: &Position| {
        let limit = if p.phase == Phase::Start { limits.start_silence } else { limits.silence };
        silence(p) > if somebody_reports { limit } else { limit * 2 }
    };
    // Ranks wait for each other, so all have the time of the one that may take longest.
    let limit = ranks.clone().map(|(_, p)| times.limit(limits, p.step, p.phase)).max()?;
    let stuck = ranks.clone().any(|(_, p)| is_silent(p) || still(p) > limit);
    if !stuck {
        return None;
    }
    // A rank that missed several heartbeats while others send theirs is the cause even before its own limit.
    let quiet = |p: &Position| silence(p) > limits.silence / 2;
    let ahead = ranks.clone().map(|(_, p)| p.collective).max()?;
    let behind = |p: &Position| (p.collective, p.step, p.phase == Phase::Collective, p.since);
    let (rank, position) = ranks.min_by_key(|(_, p)| (!quiet(p), behind(p)))?;
    Some(Hang {
        rank,
        step: position.step,
        phase: position.phase,
        still_for: still(position),
        silent: quiet(position),
        collective: position.collective,
        ahead,
    })
}

/// The rank that has waited longest for its data, for longer than a step and a pause of the machine explain: it is named before it counts
/// as hung. Its step, how long it has waited, and how long it may.
pub(super) fn find_wait<'a>(
    ranks: impl Iterator<Item = (usize, &'a Position)>,
    times: &StepTimes,
    limits: &Limits,
    now: Instant,
) -> Option<(usize, u64, [Duration; 2])> {
    let waiting = ranks.filter(|(_, p)| p.phase == Phase::Data);
    let (rank, position) = waiting.min_by_key(|(_, p)| p.since)?;
    let still = now.saturating_duration_since(position.since);
    let usual = pause(times.slowest(limits, position.step)?, limits);
    let limit = times.limit(limits, position.step, Phase::Data);
    (still > usual).then_some((rank, position.step, [still, limit]))
}

#[cfg(test)]
#[path = "stall_tests.rs"]
mod tests;
