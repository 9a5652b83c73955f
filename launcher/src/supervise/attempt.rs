//! One attempt: workers are started, listened to and judged until they have finished, were stopped, or one of them failed.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use vljepa_recipes::protocol::{FromSupervisor, FromWorker, Hello, Outcome, Phase};

use super::Watch;
use super::checkpoints::Checkpoints;
use super::observer::Observer;
use super::post_mortem;
use super::progress::Progress;
use super::signals::{Signals, StopSignal};
use super::stall::{self, Limits, Position, StepTimes};
use crate::control::{Heard, Server};
use crate::events::{Event, EventLog, Fault, FaultKind};
use crate::local::{self, Group};

/// After a first sign of a fault, time for the other signs: the process's end, the error a rank reports.
const SETTLE: Duration = Duration::from_millis(2500);
/// Ranks that have finished may take so long to end.
const LAST_BREATH: Duration = Duration::from_secs(20);
/// Between a signal to a worker and the stop it asks for.
const HEED: Duration = Duration::from_secs(1);
/// Longer than this between two looks at the clock, and this process itself did not run.
const PAUSE: Duration = Duration::from_secs(3);
/// Strangers that are named; a scanner of ports must not fill the disk.
const NAMED_STRANGERS: usize = 20;
/// Ranks that an error names beside the first.
const NAMED: usize = 16;
/// Between looks at the clock.
const TICK: Duration = Duration::from_millis(100);

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum End {
    /// All ranks say that all is done.
    Completed,
    /// All ranks saved and ended on request.
    Stopped,
    /// A second signal ended it at once.
    Killed,
    /// Something went wrong.
    Fault(Fault),
}

/// An attempt at work.
pub(super) struct Attempt<'a> {
    pub(super) server: Server,
    pub(super) group: Group,
    pub(super) events: EventLog,
    pub(super) limits: &'a Limits,
    pub(super) progress: &'a mut Progress,
    pub(super) observer: &'a mut Observer,
    /// Log of a rank.
    pub(super) log: Box<dyn Fn(usize) -> PathBuf + 'a>,
    /// What the started process and its children print.
    pub(super) output: PathBuf,
    pub(super) facts: Facts,
    /// A drill: this process kills itself when it hears of the step.
    pub(super) kill_supervisor_at: Option<u64>,
    members: Vec<Member>,
    times: StepTimes,
    started: Instant,
    exited: Option<(Instant, ExitStatus)>,
    finished_at: Option<Instant>,
    suspicion: Option<(Instant, Fault)>,
    /// A worker got a signal that asks for a stop.
    signalled: Option<(Instant, StopSignal)>,
    strangers: usize,
    checkpoints: Checkpoints,
}

/// What an attempt got done.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// First step seen.
    pub first_step: Option<u64>,
    /// Last step seen.
    pub last_step: u64,
    /// Step of the newest checkpoint of all attempts.
    pub newest_saved: Option<u64>,
    /// This attempt has saved one that is newer than those before it.
    pub saved: bool,
    /// At least one step was finished.
    pub trained: bool,
    /// The newest step whose metrics are known, as heartbeats count.
    pub trained_step: Option<u64>,
    /// This launcher has started workers before.
    pub again: bool,
    /// Who asked for a stop.
    pub stop: Option<StopSignal>,
}

#[derive(Debug, Default)]
struct Member {
    joined: Option<Joined>,
    outcome: Option<Outcome>,
}

#[derive(Debug)]
struct Joined {
    host: String,
    pid: u32,
    position: Position,
    /// When its step began, less the time spent aside of steps.
    step_since: Instant,
}

impl<'a> Attempt<'a> {
    #[expect(clippy::too_many_arguments, reason = "the parts of an attempt, named by its fields")]
    pub(super) fn new(
        world_size: usize,
        server: Server,
        group: Group,
        events: EventLog,
        limits: &'a Limits,
        Watch { progress, observer }: Watch<'a>,
        log: Box<dyn Fn(usize) -> PathBuf + 'a>,
        output: PathBuf,
        facts: Facts,
    ) -> Self {
        Self {
            server,
            group,
            events,
            limits,
            progress,
            observer,
            log,
            output,
            facts,
            kill_supervisor_at: None,
            members: (0..world_size).map(|_| Member::default()).collect(),
            times: StepTimes::default(),
            started: Instant::now(),
            exited: None,
            finished_at: None,
            suspicion: None,
            signalled: None,
            strangers: 0,
            checkpoints: Checkpoints::new(world_size),
        }
    }

