//! Decides when a rank counts as hung, with limits learned from the run's own steps. Pure: the
//! caller passes the time.
//!
//! A hung rank shows one of two signs, each with its own limit:
//!
//! - **Silence.** Heartbeats come every second from a thread that touches neither files nor the
//!   device, so they also come while a step computes, waits for storage or saves. If ten heartbeats
//!   of a rank are missing while those of other ranks arrive, its process is stopped, its machine
//!   is dead or its network is cut. A loaded machine does not delay the thread that long: the
//!   kernel gives each runnable thread its turn of a few milliseconds, so even a thousand threads
//!   are served within about three seconds. A starting process may hold the lock of its memory map
//!   while it locks pages for transfers, which stops all its threads, so starting has a longer
//!   limit. If no rank is heard at all, this machine's own network is the likelier cause, and the
//!   limit is doubled. Time in which the supervisor itself did not run is not counted.
//! - **No progress.** A rank sends heartbeats but stays in one phase of one step. The limit is 1.5
//!   times the slowest of the stage's last 50 steps, plus a floor (`cluster.restart.hang_floor_s`)
//!   for pauses of the machine. A phase is only part of a step, so the first term alone is
//!   generous. In the data phase a rank may wait for storage, whose failovers last tens of seconds:
//!   after this limit the rank is named, and it counts as hung only after two more floors. The
//!   first step of a stage compiles kernels, fills caches and has new shapes, so it has the limit
//!   of a start. Loading, saving and evaluating have that limit too, because step times say nothing
//!   about them. There the limit counts from the last piece of work that any of these ranks has
//!   done, not from the beginning: a slow disk is no hang. Saves and evaluations may also take ten
//!   times the longest pause between two pieces so far. Files of published weights are one piece.
//!   Ranks wait for each other, so the largest limit of any rank applies to all: a rank in a
//!   collective is not blamed while another one evaluates.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{CollectiveKind, Phase};
use vljepa_recipes::schema::Recipe;

/// Number of recent steps from which the limit is learned.
const RECENT_STEPS: usize = 50;
/// A rank whose last message is at most this old counts as reporting: three heartbeats.
const REPORTING_WINDOW: Duration = Duration::from_secs(3);

/// Bounds of the learned limits.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Time added to 1.5 times the slowest recent step: `cluster.restart.hang_floor_s`.
    pub floor: Duration,
    /// Limit for starting, for the first step of a stage, for loading, checkpoints and evaluations:
    /// `cluster.start_timeout_s`.
    pub start: Duration,
    /// How long a rank may be silent while others report.
    pub silence: Duration,
    /// How long a starting rank may be silent while others report.
    pub start_silence: Duration,
    /// Step at which each stage ends, counted over the whole run.
    pub stage_ends: Vec<u64>,
}

impl Limits {
    pub(crate) fn new(recipe: &Recipe) -> Self {
        Self {
            floor: Duration::from_secs(recipe.cluster.restart.hang_floor_s),
            start: Duration::from_secs(recipe.cluster.start_timeout_s),
            silence: Duration::from_secs(10),
            start_silence: Duration::from_secs(60),
            stage_ends: recipe.stage_ends().collect(),
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
    longest_pause: Duration,
}

impl StepTimes {
    /// Records the duration of a step. The first step of a new stage clears the durations.
    pub(super) fn step(&mut self, limits: &Limits, step: u64, duration: Duration) {
        let stage = limits.stage(step);
        if self.stage != stage {
            self.recent.clear();
            self.stage = stage;
        }
        if self.recent.len() == RECENT_STEPS {
            self.recent.pop_front();
        }
        self.recent.push_back(duration);
    }

    /// Records a pause between two pieces of work in `phase`. Loading happens once per attempt, so
    /// it says nothing about later phases.
    pub(super) fn pause(&mut self, phase: Phase, pause: Duration) {
        if phase != Phase::Load {
            self.longest_pause = self.longest_pause.max(pause);
        }
    }

    /// How long a rank may stay in one phase of one step.
    pub(super) fn limit(&self, limits: &Limits, step: u64, phase: Phase) -> Duration {
        let start = limits.start.max(limits.floor);
        match (phase, self.slowest(limits, step)) {
            (Phase::Start | Phase::Load, _) | (_, None) => start,
            (Phase::Checkpoint | Phase::Evaluation, Some(_)) => start.max(self.longest_pause * 10),
            (Phase::Data, Some(slowest)) => step_limit(slowest, limits) + limits.floor * 2,
            (
                Phase::Forward | Phase::Collective | Phase::Backward | Phase::Optimizer,
                Some(slowest),
            ) => step_limit(slowest, limits),
        }
    }

    /// Duration of the stage's slowest recent step, or `None` if no step of the stage of `step` is
    /// recorded.
    fn slowest(&self, limits: &Limits, step: u64) -> Option<Duration> {
        self.recent.iter().max().copied().filter(|_| self.stage == limits.stage(step))
    }
}

/// Whether ranks in this phase tell their progress by pieces of work.
pub(super) fn has_work(phase: Phase) -> bool {
    match phase {
        Phase::Load | Phase::Checkpoint | Phase::Evaluation => true,
        Phase::Start
        | Phase::Data
        | Phase::Forward
        | Phase::Collective
        | Phase::Backward
        | Phase::Optimizer => false,
    }
}

/// Longest time in one phase that a slow step and a pause of the machine explain.
fn step_limit(slowest: Duration, limits: &Limits) -> Duration {
    slowest * 3 / 2 + limits.floor
}

/// Position of a rank in the run.
#[derive(Debug, Clone)]
pub(super) struct Position {
    pub(super) step: u64,
    pub(super) phase: Phase,
    /// When the rank entered this phase of this step or, where the phase has work, when a rank has
    /// last done some.
    pub(super) since: Instant,
    /// When the last message arrived.
    pub(super) last_heard: Instant,
    /// Number of the last collective that the rank has entered, from 1; 0 before the first.
    pub(super) collective: u64,
    /// Kind of that collective while the rank is inside it.
    pub(super) inside: Option<CollectiveKind>,
    /// Number of pieces of work outside of steps that the rank has done.
    pub(super) work: u64,
}

/// A hung rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hang {
    pub(super) rank: usize,
    pub(super) step: u64,
    pub(super) phase: Phase,
    pub(super) still_for: Duration,
    /// Whether the rank sends no heartbeats either.
    pub(super) silent: bool,
    /// Number of the last collective that the rank has entered.
    pub(super) collective: u64,
    /// Highest number of a collective that any rank has entered.
    pub(super) ahead: u64,
    /// Kind of that collective if a rank is inside it.
    pub(super) inside: Option<CollectiveKind>,
    /// Whether all ranks are inside it.
    pub(super) all_inside: bool,
}

impl std::fmt::Display for Hang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { still_for, silent, collective, ahead, .. } = self;
        let kind = self.inside.map_or_else(String::new, |kind| format!(" ({})", kind.name()));
        let how = if *silent { "it sends no heartbeats" } else { "it still sends heartbeats" };
        write!(f, "no progress for {:.0} s; {how}", still_for.as_secs_f64())?;
        match (*collective, *ahead) {
            (_, 0) => Ok(()),
            (own, others) if own < others => {
                let wait = format!("others wait in collective {others}{kind}");
                write!(f, "; it has reached collective {own}, {wait}")
            }
            (own, _) if self.all_inside && !silent => {
                let hangs = "the network between them hangs";
                write!(f, "; all ranks are in collective {own}{kind}: {hangs}")
            }
            (own, _) => write!(f, "; all ranks have reached collective {own}"),
        }
    }
}

