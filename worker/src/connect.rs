//! Reaching the supervisor: its name, each of its addresses, again while the run starts, and then one message that says what is wrong.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crossbeam_channel::after;

use crate::error::WorkerError;

/// How long a worker tries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// In all: names that a fresh node cannot resolve yet, a queue of connections that is full.
    pub total: Duration,
    /// For an answer of one address.
    pub one: Duration,
}

impl Patience {
    /// For a look whether the supervisor can be reached, which is there already.
    pub(crate) const SHORT: Self =
        Self { total: Duration::from_secs(3), one: Duration::from_millis(1500) };
}

impl Default for Patience {
    /// 30 s. The supervisor listens before it starts workers, so what lasts longer than that is no race.
    fn default() -> Self {
        Self { total: Duration::from_secs(30), one: Duration::from_secs(5) }
    }
}

/// First wait between two tries; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Why a try failed; the last one's reason is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    Name,
    Silence,
    Refused,
    Other,
}

/// Connects to `HOST:PORT`, trying every address that the name has, until patience ends.
pub(crate) fn connect(address: &str, patience: Patience) -> Result<TcpStream, WorkerError> {
    let deadline = Instant::now() + patience.total;
    let mut wait = FIRST_WAIT;
    loop {
        let failed = match attempt(address, patience.one, deadline) {
            Ok(stream) => return Ok(stream),
            Err(failed) => failed,
        };
        if Instant::now() + wait >= deadline {
            return Err(explain(address, patience, failed));
        }
        // Nothing else can happen to this process yet, so it just waits.
        after(wait).recv().map(drop).unwrap_or_default();
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

type Failed = (Obstacle, Vec<SocketAddr>, String);

fn attempt(address: &str, one: Duration, deadline: Instant) -> Result<TcpStream, Failed> {
    let addresses: Vec<SocketAddr> = match address.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Err((Obstacle::Name, Vec::new(), error.to_string())),
    };
    let mut last = (Obstacle::Name, addresses.clone(), "it has no address".to_owned());
    for candidate in &addresses {
        let left = deadline.saturating_duration_since(Instant::now()).max(FIRST_WAIT);
        let error = match TcpStream::connect_timeout(candidate, one.min(left)) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        // An address that does not answer says more than one where nobody listens: a name often has both kinds.
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

fn explain(address: &str, patience: Patience, (obstacle, tried, why): Failed) -> WorkerError {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let (host, port) = (host.to_owned(), port.to_owned());
    let seconds = patience.total.as_secs_f64();
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

    use super::{Obstacle, Patience, connect, explain, obstacle};

    const BRIEF: Patience =
        Patience { total: Duration::from_millis(300), one: Duration::from_millis(100) };

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
        let text = explain("node7:4321", Patience::default(), failed).to_string();
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
        let patience = Patience { total: Duration::from_secs(20), ..BRIEF };
        assert!(connect(&free.to_string(), patience).is_ok());
        late.join().unwrap().unwrap();
    }
}