    /// Works until the end; no process of the attempt is left behind.
    pub(super) async fn run(&mut self, signals: &mut Signals) -> End {
        if self.facts.stop.is_some() {
            self.server.stop_all();
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let end = loop {
            let exited = self.exited.is_some();
            // Judging looks at every rank, so it happens by the clock and not with every message, which would be quadratic.
            tokio::select! {
                Some(heard) = self.server.next() => {
                    self.hear(heard);
                    continue;
                }
                status = self.group.wait(), if !exited => {
                    if let Ok(status) = status {
                        self.exited = Some((Instant::now(), status));
                    }
                }
                signal = signals.next() => {
                    if self.stop(signal) {
                        break End::Killed;
                    }
                }
                _ = tick.tick() => {}
            }
            let now = Instant::now();
            self.credit(now.saturating_duration_since(looked));
            looked = now;
            self.heed_signal(now);
            if let Some(end) = self.judge(now) {
                break end;
            }
        };
        match end {
            End::Killed => self.group.end_now().await,
            End::Completed | End::Stopped => self.group.end().await,
            End::Fault(_) => {
                self.server.close();
                self.group.end().await;
            }
        }
        match end {
            End::Fault(fault) => End::Fault(self.explain(fault)),
            End::Completed | End::Stopped | End::Killed => end,
        }
    }

    /// Time in which this process did not run, because its machine froze or it was stopped, is no rank's fault: what was said in it is
    /// heard only now.
    fn credit(&mut self, gap: Duration) {
        if gap < PAUSE {
            return;
        }
        let seconds = gap.as_secs_f64();
        self.progress.note(&format!(
            "warning: this launcher did not run for {seconds:.0} s; its ranks are given that time"
        ));
        self.started += gap;
        for joined in self.members.iter_mut().filter_map(|member| member.joined.as_mut()) {
            joined.position.since += gap;
            joined.position.heard += gap;
            joined.step_since += gap;
        }
    }

    /// Asks for a stop; true when a person repeats it.
    fn stop(&mut self, signal: StopSignal) -> bool {
        if self.facts.stop.is_some() {
            return signal.is_impatient();
        }
        self.facts.stop = Some(signal);
        self.events.write(Event::StopRequested { signal: signal.name().to_owned() });
        self.progress.note(&format!(
            "{}: saving at the next step boundary, then ending. Ctrl-C again ends at once.",
            signal.name()
        ));
        self.progress.stopping();
        self.server.stop_all();
        false
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Joined(hello) => self.join(hello),
            Heard::Said(rank, message) => self.said(rank, message),
            Heard::Lost(rank) => {
                self.observer.lost(rank);
                if self.members[rank].outcome.is_none() {
                    self.suspect(rank, FaultKind::Died, String::new());
                }
            }
            Heard::Refused { rank, peer, reason } => self.refused(rank, &peer.to_string(), reason),
        }
    }

    fn refused(&mut self, rank: Option<usize>, peer: &str, reason: String) {
        let event = Event::Refused { peer: peer.to_owned(), reason: reason.clone() };
        if let Some(rank) = rank {
            self.events.write(event);
            return self.suspect(rank, FaultKind::Refused, reason);
        }
        self.strangers += 1;
        if self.strangers <= NAMED_STRANGERS {
            self.events.write(event);
            self.progress.note(&format!("refused a connection from {peer}: {reason}"));
        }
        if self.strangers == NAMED_STRANGERS {
            self.progress.note("further strangers are refused without a word");
        }
    }

    fn join(&mut self, hello: Hello) {
        let Hello { rank, host, pid, device, build, .. } = hello;
        self.observer.joined(rank, &host);
        let now = Instant::now();
        let position =
            Position { step: 0, phase: Phase::Start, since: now, heard: now, collective: 0 };
        self.members[rank].joined =
            Some(Joined { host: host.clone(), pid, position, step_since: now });
        self.events.write(Event::RankJoined { rank, host, pid, device, build });
    }

