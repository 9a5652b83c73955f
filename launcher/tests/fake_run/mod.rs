//! A folder in which tests start `vljepa-launch` as a user does: it holds the programs, a fake
//! worker that follows a scenario, and a recipe.

#![allow(dead_code, reason = "each test program uses its part")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Serializes writing programs and starting processes: a program that was just written cannot be
/// started while a fork of another test holds it open for writing.
static STARTING: Mutex<()> = Mutex::new(());

fn while_nothing_starts<T>(act: impl FnOnce() -> T) -> T {
    let _guard = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    act()
}

/// A temporary folder with the launcher, a fake worker and a recipe.
pub(crate) struct FakeRun {
    folder: tempfile::TempDir,
}

impl FakeRun {
    /// Makes a folder for a run of `ranks` ranks. `scenario` is the bash code that each worker
    /// runs, with the functions of `fake/worker.sh`.
    pub(crate) fn new(ranks: usize, scenario: &str) -> Self {
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(fake.path("bin")).unwrap();
        std::fs::create_dir(fake.path("shards")).unwrap();
        std::fs::write(fake.path("shards/a.tar"), "x").unwrap();
        std::fs::write(fake.path("tokenizer.json"), "{}").unwrap();
        let launcher = env!("CARGO_BIN_EXE_vljepa-launch");
        while_nothing_starts(|| std::fs::copy(launcher, fake.path("bin/vljepa-launch")).unwrap());
        fake.program("bin/vljepa-worker", include_str!("../fake/worker.sh"));
        fake.program("bin/mpirun", include_str!("../fake/mpirun.sh"));
        fake.write("bin/features.json", r#"{"version":"1","mpi":true,"video":true,"cuda":false}"#);
        fake.write("bin/scenario.sh", scenario);
        fake.write(
            "recipe.yaml",
            &include_str!("../fake/recipe.yaml").replace("RANKS", &ranks.to_string()),
        );
        fake
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn program(&self, name: &str, text: &str) {
        while_nothing_starts(|| self.write(name, text));
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(name), mode).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/vljepa-launch"));
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        command.args(arguments).current_dir(self.folder.path()).env("PATH", path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn launch(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.start(arguments).wait_with_output().unwrap())
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        start(&mut self.command(arguments))
    }

    /// Waits until a file in the folder contains a text.
    pub(crate) fn wait_for(&self, file: &str, text: &str) {
        self.wait_until(file, &format!("`{text}`"), |read| read.contains(text));
    }

    /// Waits until the text of a file in the folder has a property, whose name is `what`.
    pub(crate) fn wait_until(&self, file: &str, what: &str, has: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has(&self.read(file)) {
            assert!(Instant::now() < deadline, "{file} never held {what}: {}", self.read(file));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Token of the attempt, from the environment of its first worker.
    pub(crate) fn token(&self) -> String {
        let pid = self.read("runs/fake/pids").lines().next().unwrap().to_owned();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        let token = environment.split('\0').find_map(|entry| entry.strip_prefix("VLJEPA_TOKEN="));
        token.unwrap().to_owned()
    }

    /// Ids of worker processes that are still running.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let pids = self.read("runs/fake/pids");
        let alive = |pid: &&str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !status.is_empty() && !status.contains(") Z")
        };
        pids.lines().filter(alive).map(str::to_owned).collect()
    }
}

/// Exit code, standard error (`text`) and standard output (`out`) of the launcher.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) text: String,
    pub(crate) out: String,
}

impl Ended {
    pub(crate) fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            text: String::from_utf8(output.stderr).unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
        }
    }

    /// Asserts the exit code, and that standard error contains all `texts`.
    pub(crate) fn said(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for text in texts {
            assert!(self.text.contains(text), "`{text}` is missing in:\n{}", self.text);
        }
    }
}

/// Starts a process; waits until no program is being written.
pub(crate) fn start(command: &mut Command) -> Child {
    while_nothing_starts(|| command.spawn().unwrap())
}
