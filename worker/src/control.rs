//! The worker's side of the control plane: says hello, reports phase and step, hears that the run should stop.
//!
//! Sending never blocks a step: messages go through a channel to a thread. A lost supervisor ends the process, because a run
//! nobody watches is a run nobody can stop: at once when its process is gone, after `cluster.control.silence_s` without a sign of life
//! when its machine or the network is. A supervisor that is merely frozen for less than that finds its workers at work.

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never, unbounded};
use vljepa_recipes::protocol::{CheckpointOrder, FromSupervisor, FromWorker, Hello, Phase};

use crate::collectives::record;
use crate::connect::{Patience, connect};
use crate::error::WorkerError;

/// Between heartbeats while nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between looks at the position: heartbeats of a changing position are this far apart.
const TICK: Duration = Duration::from_millis(100);
/// How long the supervisor may take to answer a hello.
const WELCOME: Duration = Duration::from_secs(60);
/// Longest message of the supervisor.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// How long a rank waits until the supervisor has read its last message.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Messages that may wait before reporting blocks.
const WAITING_MESSAGES: usize = 1024;

/// The connection to the supervisor, or none for a job that runs alone.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Arc<Shared>,
    sender: Option<Sender<Outgoing>>,
    orders: Receiver<CheckpointOrder>,
}

#[derive(Debug)]
enum Outgoing {
    Message(FromWorker),
    /// The last message; nothing is sent after it.
    Last(FromWorker),
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    finished: AtomicBool,
    phase: AtomicU8,
    step: AtomicU64,
    rendezvous: Mutex<Rendezvous>,
    rendezvous_changed: Condvar,
}

/// What the supervisor said about the other ranks.
#[derive(Debug, Default)]
struct Rendezvous {
    nccl_id: Option<String>,
    absent: Vec<usize>,
}

impl Control {
    /// No supervisor: nothing is reported, nothing is heard.
    #[must_use]
    pub fn alone() -> Self {
        Self { shared: Arc::default(), sender: None, orders: never() }
    }

    /// Connects, says hello and waits to be welcomed. The process ends when nothing is heard of the supervisor for `silence`.
    ///
    /// # Errors
    /// When the supervisor cannot be reached or refuses this worker.
    pub fn connect(address: &str, hello: Hello, silence: Duration) -> anyhow::Result<Self> {
        let stream = connect(address, Patience::default())?;
        stream.set_nodelay(true)?;
        let (answer, reader, writer) = introduce(&stream, &FromWorker::Hello(hello))
            .with_context(|| format!("the supervisor at {address} did not answer a hello"))?;
        stream.set_read_timeout(Some(silence))?;
        match answer {
            FromSupervisor::Welcome | FromSupervisor::Alive => {}
            FromSupervisor::Refused { reason } => {
                return Err(WorkerError::Refused { reason }.into());
            }
            FromSupervisor::Stop => anyhow::bail!("the run was stopped before this worker started"),
            FromSupervisor::NcclId { .. }
            | FromSupervisor::Absent { .. }
            | FromSupervisor::Checkpoint { .. } => {
                anyhow::bail!("the supervisor answered a hello with something else");
            }
        }
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = bounded(WAITING_MESSAGES);
        let (ordering, orders) = unbounded();
        let listening = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("control-listen".to_owned())
            .spawn(move || listen(reader, &listening, &ordering))?;
        let speaking = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("control-speak".to_owned())
            .spawn(move || speak(writer, &receiver, &speaking))?;
        Ok(Self { shared, sender: Some(sender), orders })
    }

    /// Tries whether the supervisor can be reached and takes this run's token.
    ///
    /// # Errors
    /// When it cannot or does not.
    pub fn knock(address: &str, token: &str) -> anyhow::Result<()> {
        let stream = connect(address, Patience::SHORT)?;
        let (answer, ..) = introduce(&stream, &FromWorker::Knock { token: token.to_owned() })?;
        match answer {
            FromSupervisor::Welcome => Ok(()),
            FromSupervisor::Refused { reason } => Err(WorkerError::Refused { reason }.into()),
            other => anyhow::bail!("the supervisor answered {other:?}"),
        }
    }

