//! Server side of the control plane: accepts the connections of workers, refuses strangers, and
//! passes the messages of ranks to the supervisor.
//!
//! A stranger is a connection that has not presented the attempt's token. Each connection has a
//! task of its own, and all messages go through one bounded channel. A line is at most
//! [`MAX_LINE_BYTES`] long and the number of strangers is limited, so memory is bounded whatever
//! connects.

pub(crate) mod listen;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use vljepa_recipes::protocol::{FromSupervisor, FromWorker, Hello, SIGN_OF_LIFE_S};

use crate::control::listen::Listen;
use crate::error::LaunchError;

/// Longest message of a rank, bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Longest first message, bytes: a stranger gets no more memory than a hello needs.
const MAX_HELLO_BYTES: u64 = 4 << 10;
/// How long a new connection may take to send its first message before it is refused.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read from a connection at once, about ten heartbeats.
const READ_BYTES: usize = 1 << 10;
/// How long the server reads on from a connection that it ends, until the other side closes it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two signs of life to a worker.
const SIGN_INTERVAL: Duration = Duration::from_secs(SIGN_OF_LIFE_S);
/// Connections that may be open at once in addition to one per rank.
const MAX_STRANGERS: usize = 64;
/// Time between two reminders to a rank that other ranks have not connected.
const REMINDER_INTERVAL: Duration = Duration::from_secs(5);
/// Largest number of missing ranks that a reminder names.
const MAX_NAMED_RANKS: usize = 16;
/// Capacity of a rank's queue of orders. A checkpoint needs one order, and the next checkpoint
/// begins only after it.
const ORDER_QUEUE: usize = 8;
/// Capacity of the queue of messages for the supervisor; when it is full, connections are not read.
const MESSAGE_QUEUE: usize = 1024;

/// Properties that a worker must have to belong to the run.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Secret of this attempt.
    pub token: String,
    pub world_size: usize,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
}

/// A valid first message.
enum Opening {
    Join(Hello),
    Knock,
}

/// An event that the server reports to the supervisor.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    /// A worker was accepted.
    Joined(Hello),
    /// A rank sent a message.
    Message(usize, FromWorker),
    /// The connection of a rank has ended.
    Lost(usize),
    /// A connection was refused.
    Refused {
        /// Rank that the connection claimed with the right token, or `None` for a stranger.
        rank: Option<usize>,
        peer: SocketAddr,
        reason: String,
    },
}

/// The server; dropping it closes all connections.
#[derive(Debug)]
pub(crate) struct Server {
    address: String,
    events: mpsc::Receiver<ControlEvent>,
    stop: watch::Sender<bool>,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    expected: Expected,
    members: Mutex<Members>,
    events: mpsc::Sender<ControlEvent>,
    /// The NCCL id of rank 0, set once all ranks have connected.
    rendezvous: watch::Sender<Option<String>>,
}

/// Connected ranks with their order queues, the build of the first rank, which all others must
/// have, and the NCCL id.
#[derive(Debug, Default)]
struct Members {
    ranks: BTreeMap<usize, mpsc::Sender<FromSupervisor>>,
    build: Option<String>,
    rendezvous: Option<String>,
}

impl Server {
    /// Listens at `listen` and accepts connections in a background task.
    pub(crate) async fn start(expected: Expected, listen: &Listen) -> Result<Self, LaunchError> {
        let listener = listen.bind(expected.world_size + MAX_STRANGERS)?;
        let port = listener.local_addr().map_err(|error| LaunchError::Start {
            what: "listening for workers".to_owned(),
            why: error.to_string(),
        })?;
        let address = listen.address(port.port());
        let (sender, events) = mpsc::channel(MESSAGE_QUEUE);
        let (stop, stopped) = watch::channel(false);
        let open = Arc::new(Semaphore::new(expected.world_size + MAX_STRANGERS));
        let rendezvous = watch::Sender::new(None);
        let shared =
            Arc::new(Shared { expected, members: Mutex::default(), events: sender, rendezvous });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared), stopped, open));
        Ok(Self { address, events, stop, shared, accepting })
    }

    /// Address that workers connect to, `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits for the next event.
    pub(crate) async fn next(&mut self) -> Option<ControlEvent> {
        self.events.recv().await
    }

    /// Closes all connections. A worker that loses its supervisor ends itself.
    pub(crate) fn close(&self) {
        self.accepting.abort();
    }

    /// Sends a message to a rank. It is dropped if the rank is not connected or its queue is full:
    /// such a rank is noticed by its silence.
    pub(crate) fn tell(&self, rank: usize, message: FromSupervisor) {
        if let Some(orders) = self.shared.members().ranks.get(&rank) {
            orders.try_send(message).ok();
        }
    }

    /// Asks all ranks to save and end, including ranks that join later.
    pub(crate) fn stop_all(&self) {
        self.stop.send_replace(true);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
    open: Arc<Semaphore>,
) {
    // The set owns the tasks of the connections, so aborting this task ends them too.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return };
        // A failed accept (too many open files) concerns one connection: wait a moment and go on.
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
        connections.spawn(async move {
            serve(stream, peer, &shared, stopped).await;
            drop(permit);
        });
    }
}

