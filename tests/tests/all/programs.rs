//! Runs the programs under test as a user runs them, on a small synthetic data set that is made
//! once.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Returns the root folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this crate")
}

/// Returns the path of a program of the workspace, which `tests/run.sh` builds next to the tests.
pub fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("the test binary's path");
    let path = tests.parent().and_then(Path::parent).expect("target/release/deps").join(name);
    assert!(path.exists(), "{} is not built; run tests/run.sh", path.display());
    path
}

/// Returns a command that runs a program of the workspace in the repository's root folder.
#[expect(clippy::disallowed_methods, reason = "tests run the programs")]
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    command.current_dir(repository()).stdin(Stdio::null());
    command
}

/// Returns the folder of a synthetic data set of a few hundred samples, made once per test process.
pub fn small_set() -> &'static Path {
    static SET: OnceLock<TempDir> = OnceLock::new();
    SET.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = command("vljepa-shards")
            .args(["synth", "--scale", "0.02"])
            .arg(folder.path())
            .output()
            .expect("vljepa-shards runs");
        assert!(output.status.success(), "{}", text(&output));
        folder
    })
    .path()
}

/// Returns standard output and standard error of a finished program.
pub fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
    both.join("\n")
}

/// A recipe for the small set in a temporary folder, which also holds the recipe's runs. It extends
/// the quickstart's recipe; each test sets its own stages.
pub struct Trial {
    folder: TempDir,
}

impl Trial {
    /// Creates the recipe. `extra` is YAML that is appended to it.
    pub fn new(extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (set, base) = (small_set().display(), repository().join("recipes/quickstart.yaml"));
        let recipe = format!(
            "extends: {base}
name: trial
model:
  predictor: {{tokenizer: {set}/tokenizer.json}}
  y_encoder: {{tokenizer: {set}/tokenizer.json}}
data:
  threads: 1
  sources:
    clips: {{shards: {set}/train/clips-000000.tar}}
    images: {{shards: {set}/train/images-000000.tar}}
    questions: {{shards: {set}/train/questions-000000.tar}}
{extra}",
            base = base.display()
        );
        std::fs::write(folder.path().join("trial.yaml"), recipe).expect("the recipe is written");
        Self { folder }
    }

    /// Returns the path of the recipe file.
    pub fn recipe(&self) -> PathBuf {
        self.folder.path().join("trial.yaml")
    }

    /// Returns the path of a file or run directory in the temporary folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Copies the first clip outside of training to the temporary folder and returns its path.
    pub fn clip(&self) -> PathBuf {
        let clip = self.path("clip.mp4");
        let tar = small_set().join("eval/heldout.tar");
        let mut shard = tar::Archive::new(std::fs::File::open(tar).expect("the shard opens"));
        let mut entries = shard.entries().expect("the shard is a tar");
        let is_clip = |entry: &tar::Entry<'_, _>| {
            entry.path().is_ok_and(|path| path.extension().is_some_and(|x| x == "mp4"))
        };
        let mut found = entries.find_map(|entry| entry.ok().filter(is_clip)).expect("a clip");
        found.unpack(&clip).expect("the clip is written");
        clip
    }

    /// Returns the command `vljepa-launch RECIPE --run RUN --set …`, not yet started.
    pub fn launch(&self, run: &str, sets: &[&str]) -> Command {
        let mut command = command("vljepa-launch");
        command.arg(self.recipe()).arg("--run").arg(self.path(run));
        for set in sets {
            command.args(["--set", set]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the recipe to its end and asserts that it succeeds.
    pub fn complete(&self, run: &str, sets: &[&str]) {
        let output = self.launch(run, sets).output().expect("vljepa-launch runs");
        assert!(output.status.success(), "{}", text(&output));
        assert!(self.path(run).join("completed.json").exists(), "{}", text(&output));
    }

    /// Returns (step, loss, gradient norm) of every line of metrics.
    pub fn losses(&self, run: &str) -> Vec<(u64, f64, f64)> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).expect("metrics");
        text.lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
                let number = |key: &str| line[key].as_f64().expect("a number");
                (line["step"].as_u64().expect("a step"), number("loss"), number("gradient_norm"))
            })
            .collect()
    }

    /// Returns the names of the trained parameters and their ranges in the flat buffers.
    pub fn parameters(&self, run: &str, step: u64) -> Vec<(String, std::ops::Range<usize>)> {
        let path = self.path(run).join(format!("checkpoints/step-{step:08}/manifest.json"));
        let text = std::fs::read(path).expect("the manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let number = |value: &serde_json::Value| {
            usize::try_from(value.as_u64().expect("a number")).expect("a 64-bit machine")
        };
        let entries = manifest["parameters"].as_array().expect("parameters").iter();
        entries
            .map(|entry| {
                let shape = entry["shape"].as_array().expect("a shape");
                let start = number(&entry["start"]);
                let end = start + shape.iter().map(number).product::<usize>();
                (entry["name"].as_str().expect("a name").to_owned(), start..end)
            })
            .collect()
    }

    /// Returns the number of bad samples that a completed run has counted.
    pub fn bad_samples(&self, run: &str) -> u64 {
        let text = std::fs::read(self.path(run).join("completed.json")).expect("the record");
        let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        record["bad_samples"].as_u64().expect("a count")
    }

    /// Asserts that two runs have the same weights and moments at a step, bit for bit.
    pub fn assert_same_bits(&self, one: &str, other: &str, step: u64) {
        for buffer in ["weights", "first_moment", "second_moment"] {
            let (a, b) = (self.buffer(one, step, buffer), self.buffer(other, step, buffer));
            let same = a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same && a.len() == b.len(), "{buffer} differs");
        }
    }

    /// Returns a flat buffer (`weights`, `first_moment` or `second_moment`) of a checkpoint,
    /// assembled from the parts of all ranks.
    pub fn buffer(&self, run: &str, step: u64, name: &str) -> Vec<f32> {
        let folder = self.path(run).join(format!("checkpoints/step-{step:08}"));
        let mut parts: Vec<PathBuf> = std::fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        parts.sort();
        let mut all = Vec::new();
        for part in parts {
            let bytes = std::fs::read(part).expect("a part");
            let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let data = tensors.tensor(name).expect("the tensor").data().to_vec();
            all.extend(data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4"))));
        }
        all
    }
}

/// Returns whether the checkpoint of a step is complete.
pub fn has_checkpoint(run: &Path, step: u64) -> bool {
    run.join(format!("checkpoints/step-{step:08}/manifest.json")).exists()
}

/// Waits until `done` returns true. After `limit` it kills the child and fails the test.
pub fn wait_until(child: &mut Child, limit: Duration, what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            child.kill().expect("the child is killed");
            panic!("waited {limit:?} without reaching: {what}");
        }
        if let Some(status) = child.try_wait().expect("the child is watched") {
            assert!(done(), "the launcher ended with {status} before {what}");
            return;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
