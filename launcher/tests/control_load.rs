//! Load test of the control plane: `vljepa-launch` as a user starts it, with 192, 1,024 and 4,096
//! simulated workers on the loopback interface.
//!
//! This program is the test. A fake `mpirun` starts it a second time as the workers: one process
//! that opens a connection per rank, says hello, receives the NCCL id, reports a part of a
//! checkpoint, sends heartbeats at the real rate and ends on request. That process also sends
//! knocks to the server and measures how long the server takes to answer. The test prints one JSON
//! line per load; some of them are kept in `launcher/benches/runs`.

#![expect(clippy::disallowed_methods, reason = "it starts the program and waits for it")]
#![expect(clippy::unwrap_used, reason = "a test fails with a panic")]
#![expect(clippy::print_stdout, reason = "a test's own output")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use vljepa_recipes::protocol::{
    CheckpointOrder, FileEntry, FromSupervisor, FromWorker, Hello, Outcome, Part, Phase,
    TOKEN_VARIABLE,
};

/// How long the load is measured before the run is stopped.
const STEADY: Duration = Duration::from_secs(4);
/// Limit for each wait, generous for a loaded machine; a longer wait fails the test.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Memory of the launcher without connections, KiB: program, runtime, two threads.
const BASE_KIB: u64 = 16 << 10;
/// Memory per connection, KiB: a read buffer and a line of 1 KiB each, the task of the connection
/// (about 3 KiB with its timers) and the supervisor's data about the rank; doubled for the
/// allocator.
const CONNECTION_KIB: u64 = 12;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, ranks, control, run, per_s] = &arguments[..]
        && mode == "workers"
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (ranks, per_s) = (ranks.parse().unwrap(), per_s.parse().unwrap());
        return runtime.block_on(workers(ranks, control, Path::new(run), per_s));
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    if arguments.iter().any(|argument| argument == "--list")
        || filter.is_some_and(|filter| !"control_load".contains(filter.as_str()))
    {
        return;
    }
    for (ranks, per_s) in [(192, 10), (1024, 10), (4096, 1)] {
        println!("{}", load(ranks, per_s));
    }
    // The closing line of the test harness, for scripts that count tests.
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// Runs the launcher with `ranks` workers that send `per_s` heartbeats per second each, stops it,
/// and returns the measurements.
fn load(ranks: u64, per_s: u64) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    prepare(folder.path(), per_s);
    let mut command = Command::new(path("bin/vljepa-launch"));
    command.args(["recipe.yaml", "--set", &format!("stages.0.batch={ranks}")]);
    command.args(["--set", "cluster.restart.max_without_progress=0"]);
    command.args(["--set", &format!("cluster.ranks_per_node={ranks}")]);
    command.env("PATH", format!("{}:/usr/bin:/bin", path("bin").display()));
    command.current_dir(folder.path()).stdin(Stdio::null());
    let said = std::fs::File::create(path("said")).unwrap();
    let mut launcher = command.stdout(Stdio::null()).stderr(said).spawn().unwrap();
    let id = launcher.id();
    let text = || std::fs::read_to_string(path("said")).unwrap_or_default();
    let deadline = Instant::now() + TIMEOUT;
    while !path("runs/fake/ready").exists() {
        assert!(Instant::now() < deadline, "the workers were not welcomed: {}", text());
        assert!(launcher.try_wait().unwrap().is_none(), "the launcher has ended: {}", text());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (busy, start) = (cpu_s(id), Instant::now());
    std::thread::sleep(STEADY);
    let cpu_fraction = (cpu_s(id) - busy) / start.elapsed().as_secs_f64();
    let stopped = Instant::now();
    kill(Pid::from_raw(id.try_into().unwrap()), Signal::SIGTERM).unwrap();
    let peak_kib = loop {
        // The peak can be read only while the process exists.
        let peak = status_kib(id, "VmHWM:");
        if path("runs/fake/workers.json").exists() {
            break peak.unwrap();
        }
        assert!(stopped.elapsed() < TIMEOUT, "the stop did not reach all: {}", text());
        std::thread::sleep(Duration::from_millis(5));
    };
    let ended = launcher.wait().unwrap();
    assert_eq!(ended.code(), Some(143), "{}", text());
    assert!(text().contains("saved and stopped"), "{}", text());
    let limit_kib = BASE_KIB + ranks * CONNECTION_KIB;
    assert!(peak_kib < limit_kib, "{ranks} ranks: {peak_kib} KiB, more than {limit_kib} KiB");
    let mut found: Value =
        serde_json::from_slice(&std::fs::read(path("runs/fake/workers.json")).unwrap()).unwrap();
    found["heartbeats_per_s"] = json!(ranks * per_s);
    found["supervisor_cpu_fraction"] = json!((cpu_fraction * 1e3).round() / 1e3);
    found["supervisor_peak_kib"] = json!(peak_kib);
    found["supervisor_limit_kib"] = json!(limit_kib);
    found
}

