//! HTTP proxy that notes the requests to a server and disturbs chosen answers.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Disturbance of one answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// No disturbance.
    Pass,
    /// An answer with this status, without asking the server.
    Status(u16),
    /// The connection is closed without an answer.
    Close,
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// The answer ends properly after so many bytes of the body.
    Short(usize),
    /// After so many bytes of the body nothing more comes, and the connection stays open.
    Stall(usize),
    /// The body comes in pieces of so many bytes, one every 20 ms.
    Slow(usize),
    /// The ETag of the answer is replaced.
    Etag(&'static str),
    /// The server is asked for the whole file, as if it did not know ranges.
    Whole,
    /// The ETag and the time of last change are missing in the answer.
    Unversioned,
}

/// Request that reached the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Value of the header `Range`, without `bytes=`.
    pub range: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    faults: VecDeque<Fault>,
    /// Disturbance when `faults` is empty.
    otherwise: Option<Fault>,
    requests: Vec<Request>,
}

/// Proxy on a port of this machine. Its thread ends with the process.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts a proxy to the server at `server`. The server sees the proxy's name, which is part
    /// of the signatures of S3.
    pub fn to(server: SocketAddr) -> Self {
        Self::start(server, false)
    }

    /// Starts a proxy to a server that wants to be called by its own name.
    pub fn with_its_name(server: SocketAddr) -> Self {
        Self::start(server, true)
    }

    fn start(server: SocketAddr, with_its_name: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let state = Arc::clone(&proxy.state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                // A client that closes its connection early ends the thread with an error.
                std::thread::spawn(move || drop(answer(&client, server, with_its_name, &state)));
            }
        });
        proxy
    }

    /// Disturbs the next answers in this order.
    pub fn disturb(&self, faults: &[Fault]) {
        self.state.lock().unwrap().faults.extend(faults.iter().cloned());
    }

    /// Disturbs all answers.
    pub fn disturb_all(&self, fault: Fault) {
        self.state.lock().unwrap().otherwise = Some(fault);
    }

    /// Requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// Ranges of the requests since the last call.
    pub fn ranges(&self) -> Vec<String> {
        self.requests().into_iter().filter_map(|request| request.range).collect()
    }
}

/// First line, headers and the body's length of a message.
fn head(reader: &mut impl BufRead) -> std::io::Result<(Vec<String>, usize)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            let length = header(&lines, "content-length").map_or(0, |text| text.parse().unwrap());
            return Ok((lines, length));
        }
        lines.push(line);
    }
}

fn header<'a>(lines: &'a [String], name: &str) -> Option<&'a str> {
    lines.iter().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn without(lines: &mut Vec<String>, name: &str) {
    lines.retain(|line| !line.to_ascii_lowercase().starts_with(&format!("{name}:")));
}

fn send(mut to: &TcpStream, lines: &[String], body: &[u8]) -> std::io::Result<()> {
    to.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())?;
    to.write_all(body)
}

/// Answers one request. Each connection has one, which the answer says.
fn answer(
    client: &TcpStream,
    server: SocketAddr,
    with_its_name: bool,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client);
    let (mut lines, length) = head(&mut reader)?;
    let first: Vec<_> = lines[0].split(' ').map(str::to_owned).collect();
    let range = header(&lines, "range").map(|text| text.trim_start_matches("bytes=").to_owned());
    let fault = {
        let mut state = state.lock().unwrap();
        let request = Request { method: first[0].clone(), target: first[1].clone(), range };
        state.requests.push(request);
        state.faults.pop_front().or(state.otherwise.clone()).unwrap_or(Fault::Pass)
    };
    match fault {
        Fault::Close => return Ok(()),
        Fault::Status(status) => {
            let body = "disturbed";
            let lines = [
                format!("HTTP/1.1 {status} Disturbed"),
                format!("Content-Length: {}", body.len()),
                "Connection: close".to_owned(),
            ];
            return send(client, &lines, body.as_bytes());
        }
        Fault::Whole => without(&mut lines, "range"),
        _ => {}
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let upstream = TcpStream::connect(server)?;
    if with_its_name {
        without(&mut lines, "host");
        lines.push(format!("Host: {server}"));
    }
    without(&mut lines, "connection");
    lines.push("Connection: close".to_owned());
    send(&upstream, &lines, &body)?;
    let mut reader = BufReader::new(&upstream);
    let (mut lines, mut length) = head(&mut reader)?;
    without(&mut lines, "connection");
    lines.push("Connection: close".to_owned());
    if first[0] == "HEAD" {
        length = 0;
    }
    let mut body = vec![0; length];
    if header(&lines, "transfer-encoding").is_some() {
        reader.read_to_end(&mut body)?;
    } else {
        reader.read_exact(&mut body)?;
    }
    deliver(client, lines, &body, &fault)
}

fn deliver(
    mut client: &TcpStream,
    mut lines: Vec<String>,
    body: &[u8],
    fault: &Fault,
) -> std::io::Result<()> {
    match *fault {
        Fault::Cut(count) => send(client, &lines, &body[..count.min(body.len())]),
        Fault::Short(count) => {
            let count = count.min(body.len());
            without(&mut lines, "content-length");
            lines.push(format!("Content-Length: {count}"));
            send(client, &lines, &body[..count])
        }
        Fault::Stall(count) => {
            send(client, &lines, &body[..count.min(body.len())])?;
            // Ends when the client closes the connection.
            client.read(&mut [0]).map(drop)
        }
        Fault::Slow(count) => {
            send(client, &lines, &[])?;
            // Nothing is ever sent on this channel: waiting for it is a pause.
            let (_sender, pause) = mpsc::channel::<()>();
            for piece in body.chunks(count) {
                client.write_all(piece)?;
                pause.recv_timeout(Duration::from_millis(20)).unwrap_err();
            }
            Ok(())
        }
        Fault::Etag(etag) => {
            without(&mut lines, "etag");
            lines.push(format!("ETag: \"{etag}\""));
            send(client, &lines, body)
        }
        Fault::Unversioned => {
            without(&mut lines, "etag");
            without(&mut lines, "last-modified");
            send(client, &lines, body)
        }
        Fault::Pass | Fault::Whole | Fault::Close | Fault::Status(_) => send(client, &lines, body),
    }
}
