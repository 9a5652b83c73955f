//! Tests of the control connection against a scripted supervisor.

use std::net::TcpListener;

use vljepa_recipes::protocol::{FileEntry, Outcome};

use super::*;

const SILENCE: Duration = Duration::from_secs(120);

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

/// Starts a supervisor that answers one worker's hello with `answer` and then runs `rest` on the
/// connection.
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

fn finished() -> FromWorker {
    FromWorker::Finished { outcome: Outcome::Completed, step: 3 }
}

/// Reads until the worker has closed its side of the connection.
fn read_to_the_end(lines: impl Iterator<Item = std::io::Result<String>>) {
    lines.for_each(|line| drop(line.unwrap()));
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
    let control = Control::connect(&address, hello(), SILENCE).unwrap();
    control.at(3, Phase::Backward);
    assert_eq!(control.position(), (3, Phase::Backward));
    for step in [1, 2] {
        let name = "s".to_owned();
        control.report(FromWorker::Saved { step, name, stall_s: 0.0, durable_s: 0.0 });
    }
    control.report_last(finished());
    assert_eq!(thread.join().unwrap(), [1, 2, 3]);
}

#[test]
fn a_stop_is_heard() {
    let (address, thread) = supervisor(FromSupervisor::Welcome, |reader, mut stream| {
        writeln!(stream, "{}", serde_json::to_string(&FromSupervisor::Stop).unwrap()).unwrap();
        read_to_the_end(reader.lines());
    });
    let control = Control::connect(&address, hello(), SILENCE).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while !control.stop_requested() {
        assert!(Instant::now() < end, "the stop was not heard");
        std::thread::yield_now();
    }
    control.report_last(finished());
    thread.join().unwrap();
}

#[test]
fn an_order_to_publish_the_files_of_4096_ranks_arrives_and_an_endless_line_is_an_error() {
    let file = |rank: usize| FileEntry {
        name: format!("part-{rank:05}-of-04096.safetensors"),
        bytes: 9_400_000_000,
        blake3: "5".repeat(64),
        range: rank * 795_864_896..(rank + 1) * 795_864_896,
    };
    let files: Vec<FileEntry> = (0..4096).map(file).collect();
    let order = CheckpointOrder::Publish { step: 170_000, files };
    let line = serde_json::to_vec(&FromSupervisor::Checkpoint { order: order.clone() }).unwrap();
    assert!(line.len() > 600_000, "{}", line.len());
    let (address, thread) = supervisor(FromSupervisor::Welcome, move |reader, mut stream| {
        stream.write_all(&[&line[..], b"\n"].concat()).unwrap();
        read_to_the_end(reader.lines());
    });
    let control = Control::connect(&address, hello(), SILENCE).unwrap();
    assert_eq!(control.checkpoint_order(170_000).unwrap(), order);
    control.report_last(finished());
    thread.join().unwrap();

    let endless = std::io::repeat(b'x').take(2 * MAX_LINE_BYTES);
    let error = super::line(&mut BufReader::new(endless)).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn a_rendezvous_is_awaited_and_who_keeps_it_away_is_named() {
    let (go, gone) = bounded::<()>(0);
    let (address, thread) = supervisor(FromSupervisor::Welcome, move |reader, mut stream| {
        let mut say = |message: &FromSupervisor| {
            writeln!(stream, "{}", serde_json::to_string(message).unwrap()).unwrap();
        };
        gone.recv().unwrap();
        say(&FromSupervisor::Absent { ranks: vec![3, 5] });
        gone.recv().unwrap();
        say(&FromSupervisor::Rendezvous { id: "an id".to_owned() });
        read_to_the_end(reader.lines());
    });
    let control = Control::connect(&address, hello(), Duration::from_secs(60)).unwrap();
    let soon = Duration::from_millis(20);
    let error = control.rendezvous(None, soon).unwrap_err().to_string();
    assert!(error.contains("rank 0 sent no id"), "{error}");
    go.send(()).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let error = control.rendezvous(None, soon).unwrap_err().to_string();
        if error.contains("ranks 3, 5 did not connect") {
            break;
        }
        assert!(Instant::now() < end, "{error}");
    }
    go.send(()).unwrap();
    assert_eq!(control.rendezvous(None, Duration::from_secs(10)).unwrap(), "an id");
    control.report_last(finished());
    thread.join().unwrap();
}

#[test]
fn without_a_supervisor_there_is_no_id_to_wait_for() {
    let error = Control::alone().rendezvous(None, Duration::from_secs(60)).unwrap_err();
    assert!(error.to_string().contains("vljepa-launch"), "{error}");
}

#[test]
fn a_refusal_names_its_reason() {
    let reason = "another recipe".to_owned();
    let (address, thread) = supervisor(FromSupervisor::Refused { reason }, |_, _| ());
    let error = Control::connect(&address, hello(), SILENCE).unwrap_err();
    assert!(error.to_string().contains("another recipe"), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_supervisor_of_another_kind_is_named_with_its_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = Control::connect(&address, hello(), SILENCE).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&address) && text.contains("does not speak this protocol"), "{text}");
    thread.join().unwrap();
}

#[test]
fn a_heartbeat_says_step_phase_and_collective() {
    let (hear, heard) = bounded(1);
    let (address, thread) = supervisor(FromSupervisor::Welcome, move |reader, _stream| {
        let mut lines = reader.lines();
        let mut messages = lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let said = messages.find(|said| matches!(said, FromWorker::Heartbeat { step: 3, .. }));
        hear.send(said.unwrap()).unwrap();
        read_to_the_end(lines);
    });
    let control = Control::connect(&address, hello(), SILENCE).unwrap();
    let before = record::of_process().sequence().fetch_add(1, Ordering::Relaxed);
    control.at(3, Phase::Collective);
    let said = heard.recv().unwrap();
    control.report_last(finished());
    thread.join().unwrap();
    let FromWorker::Heartbeat { phase: Phase::Collective, collective, .. } = said else {
        panic!("{said:?}")
    };
    // Other tests in this process may have begun collectives since.
    assert!(collective > before, "{collective} {before}");
}
