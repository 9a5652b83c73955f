//! Handling of the control plane's events in an attempt: joins, messages, lost and refused
//! connections.

use std::collections::BTreeMap;
use std::time::Instant;

use nix::sys::signal::{Signal, raise};
use vljepa_recipes::protocol::{CollectiveKind, FromSupervisor, FromWorker, Hello, Phase};

use super::super::signals::StopSignal;
use super::super::stall::{Position, has_work};
use super::super::start_up::over_budget;
use super::{Attempt, Joined};
use crate::control::ControlEvent;
use crate::record::events::{Event, FaultKind};

/// Largest number of refused strangers that are reported: a port scanner must not fill the disk.
const MAX_NAMED_STRANGERS: usize = 20;

impl Attempt<'_> {
    /// Handles one event of the control plane.
    pub(super) fn handle(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Joined(hello) => self.join(hello),
            ControlEvent::Message(rank, message) => self.message(rank, message),
            ControlEvent::Lost(rank) => {
                self.observer.lost(rank);
                if self.members[rank].outcome.is_none() {
                    self.suspect(rank, FaultKind::Died, String::new());
                }
            }
            ControlEvent::Refused { rank, peer, reason } => {
                self.refused(rank, &peer.to_string(), reason)
            }
        }
    }

    fn refused(&mut self, rank: Option<usize>, peer: &str, reason: String) {
        let event = Event::Refused { peer: peer.to_owned(), reason: reason.clone() };
        if let Some(rank) = rank {
            self.events.write(event);
            return self.suspect(rank, FaultKind::Refused, reason);
        }
        self.strangers += 1;
        if self.strangers <= MAX_NAMED_STRANGERS {
            self.events.write(event);
            self.progress.note(&format!("refused a connection from {peer}: {reason}"));
        }
        if self.strangers == MAX_NAMED_STRANGERS {
            self.progress.note("further strangers are refused without a message");
        }
    }

    fn join(&mut self, hello: Hello) {
        let Hello { rank, host, pid, device, build, .. } = hello;
        self.observer.joined(rank, &host);
        let now = Instant::now();
        let position = Position {
            step: 0,
            phase: Phase::Start,
            since: now,
            last_heard: now,
            collective: 0,
            inside: None,
            work: 0,
        };
        self.members[rank].joined =
            Some(Joined { host: host.clone(), pid, position, step_since: now });
        self.events.write(Event::RankJoined { rank, host, pid, device, build });
        self.joined += 1;
        if self.joined == self.members.len() {
            self.start_up.connected(now);
        }
    }

    fn message(&mut self, rank: usize, message: FromWorker) {
        let now = Instant::now();
        if let Some(joined) = &mut self.members[rank].joined {
            joined.position.last_heard = now;
        }
        if let Some(slow) = self.observer.message(rank, &message, &self.events) {
            self.progress.note(&slow);
        }
        match message {
            // The server handles NCCL ids itself; the observer has handled the interval.
            FromWorker::Hello(_)
            | FromWorker::Knock { .. }
            | FromWorker::Rendezvous { .. }
            | FromWorker::Interval(_) => {}
            FromWorker::Heartbeat { step, phase, collective, inside, work } => {
                self.reached(rank, phase, (collective, inside), now);
                self.worked(rank, work, now);
                self.beat(rank, step, phase, now);
            }
            FromWorker::Metrics(metrics) => {
                self.facts.last_step = metrics.step;
                self.facts.trained = true;
                self.facts.trained_step = metrics.step.checked_sub(1);
                self.progress.metrics(metrics);
            }
            FromWorker::Initialised { checkpoint } => {
                self.progress.note(&format!("starting from {}", checkpoint.display()));
                self.facts.initialised = Some(checkpoint.clone());
                self.events.write(Event::Initialised { checkpoint });
            }
            FromWorker::Resumed(resumed) => self.events.write(Event::Resumed(resumed)),
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
            FromWorker::Scores { step, values } => self.scored(step, values),
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
            FromWorker::Ended { step, phase, error } => {
                self.beat(rank, step, phase, now);
                self.suspect(rank, FaultKind::Ended, error);
            }
        }
    }

    /// Prints and records the scores of an evaluation.
    fn scored(&mut self, step: u64, values: BTreeMap<String, f64>) {
        let text: Vec<String> =
            values.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        self.progress.note(&format!("scores at step {step}: {}", text.join(", ")));
        self.events.write(Event::Scores { step, values });
        // What a run without stages measures is all that it does, and it is kept.
        if self.limits.stage_ends.is_empty() {
            (self.facts.trained, self.facts.saved) = (true, true);
        }
    }

    /// Tells the other ranks that rank 0 has published a checkpoint, or dropped it because of
    /// `error`.
    fn settle(&self, step: u64, error: Option<&str>) {
        for (rank, order) in self.checkpoints.settled(step, error) {
            self.server.tell(rank, FromSupervisor::Checkpoint { order });
        }
    }

    /// Notes the collective that a rank has entered. Where a phase has work, a new one is progress.
    fn reached(
        &mut self,
        rank: usize,
        phase: Phase,
        (collective, inside): (u64, Option<CollectiveKind>),
        now: Instant,
    ) {
        let Some(joined) = &mut self.members[rank].joined else { return };
        let position = &mut joined.position;
        let goes_on = phase == position.phase && has_work(phase);
        if goes_on && collective > position.collective {
            self.times.pause(phase, joined.renew(now));
        }
        let position = &mut joined.position;
        (position.collective, position.inside) = (collective, inside);
    }

    /// Notes the pieces of work that a rank has done. A new one is progress of all ranks in such a
    /// phase, because those that have finished wait for it.
    fn worked(&mut self, rank: usize, work: u64, now: Instant) {
        let Some(joined) = &mut self.members[rank].joined else { return };
        if work <= joined.position.work {
            return;
        }
        joined.position.work = work;
        if !has_work(joined.position.phase) {
            return;
        }
        let phase = joined.position.phase;
        self.times.pause(phase, now.saturating_duration_since(joined.position.since));
        for joined in self.members.iter_mut().filter_map(|member| member.joined.as_mut()) {
            if has_work(joined.position.phase) {
                joined.renew(now);
            }
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
            if let Some(times) = self.start_up.at(phase, now) {
                self.events.write(Event::Started(times));
                if let Some(text) = over_budget(&times) {
                    self.progress.note(&format!("warning: {text}"));
                    self.events.write(Event::Warning { rank, text });
                }
            }
        }
        if (position.step, position.phase) == (step, phase) {
            return;
        }
        let is_start = |phase| matches!(phase, Phase::Start | Phase::Load);
        if has_work(position.phase) {
            let phase = position.phase;
            self.times.pause(phase, joined.renew(now));
        }
        let position = &mut joined.position;
        let steps = step.saturating_sub(position.step);
        if is_start(position.phase) {
            joined.step_since = now;
            if !is_start(phase) {
                self.facts.first_step.get_or_insert(step);
            }
        } else if let Ok(steps @ 1..) = u32::try_from(steps) {
            let took = now.saturating_duration_since(joined.step_since) / steps;
            self.times.step(self.limits, position.step, took);
            self.facts.trained = true;
        }
        if steps > 0 {
            joined.step_since = now;
            self.facts.last_step = self.facts.last_step.max(position.step);
        }
        *position = Position { step, phase, since: now, last_heard: now, ..*position };
    }

    /// Records the first sign of a fault. An error that a rank reports itself replaces the loss of
    /// its connection.
    fn suspect(&mut self, rank: usize, kind: FaultKind, error: String) {
        let better = match &self.suspicion {
            None => true,
            Some((_, known)) => {
                let said = matches!(kind, FaultKind::Reported | FaultKind::Ended);
                known.rank == Some(rank) && said
            }
        };
        if better {
            let fault = self.fault(Some(rank), kind, error);
            self.suspicion = Some((Instant::now(), fault));
        }
    }
}
