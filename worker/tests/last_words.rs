//! Tests that no last message is lost when a thousand ranks exit while the supervisor still sends
//! messages to them.
//!
//! This program is the supervisor and, started again, the worker processes. Only the exit of a real
//! process closes connections in the way that a worker's exit does.

#![expect(clippy::disallowed_methods, reason = "the test starts worker processes")]
#![expect(clippy::unwrap_used, reason = "a test fails with a panic")]
#![expect(clippy::print_stdout, reason = "a test's own output")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{FromSupervisor, FromWorker, Hello, Outcome};
use vljepa_worker::rank::control::Control;

/// Worker processes that are started one after the other.
const PROCESSES: usize = 20;
/// Ranks in each process.
const RANKS: usize = 50;
/// Messages of a rank before its last one.
const MESSAGES: usize = 64;
/// Bytes of text in each of these messages. Together the messages exceed the initial size of a
/// connection's receive buffer, so the last one is still in the sender's kernel when the supervisor
/// begins to read.
const TEXT_BYTES: usize = 2 << 10;
/// Pause between two looks at a receive buffer that is filling.
const LOOK: Duration = Duration::from_millis(1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, address] = &arguments[..]
        && mode == "workers"
    {
        return workers(address);
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    if arguments.iter().any(|argument| argument == "--list")
        || filter.is_some_and(|filter| !"last_words".contains(filter.as_str()))
    {
        return;
    }
    let start = Instant::now();
    let lost: usize = (0..PROCESSES).map(|_| lost_last_words()).sum();
    let ranks = PROCESSES * RANKS;
    println!("{ranks} ranks, {lost} lost last messages, {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(lost, 0, "last messages of {ranks} ranks were lost");
    // The closing line of Rust's test harness, so that scripts count this test.
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// Supervises one worker process and returns how many of its ranks lost their last message.
fn lost_last_words() -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["workers", &address])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let all_are_full = Arc::new(Barrier::new(RANKS));
    let ranks: Vec<_> = (0..RANKS)
        .map(|_| {
            let (stream, _) = listener.accept().unwrap();
            let all_are_full = Arc::clone(&all_are_full);
            std::thread::spawn(move || hears_the_end(stream, &all_are_full))
        })
        .collect();
    let lost = ranks.into_iter().filter_map(|rank| (!rank.join().unwrap()).then_some(())).count();
    assert!(process.wait().unwrap().success());
    lost
}

/// Answers every message of a rank until the connection ends, as orders cross the rank's messages
/// in a run. Returns whether the last message arrived.
fn hears_the_end(mut stream: TcpStream, all_are_full: &Barrier) -> bool {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let hello = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let FromWorker::Hello(Hello { rank, .. }) = hello else { panic!("{hello:?}") };
    say(&mut stream, &FromSupervisor::Welcome);
    wait_until_full(&stream);
    all_are_full.wait();
    let mut last = None;
    for line in lines.map_while(Result::ok) {
        // The last line of a connection that was reset may be cut off.
        last = serde_json::from_str(&line).ok();
        say(&mut stream, &FromSupervisor::Alive);
    }
    last == Some(last_message(rank))
}

/// Waits until no more data arrive, like a supervisor that is too busy to read.
fn wait_until_full(stream: &TcpStream) {
    let mut buffer = vec![0; MESSAGES * TEXT_BYTES];
    let mut arrived = 0;
    loop {
        std::thread::park_timeout(LOOK);
        match stream.peek(&mut buffer).unwrap() {
            bytes if bytes == arrived => return,
            bytes => arrived = bytes,
        }
    }
}

/// Sends a message to a rank that may have exited.
fn say(stream: &mut TcpStream, message: &FromSupervisor) {
    let line = serde_json::to_string(message).unwrap() + "\n";
    stream.write_all(line.as_bytes()).ok();
}

fn last_message(rank: usize) -> FromWorker {
    FromWorker::Finished { outcome: Outcome::Completed, step: rank as u64 }
}

/// Runs all ranks of one process, which exits as soon as they have sent their last messages.
fn workers(address: &str) {
    let ranks = (0..RANKS).map(|rank| {
        let address = address.to_owned();
        std::thread::spawn(move || worker(&address, rank))
    });
    let ranks: Vec<_> = ranks.collect();
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

fn worker(address: &str, rank: usize) {
    let hello = Hello {
        token: "secret".to_owned(),
        rank,
        world_size: RANKS,
        host: "here".to_owned(),
        pid: std::process::id(),
        device: "host".to_owned(),
        build: "0".to_owned(),
        recipe_hash: "0".to_owned(),
    };
    let control = Control::connect(address, hello, Duration::from_secs(120)).unwrap();
    for _ in 0..MESSAGES {
        control.report(FromWorker::Warning { text: "w".repeat(TEXT_BYTES) });
    }
    control.report_last(last_message(rank));
}