    fn said(&mut self, rank: usize, message: FromWorker) {
        let now = Instant::now();
        if let Some(joined) = &mut self.members[rank].joined {
            joined.position.heard = now;
        }
        if let Some(slow) = self.observer.hear(rank, &message, &self.events) {
            self.progress.note(&slow);
        }
        match message {
            // Ids of NCCL are the server's own business.
            FromWorker::Hello(_)
            | FromWorker::Knock { .. }
            | FromWorker::NcclId { .. }
            | FromWorker::Interval(_) => {}
            FromWorker::Heartbeat { step, phase, collective } => {
                if let Some(joined) = &mut self.members[rank].joined {
                    joined.position.collective = collective;
                }
                self.beat(rank, step, phase, now);
            }
            FromWorker::Metrics(metrics) => {
                self.facts.last_step = metrics.step;
                self.facts.trained = true;
                self.facts.trained_step = metrics.step.checked_sub(1);
                self.progress.metrics(metrics);
            }
            FromWorker::Saved { step, name, stall_s, durable_s } => {
                self.settle(step, None);
                if self.facts.newest_saved.is_none_or(|newest| step > newest) {
                    self.facts.newest_saved = Some(step);
                    self.facts.saved = true;
                }
                self.events.write(Event::Saved { step, name, stall_s, durable_s });
            }
            FromWorker::NotSaved { step, error } => self.settle(step, Some(&error)),
            FromWorker::Part { step, part } => {
                if let Some((rank, order)) = self.checkpoints.part(rank, step, part) {
                    self.server.tell(rank, FromSupervisor::Checkpoint { order });
                }
            }
            FromWorker::Scores { step, values } => {
                let text: Vec<String> =
                    values.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
                self.progress.note(&format!("scores at step {step}: {}", text.join(", ")));
                self.events.write(Event::Scores { step, values });
            }
            FromWorker::Warning { text } => {
                self.progress.note(&format!("warning of rank {rank}: {text}"));
                self.events.write(Event::Warning { rank, text });
            }
            FromWorker::Signalled { number } => {
                self.signalled.get_or_insert((now, StopSignal::of_number(number)));
            }
            FromWorker::Finished { outcome, step } => {
                self.facts.last_step = self.facts.last_step.max(step);
                self.members[rank].outcome = Some(outcome);
            }
            FromWorker::Failed { step, phase, error } => {
                self.beat(rank, step, phase, now);
                self.suspect(rank, FaultKind::Reported, error);
            }
        }
    }

    /// Rank 0 is done with a checkpoint.
    fn settle(&self, step: u64, error: Option<&str>) {
        for (rank, order) in self.checkpoints.settled(step, error) {
            self.server.tell(rank, FromSupervisor::Checkpoint { order });
        }
    }

    fn beat(&mut self, rank: usize, step: u64, phase: Phase, now: Instant) {
        if self.kill_supervisor_at.is_some_and(|drill| step >= drill) {
            self.progress.note(&format!("drill kill-supervisor:step={step}"));
            raise(Signal::SIGKILL).ok();
        }
        let Some(joined) = &mut self.members[rank].joined else { return };
        let position = &mut joined.position;
        if rank == 0 {
            self.progress.at(step, phase);
        }
        if (position.step, position.phase) == (step, phase) {
            return;
        }
        if matches!(position.phase, Phase::Start | Phase::Checkpoint | Phase::Evaluation) {
            let spent = now.saturating_duration_since(position.since);
            joined.step_since += spent;
            if position.phase != Phase::Start {
                self.times.aside(spent);
            }
        }
        let steps = step.saturating_sub(position.step);
        if position.phase == Phase::Start {
            self.facts.first_step.get_or_insert(step);
        } else if let Ok(steps @ 1..) = u32::try_from(steps) {
            let took = now.saturating_duration_since(joined.step_since) / steps;
            self.times.step(self.limits, position.step, took);
            self.facts.trained = true;
        }
        if steps > 0 {
            joined.step_since = now;
            self.facts.last_step = self.facts.last_step.max(position.step);
        }
        let collective = position.collective;
        *position = Position { step, phase, since: now, heard: now, collective };
    }

    /// Notes the first sign of a fault. What a rank itself reports says more than that its connection is gone.
    fn suspect(&mut self, rank: usize, kind: FaultKind, error: String) {
        let better = match &self.suspicion {
            None => true,
            Some((_, known)) => known.rank == Some(rank) && kind == FaultKind::Reported,
        };
        if better {
            let fault = self.fault(Some(rank), kind, error);
            self.suspicion = Some((Instant::now(), fault));
        }
    }

    fn fault(&self, rank: Option<usize>, kind: FaultKind, error: String) -> Fault {
        let joined = rank.and_then(|rank| self.members.get(rank)?.joined.as_ref());
        let log = rank.map_or_else(|| self.output.clone(), |rank| (self.log)(rank));
        let told = joined.map_or((self.facts.last_step, Phase::Start), |joined| {
            (joined.position.step, joined.position.phase)
        });
        // Heartbeats lag by a tenth of a second, in which small models take many steps. Metrics of a step mean that every rank was in
        // its last collective.
        let (step, phase) = match self.facts.trained_step {
            Some(step) => told.max((step, Phase::Optimizer)),
            None => told,
        };
        Fault { kind, rank, step, phase, error, log: log.display().to_string() }
    }

    /// A signal that workers got asks for a stop, unless a rank has just failed: `srun` then ends the others with the same signal.
    fn heed_signal(&mut self, now: Instant) {
        if self.suspicion.is_some() || self.exited.is_some() || self.facts.stop.is_some() {
            self.signalled = None;
        } else if let Some((at, signal)) = self.signalled
            && now.saturating_duration_since(at) > HEED
        {
            self.stop(signal);
        }
    }

