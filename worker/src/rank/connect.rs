//! Connects to the supervisor: resolves its name, tries all its addresses, and retries while the
//! run starts. A failure is explained by one message that names the cause.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crossbeam_channel::after;

use crate::error::WorkerError;

/// How long a worker tries to connect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectLimits {
    /// Limit for all attempts together. Retries help while a fresh node cannot resolve the name
    /// yet, or while the queue of connections is full.
    pub total: Duration,
    /// Limit for the answer of one address.
    pub per_address: Duration,
}

impl ConnectLimits {
    /// Limits for a test whether the supervisor can be reached. The supervisor is already running
    /// then.
    pub(crate) const SHORT: Self =
        Self { total: Duration::from_secs(3), per_address: Duration::from_millis(1500) };
}

impl Default for ConnectLimits {
    /// 30 s in total. The supervisor listens before it starts workers, so a longer failure is not a
    /// race.
    fn default() -> Self {
        Self { total: Duration::from_secs(30), per_address: Duration::from_secs(5) }
    }
}

/// First pause between two attempts. Pauses double up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// Reason why an attempt failed. The reason of the last attempt is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    Name,
    Silence,
    Refused,
    Other,
}

/// Connects to `HOST:PORT`, and tries every address of the host until the limits are exceeded.
pub(crate) fn connect(address: &str, limits: ConnectLimits) -> Result<TcpStream, WorkerError> {
    let deadline = Instant::now() + limits.total;
    let mut wait = FIRST_BACKOFF;
    loop {
        let failed = match attempt(address, limits.per_address, deadline) {
            Ok(stream) => return Ok(stream),
            Err(failed) => failed,
        };
        if Instant::now() + wait >= deadline {
            return Err(explain(address, limits, failed));
        }
        // This process has nothing else to do yet, so it blocks.
        after(wait).recv().map(drop).unwrap_or_default();
        wait = (wait * 2).min(LONGEST_BACKOFF);
    }
}

type Failed = (Obstacle, Vec<SocketAddr>, String);

fn attempt(address: &str, per_address: Duration, deadline: Instant) -> Result<TcpStream, Failed> {
    let addresses: Vec<SocketAddr> = match address.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Err((Obstacle::Name, Vec::new(), error.to_string())),
    };
    let mut last = (Obstacle::Name, addresses.clone(), "it has no address".to_owned());
    for candidate in &addresses {
        let left = deadline.saturating_duration_since(Instant::now()).max(FIRST_BACKOFF);
        let error = match TcpStream::connect_timeout(candidate, per_address.min(left)) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        // Report an address that does not answer rather than one that refuses: a name often has
        // both kinds.
        if last.0 != Obstacle::Silence {
            last = (obstacle(error.kind()), addresses.clone(), error.to_string());
        }
    }
    Err(last)
}

fn obstacle(kind: ErrorKind) -> Obstacle {
    match kind {
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Obstacle::Silence
        }
        ErrorKind::ConnectionRefused => Obstacle::Refused,
        _ => Obstacle::Other,
    }
}

fn explain(address: &str, limits: ConnectLimits, (obstacle, tried, why): Failed) -> WorkerError {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let (host, port) = (host.to_owned(), port.to_owned());
    let seconds = limits.total.as_secs_f64();
    let tried: Vec<String> = tried.iter().map(|address| address.ip().to_string()).collect();
    let tried = tried.join(", ");
    match obstacle {
        Obstacle::Name => WorkerError::SupervisorName { host, why },
        Obstacle::Silence => WorkerError::SupervisorSilent { host, tried, port, seconds, why },
        Obstacle::Refused => WorkerError::SupervisorRefuses { host, tried, port },
        Obstacle::Other => WorkerError::SupervisorUnreachable { host, tried, port, why },
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::{ConnectLimits, Obstacle, connect, explain, obstacle};

    const BRIEF: ConnectLimits = ConnectLimits {
        total: Duration::from_millis(300),
        per_address: Duration::from_millis(100),
    };

    fn error(address: &str) -> String {
        let start = Instant::now();
        let text = connect(address, BRIEF).unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(10), "{text}");
        text
    }

    #[test]
    fn each_obstacle_has_its_own_message_with_host_and_port() {
        let name = error("no-such-host.invalid:4321");
        assert!(
            name.contains("no-such-host.invalid") && name.contains("cluster.control.host"),
            "{name}"
        );
        let nobody = error("127.0.0.1:1");
        assert!(
            nobody.contains("127.0.0.1 port 1") && nobody.contains("nothing listens"),
            "{nobody}"
        );
    }

    #[test]
    fn an_address_that_never_answers_is_told_from_one_where_nobody_listens() {
        for kind in [ErrorKind::TimedOut, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable]
        {
            assert_eq!(obstacle(kind), Obstacle::Silence);
        }
        let tried = vec!["10.0.0.7:4321".parse().unwrap(), "[fe80::7]:4321".parse().unwrap()];
        let failed = (Obstacle::Silence, tried, "connection timed out".to_owned());
        let text = explain("node7:4321", ConnectLimits::default(), failed).to_string();
        for part in
            ["node7 port 4321", "30 s", "10.0.0.7, fe80::7", "firewall", "cluster.control.port"]
        {
            assert!(text.contains(part), "`{part}` is missing: {text}");
        }
    }

    #[test]
    fn a_supervisor_that_comes_late_is_found() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let late = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_millis(300));
            let listener = TcpListener::bind(free).unwrap();
            listener.accept().map(drop)
        });
        let limits = ConnectLimits { total: Duration::from_secs(20), ..BRIEF };
        assert!(connect(&free.to_string(), limits).is_ok());
        late.join().unwrap().unwrap();
    }
}
