//! A video is described while it is shown: captions at the changes, from files, pipes and servers,
//! and what happens to a slow model, a damaged file and a lost server.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::programs::{Trial, command, repository, text};
use crate::y_decoder::{complete, decoder, trial};

/// How long a step of a test may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A trained decoder, whose texts say nothing, and a video of the synthetic stream.
struct Scene {
    trial: Trial,
    video: PathBuf,
    /// Start of each motion in seconds.
    boundaries: Vec<f64>,
}

impl Scene {
    fn new() -> Self {
        let trial = trial(&[]);
        let mut sets = decoder(&trial);
        sets.pop();
        sets.push("evaluation.tasks=[]".to_owned());
        complete(&trial, "decoder", &sets, &["cluster.ranks_per_node=1"]);
        let folder = trial.path("stream");
        let made = command("vljepa-shards").arg("synth-stream").arg(&folder).output().unwrap();
        assert!(made.status.success(), "{}", text(&made));
        let mut archive = tar::Archive::new(fs::File::open(folder.join("stream.tar")).unwrap());
        archive.unpack(&folder).unwrap();
        let json = fs::read(folder.join("stream-000000.json")).unwrap();
        let description: Value = serde_json::from_slice(&json).unwrap();
        let boundaries = description["boundaries"].as_array().unwrap().iter();
        let boundaries = boundaries.map(|second| second.as_f64().unwrap()).collect();
        Self { video: folder.join("stream-000000.mp4"), trial, boundaries }
    }

    /// `vljepa-launch stream` with windows of four frames, half a second long.
    fn command(&self, video: &str, more: &[&str]) -> Command {
        let mut command = command("vljepa-launch");
        command.args(["stream", &self.run(), video]);
        command.args(["--window", "0.5", "--stride", "0.25", "--frames", "4", "--query", QUERY]);
        command.args(["--threshold", THRESHOLD]).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self) -> String {
        self.trial.path("decoder").display().to_string()
    }

    fn file(&self) -> String {
        self.video.display().to_string()
    }

    /// The video as MPEG-TS, which pipes can carry.
    fn as_transport_stream(&self) -> PathBuf {
        let path = self.trial.path("stream.ts");
        vljepa_data::fixture_remux(&self.video, &path).unwrap();
        path
    }
}

const QUERY: &str = "describe the video";

/// Below the variance of two embeddings of different motions and above that of one motion, in a
/// model that was trained for two steps.
const THRESHOLD: &str = "0.002";
