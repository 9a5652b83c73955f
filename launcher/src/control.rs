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
            return;
        }
        Err(reason) => return refuse(shared, &mut write, peer, None, reason).await,
    };
    let rank = hello.rank;
    let (orders, ordered) = mpsc::channel(WAITING_ORDERS);
    if let Err(reason) = shared.admit(&hello, orders) {
        return refuse(shared, &mut write, peer, Some(rank), reason).await;
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
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpStream;
    use vljepa_recipes::protocol::{CheckpointOrder, FromSupervisor, FromWorker, Hello, Phase};

    use super::{Expected, Heard, Server};
    use crate::listen::Listen;

    fn hello(rank: usize) -> Hello {
        Hello {
            token: "secret".to_owned(),
            rank,
            world_size: 2,
            host: "here".to_owned(),
            pid: 1,
            device: "cpu".to_owned(),
            build: "0.1.0 abc".to_owned(),
            recipe_hash: "feed".to_owned(),
        }
    }

    async fn server() -> Server {
        let expected =
            Expected { token: "secret".into(), world_size: 2, recipe_hash: "feed".into() };
        let listen = Listen { host: "127.0.0.1".into(), port: 0, everywhere: false };
        Server::start(expected, &listen).await.unwrap()
    }

    async fn connect(server: &Server, first: &str) -> (BufReader<TcpStream>, FromSupervisor) {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(format!("{first}\n").as_bytes()).await.unwrap();
        let mut reader = BufReader::new(stream);
        let answer = answer(&mut reader).await;
        (reader, answer)
    }

    async fn say_hello(server: &Server, hello: Hello) -> (BufReader<TcpStream>, FromSupervisor) {
        connect(server, &serde_json::to_string(&FromWorker::Hello(hello)).unwrap()).await
    }

    async fn answer(reader: &mut BufReader<TcpStream>) -> FromSupervisor {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn reason(answer: FromSupervisor) -> String {
        match answer {
            FromSupervisor::Refused { reason } => reason,
            FromSupervisor::Welcome
            | FromSupervisor::Alive
            | FromSupervisor::NcclId { .. }
            | FromSupervisor::Absent { .. }
            | FromSupervisor::Checkpoint { .. }
            | FromSupervisor::Stop => panic!("was not refused: {answer:?}"),
        }
    }

    #[tokio::test]
    async fn a_rank_is_welcomed_heard_told_to_stop_and_noticed_when_it_is_gone() {
        let mut server = server().await;
        let (mut worker, welcome) = say_hello(&server, hello(1)).await;
        assert_eq!(welcome, FromSupervisor::Welcome);
        assert!(matches!(server.next().await, Some(Heard::Joined(h)) if h.rank == 1));
        let beat = FromWorker::Heartbeat { step: 3, phase: Phase::Backward, collective: 7 };
        let line = serde_json::to_string(&beat).unwrap() + "\n";
        let (a, b) = line.split_at(10);
        worker.get_mut().write_all(a.as_bytes()).await.unwrap();
        server.stop_all();
        assert_eq!(answer(&mut worker).await, FromSupervisor::Stop);
        worker.get_mut().write_all(b.as_bytes()).await.unwrap();
        assert!(matches!(server.next().await, Some(Heard::Said(1, said)) if said == beat));
        let (_late, welcome) = say_hello(&server, hello(0)).await;
        assert_eq!(welcome, FromSupervisor::Welcome);
        assert!(matches!(server.next().await, Some(Heard::Joined(h)) if h.rank == 0));
        drop(worker);
        assert!(matches!(server.next().await, Some(Heard::Lost(1))));
    }

    #[tokio::test]
    async fn an_nccl_id_reaches_all_ranks_when_all_are_there_and_also_those_that_come_again() {
        let mut server = server().await;
        let (mut first, _) = say_hello(&server, hello(0)).await;
        assert!(matches!(server.next().await, Some(Heard::Joined(_))));
        let made = FromWorker::NcclId { id: "an id".to_owned() };
        let line = serde_json::to_string(&made).unwrap() + "\n";
        first.get_mut().write_all(line.as_bytes()).await.unwrap();
        let soon = Duration::from_millis(200);
        let early = tokio::time::timeout(soon, answer(&mut first)).await;
        assert!(early.is_err(), "rank 1 is not there yet: {early:?}");
        let (mut second, _) = say_hello(&server, hello(1)).await;
        let id = FromSupervisor::NcclId { id: "an id".to_owned() };
        assert_eq!(answer(&mut first).await, id);
        assert_eq!(answer(&mut second).await, id);
        assert!(matches!(server.next().await, Some(Heard::Joined(_))));
        drop(second);
        assert!(matches!(server.next().await, Some(Heard::Lost(1))));
        let (mut again, _) = say_hello(&server, hello(1)).await;
        assert_eq!(answer(&mut again).await, id);
    }

    #[tokio::test]
    async fn a_rank_that_waits_hears_who_is_missing() {
        let server = server().await;
        let (mut first, _) = say_hello(&server, hello(0)).await;
        assert_eq!(answer(&mut first).await, FromSupervisor::Absent { ranks: vec![1] });
    }

    #[tokio::test]
    async fn an_order_reaches_its_rank_alone_and_before_a_later_stop() {
        let mut server = server().await;
        let (mut first, _) = say_hello(&server, hello(0)).await;
        let (mut second, _) = say_hello(&server, hello(1)).await;
        for _ in 0..2 {
            assert!(matches!(server.next().await, Some(Heard::Joined(_))));
        }
        let order = CheckpointOrder::Settled { step: 4, error: None };
        let order = FromSupervisor::Checkpoint { order };
        server.tell(1, order.clone());
        assert_eq!(answer(&mut second).await, order);
        server.stop_all();
        assert_eq!(answer(&mut first).await, FromSupervisor::Stop);
        assert_eq!(answer(&mut second).await, FromSupervisor::Stop);
    }

    #[tokio::test]
    async fn strangers_and_workers_of_another_run_are_refused_with_the_reason() {
        let mut server = server().await;
        let (_first, welcome) = say_hello(&server, hello(0)).await;
        assert_eq!(welcome, FromSupervisor::Welcome);
        assert!(matches!(server.next().await, Some(Heard::Joined(_))));
        let wrong = [
            (Hello { token: "guess!".into(), ..hello(1) }, "token"),
            (Hello { world_size: 1, ..hello(0) }, "believes in 1 ranks, the run has 2"),
            (Hello { rank: 2, ..hello(1) }, "outside the run's 2 ranks"),
            (Hello { recipe_hash: "beef".into(), ..hello(1) }, "another recipe (hash beef"),
            (Hello { build: "0.1.0 xyz".into(), ..hello(1) }, "another build (0.1.0 xyz)"),
            (hello(0), "connected already"),
        ];
        for (hello, expected) in wrong {
            let stranger = hello.token != "secret";
            let text = reason(say_hello(&server, hello).await.1);
            assert!(text.contains(expected), "`{text}` does not say `{expected}`");
            let heard = server.next().await;
            assert!(
                matches!(heard, Some(Heard::Refused { rank, .. }) if rank.is_none() == stranger)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_connects_is_refused_bounded_and_disturbs_no_rank() {
        let mut server = server().await;
        let (mut worker, _) = say_hello(&server, hello(0)).await;
        assert!(matches!(server.next().await, Some(Heard::Joined(_))));
        let mut random = 1_u64;
        let noise = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random.to_be_bytes()[0]
        });
        let noise: Vec<u8> = noise.take(8192).collect();
        let tls = [0x16, 3, 1, 0, 0xa5, 1, 0, 0, 0xa1, 3, 3, 7, b'\n', 0, 0xff].to_vec();
        let half = br#"{"message":"hello","token":"se"#.to_vec();
        let huge = vec![b'x'; 64 << 10];
        let heartbeat = br#"{"message":"heartbeat","step":1,"phase":"data"}"#.to_vec();
        let beat = [heartbeat, b"\n".to_vec()].concat();
        let http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
        for (what, bytes, why) in [
            ("http", http, "did not say hello"),
            ("tls", tls, "did not say hello"),
            ("noise", noise, "did not say hello"),
            ("huge", huge, "did not say hello"),
            ("no hello", beat, "did not say hello"),
            ("half", half, "said nothing within 10 s"),
            ("silence", Vec::new(), "said nothing within 10 s"),
        ] {
            let mut stranger = TcpStream::connect(server.address()).await.unwrap();
            // The server may have closed the connection before it took everything.
            stranger.write_all(&bytes).await.ok();
            match server.next().await {
                Some(Heard::Refused { rank: None, reason, .. }) => {
                    assert!(reason.contains(why), "{what}: {reason}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
        let line = r#"{"message":"heartbeat","step":1,"phase":"data"}"#.to_owned() + "\n";
        worker.get_mut().write_all(line.as_bytes()).await.unwrap();
        let said = server.next().await;
        assert!(matches!(said, Some(Heard::Said(0, FromWorker::Heartbeat { .. }))), "{said:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rank_hears_that_the_supervisor_is_there() {
        let server = server().await;
        let (mut worker, _) = say_hello(&server, hello(0)).await;
        let mut signs = 0;
        while signs < 3 {
            match answer(&mut worker).await {
                FromSupervisor::Alive => signs += 1,
                other => assert_eq!(other, FromSupervisor::Absent { ranks: vec![1] }),
            }
        }
    }

    #[tokio::test]
    async fn who_knocks_with_the_token_hears_welcome_and_nobody_else_does() {
        let server = server().await;
        let knock = |token: &str| FromWorker::Knock { token: token.to_owned() };
        let right = serde_json::to_string(&knock("secret")).unwrap();
        assert_eq!(connect(&server, &right).await.1, FromSupervisor::Welcome);
        let wrong = serde_json::to_string(&knock("guess!")).unwrap();
        assert!(reason(connect(&server, &wrong).await.1).contains("token"));
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let mut server = server().await;
        let (mut worker, _) = say_hello(&server, hello(0)).await;
        assert!(matches!(server.next().await, Some(Heard::Joined(_))));
        let endless = vec![b'x'; 1 << 20];
        worker.get_mut().write_all(&endless).await.unwrap();
        let warned = server.next().await;
        assert!(matches!(warned, Some(Heard::Said(0, FromWorker::Warning { .. }))), "{warned:?}");
        assert!(matches!(server.next().await, Some(Heard::Lost(0))));
    }
}
