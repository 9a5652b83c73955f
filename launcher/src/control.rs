//! The server side of the control plane: takes connections of workers, refuses strangers, hands what ranks say to the supervisor.
//!
//! One task per connection; everything goes through one bounded channel, a line is at most [`MAX_LINE_BYTES`] long and strangers
//! are limited, so memory is bounded whatever connects.

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

use crate::error::LaunchError;
use crate::listen::Listen;

/// Longest message of a member.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Longest first message: strangers get no more memory than a hello needs.
const MAX_HELLO_BYTES: u64 = 4 << 10;
/// A connection that says nothing for so long is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read from a connection at once; heartbeats are a tenth of it.
const READ_BYTES: usize = 1 << 10;
/// How long the other side of a connection that the server ends may take to close its own.
const CLOSING: Duration = Duration::from_secs(2);
/// Between signs of life to workers.
const SIGN: Duration = Duration::from_secs(SIGN_OF_LIFE_S);
/// Connections beyond the ranks that may be open at once, while they have not said who they are.
const STRANGERS: usize = 64;
/// Between reminders to a rank that others have not connected.
const REMINDER: Duration = Duration::from_secs(5);
/// Ranks that such a reminder names at most.
const NAMED: usize = 16;
/// Orders that may wait for a rank: a checkpoint takes one, and the next begins only after it.
const WAITING_ORDERS: usize = 8;
/// Messages waiting for the supervisor before connections are read no further.
const WAITING_MESSAGES: usize = 1024;

/// What a worker must be to belong to the run.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Secret of this attempt.
    pub token: String,
    /// Ranks.
    pub world_size: usize,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
}

/// What a first message asks for.
enum Opening {
    Join(Hello),
    Knock,
}

/// What the supervisor hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A worker was welcomed.
    Joined(Hello),
    /// A rank said something.
    Said(usize, FromWorker),
    /// A rank's connection is gone.
    Lost(usize),
    /// A connection was turned away.
    Refused {
        /// The rank it claimed with the right token; none for strangers.
        rank: Option<usize>,
        /// Where it came from.
        peer: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// The server; dropping it closes all connections.
#[derive(Debug)]
pub(crate) struct Server {
    address: String,
    heard: mpsc::Receiver<Heard>,
    stop: watch::Sender<bool>,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    expected: Expected,
    members: Mutex<Members>,
    heard: mpsc::Sender<Heard>,
    /// Rank 0's NCCL id, from the moment when all ranks have connected.
    nccl_id: watch::Sender<Option<String>>,
}

/// Who is connected, and the build that all must have: the first one's.
#[derive(Debug, Default)]
struct Members {
    ranks: BTreeMap<usize, mpsc::Sender<FromSupervisor>>,
    build: Option<String>,
    nccl_id: Option<String>,
}

impl Server {
    /// Listens where the recipe says.
    pub(crate) async fn start(expected: Expected, listen: &Listen) -> Result<Self, LaunchError> {
        let listener = listen.bind(expected.world_size + STRANGERS)?;
        let port = listener.local_addr().map_err(|error| LaunchError::Start {
            what: "listening for workers".to_owned(),
            why: error.to_string(),
        })?;
        let address = listen.address(port.port());
        let (sender, heard) = mpsc::channel(WAITING_MESSAGES);
        let (stop, stopped) = watch::channel(false);
        let open = Arc::new(Semaphore::new(expected.world_size + STRANGERS));
        let nccl_id = watch::Sender::new(None);
        let shared =
            Arc::new(Shared { expected, members: Mutex::default(), heard: sender, nccl_id });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared), stopped, open));
        Ok(Self { address, heard, stop, shared, accepting })
    }

    /// Where workers connect.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits for the next thing heard.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    /// Closes all connections: a worker whose supervisor is gone ends itself.
    pub(crate) fn close(&self) {
        self.accepting.abort();
    }

    /// Tells a rank something; one that is gone, or takes nothing any more, is noticed by its silence.
    pub(crate) fn tell(&self, rank: usize, message: FromSupervisor) {
        if let Some(orders) = self.shared.members().ranks.get(&rank) {
            orders.try_send(message).ok();
        }
    }

    /// Asks all ranks, also those that join later, to save and end.
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
    // Connections live in this set, so that ending this task ends them too.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return };
        // A failed accept (too many open files) concerns one connection; the next attempt waits a moment.
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

/// One connection from hello to its end.
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
    let (orders, ordered) = mpsc::channel(WAITING_ORDERS);
    if let Err(reason) = shared.admit(&hello, orders) {
        refuse(shared, &mut write, peer, Some(rank), reason).await;
        return close(write, lines).await;
    }
    let welcomed = send(&mut write, &FromSupervisor::Welcome).await.is_ok();
    lines.limit = MAX_LINE_BYTES;
    let mut listening = welcomed && shared.heard.send(Heard::Joined(hello)).await.is_ok();
    let speaking = speak(&mut write, shared, stopped, ordered);
    tokio::pin!(speaking);
    while listening {
        tokio::select! {
            message = lines.next() => listening = shared.hear(rank, message).await,
            () = &mut speaking => {}
        }
    }
    shared.members().ranks.remove(&rank);
    shared.heard.send(Heard::Lost(rank)).await.ok();
}