/// Fills a folder with the launcher, a fake worker that answers health checks, and an `mpirun` that
/// starts this program.
fn prepare(folder: &Path, per_s: u64) {
    let program = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.join(name), mode).unwrap();
    };
    std::fs::create_dir(folder.join("bin")).unwrap();
    std::fs::create_dir(folder.join("shards")).unwrap();
    std::fs::write(folder.join("shards/a.tar"), "x").unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_vljepa-launch"), folder.join("bin/vljepa-launch")).unwrap();
    program("bin/vljepa-worker", include_str!("fake/worker.sh"));
    let features = r#"{"version":"1","mpi":true,"video":true,"cuda":false}"#;
    std::fs::write(folder.join("bin/features.json"), features).unwrap();
    let this = std::env::current_exe().unwrap();
    let mpirun = format!(
        "#!/bin/bash
[ \"$1\" = --version ] && echo 'fake 1.0' && exit
while [ $# -gt 0 ]; do
  case $1 in -np) size=$2 ;; --control) control=$2 ;; --run) run=$2 ;; esac
  shift
done
exec {} workers \"$size\" \"$control\" \"$run\" {per_s}
",
        this.display()
    );
    program("bin/mpirun", &mpirun);
    let recipe = include_str!("fake/recipe.yaml").replace("RANKS", "1");
    std::fs::write(folder.join("recipe.yaml"), recipe).unwrap();
}