/// Serves one connection from its first message to its end.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    shared: &Shared,
    stopped: watch::Receiver<bool>,
) {
    stream.set_nodelay(true).ok();
    let (read, mut write) = stream.into_split();
    let mut lines = Lines::new(read);
    let hello = match shared.opening(&mut lines).await {
        Ok(Opening::Join(hello)) => hello,
        Ok(Opening::Knock) => {
            send(&mut write, &FromSupervisor::Welcome).await.ok();
            return close(write, lines).await;
        }
        Err(reason) => {
            refuse(shared, &mut write, peer, None, reason).await;
            return close(write, lines).await;
        }
    };
    let rank = hello.rank;
    let (orders, ordered) = mpsc::channel(ORDER_QUEUE);
    if let Err(reason) = shared.admit(&hello, orders) {
        refuse(shared, &mut write, peer, Some(rank), reason).await;
        return close(write, lines).await;
    }
    let welcomed = send(&mut write, &FromSupervisor::Welcome).await.is_ok();
    lines.limit = MAX_LINE_BYTES;
    let mut listening = welcomed && shared.events.send(ControlEvent::Joined(hello)).await.is_ok();
    let speaking = speak(&mut write, shared, stopped, ordered);
    tokio::pin!(speaking);
    while listening {
        tokio::select! {
            message = lines.next() => listening = shared.receive(rank, message).await,
            () = &mut speaking => {}
        }
    }
    shared.members().ranks.remove(&rank);
    shared.events.send(ControlEvent::Lost(rank)).await.ok();
}

/// Sends a rank its messages: signs of life, the stop, the NCCL id, ranks that have not connected,
/// and orders about checkpoints.
async fn speak(
    write: &mut OwnedWriteHalf,
    shared: &Shared,
    mut stopped: watch::Receiver<bool>,
    mut orders: mpsc::Receiver<FromSupervisor>,
) {
    let mut rendezvous = shared.rendezvous.subscribe();
    let (mut told_stop, mut told_id) = (false, false);
    let from_now = |period| tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    let (mut sign, mut reminder) = (from_now(SIGN_INTERVAL), from_now(REMINDER_INTERVAL));
    loop {
        let message = tokio::select! {
            stop = async { stopped.wait_for(|stop| *stop).await.is_ok() }, if !told_stop => {
                told_stop = true;
                stop.then_some(FromSupervisor::Stop)
            }
            Some(order) = orders.recv() => Some(order),
            id = async { rendezvous.wait_for(Option::is_some).await.ok()?.clone() }, if !told_id => {
                told_id = true;
                id.map(|id| FromSupervisor::Rendezvous { id })
            }
            _ = reminder.tick(), if !told_id => {
                let ranks = shared.absent();
                (!ranks.is_empty()).then_some(FromSupervisor::Absent { ranks })
            }
            _ = sign.tick() => Some(FromSupervisor::Alive),
        };
        if let Some(message) = message {
            // The reading half notices a lost connection.
            send(write, &message).await.ok();
        }
    }
}