    /// The id by which ranks on GPUs find each other, when all have connected and rank 0 has made it.
    ///
    /// # Errors
    /// When that takes longer than `time_out`, naming who is missing; or when there is no supervisor.
    pub fn nccl_id(&self, time_out: Duration) -> Result<String, WorkerError> {
        if self.sender.is_none() {
            return Err(WorkerError::NoSupervisor);
        }
        let rendezvous = self.shared.rendezvous();
        let waiting = |rendezvous: &mut Rendezvous| rendezvous.nccl_id.is_none();
        let (rendezvous, _) = self
            .shared
            .rendezvous_changed
            .wait_timeout_while(rendezvous, time_out, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        rendezvous.nccl_id.clone().ok_or_else(|| WorkerError::NoRendezvous {
            seconds: time_out.as_secs(),
            missing: match rendezvous.absent.as_slice() {
                [] => "rank 0 made no NCCL id".to_owned(),
                [rank] => format!("rank {rank} did not connect"),
                ranks => {
                    let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
                    format!("ranks {} did not connect", ranks.join(", "))
                }
            },
        })
    }

    /// Whether the supervisor asked for a stop.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Whether there is a supervisor.
    #[must_use]
    pub fn is_supervised(&self) -> bool {
        self.sender.is_some()
    }

    /// Waits for the supervisor's next order about the checkpoint of `step`.
    ///
    /// # Errors
    /// When the supervisor has gone.
    pub fn checkpoint_order(&self, step: u64) -> Result<CheckpointOrder, String> {
        loop {
            let order = self.orders.recv();
            let order = order.map_err(|_| "the supervisor has gone".to_owned())?;
            if order.step() == step {
                return Ok(order);
            }
        }
    }

    /// Notes where this rank is; the next heartbeat says so.
    pub fn at(&self, step: u64, phase: Phase) {
        self.shared.step.store(step, Ordering::Release);
        let code = PHASES.iter().position(|&p| p == phase).unwrap_or_default();
        self.shared.phase.store(u8::try_from(code).unwrap_or_default(), Ordering::Release);
    }

    /// The phase and step noted last.
    #[must_use]
    pub fn position(&self) -> (u64, Phase) {
        self.shared.position()
    }

    /// Reports something. The supervisor gets it in order.
    pub fn report(&self, message: FromWorker) {
        if let Some(sender) = &self.sender
            && sender.send(Outgoing::Message(message)).is_err()
        {
            tracing::warn!("the control connection is gone; a message was not delivered");
        }
    }

    /// Reports the last message of this rank and closes the connection. Waits, at most two seconds,
    /// until the supervisor has read everything. Afterwards the supervisor may go away.
    ///
    /// The connection is closed in order: this side stops sending, the supervisor reads to the end
    /// and closes its side, this side reads to the end. A process that ended with unread messages
    /// would reset the connection, and the kernel would drop what it has not sent yet.
    pub fn report_last(&self, message: FromWorker) {
        let Some(sender) = &self.sender else { return };
        self.shared.finished.store(true, Ordering::Release);
        let deadline = Instant::now() + LAST_WORDS;
        // An error means that another thread has closed the connection, and perhaps still waits.
        sender.send_deadline(Outgoing::Last(message), deadline).unwrap_or_default();
        // The listening thread holds the other end of this channel and ends with the connection.
        let end = loop {
            if let Err(end) = self.orders.recv_deadline(deadline) {
                break end;
            }
        };
        if end == RecvTimeoutError::Timeout {
            tracing::warn!("the supervisor did not take the last message in time");
        }
    }
}

impl Shared {
    fn position(&self) -> (u64, Phase) {
        let phase = PHASES[usize::from(self.phase.load(Ordering::Acquire))];
        (self.step.load(Ordering::Acquire), phase)
    }