/// CPU time of a process, seconds.
fn cpu_s(id: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // Fields after the name, which is in parentheses: the state is field 3, user and system time
    // are fields 14 and 15, in hundredths of a second.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].iter().map(|at| fields[*at].parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn status_kib(id: u32, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Simulates all ranks of a run in one process and writes the measurements to `workers.json`.
async fn workers(ranks: usize, control: &str, run: &Path, per_s: u64) {
    let token = std::env::var(TOKEN_VARIABLE).unwrap();
    let record: Value =
        serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    let hash = record["recipe_hash"].as_str().unwrap().to_owned();
    let start = Instant::now();
    let together = Arc::new(Together {
        welcomed: AtomicUsize::new(0),
        have_id: Barrier::new(ranks + 1),
        saved: Barrier::new(ranks + 1),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for rank in 0..ranks {
        let hello = Hello {
            token: token.clone(),
            rank,
            world_size: ranks,
            host: "here".to_owned(),
            pid: std::process::id(),
            device: "simulated".to_owned(),
            build: "1".to_owned(),
            recipe_hash: hash.clone(),
        };
        let pause = Duration::from_millis(1000 / per_s);
        tasks.spawn(worker(control.to_owned(), hello, Arc::clone(&together), pause));
    }
    let ready = async {
        while together.welcomed.load(Ordering::Relaxed) < ranks {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let joined_s = start.elapsed().as_secs_f64();
        together.have_id.wait().await;
        let (id_s, saving) = (start.elapsed().as_secs_f64(), Instant::now());
        together.saved.wait().await;
        [joined_s, id_s, saving.elapsed().as_secs_f64()]
    };
    let [joined_s, id_s, saved_s] = tokio::select! {
        times = ready => times,
        ended = tasks.join_next() => panic!("a rank ended at the start: {ended:?}"),
    };
    std::fs::write(run.join("ready"), "").unwrap();
    let knocks_ms = Arc::new(Mutex::new(Vec::new()));
    let knocking = tokio::spawn(knock(control.to_owned(), token, Arc::clone(&knocks_ms)));
    let mut stops = Vec::new();
    while let Some(stop) = tasks.join_next().await {
        stops.push(stop.unwrap());
    }
    knocking.abort();
    let mut knocks_ms = knocks_ms.lock().unwrap().clone();
    knocks_ms.sort_by(f64::total_cmp);
    let first = stops.iter().min().unwrap();
    let spread_s = stops.iter().max().unwrap().duration_since(*first).as_secs_f64();
    let found = json!({
        "ranks": ranks,
        "all_welcomed_s": joined_s,
        "all_have_nccl_id_s": id_s,
        "checkpoint_settled_s": saved_s,
        "knock_median_ms": knocks_ms.get(knocks_ms.len() / 2),
        "knock_slowest_ms": knocks_ms.last(),
        "stop_first_to_last_s": spread_s,
    });
    let text = serde_json::to_vec(&found).unwrap();
    std::fs::write(run.join(".workers.json"), text).unwrap();
    std::fs::rename(run.join(".workers.json"), run.join("workers.json")).unwrap();
    // The test reads the launcher's peak memory while the launcher waits for this process.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Points that all ranks reach before one goes on.
struct Together {
    welcomed: AtomicUsize,
    have_id: Barrier,
    saved: Barrier,
}

/// Simulates one rank from its hello to the stop; returns the moment when the stop arrived.
async fn worker(
    control: String,
    hello: Hello,
    together: Arc<Together>,
    pause: Duration,
) -> Instant {
    let (number, ranks) = (hello.rank, hello.world_size);
    let rank = u32::try_from(number).unwrap();
    let (answer, mut stream) = introduce(&control, &FromWorker::Hello(hello)).await;
    assert_eq!(answer, FromSupervisor::Welcome);
    together.welcomed.fetch_add(1, Ordering::Relaxed);
    if rank == 0 {
        say(&mut stream, &FromWorker::Rendezvous { id: "id".to_owned() }).await;
    }
    let is_id = |message: &FromSupervisor| matches!(message, FromSupervisor::Rendezvous { .. });
    heard(&mut stream, is_id).await;
    together.have_id.wait().await;
    save(&mut stream, number, ranks).await;
    together.saved.wait().await;
    // Spread the heartbeats of the ranks over the interval.
    let offset = pause * (rank % 100) / 100;
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + offset, pause);
    let phases =
        [Phase::Data, Phase::Forward, Phase::Collective, Phase::Backward, Phase::Optimizer];
    let mut beats = 0_u64;
    let mut line = Vec::new();
    loop {
        tokio::select! {
            read = stream.read_until(b'\n', &mut line) => {
                assert!(read.unwrap() > 0, "the supervisor closed the connection of rank {rank}");
                let message: FromSupervisor = serde_json::from_slice(&line).unwrap();
                line.clear();
                if message == FromSupervisor::Stop {
                    break;
                }
            }
            _ = tick.tick() => {
                // The step increases slowly, so that the run does not end by itself.
                let (step, phase) = (beats / 1000, phases[usize::try_from(beats % 5).unwrap()]);
                beats += 1;
                say(&mut stream, &FromWorker::Heartbeat { step, phase, collective: beats, inside: None, work: 0 }).await;
            }
        }
    }
    let stopped = Instant::now();
    say(&mut stream, &FromWorker::Finished { outcome: Outcome::Stopped, step: 1 }).await;
    // Like the real worker, read to the end: closing with unread messages could lose the last one.
    stream.get_mut().shutdown().await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    stopped
}

/// Reports a part of a checkpoint, publishes it as rank 0, and waits until it is settled.
async fn save(stream: &mut BufReader<TcpStream>, rank: usize, ranks: usize) {
    let file = FileEntry {
        name: format!("rank-{rank:04}.safetensors"),
        bytes: 2_332_000,
        blake3: "0".repeat(64),
        range: 194_304 * rank..194_304 * (rank + 1),
    };
    say(stream, &FromWorker::Part { step: 1, part: Part::Written { file } }).await;
    let is_order = |message: &FromSupervisor| matches!(message, FromSupervisor::Checkpoint { .. });
    let FromSupervisor::Checkpoint { order } = heard(stream, is_order).await else {
        unreachable!("an order")
    };
    match order {
        CheckpointOrder::Publish { files, .. } if rank == 0 => {
            assert_eq!(files.len(), ranks, "rank 0 publishes the parts of all");
            let name = "step-00000001".to_owned();
            say(stream, &FromWorker::Saved { step: 1, name, stall_s: 0.0, durable_s: 0.0 }).await;
        }
        CheckpointOrder::Settled { error: None, .. } if rank > 0 => {}
        other => panic!("rank {rank} received {other:?}"),
    }
}

/// Reads until a message that is `wanted`.
async fn heard(
    stream: &mut BufReader<TcpStream>,
    wanted: impl Fn(&FromSupervisor) -> bool,
) -> FromSupervisor {
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).await.unwrap() > 0, "the supervisor has ended");
        let message = serde_json::from_str(&line).unwrap();
        if wanted(&message) {
            return message;
        }
    }
}

/// Knocks every 20 ms and records how long the server takes to answer, in ms.
async fn knock(control: String, token: String, times_ms: Arc<Mutex<Vec<f64>>>) {
    loop {
        let start = Instant::now();
        introduce(&control, &FromWorker::Knock { token: token.clone() }).await;
        times_ms.lock().unwrap().push(start.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn introduce(control: &str, message: &FromWorker) -> (FromSupervisor, BufReader<TcpStream>) {
    let mut stream = BufReader::new(TcpStream::connect(control).await.unwrap());
    say(&mut stream, message).await;
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    (serde_json::from_str(&line).unwrap(), stream)
}

async fn say(stream: &mut BufReader<TcpStream>, message: &FromWorker) {
    let line = serde_json::to_string(message).unwrap() + "\n";
    stream.get_mut().write_all(line.as_bytes()).await.unwrap();
}
