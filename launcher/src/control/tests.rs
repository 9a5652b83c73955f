//! Tests of the control plane's server with ranks, strangers and noise, over real connections on
//! the loopback interface.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use vljepa_recipes::protocol::{CheckpointOrder, FromSupervisor, FromWorker, Hello, Phase};

use super::{ControlEvent, Expected, Server};
use crate::control::listen::Listen;

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
    let expected = Expected { token: "secret".into(), world_size: 2, recipe_hash: "feed".into() };
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
        | FromSupervisor::Rendezvous { .. }
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
    assert!(matches!(server.next().await, Some(ControlEvent::Joined(h)) if h.rank == 1));
    let beat = FromWorker::Heartbeat {
        step: 3,
        phase: Phase::Backward,
        collective: 7,
        inside: None,
        work: 0,
    };
    let line = serde_json::to_string(&beat).unwrap() + "\n";
    let (a, b) = line.split_at(10);
    worker.get_mut().write_all(a.as_bytes()).await.unwrap();
    server.stop_all();
    assert_eq!(answer(&mut worker).await, FromSupervisor::Stop);
    worker.get_mut().write_all(b.as_bytes()).await.unwrap();
    assert!(matches!(server.next().await, Some(ControlEvent::Message(1, said)) if said == beat));
    let (_late, welcome) = say_hello(&server, hello(0)).await;
    assert_eq!(welcome, FromSupervisor::Welcome);
    assert!(matches!(server.next().await, Some(ControlEvent::Joined(h)) if h.rank == 0));
    drop(worker);
    assert!(matches!(server.next().await, Some(ControlEvent::Lost(1))));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "simulates a busy machine")]
fn ranks_that_are_lost_at_once_are_heard_in_the_order_in_which_they_were_lost() {
    let busy = |ms| std::thread::sleep(Duration::from_millis(ms));
    let runtime = crate::event_loop().unwrap();
    for [first, second] in [[0, 1], [1, 0], [0, 1], [1, 0]] {
        runtime.block_on(async {
            let mut server = server().await;
            let (one, _) = say_hello(&server, hello(first)).await;
            let (other, _) = say_hello(&server, hello(second)).await;
            for _ in 0..2 {
                assert!(matches!(server.next().await, Some(ControlEvent::Joined(_))));
            }
            // Keep threads that run tasks busy while both ranks are lost.
            for _ in 0..2 {
                tokio::spawn(async move { busy(20) });
            }
            busy(5);
            drop(one);
            busy(1);
            drop(other);
            for rank in [first, second] {
                let event = server.next().await;
                assert!(
                    matches!(event, Some(ControlEvent::Lost(lost)) if lost == rank),
                    "{event:?}"
                );
            }
        });
    }
}

#[tokio::test]
async fn rank_0_s_id_reaches_all_ranks_when_all_are_there_and_also_those_that_come_again() {
    let mut server = server().await;
    let (mut first, _) = say_hello(&server, hello(0)).await;
    assert!(matches!(server.next().await, Some(ControlEvent::Joined(_))));
    let made = FromWorker::Rendezvous { id: "an id".to_owned() };
    let line = serde_json::to_string(&made).unwrap() + "\n";
    first.get_mut().write_all(line.as_bytes()).await.unwrap();
    let soon = Duration::from_millis(200);
    let early = tokio::time::timeout(soon, answer(&mut first)).await;
    assert!(early.is_err(), "rank 1 is not there yet: {early:?}");
    let (mut second, _) = say_hello(&server, hello(1)).await;
    let id = FromSupervisor::Rendezvous { id: "an id".to_owned() };
    assert_eq!(answer(&mut first).await, id);
    assert_eq!(answer(&mut second).await, id);
    assert!(matches!(server.next().await, Some(ControlEvent::Joined(_))));
    drop(second);
    assert!(matches!(server.next().await, Some(ControlEvent::Lost(1))));
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
        assert!(matches!(server.next().await, Some(ControlEvent::Joined(_))));
    }
    let order = CheckpointOrder::Settled { step: 4, error: None };
    let order = FromSupervisor::Checkpoint { order };
    server.tell(1, order.clone());
    assert_eq!(answer(&mut second).await, order);
    server.stop_all();
    assert_eq!(answer(&mut first).await, FromSupervisor::Stop);
    assert_eq!(answer(&mut second).await, FromSupervisor::Stop);
}