impl Shared {
    /// Reads the first message of a connection and checks its token. The error is the reason for
    /// refusing the connection.
    async fn opening(&self, lines: &mut Lines) -> Result<Opening, String> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, lines.next()).await;
        let (token, opening) = match first {
            Ok(Ok(Some(FromWorker::Hello(hello)))) => (hello.token.clone(), Opening::Join(hello)),
            Ok(Ok(Some(FromWorker::Knock { token }))) => (token, Opening::Knock),
            Ok(_) => return Err("its first message is not a hello".to_owned()),
            Err(_) => {
                let limit = HELLO_TIMEOUT.as_secs();
                return Err(format!("it sent no complete message within {limit} s"));
            }
        };
        if !same_secret(&token, &self.expected.token) {
            return Err("its token is not this run's".to_owned());
        }
        Ok(opening)
    }

    fn members(&self) -> std::sync::MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a worker to the connected ranks. The error is the reason for refusing it.
    fn admit(&self, hello: &Hello, orders: mpsc::Sender<FromSupervisor>) -> Result<(), String> {
        let expected = &self.expected;
        let rank = hello.rank;
        if hello.world_size != expected.world_size {
            return Err(format!(
                "rank {rank} sees {} ranks, but the run has {}; start it with the MPI that it was built with",
                hello.world_size, expected.world_size
            ));
        }
        if rank >= expected.world_size {
            return Err(format!("rank {rank} is outside the run's {} ranks", expected.world_size));
        }
        if hello.recipe_hash != expected.recipe_hash {
            return Err(format!(
                "rank {rank} read another recipe (hash {}, the run has {})",
                hello.recipe_hash, expected.recipe_hash
            ));
        }
        let mut members = self.members();
        let build = members.build.get_or_insert_with(|| hello.build.clone());
        if *build != hello.build {
            return Err(format!(
                "rank {rank} on {} runs another build ({}) than the ranks before it ({build}): install the same build on every node",
                hello.host, hello.build
            ));
        }
        if members.ranks.contains_key(&rank) {
            return Err(format!("rank {rank} is already connected"));
        }
        members.ranks.insert(rank, orders);
        self.relay(&members);
        Ok(())
    }

    /// Sends the NCCL id to all ranks once it is known and all ranks have connected. A rank that
    /// got it earlier would wait inside NCCL, which cannot name the ranks that are missing.
    fn relay(&self, members: &Members) {
        if members.ranks.len() == self.expected.world_size && members.rendezvous.is_some() {
            self.rendezvous.send_replace(members.rendezvous.clone());
        }
    }

    /// The first [`MAX_NAMED_RANKS`] ranks that are not connected.
    fn absent(&self) -> Vec<usize> {
        let members = self.members();
        let all = 0..self.expected.world_size;
        all.filter(|rank| !members.ranks.contains_key(rank)).take(MAX_NAMED_RANKS).collect()
    }

    /// Passes a message of a rank to the supervisor. Returns `false` if the connection has ended or
    /// must end.
    async fn receive(&self, rank: usize, message: std::io::Result<Option<FromWorker>>) -> bool {
        match message {
            Ok(Some(FromWorker::Rendezvous { id })) if rank == 0 => {
                let mut members = self.members();
                members.rendezvous = Some(id);
                self.relay(&members);
                true
            }
            Ok(Some(message)) => {
                self.events.send(ControlEvent::Message(rank, message)).await.is_ok()
            }
            Ok(None) => false,
            // The worker ended without reading its last order.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => {
                let text = format!("rank {rank} sent an invalid message: {error}");
                let warning = FromWorker::Warning { text };
                self.events.send(ControlEvent::Message(rank, warning)).await.ok();
                false
            }
        }
    }
}

async fn refuse(
    shared: &Shared,
    write: &mut OwnedWriteHalf,
    peer: SocketAddr,
    rank: Option<usize>,
    reason: String,
) {
    send(write, &FromSupervisor::Refused { reason: reason.clone() }).await.ok();
    shared.events.send(ControlEvent::Refused { rank, peer, reason }).await.ok();
}

/// Closes a connection in order: shuts down the sending side and reads to the end. Closing the
/// socket with unread bytes would reset the connection and could lose an answer that is on its way.
async fn close(mut write: OwnedWriteHalf, lines: Lines) {
    // An error means that the other side has already closed.
    write.shutdown().await.ok();
    let mut rest = lines.reader.into_inner();
    let to_the_end = async {
        while let Ok(bytes @ 1..) = rest.fill_buf().await.map(<[u8]>::len) {
            rest.consume(bytes);
        }
    };
    tokio::time::timeout(CLOSE_TIMEOUT, to_the_end).await.ok();
}

async fn send(write: &mut OwnedWriteHalf, message: &FromSupervisor) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// Compares two secrets in constant time: all bytes are compared.
fn same_secret(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

/// Reads messages from a connection, one per line. [`Lines::next`] is cancel safe: an incomplete
/// line is kept for the next call.
struct Lines {
    reader: Take<BufReader<OwnedReadHalf>>,
    line: Vec<u8>,
    limit: u64,
}

impl Lines {
    fn new(read: OwnedReadHalf) -> Self {
        let reader = BufReader::with_capacity(READ_BYTES, read).take(MAX_HELLO_BYTES);
        Self { reader, line: Vec::new(), limit: MAX_HELLO_BYTES }
    }

    /// The next message, or `None` if the other side closed the connection.
    async fn next(&mut self) -> std::io::Result<Option<FromWorker>> {
        self.reader.set_limit(self.limit - self.line.len() as u64);
        self.reader.read_until(b'\n', &mut self.line).await?;
        if self.line.last() != Some(&b'\n') {
            return if self.line.len() as u64 == self.limit {
                Err(std::io::Error::other(format!("a line of more than {} bytes", self.limit)))
            } else {
                Ok(None)
            };
        }
        let message = serde_json::from_slice(&self.line);
        self.line.clear();
        // Release the memory of a rare long message.
        self.line.shrink_to(READ_BYTES);
        Ok(Some(message?))
    }
}

#[cfg(test)]
mod tests;
