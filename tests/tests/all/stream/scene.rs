//! What the tests of streams share: a trained decoder, a video of known changes, a running command
//! and a server of RTSP.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{Trial, command, program, small_set, text};
use crate::y_decoder::{complete, decoder, trial};

/// How long a step of a test may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Query of the trained clips.
pub const QUERY: &str = "describe the video";

/// Runs of a trial, and a video of the synthetic stream.
pub struct Scene {
    pub trial: Trial,
    /// The video as MP4.
    pub file: String,
    /// Start of each motion in seconds.
    pub boundaries: Vec<f64>,
    /// Threshold that is far from the variance of each window, so that the rounding of sums does
    /// not decide where a caption begins.
    threshold: String,
    /// Folder of a tokenizer that refuses unknown words.
    _words: TempDir,
}

/// A VL-JEPA and its decoder, trained for a few seconds: enough to tell motions from each other.
pub fn scene() -> &'static Scene {
    static SCENE: OnceLock<Scene> = OnceLock::new();
    SCENE.get_or_init(|| {
        let words = tempfile::tempdir().unwrap();
        let tokenizer = format!("model.predictor.tokenizer={}", strict_tokenizer(words.path()));
        let steps = ["stages.0.steps=150", "stages.0.batch=32", "cluster.ranks_per_node=1"];
        let trial = trial(&[&steps[..], &[&tokenizer]].concat());
        let mut sets = decoder(&trial);
        sets.push(tokenizer);
        sets.push("stages.0.steps=150".to_owned());
        sets.push("evaluation.tasks=[]".to_owned());
        complete(&trial, "decoder", &sets, &["cluster.ranks_per_node=1"]);
        let folder = trial.path("stream");
        let made = command("vljepa-shards").arg("synth-stream").arg(&folder).output().unwrap();
        assert!(made.status.success(), "{}", text(&made));
        let shard = fs::File::open(folder.join("stream.tar")).unwrap();
        tar::Archive::new(shard).unpack(&folder).unwrap();
        let description = fs::read(folder.join("stream-000000.json")).unwrap();
        let description: Value = serde_json::from_slice(&description).unwrap();
        let boundaries = description["boundaries"].as_array().unwrap().iter();
        let boundaries = boundaries.map(|second| second.as_f64().unwrap()).collect();
        let file = folder.join("stream-000000.mp4").display().to_string();
        let threshold = String::new();
        let scene = Scene { file, trial, boundaries, threshold, _words: words };
        Scene { threshold: scene.clear_threshold(), ..scene }
    })
}

