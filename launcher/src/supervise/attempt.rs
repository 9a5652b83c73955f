//! One attempt: receives the messages of the workers and judges their state until they have
//! finished, were stopped, or one of them failed.

mod messages;

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
use super::start_up::StartUp;
use crate::control::Server;
use crate::platform::workers::Group;
use crate::process;
use crate::record::events::{Event, EventLog, Fault, FaultKind};

/// How long to wait after the first sign of a fault for other signs: the end of the process, the
/// error that the rank reports.
const SETTLE: Duration = Duration::from_millis(2500);
/// How long finished ranks may take to exit before they are killed.
const FINISHED_EXIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between a signal that a worker received and the stop that it requests.
const SIGNAL_DELAY: Duration = Duration::from_secs(1);
/// Shortest gap between two looks at the clock that means that this process itself did not run.
const SUPERVISOR_PAUSE: Duration = Duration::from_secs(3);
/// Largest number of ranks that an error names in addition to the first.
const MAX_NAMED_RANKS: usize = 16;
/// Time between two judgements of the ranks.
const TICK: Duration = Duration::from_millis(100);

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum End {
    /// All ranks reported that the run is complete.
    Completed,
    /// All ranks saved and ended on request.
    Stopped,
    /// A request to stop ended the attempt at once: a second Ctrl-C, or a request that came before
    /// all ranks had connected or that they did not follow in the job's time.
    Killed,
    Fault(Fault),
}

/// A running attempt.
pub(super) struct Attempt<'a> {
    pub(super) server: Server,
    pub(super) group: Group,
    pub(super) events: EventLog,
    pub(super) limits: &'a Limits,
    pub(super) progress: &'a mut Progress,
    pub(super) observer: &'a mut Observer,
    /// Path of a rank's log.
    pub(super) log: Box<dyn Fn(usize) -> PathBuf + 'a>,
    /// File with the output of the started process and its children.
    pub(super) output: PathBuf,
    pub(super) facts: Facts,
    /// For a drill: this process kills itself when a rank reports this step.
    pub(super) kill_supervisor_at: Option<u64>,
    pub(super) start_up: StartUp,
    members: Vec<Member>,
    /// Number of ranks that have connected.
    joined: usize,
    times: StepTimes,
    started: Instant,
    exited: Option<(Instant, ExitStatus)>,
    finished_at: Option<Instant>,
    suspicion: Option<(Instant, Fault)>,
    /// A signal that a worker received and that requests a stop, with its time.
    signalled: Option<(Instant, StopSignal)>,
    strangers: usize,
    /// Rank and step of the last wait for data that was reported.
    named_wait: Option<(usize, u64)>,
    checkpoints: Checkpoints,
}

/// Progress of an attempt, and facts that are carried from one attempt to the next.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Checkpoint of another run whose weights this attempt has started from.
    pub initialised: Option<PathBuf>,
    /// First step that was reported.
    pub first_step: Option<u64>,
    /// Last step that was reported.
    pub last_step: u64,
    /// Step of the newest checkpoint of all attempts.
    pub newest_saved: Option<u64>,
    /// Whether this attempt has saved a newer checkpoint than all earlier attempts.
    pub saved: bool,
    /// Whether at least one step was finished.
    pub trained: bool,
    /// Newest step with known metrics, counted from 0 as in heartbeats.
    pub trained_step: Option<u64>,
    /// Whether this launcher has started workers before.
    pub again: bool,
    /// The request to stop, if there was one.
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
    /// Start of the current step, moved forward by the time spent in checkpoints and evaluations.
    step_since: Instant,
}

impl Joined {
    /// Notes that the rank goes on at `now`, outside of a step. Returns how long it had not.
    fn renew(&mut self, now: Instant) -> Duration {
        let still = now.saturating_duration_since(self.position.since);
        self.step_since += still;
        self.position.since = now;
        still
    }
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
            start_up: StartUp::new(Duration::ZERO, Instant::now()),
            members: (0..world_size).map(|_| Member::default()).collect(),
            joined: 0,
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

