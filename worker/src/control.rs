//! The worker's side of the control plane: says hello, reports phase and step, hears that the run should stop.
//!
//! Sending never blocks a step: messages go through a channel to a thread. A lost supervisor ends the process, because a run
//! nobody watches is a run nobody can stop.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never, unbounded};
use vljepa_recipes::protocol::{CheckpointOrder, FromSupervisor, FromWorker, Hello, Phase};

use crate::error::WorkerError;

/// Between heartbeats while nothing changes.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between looks at the position: heartbeats of a changing position are this far apart.
const TICK: Duration = Duration::from_millis(100);
/// How long the last message may take.
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
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    finished: AtomicBool,
    phase: AtomicU8,
    step: AtomicU64,
}

impl Control {
    /// No supervisor: nothing is reported, nothing is heard.
    #[must_use]
    pub fn alone() -> Self {
        Self { shared: Arc::default(), sender: None, orders: never() }
    }

    /// Connects, says hello and waits to be welcomed.
    ///
    /// # Errors
    /// When the supervisor cannot be reached or refuses this worker.
    pub fn connect(address: &str, hello: Hello) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)
            .with_context(|| format!("cannot reach the supervisor at {address}"))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = BufWriter::new(stream);
        send(&mut writer, &FromWorker::Hello(hello))?;
        let mut line = String::new();
        reader.read_line(&mut line).context("the supervisor closed the connection")?;
        match serde_json::from_str(&line).context("the supervisor does not speak this protocol")? {
            FromSupervisor::Welcome => {}
            FromSupervisor::Refused { reason } => {
                return Err(WorkerError::Refused { reason }.into());
            }
            FromSupervisor::Stop | FromSupervisor::Checkpoint { .. } => {
                anyhow::bail!("the run was stopped before this worker started")
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

    /// From here on the supervisor may go away.
    pub fn finish(&self) {
        self.shared.finished.store(true, Ordering::Release);
    }

    /// Reports something. The supervisor gets it in order.
    pub fn report(&self, message: FromWorker) {
        if let Some(sender) = &self.sender
            && sender.send(Outgoing::Message(message)).is_err()
        {
            tracing::warn!("the control connection is gone; a message was not delivered");
        }
    }

    /// Reports something and waits, at most two seconds, until it is on the wire: the last words of a rank.
    pub fn report_last(&self, message: FromWorker) {
        self.report(message);
        let (sent, on_the_wire) = bounded(1);
        if let Some(sender) = &self.sender
            && sender.send(Outgoing::Flush(sent)).is_ok()
            && on_the_wire.recv_timeout(LAST_WORDS).is_err()
        {
            tracing::warn!("the supervisor did not take the last message in time");
        }
    }
}

impl Shared {
    fn position(&self) -> (u64, Phase) {
        let phase = PHASES[usize::from(self.phase.load(Ordering::Acquire))];
        (self.step.load(Ordering::Acquire), phase)
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

/// Sends what is reported, and a heartbeat when the position changed or a second has passed.
fn speak(mut writer: BufWriter<TcpStream>, receiver: &Receiver<Outgoing>, shared: &Shared) {
    let mut told = None;
    let mut told_at = Instant::now();
    loop {
        let sent = match receiver.recv_timeout(TICK) {
            Ok(Outgoing::Message(message)) => send(&mut writer, &message),
            Ok(Outgoing::Flush(done)) => {
                // Whoever asked may have stopped waiting.
                done.send(()).unwrap_or_default();
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => {
                let position = shared.position();
                if told == Some(position) && told_at.elapsed() < HEARTBEAT {
                    continue;
                }
                (told, told_at) = (Some(position), Instant::now());
                send(&mut writer, &FromWorker::Heartbeat { step: position.0, phase: position.1 })
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Hears orders until the supervisor is gone; then this process has nobody to work for and ends.
fn listen(reader: BufReader<TcpStream>, shared: &Shared, orders: &Sender<CheckpointOrder>) {
    for line in reader.lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(FromSupervisor::Stop) => shared.stop.store(true, Ordering::Release),
            Ok(FromSupervisor::Checkpoint { order }) => {
                // Whoever asks for orders holds the other end; nobody does when the process ends.
                orders.send(order).unwrap_or_default();
            }
            Ok(FromSupervisor::Welcome | FromSupervisor::Refused { .. }) => {}
            Err(error) => tracing::warn!("the supervisor sent `{line}`: {error}"),
        }
    }
    if !shared.finished.load(Ordering::Acquire) {
        tracing::error!("the supervisor is gone; this rank ends");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use vljepa_recipes::protocol::Outcome;

    use super::*;

    fn hello() -> Hello {
        Hello {
            token: "secret".to_owned(),
            rank: 0,
            world_size: 1,
            host: "here".to_owned(),
            pid: 1,
            device: "host".to_owned(),
            build: "0".to_owned(),
            recipe_hash: "0".to_owned(),
        }
    }

    /// A supervisor that answers one worker's hello with `answer`, and then does `rest` with the connection.
    fn supervisor<T: Send + 'static>(
        answer: FromSupervisor,
        rest: impl FnOnce(BufReader<TcpStream>, TcpStream) -> T + Send + 'static,
    ) -> (String, std::thread::JoinHandle<T>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(
                matches!(serde_json::from_str(&line).unwrap(), FromWorker::Hello(h) if h == hello())
            );
            writeln!(stream, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
            rest(reader, stream)
        });
        (address, thread)
    }

    #[test]
    fn reports_arrive_in_order_and_the_last_one_before_the_process_may_end() {
        let (address, thread) = supervisor(FromSupervisor::Welcome, |reader, _stream| {
            let mut heard = Vec::new();
            for line in reader.lines() {
                match serde_json::from_str(&line.unwrap()).unwrap() {
                    FromWorker::Heartbeat { .. } => {}
                    FromWorker::Finished { step, .. } => {
                        heard.push(step);
                        return heard;
                    }
                    FromWorker::Saved { step, .. } => heard.push(step),
                    other => panic!("{other:?}"),
                }
            }
            heard
        });
        let control = Control::connect(&address, hello()).unwrap();
        control.at(3, Phase::Backward);
        assert_eq!(control.position(), (3, Phase::Backward));
        for step in [1, 2] {
            let name = "s".to_owned();
            control.report(FromWorker::Saved { step, name, stall_s: 0.0, durable_s: 0.0 });
        }
        control.finish();
        control.report_last(FromWorker::Finished { outcome: Outcome::Completed, step: 3 });
        assert_eq!(thread.join().unwrap(), [1, 2, 3]);
    }

    #[test]
    fn a_stop_is_heard() {
        let (address, thread) = supervisor(FromSupervisor::Welcome, |_reader, mut stream| {
            writeln!(stream, "{}", serde_json::to_string(&FromSupervisor::Stop).unwrap()).unwrap();
            stream
        });
        let control = Control::connect(&address, hello()).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !control.stop_requested() {
            assert!(Instant::now() < end, "the stop was not heard");
            std::thread::yield_now();
        }
        control.finish();
        drop(thread.join().unwrap());
    }

    #[test]
    fn a_refusal_names_its_reason() {
        let reason = "another recipe".to_owned();
        let (address, thread) = supervisor(FromSupervisor::Refused { reason }, |_, _| ());
        let error = Control::connect(&address, hello()).unwrap_err();
        assert!(error.to_string().contains("another recipe"), "{error}");
        thread.join().unwrap();
    }

    #[test]
    fn nobody_listening_is_an_error_that_names_the_address() {
        let error = Control::connect("127.0.0.1:1", hello()).unwrap_err();
        assert!(format!("{error:#}").contains("127.0.0.1:1"), "{error:#}");
    }
}
