//! One attempt: workers are started, listened to and judged until they have finished, were stopped, or one of them failed.

mod hear;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{Outcome, Phase};

use super::Watch;
use super::checkpoints::Checkpoints;
use super::observer::Observer;
use super::post_mortem;
use super::progress::Progress;
use super::signals::{Signals, StopSignal};
use super::stall::{self, Limits, Position, StepTimes};
use crate::control::Server;
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
    /// Rank and step of a wait for data that was named.
    named_wait: Option<(usize, u64)>,
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
            named_wait: None,
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
        if let Some(first) = self.facts.stop {
            if first.comes_back() && signal == StopSignal::Terminate {
                // A job that is cancelled while it saves for its requeueing is not to come back.
                self.facts.stop = Some(signal);
                self.events.write(Event::StopRequested { signal: signal.name().to_owned() });
            }
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
        self.name_wait(now);
        self.hang(now).map(End::Fault)
    }

    /// Ranks that still work.
    fn running(&self) -> impl Iterator<Item = (usize, &Position)> + Clone {
        let running = self.members.iter().enumerate().filter(|(_, m)| m.outcome.is_none());
        running.filter_map(|(rank, m)| Some((rank, &m.joined.as_ref()?.position)))
    }

    /// Names a rank that all others wait for because its data do not come, once a step.
    fn name_wait(&mut self, now: Instant) {
        let wait = stall::find_wait(self.running(), &self.times, self.limits, now);
        let Some((rank, step, [waited, limit])) = wait else { return };
        if self.named_wait.replace((rank, step)) == Some((rank, step)) {
            return;
        }
        let host = self.members[rank].joined.as_ref().map(|joined| joined.host.as_str());
        let text = format!(
            "{:.0} s of waiting for the data of step {step} on {}; at {:.0} s it counts as hung",
            waited.as_secs_f64(),
            host.unwrap_or_default(),
            limit.as_secs_f64()
        );
        self.progress.note(&format!("warning of rank {rank}: {text}"));
        self.events.write(Event::Warning { rank, text });
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
        let hang = stall::find_hang(self.running(), &self.times, self.limits, now)?;
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
