//! Address at which the control plane listens, and the name by which workers reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use vljepa_recipes::schema::{Cluster, Scheduler};

use crate::error::LaunchError;

/// Open files of this process other than the connections of workers: logs, pipes, files of the
/// runtime.
const OTHER_FILES: u64 = 128;

/// Host and port of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Host name or address that workers connect to.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Whether to listen on all network interfaces. Otherwise the server listens on the loopback
    /// interface, which other machines cannot reach.
    pub everywhere: bool,
}

impl Listen {
    /// Reads `cluster.control` of the recipe. `machine` is the name by which the nodes of the run
    /// know this machine.
    pub(crate) fn of(cluster: &Cluster, machine: &str) -> Self {
        let control = &cluster.control;
        let spans_hosts = match cluster.scheduler {
            Scheduler::Local => false,
            Scheduler::Slurm => true,
        };
        let host = match (control.host.as_str(), spans_hosts) {
            ("", false) => Ipv4Addr::LOCALHOST.to_string(),
            ("", true) => machine.to_owned(),
            (host, _) => host.to_owned(),
        };
        let everywhere = spans_hosts || !is_loopback(&host);
        Self { host, port: control.port, everywhere }
    }

    /// Binds the port, with a queue and a file limit for `connections`.
    pub(crate) fn bind(&self, connections: usize) -> Result<TcpListener, LaunchError> {
        raise_file_limit(files_needed(connections))?;
        let all = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let own = self.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        // The unspecified IPv6 address accepts IPv4 connections too, but a machine without IPv6
        // refuses to bind it.
        let addresses = if self.everywhere { all.to_vec() } else { vec![own] };
        let mut refused = None;
        for address in addresses {
            match listener(SocketAddr::new(address, self.port), connections) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    refused = Some(error);
                    break;
                }
                Err(error) => refused = Some(error),
            }
        }
        let why = refused.map_or_else(String::new, |error| error.to_string());
        Err(LaunchError::ControlPort { port: self.port, why })
    }

    /// Address that workers connect to, `host:port`, with brackets around an IPv6 address.
    pub(crate) fn address(&self, port: u16) -> String {
        let Self { host, .. } = self;
        if host.parse::<Ipv6Addr>().is_ok() {
            return format!("[{host}]:{port}");
        }
        format!("{host}:{port}")
    }
}

/// Makes a listening socket with a queue for `queue` connections. All ranks connect at almost the
/// same time; a rank that finds the queue full retries only a second later.
fn listener(address: SocketAddr, queue: usize) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    // The next attempt can bind a fixed port again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(u32::try_from(queue).unwrap_or(u32::MAX).min(1 << 16))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Number of open files that the supervisor of `ranks` ranks needs: each connection is one.
pub(crate) fn files_needed(ranks: usize) -> u64 {
    ranks as u64 + OTHER_FILES
}

/// Soft and hard limit on open files of this process.
///
/// # Errors
/// If the hard limit is below `needed`.
pub(crate) fn file_limits(needed: u64) -> Result<[u64; 2], LaunchError> {
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    let (soft, hard) = limits.map_err(|_| LaunchError::OpenFiles { needed, allowed: 0 })?;
    enough_files([soft, hard], needed)
}

/// Compares a soft and a hard limit with `needed`.
///
/// # Errors
/// If the hard limit is below `needed`.
pub(crate) fn enough_files([soft, hard]: [u64; 2], needed: u64) -> Result<[u64; 2], LaunchError> {
    if hard < needed {
        return Err(LaunchError::OpenFiles { needed, allowed: hard });
    }
    Ok([soft, hard])
}

/// Raises the soft limit on open files to `needed`: shells often allow only 1,024.
fn raise_file_limit(needed: u64) -> Result<(), LaunchError> {
    let refused = |allowed| LaunchError::OpenFiles { needed, allowed };
    let [soft, hard] = file_limits(needed)?;
    if soft >= needed {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(|_| refused(soft))
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::schema::{Cluster, ControlPlane, Scheduler};

    use super::{Listen, raise_file_limit};

    fn listen(scheduler: Scheduler, host: &str) -> Listen {
        let control = ControlPlane { host: host.to_owned(), ..ControlPlane::default() };
        Listen::of(&Cluster { scheduler, control, ..Cluster::default() }, "node7")
    }

    #[test]
    fn a_run_on_one_machine_listens_to_itself_and_one_on_several_to_all() {
        let local = listen(Scheduler::Local, "");
        assert_eq!((local.address(5).as_str(), local.everywhere), ("127.0.0.1:5", false));
        let slurm = listen(Scheduler::Slurm, "");
        assert_eq!((slurm.address(5).as_str(), slurm.everywhere), ("node7:5", true));
        let other = listen(Scheduler::Slurm, "ib0.node7");
        assert_eq!((other.address(5).as_str(), other.everywhere), ("ib0.node7:5", true));
        let six = listen(Scheduler::Local, "::1");
        assert_eq!((six.address(5).as_str(), six.everywhere), ("[::1]:5", false));
        assert!(listen(Scheduler::Local, "node7").everywhere);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_key() {
        for everywhere in [false, true] {
            let free = Listen { host: "127.0.0.1".into(), port: 0, everywhere };
            let first = free.bind(8).unwrap();
            let port = first.local_addr().unwrap().port();
            let error = Listen { port, ..free }.bind(8).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("port {port} (cluster.control.port)")), "{text}");
        }
    }

    #[test]
    fn more_open_files_than_the_machine_allows_are_an_error_that_says_so() {
        assert!(raise_file_limit(64).is_ok());
        let text = raise_file_limit(u64::MAX).unwrap_err().to_string();
        assert!(text.contains("open files"), "{text}");
    }
}