    /// Whether the attempt is over.
    fn judge(&mut self, now: Instant) -> Option<End> {
        let exited_for = self.exited.map(|(at, _)| now.saturating_duration_since(at));
        if self.members.iter().all(|member| member.outcome.is_some()) {
            let since = *self.finished_at.get_or_insert(now);
            let over = exited_for.is_some() || now.saturating_duration_since(since) > LAST_BREATH;
            let stopped = self.members.iter().any(|m| m.outcome == Some(Outcome::Stopped));
            return over.then_some(if stopped { End::Stopped } else { End::Completed });
        }
        if let Some((since, fault)) = &self.suspicion {
            // Connections end a moment before the process does; a little longer until messages on the way have arrived.
            let settled = exited_for.is_some_and(|time| time > TICK)
                || now.saturating_duration_since(*since) > SETTLE;
            return settled.then(|| End::Fault(fault.clone()));
        }
        if exited_for.is_some_and(|time| time > SETTLE / 5) {
            let failed = self.group.failed_rank();
            let silent = match failed {
                Some(rank) => self.members[rank].joined.is_none(),
                None => self.members.iter().all(|member| member.joined.is_none()),
            };
            let unfinished = || self.members.iter().position(|member| member.outcome.is_none());
            let rank = failed.or_else(|| unfinished().filter(|_| !silent));
            let kind = if silent { FaultKind::NotStarted } else { FaultKind::Died };
            return Some(End::Fault(self.fault(rank, kind, String::new())));
        }
        self.hang(now).map(End::Fault)
    }

    fn hang(&self, now: Instant) -> Option<Fault> {
        let absent = |(rank, member): (usize, &Member)| member.joined.is_none().then_some(rank);
        let mut missing = self.members.iter().enumerate().filter_map(absent);
        let waited = now.saturating_duration_since(self.started);
        if let Some(rank) = missing.next() {
            let late = waited > self.limits.start;
            return late.then(|| {
                let mut error = format!("it did not connect within {:.0} s", waited.as_secs_f64());
                let others: Vec<String> = missing.map(|rank| rank.to_string()).collect();
                if !others.is_empty() {
                    let shown = &others[..others.len().min(NAMED)];
                    error += &format!(", nor did {} others: {}", others.len(), shown.join(", "));
                }
                self.fault(Some(rank), FaultKind::NotStarted, error)
            });
        }
        let running = self.members.iter().enumerate().filter(|(_, m)| m.outcome.is_none());
        let positions = running.filter_map(|(rank, m)| Some((rank, &m.joined.as_ref()?.position)));
        let hang = stall::find_hang(positions, &self.times, self.limits, now)?;
        Some(self.fault(Some(hang.rank), FaultKind::Hung, hang.to_string()))
    }

    /// Adds what can be known only after the end: how the process ended, what it printed.
    fn explain(&mut self, mut fault: Fault) -> Fault {
        let status = self.exited.map(|(_, status)| status);
        let said = post_mortem::last_lines(&self.output, post_mortem::LINES);
        match fault.kind {
            FaultKind::Died => {
                let joined = fault.rank.and_then(|rank| self.members[rank].joined.as_ref());
                let process = joined
                    .map(|j| format!("process {} on {}", j.pid, j.host))
                    .unwrap_or_else(|| "its process".to_owned());
                let own = fault.rank.and_then(|rank| self.group.ending_of(rank));
                let how = match own.or(status) {
                    Some(status) if own.is_some() => Some(local::ending(status)),
                    Some(status) if self.members.len() == 1 => Some(local::ending(status)),
                    Some(_) | None => fault.rank.and_then(|rank| {
                        post_mortem::mpirun_ending(&said, rank)
                            .or_else(|| post_mortem::srun_ending(&said, rank))
                    }),
                };
                fault.error = how.map_or_else(
                    || format!("{process} closed its connection"),
                    |how| format!("{process} ended with {how}"),
                );
            }
            FaultKind::NotStarted if fault.error.is_empty() => {
                let own = fault.rank.and_then(|rank| self.group.ending_of(rank));
                let how = own.or(status).map_or_else(|| "an unknown end".to_owned(), local::ending);
                fault.error = format!("{how} before it connected");
                if let Some(last) = said.iter().rev().find(|line| !line.trim().is_empty()) {
                    fault.error += &format!("; it said: {}", last.trim());
                }
            }
            FaultKind::NotStarted
            | FaultKind::Reported
            | FaultKind::Hung
            | FaultKind::Refused
            | FaultKind::NoRecord => {}
        }
        fault
    }
}