/// Tells a rank what it has to know: that the supervisor is there, that it should stop, where the others are, who has not come, and what
/// becomes of a checkpoint.
async fn speak(
    write: &mut OwnedWriteHalf,
    shared: &Shared,
    mut stopped: watch::Receiver<bool>,
    mut orders: mpsc::Receiver<FromSupervisor>,
) {
    let mut nccl_id = shared.nccl_id.subscribe();
    let (mut told_stop, mut told_id) = (false, false);
    let from_now = |period| tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    let (mut sign, mut reminder) = (from_now(SIGN), from_now(REMINDER));
    loop {
        let message = tokio::select! {
            stop = async { stopped.wait_for(|stop| *stop).await.is_ok() }, if !told_stop => {
                told_stop = true;
                stop.then_some(FromSupervisor::Stop)
            }
            Some(order) = orders.recv() => Some(order),
            id = async { nccl_id.wait_for(Option::is_some).await.ok()?.clone() }, if !told_id => {
                told_id = true;
                id.map(|id| FromSupervisor::NcclId { id })
            }
            _ = reminder.tick(), if !told_id => {
                let ranks = shared.absent();
                (!ranks.is_empty()).then_some(FromSupervisor::Absent { ranks })
            }
            _ = sign.tick() => Some(FromSupervisor::Alive),
        };
        if let Some(message) = message {
            // A connection that is gone is noticed by its reader.
            send(write, &message).await.ok();
        }
    }
}

impl Shared {
    /// Hears what a connection wants, or says why it is turned away.
    async fn opening(&self, lines: &mut Lines) -> Result<Opening, String> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, lines.next()).await;
        let (token, opening) = match first {
            Ok(Ok(Some(FromWorker::Hello(hello)))) => (hello.token.clone(), Opening::Join(hello)),
            Ok(Ok(Some(FromWorker::Knock { token }))) => (token, Opening::Knock),
            Ok(_) => return Err("it did not say hello".to_owned()),
            Err(_) => {
                return Err(format!("it said nothing within {} s", HELLO_TIMEOUT.as_secs()));
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

    /// Takes a worker in, or says why not.
    fn admit(&self, hello: &Hello, orders: mpsc::Sender<FromSupervisor>) -> Result<(), String> {
        let expected = &self.expected;
        let rank = hello.rank;
        if hello.world_size != expected.world_size {
            return Err(format!(
                "rank {rank} believes in {} ranks, the run has {}: was it started by another MPI than its build's?",
                hello.world_size, expected.world_size
            ));
        }
        if rank >= expected.world_size {
            return Err(format!("rank {rank} is outside the run's {} ranks", expected.world_size));
        }
        if hello.recipe_hash != expected.recipe_hash {
            return Err(format!(
                "rank {rank} read another recipe (hash {}, the run's is {})",
                hello.recipe_hash, expected.recipe_hash
            ));
        }
        let mut members = self.members();
        let build = members.build.get_or_insert_with(|| hello.build.clone());
        if *build != hello.build {
            return Err(format!(
                "rank {rank} on {} is another build ({}) than the ranks before it ({build}): install one build everywhere",
                hello.host, hello.build
            ));
        }
        if members.ranks.contains_key(&rank) {
            return Err(format!("rank {rank} is connected already"));
        }
        members.ranks.insert(rank, orders);
        self.relay(&members);
        Ok(())
    }

    /// Hands the NCCL id out as soon as it is there and all ranks are: whoever came to it earlier would wait for the others inside of
    /// NCCL, which cannot say for whom.
    fn relay(&self, members: &Members) {
        if members.ranks.len() == self.expected.world_size && members.nccl_id.is_some() {
            self.nccl_id.send_replace(members.nccl_id.clone());
        }
    }

    /// The first ranks that are not connected.
    fn absent(&self) -> Vec<usize> {
        let members = self.members();
        let all = 0..self.expected.world_size;
        all.filter(|rank| !members.ranks.contains_key(rank)).take(NAMED).collect()
    }

    /// Passes a message on; false ends the connection.
    async fn hear(&self, rank: usize, message: std::io::Result<Option<FromWorker>>) -> bool {
        match message {
            Ok(Some(FromWorker::NcclId { id })) if rank == 0 => {
                let mut members = self.members();
                members.nccl_id = Some(id);
                self.relay(&members);
                true
            }
            Ok(Some(message)) => self.heard.send(Heard::Said(rank, message)).await.is_ok(),
            Ok(None) => false,
            // It ended without reading the last order.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => {
                let text = format!("rank {rank} said something that is no message: {error}");
                let warning = FromWorker::Warning { text };
                self.heard.send(Heard::Said(rank, warning)).await.ok();
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
    shared.heard.send(Heard::Refused { rank, peer, reason }).await.ok();
}

/// Closes a connection in order: sends no more and reads to the end. Closing it with unread bytes
/// would reset it, and an answer that is still on its way would be lost.
async fn close(mut write: OwnedWriteHalf, lines: Lines) {
    // An error means that the other side is gone.
    write.shutdown().await.ok();
    let mut rest = lines.reader.into_inner();
    let to_the_end = async {
        while let Ok(bytes @ 1..) = rest.fill_buf().await.map(<[u8]>::len) {
            rest.consume(bytes);
        }
    };
    tokio::time::timeout(CLOSING, to_the_end).await.ok();
}

async fn send(write: &mut OwnedWriteHalf, message: &FromSupervisor) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// Compares all bytes, so that the time taken says nothing about the secret.
fn same_secret(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

/// Messages of a connection. What was read of a line is kept when waiting for the rest is given up.
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

    /// The next message; none when the other side closed the connection.
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
        // A rare long message does not keep its memory.
        self.line.shrink_to(READ_BYTES);
        Ok(Some(message?))
    }
}

#[cfg(test)]
mod tests;