/// Reason why the next stranger is refused.
async fn refusal(server: &mut Server) -> String {
    match server.next().await {
        Some(ControlEvent::Refused { rank: None, reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn strangers_and_workers_of_another_run_are_refused_with_the_reason() {
    let mut server = server().await;
    let (_first, welcome) = say_hello(&server, hello(0)).await;
    assert_eq!(welcome, FromSupervisor::Welcome);
    assert!(matches!(server.next().await, Some(ControlEvent::Joined(_))));
    let wrong = [
        (Hello { token: "guess!".into(), ..hello(1) }, "token"),
        (Hello { world_size: 1, ..hello(0) }, "sees 1 ranks, but the run has 2"),
        (Hello { rank: 2, ..hello(1) }, "outside the run's 2 ranks"),
        (Hello { recipe_hash: "beef".into(), ..hello(1) }, "another recipe (hash beef"),
        (Hello { build: "0.1.0 xyz".into(), ..hello(1) }, "another build (0.1.0 xyz)"),
        (hello(0), "already connected"),
    ];
    for (hello, expected) in wrong {
        let stranger = hello.token != "secret";
        let text = reason(say_hello(&server, hello).await.1);
        assert!(text.contains(expected), "`{text}` does not say `{expected}`");
        let event = server.next().await;
        assert!(
            matches!(event, Some(ControlEvent::Refused { rank, .. }) if rank.is_none() == stranger)
        );
    }
}

#[tokio::test]
async fn strangers_are_refused_with_bounded_memory_and_disturb_no_rank() {
    let mut server = server().await;
    let (mut worker, _) = say_hello(&server, hello(0)).await;
    assert!(matches!(server.next().await, Some(ControlEvent::Joined(_))));
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
        ("http", http, "is not a hello"),
        ("tls", tls, "is not a hello"),
        ("noise", noise, "is not a hello"),
        ("huge", huge, "is not a hello"),
        ("no hello", beat, "is not a hello"),
    ] {
        let mut stranger = TcpStream::connect(server.address()).await.unwrap();
        // The server may close the connection before it has read everything.
        stranger.write_all(&bytes).await.ok();
        assert!(refusal(&mut server).await.contains(why), "{what}");
    }
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    slow.write_all(&half).await.unwrap();
    let _silent = TcpStream::connect(server.address()).await.unwrap();
    for _ in ["half", "silence"] {
        assert!(refusal(&mut server).await.contains("no complete message within 10 s"));
    }
    let line = r#"{"message":"heartbeat","step":1,"phase":"data"}"#.to_owned() + "\n";
    worker.get_mut().write_all(line.as_bytes()).await.unwrap();
    let said = server.next().await;
    assert!(
        matches!(said, Some(ControlEvent::Message(0, FromWorker::Heartbeat { .. }))),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_rank_hears_that_the_supervisor_is_there() {
    let server = server().await;
    let (mut worker, _) = say_hello(&server, hello(0)).await;
    let mut signs = 0;
    while signs < 2 {
        match answer(&mut worker).await {
            FromSupervisor::Alive => signs += 1,
            other => assert_eq!(other, FromSupervisor::Absent { ranks: vec![1] }),
        }
    }
}

#[tokio::test]
async fn a_knock_with_the_token_is_welcomed_and_any_other_is_refused() {
    let server = server().await;
    let knock = |token: &str| FromWorker::Knock { token: token.to_owned() };
    let right = serde_json::to_string(&knock("secret")).unwrap();
    assert_eq!(connect(&server, &right).await.1, FromSupervisor::Welcome);
    let wrong = serde_json::to_string(&knock("guess!")).unwrap();
    assert!(reason(connect(&server, &wrong).await.1).contains("token"));
}

#[tokio::test]
async fn a_stranger_that_sends_more_than_a_hello_still_reads_the_whole_reason() {
    let server = server().await;
    let mut stranger = TcpStream::connect(server.address()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    stranger.write_all(&[b'x'; 1 << 16]).await.unwrap();
    let mut reader = BufReader::new(stranger);
    assert!(reason(answer(&mut reader).await).contains("hello"));
    // If the server had closed the connection with unread bytes, reading would fail.
    let mut rest = Vec::new();
    assert_eq!(reader.read_to_end(&mut rest).await.unwrap(), 0);
}

#[tokio::test]
async fn a_line_without_end_is_cut_off() {
    let mut server = server().await;
    let (mut worker, _) = say_hello(&server, hello(0)).await;
    assert!(matches!(server.next().await, Some(ControlEvent::Joined(_))));
    let endless = vec![b'x'; 1 << 20];
    worker.get_mut().write_all(&endless).await.unwrap();
    let warned = server.next().await;
    assert!(
        matches!(warned, Some(ControlEvent::Message(0, FromWorker::Warning { .. }))),
        "{warned:?}"
    );
    assert!(matches!(server.next().await, Some(ControlEvent::Lost(0))));
}