    fn rendezvous(&self) -> MutexGuard<'_, Rendezvous> {
        self.rendezvous.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the first message of a connection and reads the answer.
fn introduce(
    stream: &TcpStream,
    message: &FromWorker,
) -> anyhow::Result<(FromSupervisor, BufReader<TcpStream>, BufWriter<TcpStream>)> {
    stream.set_read_timeout(Some(WELCOME))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = BufWriter::new(stream.try_clone()?);
    send(&mut writer, message)?;
    let line = line(&mut reader)?.context("it closed the connection")?;
    let answer = serde_json::from_slice(&line).context("it does not speak this protocol")?;
    Ok((answer, reader, writer))
}

/// The next line; none when the other side closed the connection.
fn line(reader: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 == MAX_LINE_BYTES => {
            Err(std::io::Error::other("the supervisor sent an endless line"))
        }
        Some(_) => Ok(None),
    }
}

const PHASES: [Phase; 8] = [
    Phase::Start,
    Phase::Data,
    Phase::Forward,
    Phase::Collective,
    Phase::Backward,
    Phase::Optimizer,
    Phase::Checkpoint,
    Phase::Evaluation,
];

fn send(writer: &mut impl Write, message: &FromWorker) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *writer, message)?;
    writer.write_all(b"\n")?;
    writer.flush()?;
    Ok(())
}

/// Sends what is reported, and a heartbeat when the position changed or a second has passed, until
/// the last message.
fn speak(mut writer: BufWriter<TcpStream>, receiver: &Receiver<Outgoing>, shared: &Shared) {
    let mut told = None;
    let mut told_at = Instant::now();
    loop {
        let sent = match receiver.recv_timeout(TICK) {
            Ok(Outgoing::Message(message)) => send(&mut writer, &message),
            Ok(Outgoing::Last(message)) => {
                if send(&mut writer, &message).is_ok() {
                    // An error means that the supervisor is gone. The listening thread notices it.
                    writer.get_ref().shutdown(Shutdown::Write).unwrap_or_default();
                }
                return;
            }
            Err(RecvTimeoutError::Timeout) => {
                let position = shared.position();
                if told == Some(position) && told_at.elapsed() < HEARTBEAT {
                    continue;
                }
                (told, told_at) = (Some(position), Instant::now());
                let (step, phase) = position;
                let collective = record::of_process().sequence().load(Ordering::Relaxed);
                send(&mut writer, &FromWorker::Heartbeat { step, phase, collective })
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Hears orders until the supervisor is gone; then this process has nobody to work for and ends.
fn listen(mut reader: BufReader<TcpStream>, shared: &Shared, orders: &Sender<CheckpointOrder>) {
    let why = loop {
        let line = match line(&mut reader) {
            Ok(Some(line)) => line,
            Ok(None) => break "its process has ended".to_owned(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break "it gave no sign of life for cluster.control.silence_s".to_owned();
            }
            Err(error) => break error.to_string(),
        };
        match serde_json::from_slice(&line) {
            Ok(FromSupervisor::Stop) => shared.stop.store(true, Ordering::Release),
            Ok(FromSupervisor::NcclId { id }) => {
                let mut rendezvous = shared.rendezvous();
                (rendezvous.nccl_id, rendezvous.absent) = (Some(id), Vec::new());
                shared.rendezvous_changed.notify_all();
            }
            Ok(FromSupervisor::Checkpoint { order }) => {
                // Whoever asks for orders holds the other end; nobody does when the process ends.
                orders.send(order).unwrap_or_default();
            }
            Ok(FromSupervisor::Absent { ranks }) => shared.rendezvous().absent = ranks,
            Ok(
                FromSupervisor::Welcome | FromSupervisor::Alive | FromSupervisor::Refused { .. },
            ) => {}
            Err(error) => {
                let line = String::from_utf8_lossy(&line);
                tracing::warn!("the supervisor sent `{}`: {error}", line.trim_end());
            }
        }
    };
    if !shared.finished.load(Ordering::Acquire) {
        tracing::error!("the supervisor ended this attempt or is gone ({why}); this rank ends");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests;