/// Finds the rank to blame if any rank exceeds its limit. Candidates are compared in this order: a
/// silent rank before a reporting one; the rank that has entered the fewest collectives; the rank
/// with the lowest step; a rank that computes before one that waits in a collective, because the
/// waiting ranks wait for it; the rank that has been in its phase longest.
pub(super) fn find_hang<'a>(
    ranks: impl Iterator<Item = (usize, &'a Position)> + Clone,
    times: &StepTimes,
    limits: &Limits,
    now: Instant,
) -> Option<Hang> {
    let silence = |p: &Position| now.saturating_duration_since(p.last_heard);
    let still = |p: &Position| now.saturating_duration_since(p.since);
    let somebody_reports = ranks.clone().any(|(_, p)| silence(p) <= REPORTING_WINDOW);
    let is_silent = |p: &Position| {
        let starts = matches!(p.phase, Phase::Start | Phase::Load);
        let limit = if starts { limits.start_silence } else { limits.silence };
        silence(p) > if somebody_reports { limit } else { limit * 2 }
    };
    // Ranks wait for each other, so the largest limit applies to all of them.
    let limit = ranks.clone().map(|(_, p)| times.limit(limits, p.step, p.phase)).max()?;
    let stuck = ranks.clone().any(|(_, p)| is_silent(p) || still(p) > limit);
    if !stuck {
        return None;
    }
    // A rank that has missed several heartbeats counts as silent here even before its own limit: it
    // is the likelier cause.
    let quiet = |p: &Position| silence(p) > limits.silence / 2;
    let ahead = ranks.clone().map(|(_, p)| p.collective).max()?;
    let is_inside = |p: &Position| p.collective == ahead && p.inside.is_some();
    let inside = ranks.clone().find(|(_, p)| is_inside(p)).and_then(|(_, p)| p.inside);
    let all_inside = ranks.clone().all(|(_, p)| is_inside(p));
    let waits = |p: &Position| p.phase == Phase::Collective || p.inside.is_some();
    let behind = |p: &Position| (p.collective, p.step, waits(p), p.since);
    let (rank, position) = ranks.min_by_key(|(_, p)| (!quiet(p), behind(p)))?;
    Some(Hang {
        rank,
        step: position.step,
        phase: position.phase,
        still_for: still(position),
        silent: quiet(position),
        collective: position.collective,
        ahead,
        inside,
        all_inside,
    })
}

/// Finds the rank that has waited longest for data, if a slow step and a pause of the machine do
/// not explain the wait, so that it can be named before it counts as hung. Returns its rank, its
/// step, and two durations: how long it has waited and how long it may wait.
pub(super) fn find_wait<'a>(
    ranks: impl Iterator<Item = (usize, &'a Position)>,
    times: &StepTimes,
    limits: &Limits,
    now: Instant,
) -> Option<(usize, u64, [Duration; 2])> {
    let waiting = ranks.filter(|(_, p)| p.phase == Phase::Data);
    let (rank, position) = waiting.min_by_key(|(_, p)| p.since)?;
    let still = now.saturating_duration_since(position.since);
    let usual = step_limit(times.slowest(limits, position.step)?, limits);
    let limit = times.limit(limits, position.step, Phase::Data);
    (still > usual).then_some((rank, position.step, [still, limit]))
}

#[cfg(test)]
#[path = "stall_tests.rs"]
mod tests;