    /// Supervises the attempt until it ends, and ends all of its processes.
    pub(super) async fn run(&mut self, signals: &mut Signals) -> End {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let end = loop {
            let exited = self.exited.is_some();
            // Judging looks at every rank. It happens once per tick and not once per message, which
            // would be quadratic in the number of ranks.
            tokio::select! {
                Some(event) = self.server.next() => {
                    self.handle(event);
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
            self.excuse_pause(now.saturating_duration_since(looked));
            looked = now;
            if self.stop_on_signal(now) || self.is_out_of_time(signals.last_moment(), now) {
                break End::Killed;
            }
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

    /// Extends the times of all ranks by `gap` if this process itself did not run for that long,
    /// because it was stopped or its machine froze. Messages sent during the gap arrive only
    /// afterwards, so no rank is to blame.
    fn excuse_pause(&mut self, gap: Duration) {
        if gap < SUPERVISOR_PAUSE {
            return;
        }
        let seconds = gap.as_secs_f64();
        self.progress.note(&format!(
            "warning: this launcher did not run for {seconds:.0} s; the limits of its ranks are extended by that time"
        ));
        self.started += gap;
        for joined in self.members.iter_mut().filter_map(|member| member.joined.as_mut()) {
            joined.position.since += gap;
            joined.position.last_heard += gap;
            joined.step_since += gap;
        }
    }

    /// Asks all ranks to save and stop. Returns `true` if the request must end the attempt at once:
    /// it repeats an earlier one, or a rank has not connected yet, so that no step was trained.
    fn stop(&mut self, signal: StopSignal) -> bool {
        if let Some(first) = self.facts.stop {
            if first.comes_back() && signal == StopSignal::Terminate {
                // A job that is cancelled while it saves before being requeued must not be
                // requeued.
                self.facts.stop = Some(signal);
                self.events.write(Event::StopRequested { signal: signal.name().to_owned() });
            }
            return signal.is_impatient();
        }
        self.facts.stop = Some(signal);
        self.events.write(Event::StopRequested { signal: signal.name().to_owned() });
        if self.members.iter().any(|member| member.joined.is_none()) {
            self.progress.note(&format!("{}: ending before all ranks have started", signal.name()));
            return true;
        }
        self.progress.note(&format!(
            "{}: saving at the next step boundary, then ending; the next Ctrl-C ends at once",
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
        // Heartbeats lag by up to a tenth of a second, in which small models take many steps.
        // Metrics of a step prove that every rank has reached the last collective of that step.
        let (step, phase) = match self.facts.trained_step {
            Some(step) => told.max((step, Phase::Optimizer)),
            None => told,
        };
        Fault { kind, rank, step, phase, error, log: log.display().to_string() }
    }

    /// Stops the attempt if a worker received a signal, unless a rank has failed: `srun` ends the
    /// other ranks with the same signal. Returns like [`Self::stop`].
    fn stop_on_signal(&mut self, now: Instant) -> bool {
        if self.suspicion.is_some() || self.exited.is_some() || self.facts.stop.is_some() {
            self.signalled = None;
        } else if let Some((at, signal)) = self.signalled
            && now.saturating_duration_since(at) > SIGNAL_DELAY
        {
            return self.stop(signal);
        }
        false
    }

    /// Whether ranks that were asked to stop are still running at `last_moment`, when the job must
    /// be requeued: Slurm does not requeue a job that reaches its time limit.
    fn is_out_of_time(&self, last_moment: Option<Instant>, now: Instant) -> bool {
        let out = self.facts.stop.is_some_and(StopSignal::comes_back)
            && last_moment.is_some_and(|moment| now >= moment);
        if out {
            self.progress.note(
                "warning: the job's time ends before all ranks have stopped; the run continues from its newest checkpoint",
            );
        }
        out
    }

    /// Returns how the attempt ended, or `None` while it goes on.
    fn judge(&mut self, now: Instant) -> Option<End> {
        let exited_for = self.exited.map(|(at, _)| now.saturating_duration_since(at));
        if self.members.iter().all(|member| member.outcome.is_some()) {
            let since = *self.finished_at.get_or_insert(now);
            let over = exited_for.is_some()
                || now.saturating_duration_since(since) > FINISHED_EXIT_TIMEOUT;
            let stopped = self.members.iter().any(|m| m.outcome == Some(Outcome::Stopped));
            return over.then_some(if stopped { End::Stopped } else { End::Completed });
        }
        if let Some((since, fault)) = &self.suspicion {
            // A connection ends a moment before its process; wait one tick longer for messages on
            // the way.
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
        if let Some(fault) = self.end_before_connecting() {
            self.suspicion = Some((now, fault));
            return None;
        }
        self.name_wait(now);
        self.hang(now).map(End::Fault)
    }

    /// The fault of a rank that ended before it connected, according to the output of `srun`, which
    /// goes on as long as other ranks run. A signal is a death. An exit is a wrong set-up, such as
    /// a missing library.
    fn end_before_connecting(&self) -> Option<Fault> {
        let mut missing =
            (0..self.members.len()).filter(|rank| self.members[*rank].joined.is_none()).peekable();
        missing.peek()?;
        let output = post_mortem::last_lines(&self.output, post_mortem::MAX_LINES);
        missing.find_map(|rank| {
            let how = post_mortem::srun_ending(&output, rank)?;
            let exited = how.starts_with(post_mortem::SRUN_EXIT);
            let kind = if exited { FaultKind::NotStarted } else { FaultKind::Died };
            let error = format!("its process ended before it connected: {how}");
            Some(self.fault(Some(rank), kind, error))
        })
    }

    /// Connected ranks that have not finished.
    fn running(&self) -> impl Iterator<Item = (usize, &Position)> + Clone {
        let running = self.members.iter().enumerate().filter(|(_, m)| m.outcome.is_none());
        running.filter_map(|(rank, m)| Some((rank, &m.joined.as_ref()?.position)))
    }

    /// Warns about a rank that waits too long for data and holds up all others; at most once per
    /// step.
    fn name_wait(&mut self, now: Instant) {
        let wait = stall::find_wait(self.running(), &self.times, self.limits, now);
        let Some((rank, step, [waited, limit])) = wait else { return };
        if self.named_wait.replace((rank, step)) == Some((rank, step)) {
            return;
        }
        let host = self.members[rank].joined.as_ref().map_or("", |joined| joined.host.as_str());
        let text = format!(
            "waiting for the data of step {step} on {host} for {:.0} s; after {:.0} s the rank counts as hung",
            waited.as_secs_f64(),
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
                    let shown = &others[..others.len().min(MAX_NAMED_RANKS)];
                    error += &format!(", nor did {} others: {}", others.len(), shown.join(", "));
                }
                self.fault(Some(rank), FaultKind::NotStarted, error)
            });
        }
        let hang = stall::find_hang(self.running(), &self.times, self.limits, now)?;
        let host =
            self.members[hang.rank].joined.as_ref().map_or("", |joined| joined.host.as_str());
        Some(self.fault(Some(hang.rank), FaultKind::Hung, format!("on {host}, {hang}")))
    }

    /// Adds to a fault what is known only after the end of the processes: how a process ended and
    /// what it printed.
    fn explain(&mut self, mut fault: Fault) -> Fault {
        let status = self.exited.map(|(_, status)| status);
        let output = post_mortem::last_lines(&self.output, post_mortem::MAX_LINES);
        match fault.kind {
            FaultKind::Died if fault.error.is_empty() => {
                let first = post_mortem::first_to_end(&output);
                if let Some(first) = first.filter(|rank| *rank < self.members.len()) {
                    fault = self.fault(Some(first), FaultKind::Died, String::new());
                }
                let joined = fault.rank.and_then(|rank| self.members[rank].joined.as_ref());
                let process = joined
                    .map(|j| format!("process {} on {}", j.pid, j.host))
                    .unwrap_or_else(|| "its process".to_owned());
                let own = fault.rank.and_then(|rank| self.group.ending_of(rank));
                let how = match own.or(status) {
                    Some(status) if own.is_some() => Some(process::ending(status)),
                    Some(status) if self.members.len() == 1 => Some(process::ending(status)),
                    Some(_) | None => fault.rank.and_then(|rank| {
                        post_mortem::mpirun_ending(&output, rank)
                            .or_else(|| post_mortem::srun_ending(&output, rank))
                    }),
                };
                fault.error = how.map_or_else(
                    || format!("{process} closed its connection"),
                    |how| format!("{process} ended with {how}"),
                );
            }
            FaultKind::NotStarted if fault.error.is_empty() => {
                let own = fault.rank.and_then(|rank| self.group.ending_of(rank));
                let how =
                    own.or(status).map_or_else(|| "an unknown status".to_owned(), process::ending);
                fault.error = format!("{how} before it connected");
                if let Some(last) = output.iter().rev().find(|line| !line.trim().is_empty()) {
                    fault.error += &format!("; its last output: {}", last.trim());
                }
            }
            FaultKind::Died
            | FaultKind::NotStarted
            | FaultKind::Reported
            | FaultKind::Ended
            | FaultKind::Hung
            | FaultKind::Refused
            | FaultKind::NoRecord => {}
        }
        fault
    }
}
