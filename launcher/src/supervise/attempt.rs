//! One attempt: workers are started, listened to and judged until they have finished, were stopped, or one of them failed.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{FromSupervisor, FromWorker, Hello, Outcome, Phase};

use super::checkpoints::Checkpoints;
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
    /// Log of a rank.
    pub(super) log: Box<dyn Fn(usize) -> PathBuf + 'a>,
    /// What the started process and its children print.
    pub(super) output: PathBuf,
    pub(super) facts: Facts,
    members: Vec<Member>,
    times: StepTimes,
    started: Instant,
    exited: Option<(Instant, ExitStatus)>,
    finished_at: Option<Instant>,
    suspicion: Option<(Instant, Fault)>,
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
        progress: &'a mut Progress,
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
            log,
            output,
            facts,
            members: (0..world_size).map(|_| Member::default()).collect(),
            times: StepTimes::default(),
            started: Instant::now(),
            exited: None,
            finished_at: None,
            suspicion: None,
            checkpoints: Checkpoints::new(world_size),
        }
    }

    /// Works until the end; no process of the attempt is left behind.
    pub(super) async fn run(&mut self, signals: &mut Signals) -> End {
        if self.facts.stop.is_some() {
            self.server.stop_all();
        }
        let mut tick = tokio::time::interval(TICK);
        let end = loop {
            let exited = self.exited.is_some();
            tokio::select! {
                Some(heard) = self.server.next() => self.hear(heard),
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
            if let Some(end) = self.judge(Instant::now()) {
                break end;
            }
        };
        match end {
            End::Killed => self.group.end_now().await,
            End::Completed | End::Stopped | End::Fault(_) => self.group.end().await,
        }
        match end {
            End::Fault(fault) => End::Fault(self.explain(fault)),
            End::Completed | End::Stopped | End::Killed => end,
        }
    }

    /// Asks for a stop; true when it was the second request.
    fn stop(&mut self, signal: StopSignal) -> bool {
        if self.facts.stop.is_some() {
            return true;
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
                if self.members[rank].outcome.is_none() {
                    self.suspect(rank, FaultKind::Died, String::new());
                }
            }
            Heard::Refused { rank, peer, reason } => {
                let peer = peer.to_string();
                self.events.write(Event::Refused { peer: peer.clone(), reason: reason.clone() });
                match rank {
                    Some(rank) => self.suspect(rank, FaultKind::Refused, reason),
                    None => {
                        self.progress.note(&format!("refused a connection from {peer}: {reason}"))
                    }
                }
            }
        }
    }

    fn join(&mut self, hello: Hello) {
        let Hello { rank, host, pid, device, build, .. } = hello;
        let now = Instant::now();
        let position = Position { step: 0, phase: Phase::Start, since: now, heard: now };
        self.members[rank].joined =
            Some(Joined { host: host.clone(), pid, position, step_since: now });
        self.events.write(Event::RankJoined { rank, host, pid, device, build });
    }

    fn said(&mut self, rank: usize, message: FromWorker) {
        let now = Instant::now();
        if let Some(joined) = &mut self.members[rank].joined {
            joined.position.heard = now;
        }
        match message {
            FromWorker::Hello(_) => {}
            FromWorker::Heartbeat { step, phase } => self.beat(rank, step, phase, now),
            FromWorker::Metrics(metrics) => {
                self.facts.last_step = metrics.step;
                self.facts.trained = true;
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
            self.times.step(now.saturating_duration_since(joined.step_since) / steps);
            self.facts.trained = true;
        }
        if steps > 0 {
            joined.step_since = now;
            self.facts.last_step = self.facts.last_step.max(position.step);
        }
        *position = Position { step, phase, since: now, heard: now };
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
        Fault {
            kind,
            rank,
            step: joined.map_or(self.facts.last_step, |joined| joined.position.step),
            phase: joined.map_or(Phase::Start, |joined| joined.position.phase),
            error,
            log: log.display().to_string(),
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
            let silent = self.members.iter().all(|member| member.joined.is_none());
            let rank = self.members.iter().position(|member| member.outcome.is_none());
            let kind = if silent { FaultKind::NotStarted } else { FaultKind::Died };
            return Some(End::Fault(self.fault(rank.filter(|_| !silent), kind, String::new())));
        }
        self.hang(now).map(End::Fault)
    }

    fn hang(&self, now: Instant) -> Option<Fault> {
        let missing = self.members.iter().position(|member| member.joined.is_none());
        let waited = now.saturating_duration_since(self.started);
        if let Some(rank) = missing {
            let late = waited > self.limits.start;
            return late.then(|| {
                let error = format!("it did not connect within {:.0} s", waited.as_secs_f64());
                self.fault(Some(rank), FaultKind::NotStarted, error)
            });
        }
        let running = self.members.iter().enumerate().filter(|(_, m)| m.outcome.is_none());
        let positions = running.filter_map(|(rank, m)| Some((rank, &m.joined.as_ref()?.position)));
        let hang = stall::find_hang(positions, &self.times, self.limits, now)?;
        let how = if hang.silent {
            "it does not report any more"
        } else {
            "it reports, but stands still"
        };
        let error = format!("no progress for {:.0} s; {how}", hang.still_for.as_secs_f64());
        Some(self.fault(Some(hang.rank), FaultKind::Hung, error))
    }

    /// Adds what can be known only after the end: how the process ended, what it printed.
    fn explain(&self, mut fault: Fault) -> Fault {
        let status = self.exited.map(|(_, status)| status);
        let said = post_mortem::last_lines(&self.output, post_mortem::LINES);
        match fault.kind {
            FaultKind::Died => {
                let joined = fault.rank.and_then(|rank| self.members[rank].joined.as_ref());
                let process = joined
                    .map(|j| format!("process {} on {}", j.pid, j.host))
                    .unwrap_or_else(|| "its process".to_owned());
                let how = match status {
                    Some(status) if self.members.len() == 1 => Some(local::ending(status)),
                    Some(_) | None => fault.rank.and_then(|r| post_mortem::mpirun_ending(&said, r)),
                };
                fault.error = how.map_or_else(
                    || format!("{process} closed its connection"),
                    |how| format!("{process} ended with {how}"),
                );
            }
            FaultKind::NotStarted if fault.error.is_empty() => {
                let how = status.map_or_else(|| "an unknown end".to_owned(), local::ending);
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
