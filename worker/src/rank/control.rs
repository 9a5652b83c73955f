//! The worker's side of the connection to the supervisor, the control connection: it sends hello,
//! phase and step, and receives the request to stop.
//!
//! Sending never blocks a step: messages pass through a channel to a thread. If the supervisor is
//! lost, this process ends, because nobody could stop an unsupervised run. It ends at once if the
//! supervisor's process is gone, and after `cluster.control.silence_s` without a message if its
//! machine or the network is down. A supervisor that was frozen for a shorter time finds its
//! workers still running.

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never, unbounded};
use vljepa_recipes::protocol::{CheckpointOrder, FromSupervisor, FromWorker, Hello, Phase};

use crate::collectives::record;
use crate::error::WorkerError;
use crate::rank::connect::{ConnectLimits, connect};

/// Interval of heartbeats while the position does not change.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which the position is checked, and so the shortest time between heartbeats of a
/// changing position.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long the supervisor may take to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest accepted message of the supervisor, in bytes. The longest is the order to publish a
/// checkpoint, which lists a file of each rank in about 180 bytes: this is enough for 90,000 ranks.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// How long a rank waits until the supervisor has read its last message.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// Capacity of the channel to the sending thread; when it is full, reporting blocks.
const WAITING_MESSAGES: usize = 1024;

/// Connection to the supervisor. Without a supervisor, reports are dropped and no orders arrive.
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

/// The supervisor's messages about the other ranks.
#[derive(Debug, Default)]
struct Rendezvous {
    id: Option<String>,
    absent: Vec<usize>,
}

impl Control {
    /// Creates a connection without a supervisor, for jobs that run unsupervised.
    #[must_use]
    pub fn alone() -> Self {
        Self { shared: Arc::default(), sender: None, orders: never() }
    }

    /// Connects, sends the hello and waits for the welcome. Later the process ends if nothing
    /// arrives from the supervisor for `silence`.
    ///
    /// # Errors
    /// Fails if the supervisor cannot be reached or refuses this worker.
    pub fn connect(address: &str, hello: Hello, silence: Duration) -> anyhow::Result<Self> {
        let stream = connect(address, ConnectLimits::default())?;
        stream.set_nodelay(true)?;
        let (answer, reader, writer) = handshake(&stream, &FromWorker::Hello(hello))
            .with_context(|| format!("the supervisor at {address} did not answer the hello"))?;
        stream.set_read_timeout(Some(silence))?;
        match answer {
            FromSupervisor::Welcome | FromSupervisor::Alive => {}
            FromSupervisor::Refused { reason } => {
                return Err(WorkerError::Refused { reason }.into());
            }
            FromSupervisor::Stop => {
                anyhow::bail!("the run was stopped before this worker connected")
            }
            FromSupervisor::Rendezvous { .. }
            | FromSupervisor::Absent { .. }
            | FromSupervisor::Checkpoint { .. } => {
                anyhow::bail!("the supervisor answered the hello with an unexpected message");
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

    /// Checks that the supervisor can be reached and accepts this run's token.
    ///
    /// # Errors
    /// Fails if the supervisor cannot be reached or does not accept the token.
    pub fn knock(address: &str, token: &str) -> anyhow::Result<()> {
        let stream = connect(address, ConnectLimits::SHORT)?;
        let (answer, ..) = handshake(&stream, &FromWorker::Knock { token: token.to_owned() })?;
        match answer {
            FromSupervisor::Welcome => Ok(()),
            FromSupervisor::Refused { reason } => Err(WorkerError::Refused { reason }.into()),
            other => anyhow::bail!("the supervisor sent an unexpected answer: {other:?}"),
        }
    }

    /// Whether there is no supervisor.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.sender.is_none()
    }

    /// Waits until all ranks have connected, and returns rank 0's id, which is `own` there. The
    /// other ranks pass `None`.
    ///
    /// # Errors
    /// Fails after `time_out`, and names the missing ranks; fails at once if there is no
    /// supervisor.
    pub fn rendezvous(
        &self,
        own: Option<String>,
        time_out: Duration,
    ) -> Result<String, WorkerError> {
        if self.sender.is_none() {
            return Err(WorkerError::NoSupervisor);
        }
        if let Some(id) = own {
            self.report(FromWorker::Rendezvous { id });
        }
        let rendezvous = self.shared.rendezvous();
        let waiting = |rendezvous: &mut Rendezvous| rendezvous.id.is_none();
        let (rendezvous, _) = self
            .shared
            .rendezvous_changed
            .wait_timeout_while(rendezvous, time_out, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        rendezvous.id.clone().ok_or_else(|| WorkerError::NoRendezvous {
            seconds: time_out.as_secs(),
            missing: match rendezvous.absent.as_slice() {
                [] => "rank 0 sent no id".to_owned(),
                [rank] => format!("rank {rank} did not connect"),
                ranks => {
                    let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
                    format!("ranks {} did not connect", ranks.join(", "))
                }
            },
        })
    }

    /// Returns whether the supervisor asked this rank to stop.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Returns whether this job has a supervisor.
    #[must_use]
    pub fn is_supervised(&self) -> bool {
        self.sender.is_some()
    }

    /// Waits for the supervisor's next order about the checkpoint of `step`.
    ///
    /// # Errors
    /// Fails if the connection to the supervisor is closed.
    pub fn checkpoint_order(&self, step: u64) -> Result<CheckpointOrder, String> {
        loop {
            let order = self.orders.recv();
            let order = order.map_err(|_| "the supervisor is gone".to_owned())?;
            if order.step() == step {
                return Ok(order);
            }
        }
    }

    /// Sets the step and phase that the next heartbeat reports.
    pub fn at(&self, step: u64, phase: Phase) {
        self.shared.step.store(step, Ordering::Release);
        self.shared.phase.store(phase as u8, Ordering::Release);
    }

    /// Returns the step and phase that were set last.
    #[must_use]
    pub fn position(&self) -> (u64, Phase) {
        self.shared.position()
    }

    /// Sends a message to the supervisor. Messages arrive in the order in which they were sent.
    pub fn report(&self, message: FromWorker) {
        if let Some(sender) = &self.sender
            && sender.send(Outgoing::Message(message)).is_err()
        {
            tracing::warn!("the control connection is closed; a message was not delivered");
        }
    }

    /// Sends the last message of this rank and closes the connection. Waits until the supervisor
    /// has read everything, at most two seconds. Afterwards the supervisor may exit.
    ///
    /// The connection is closed in an orderly way: this side stops sending, the supervisor reads to
    /// the end and closes its side, and this side reads to the end. A process that exited with
    /// unread messages would reset the connection, and the kernel would drop the data that it has
    /// not sent yet.
    pub fn report_last(&self, message: FromWorker) {
        let Some(sender) = &self.sender else { return };
        self.shared.finished.store(true, Ordering::Release);
        let deadline = Instant::now() + LAST_MESSAGE_TIMEOUT;
        // An error means that another thread has closed the connection and may still be waiting.
        sender.send_deadline(Outgoing::Last(message), deadline).unwrap_or_default();
        // The listening thread holds the other end of this channel and ends with the connection.
        let end = loop {
            if let Err(end) = self.orders.recv_deadline(deadline) {
                break end;
            }
        };
        if end == RecvTimeoutError::Timeout {
            tracing::warn!("the supervisor did not read the last message in time");
        }
    }
}

impl Shared {
    fn position(&self) -> (u64, Phase) {
        let phase = Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))];
        (self.step.load(Ordering::Acquire), phase)
    }