/// Writes a tokenizer that refuses unknown words to a folder. Returns its path.
fn strict_tokenizer(folder: &Path) -> String {
    let text = fs::read(small_set().join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_slice(&text).unwrap();
    tokenizer["model"]["unk_token"] = "none".into();
    let path = folder.join("tokenizer.json");
    fs::write(&path, serde_json::to_vec(&tokenizer).unwrap()).unwrap();
    path.display().to_string()
}

impl Scene {
    /// `vljepa-launch stream` of a video, with windows of four frames each quarter of a second.
    pub fn command(&self, video: &str, more: &[&str]) -> Command {
        self.command_each("0.25", video, more)
    }

    /// The same with another stride in seconds.
    pub fn command_each(&self, stride: &str, video: &str, more: &[&str]) -> Command {
        let mut stream = command("vljepa-launch");
        stream.arg("stream").arg(self.trial.path("decoder")).arg(video);
        stream.args(["--window", "0.5", "--stride", stride, "--frames", "4", "--query", QUERY]);
        if !more.contains(&"--threshold") {
            stream.args(["--threshold", &self.threshold]);
        }
        stream.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        stream
    }

    fn clear_threshold(&self) -> String {
        let is_clear = |threshold: &&str| {
            let number: f64 = threshold.parse().unwrap();
            let output = self.output(&self.file, &["--json", "--threshold", threshold]);
            let events = events(&output.stdout);
            let mut variances = events.iter().filter_map(|event| event["variance"].as_f64());
            variances.all(|variance| (variance - number).abs() > 1e-4)
        };
        let mut thresholds = ["0.1", "0.105", "0.095", "0.11"].into_iter();
        thresholds.find(is_clear).expect("a threshold far from each variance").to_owned()
    }

    /// Result of the command when it has ended.
    pub fn output(&self, video: &str, more: &[&str]) -> Output {
        self.command(video, more).output().unwrap()
    }

    /// The video as MPEG-TS, which pipes can carry.
    pub fn transport_stream(&self) -> PathBuf {
        let path = self.trial.path("stream.ts");
        let script = "import av, sys\n\
                      source, to = av.open(sys.argv[1]), av.open(sys.argv[2], 'w', format='mpegts')\n\
                      video = source.streams.video[0]\n\
                      copy = to.add_stream_from_template(video)\n\
                      for packet in source.demux(video):\n\
                      \x20   if packet.dts is not None:\n\
                      \x20       packet.stream = copy\n\
                      \x20       to.mux(packet)\n\
                      to.close()";
        let done = python(script, &[&self.file, &path.display().to_string()]).output().unwrap();
        assert!(done.status.success(), "{}", text(&done));
        path
    }
}

/// A script for Python with the packages of the RTSP server.
#[expect(clippy::disallowed_methods, reason = "starts a server and copies a video")]
fn python(script: &str, arguments: &[&str]) -> Command {
    let target = program("vljepa-worker").parent().unwrap().parent().unwrap().to_owned();
    let packages = target.join("rtsp-server-0.1.4");
    assert!(packages.join("complete").exists(), "{packages:?} is missing; source tests/install.sh");
    let mut python = Command::new("python3");
    python.args(["-c", script]).args(arguments).env("PYTHONPATH", packages);
    python.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    python
}

/// Events that a command with `--json` has printed.
pub fn events(output: &[u8]) -> Vec<Value> {
    let lines = output.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// Start and text of each caption.
pub fn captions(events: &[Value]) -> Vec<(f64, String)> {
    let captions = events.iter().filter(|event| event["event"] == "caption");
    let caption = |event: &Value| {
        (event["start_s"].as_f64().unwrap(), event["text"].as_str().unwrap().to_owned())
    };
    captions.map(caption).collect()
}

/// The last event.
pub fn ended(events: &[Value]) -> &Value {
    let last = events.last().unwrap();
    assert_eq!(last["event"], "ended", "{last}");
    last
}

/// A command that runs, with its lines of JSON as they come.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<Value>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.arg("--json").stdin(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(line)));
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for an event for which `is_it` returns true.
    pub fn wait(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|error| panic!("{error}: {:?}", self.seen));
            self.seen.push(serde_json::from_str(&line).unwrap());
            let event = self.seen.last().unwrap();
            if is_it(event) {
                return event.clone();
            }
        }
    }

    /// Types a line, or sends a video.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.child.stdin.as_mut().unwrap().write_all(bytes.as_ref()).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Sends a signal to the worker.
    pub fn signal_worker(&self, signal: Signal) {
        kill(self.worker(), signal).unwrap();
    }

    pub fn worker(&self) -> Pid {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let worker = children.split_whitespace().next().expect("a worker");
        Pid::from_raw(worker.parse().unwrap())
    }

    /// Waits for the end. Returns all events, what was said on standard error, and the exit code.
    pub fn end(mut self) -> (Vec<Value>, String, ExitStatus) {
        self.wait(|event| event["event"] == "ended");
        let output = self.child.wait_with_output().unwrap();
        (self.seen, String::from_utf8_lossy(&output.stderr).into_owned(), output.status)
    }
}

/// Waits until a process that is no child of this one has ended.
pub fn wait_for_end(process: Pid) {
    let end = Instant::now() + LIMIT;
    let runs = || {
        fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    while runs() {
        assert!(Instant::now() < end, "{process} goes on");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A server of RTSP that publishes a folder. It ends with this value.
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    pub fn start(folder: &Path) -> Self {
        // Another program may take the port before the server does.
        let started = (0..5).find_map(|_| Self::on_free_port(folder));
        started.expect("the server of RTSP ends at its start")
    }

    fn on_free_port(folder: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = "import asyncio, sys\n\
                      from aio_rtsp_toolkit import server\n\
                      asyncio.run(server.serve(sys.argv[1], '127.0.0.1', int(sys.argv[2])))";
        let mut python = python(script, &[&folder.display().to_string(), &port.to_string()]);
        let child = python.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Self { child, port };
        let end = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "the server of RTSP does not answer");
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        server.child.try_wait().unwrap().is_none().then_some(server)
    }

    pub fn address(&self, file: &str) -> String {
        format!("rtsp://127.0.0.1:{}/{file}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that has ended cannot be killed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