    fn rendezvous(&self) -> MutexGuard<'_, Rendezvous> {
        self.rendezvous.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the first message of a connection and reads the answer.
fn handshake(
    stream: &TcpStream,
    message: &FromWorker,
) -> anyhow::Result<(FromSupervisor, BufReader<TcpStream>, BufWriter<TcpStream>)> {
    stream.set_read_timeout(Some(WELCOME_TIMEOUT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = BufWriter::new(stream.try_clone()?);
    send(&mut writer, message)?;
    let line = line(&mut reader)?.context("it closed the connection")?;
    let answer = serde_json::from_slice(&line).context("it does not speak this protocol")?;
    Ok((answer, reader, writer))
}

/// Reads the next line, or `None` if the other side closed the connection.
fn line(reader: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 == MAX_LINE_BYTES => {
            Err(std::io::Error::other("the supervisor sent a line that is too long"))
        }
        Some(_) => Ok(None),
    }
}

fn send(writer: &mut impl Write, message: &FromWorker) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *writer, message)?;
    writer.write_all(b"\n")?;
    writer.flush()?;
    Ok(())
}

/// Sends reported messages until the last one. Sends a heartbeat when the position has changed or a
/// second has passed.
fn speak(mut writer: BufWriter<TcpStream>, receiver: &Receiver<Outgoing>, shared: &Shared) {
    let mut told = None;
    let mut told_at = Instant::now();
    loop {
        let sent = match receiver.recv_timeout(POLL_INTERVAL) {
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
                if told == Some(position) && told_at.elapsed() < HEARTBEAT_INTERVAL {
                    continue;
                }
                (told, told_at) = (Some(position), Instant::now());
                let (step, phase) = position;
                let record = record::of_process();
                let collective = record.sequence().load(Ordering::Relaxed);
                let (inside, work) = (record.inside(), record.work(phase));
                let beat = FromWorker::Heartbeat { step, phase, collective, inside, work };
                send(&mut writer, &beat)
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Receives orders until the connection ends. Then the process ends, unless this rank has sent its
/// last message.
fn listen(mut reader: BufReader<TcpStream>, shared: &Shared, orders: &Sender<CheckpointOrder>) {
    let why = loop {
        let line = match line(&mut reader) {
            Ok(Some(line)) => line,
            Ok(None) => break "its process has exited".to_owned(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break "it sent nothing for cluster.control.silence_s".to_owned();
            }
            Err(error) => break error.to_string(),
        };
        match serde_json::from_slice(&line) {
            Ok(FromSupervisor::Stop) => shared.stop.store(true, Ordering::Release),
            Ok(FromSupervisor::Rendezvous { id }) => {
                let mut rendezvous = shared.rendezvous();
                (rendezvous.id, rendezvous.absent) = (Some(id), Vec::new());
                shared.rendezvous_changed.notify_all();
            }
            Ok(FromSupervisor::Checkpoint { order }) => {
                // The receiver is gone when the process is ending; then the order is dropped.
                orders.send(order).unwrap_or_default();
            }
            Ok(FromSupervisor::Absent { ranks }) => shared.rendezvous().absent = ranks,
            Ok(
                FromSupervisor::Welcome | FromSupervisor::Alive | FromSupervisor::Refused { .. },
            ) => {}
            Err(error) => {
                let line = String::from_utf8_lossy(&line);
                tracing::warn!("ignored the supervisor's message `{}`: {error}", line.trim_end());
            }
        }
    };
    if !shared.finished.load(Ordering::Acquire) {
        tracing::error!("the supervisor ended this attempt or is gone ({why}); this rank exits");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests;
