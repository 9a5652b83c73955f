//! A Slurm cluster of virtual nodes, runs on it, and their events.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{Trial, program, repository, text};

/// Held while a cluster is up: clusters use the same ports, so only one can be up at a time.
static CLUSTER_LOCK: Mutex<()> = Mutex::new(());

/// Time limit of every wait in these tests.
pub const LIMIT: Duration = Duration::from_secs(150);

/// 24 steps in two stages on two nodes of two ranks, with a checkpoint every 4 steps.
pub const TWO_STAGES: &str = "
stages:
  - {name: pictures, steps: 10, batch: 8, frames: 4, mixture: {images: 1, questions: 2}, mixing: batch, learning_rate: {peak: 1e-3, warmup_steps: 3}}
  - {name: clips, steps: 14, batch: 10, frames: 4, mixture: {clips: 2, questions: 1}, mixing: batch, learning_rate: {peak: 1e-3, schedule: cosine}}
evaluation: {tasks: []}
logging: {every_steps: 1}
checkpoints: {every_steps: 4, keep: 20}
cluster:
  scheduler: slurm
  nodes: 2
  ranks_per_node: 2
  control: {host: 127.0.0.1, silence_s: 30}
  restart: {max_without_progress: 5, hang_floor_s: 5}
";
/// Number of the recipe's last checkpoint: all its steps.
pub const LAST: u64 = 24;

/// A running Slurm cluster. Dropping it stops its daemons.
pub struct Cluster {
    folder: TempDir,
    /// Folder in which commands find programs, instead of those in `PATH`.
    path: Option<PathBuf>,
    _lock: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts a cluster whose nodes have two fake GPUs each. Slurm declares a node down only after
    /// 60 s, because a busy test machine may delay the daemons.
    pub fn up(nodes: usize) -> Self {
        Self::start(nodes, 60)
    }

    /// Starts a cluster for tests that kill nodes: Slurm declares a node down after 10 s.
    pub fn up_to_lose_nodes(nodes: usize) -> Self {
        Self::start(nodes, 10)
    }

    /// Starts a cluster for tests that pause a node's daemon for longer than the health checks
    /// take: Slurm declares a node down only after 300 s, its default.
    pub fn up_to_pause_nodes(nodes: usize) -> Self {
        Self::start(nodes, 300)
    }

    fn start(nodes: usize, silence_s: u64) -> Self {
        let lock = CLUSTER_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let cluster = Self { folder, path: None, _lock: lock };
        cluster.script("up.sh", &[&nodes.to_string(), "2", &silence_s.to_string()]);
        cluster
    }

    fn script(&self, name: &str, arguments: &[&str]) {
        let output = as_root(&repository().join("tests/slurm").join(name))
            .arg(self.folder.path().join("cluster"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output));
    }

    /// Hides a program of Slurm from all later commands and from the jobs that they submit.
    pub fn without(mut self, program: &str) -> Self {
        let folder = self.folder.path().join("bin");
        std::fs::create_dir(&folder).unwrap();
        let all = std::env::var_os("PATH").unwrap();
        let files = std::env::split_paths(&all).filter_map(|path| std::fs::read_dir(path).ok());
        for file in files.flatten().flatten().filter(|file| file.file_name() != program) {
            // If several folders have a file of this name, the link to the first one stays.
            std::os::unix::fs::symlink(file.path(), folder.join(file.file_name())).ok();
        }
        self.path = Some(folder);
        self
    }

    /// Returns the folder of the cluster's configuration, state and logs.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    /// Returns the process id of a node's daemon.
    pub fn daemon(&self, node: &str) -> String {
        let file = self.files().join(format!("slurmd.{node}.pid"));
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    }

    /// Simulates a power cut of a node.
    pub fn kill_node(&self, name: &str) {
        self.script("kill-node.sh", &[name]);
    }

    /// Returns a command whose environment points to this cluster.
    #[expect(clippy::disallowed_methods, reason = "tests run the programs")]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let environment = std::fs::read_to_string(self.folder.path().join("cluster/env")).unwrap();
        let variables = environment.lines().filter_map(|line| line.strip_prefix("export "));
        command
            .current_dir(repository())
            .envs(variables.map(|variable| variable.split_once('=').unwrap()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        command
    }

    /// Runs one of Slurm's commands and returns its output.
    pub fn ask(&self, line: &str) -> String {
        let mut words = line.split(' ');
        let output = self.command(words.next().unwrap()).args(words).output().unwrap();
        text(&output)
    }

    /// Returns Slurm's queue, steps, nodes and the end of its log, for failure messages.
    pub fn state(&self) -> String {
        let questions = ["squeue --all", "squeue --steps", "sinfo --Node"];
        let answers = questions.map(|question| self.ask(question)).join("");
        let log = self.folder.path().join("cluster/log/slurmctld.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        answers + &lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Starts `vljepa-launch RECIPE --follow`.
    pub fn launch(&self, trial: &Trial, run: &str, sets: &[&str], drills: &[&str]) -> Running<'_> {
        let mut command = self.command(program("vljepa-launch"));
        command.arg(trial.recipe()).arg("--run").arg(trial.path(run)).arg("--follow");
        for (option, values) in [("--set", sets), ("--drill", drills)] {
            values.iter().for_each(|value| {
                command.args([option, value]);
            });
        }
        let child = Some(command.spawn().unwrap());
        Running { cluster: self, run: trial.path(run), child, fault_times: Vec::new() }
    }

    /// Returns the processes of a run that still exist on any node.
    pub fn processes(run: &Path) -> Vec<String> {
        let of_run = |entry: std::fs::DirEntry| {
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let names = ["vljepa-worker", "supervise", "guard"];
            let found =
                line.contains(run.to_str()?) && names.iter().any(|name| line.contains(name));
            found.then(|| format!("{} {line}", entry.file_name().to_string_lossy()))
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(of_run).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let folder = self.folder.path().join("cluster");
        as_root(&repository().join("tests/slurm/down.sh")).arg(folder).output().ok();
    }
}

#[expect(clippy::disallowed_methods, reason = "starts the cluster's daemons")]
fn as_root(script: &Path) -> Command {
    if nix::unistd::Uid::effective().is_root() {
        return Command::new(script);
    }
    let mut command = Command::new("sudo");
    command.arg("-n").arg(script);
    command
}

/// A launcher that follows a run on the cluster.
pub struct Running<'a> {
    cluster: &'a Cluster,
    run: PathBuf,
    child: Option<Child>,
    fault_times: Vec<Timestamp>,
}

impl Running<'_> {
    /// Waits until `done` returns true for the run directory. Fails if the launcher exits first.
    pub fn wait_until(&mut self, what: &str, done: impl Fn(&Path) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(&self.run) {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() && !done(&self.run) {
                let said = text(&self.end());
                panic!("ended before {what}: {said}{}", self.diagnostics());
            }
            assert!(
                Instant::now() < end,
                "waited {LIMIT:?} without reaching: {what}: {}",
                self.diagnostics()
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Injects a fault and records its time.
    pub fn inject(&mut self, fault: impl FnOnce()) {
        self.fault_times.push(Timestamp::now());
        fault();
    }

    /// Waits until the job has left Slurm's queue and its processes have ended. Does not wait for
    /// the launcher.
    pub fn wait_until_gone(&mut self) {
        let end = Instant::now() + LIMIT;
        while !(self.cluster.ask("squeue -h").trim().is_empty()
            && Cluster::processes(&self.run).is_empty())
        {
            assert!(Instant::now() < end, "the job is still running: {}", self.diagnostics());
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// Returns the id of the run's Slurm job.
    pub fn job(&self) -> String {
        let text = std::fs::read(self.run.join("slurm.json")).unwrap();
        let value: Value = serde_json::from_slice(&text).unwrap();
        value["job"].as_str().unwrap().to_owned()
    }

    /// Waits until the run is complete, and asserts that no process, file or job of it is left.
    pub fn complete(mut self) -> Events {
        self.wait_until("completion", |run| run.join("completed.json").exists());
        let output = self.end();
        assert!(output.status.success(), "{}\n{}", text(&output), self.diagnostics());
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let left = Cluster::processes(&self.run);
            let remains = remains(&self.run);
            if left.is_empty()
                && remains.is_empty()
                && self.cluster.ask("squeue -h").trim().is_empty()
            {
                break;
            }
            let late = Instant::now() >= end;
            assert!(!late, "left behind: {left:?} {remains:?} {}", self.diagnostics());
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Events::read(&self.run, std::mem::take(&mut self.fault_times))
    }

    /// Waits until the launcher exits, with success or not.
    pub fn end(&mut self) -> Output {
        let child = self.child.take().unwrap();
        child.wait_with_output().unwrap()
    }

    /// Returns the run's events, the job's logs and Slurm's state, for failure messages.
    pub fn diagnostics(&self) -> String {
        let mut all = std::fs::read_to_string(self.run.join("events.jsonl")).unwrap_or_default();
        let logs = std::fs::read_dir(self.run.join("logs")).into_iter().flatten().flatten();
        for log in logs.filter(|log| log.file_name().to_string_lossy().starts_with("slurm")) {
            all += &std::fs::read_to_string(log.path()).unwrap_or_default();
        }
        all + &self.cluster.state()
    }
}

/// Returns leftovers: shared memory and temporary folders of MPI ranks on virtual nodes, and hidden
/// or unfinished files of the run.
fn remains(run: &Path) -> Vec<String> {
    let names = |place: &Path| {
        let entries = std::fs::read_dir(place).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let of_ranks = [names(Path::new("/dev/shm")), names(&std::env::temp_dir())].concat();
    let of_a_node = |name: &String| (0..9).any(|node| name.contains(&format!(".node{node}.")));
    let of_ranks = of_ranks.into_iter().filter(of_a_node);
    let of_run = [names(run), names(&run.join("checkpoints"))].concat();
    of_ranks.chain(of_run.into_iter().filter(|name| name.starts_with('.'))).collect()
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Events of a run, the times of its steps, and the times of its injected faults.
pub struct Events {
    events: Vec<Value>,
    steps: Vec<(Timestamp, u64)>,
    fault_times: Vec<Timestamp>,
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn time(line: &Value) -> Timestamp {
    line["time"].as_str().unwrap().parse().unwrap()
}

impl Events {
    fn read(run: &Path, mut fault_times: Vec<Timestamp>) -> Self {
        let steps = lines(&run.join("metrics.jsonl"));
        let steps = steps.iter().map(|line| (time(line), line["step"].as_u64().unwrap())).collect();
        let logs = std::fs::read_dir(run.join("logs")).unwrap().flatten();
        for log in logs {
            // A rank logs each drill before it happens.
            let text = std::fs::read_to_string(log.path()).unwrap();
            let drills =
                text.lines().filter(|line| line.contains("WARN") && line.contains(": drill "));
            fault_times.extend(
                drills.filter_map(|line| line.split(' ').next()?.parse::<Timestamp>().ok()),
            );
        }
        fault_times.sort();
        Self { events: lines(&run.join("events.jsonl")), steps, fault_times }
    }

    /// Describes the recovery of every attempt after the first: the seconds from the last injected
    /// fault until it was detected and until a step was done again, and the number of steps that
    /// were repeated.
    pub fn recoveries(&self) -> Vec<String> {
        let mut starts: Vec<Timestamp> = self.named("attempt_started").map(time).collect();
        starts.push(Timestamp::MAX);
        let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
        let recovery = |pair: &[Timestamp]| {
            let within = |at: Timestamp| pair[0] < at && at < pair[1];
            let signs = ["fault", "stop_requested", "supervisor_lost"];
            let sign = self.events.iter().find(|event| {
                signs.iter().any(|sign| event["event"] == **sign) && within(time(event))
            });
            let injected = self.fault_times.iter().rfind(|at| within(**at)).copied();
            let start = injected.or_else(|| sign.map(time))?;
            // The metrics do not hold steps that a later attempt has repeated.
            let after = |at: Timestamp| pair[1] < at && at < pair[2];
            let (again, first) = *self.steps.iter().find(|(at, _)| after(*at))?;
            let seen =
                sign.map_or("–".to_owned(), |s| format!("{:.1} s", seconds(start, time(s))));
            let lost = sign.and_then(|s| Some((s["step"].as_u64()? + 1).saturating_sub(first)));
            let lost = lost.map_or("–".to_owned(), |lost| lost.to_string());
            let after = seconds(start, again);
            Some(format!(
                "known after {seen} | training again after {after:.1} s | {lost} steps again"
            ))
        };
        starts.windows(3).filter_map(recovery).collect()
    }

    /// Returns the events with a name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["event"] == name)
    }

    /// Returns the outcomes of the attempts in their order.
    pub fn ends(&self) -> Vec<&str> {
        self.named("attempt_ended").map(|event| event["outcome"].as_str().unwrap()).collect()
    }

    /// Returns each fault as `KIND rank RANK PHASE: ERROR`.
    pub fn faults(&self) -> Vec<String> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rank = |value: &Value| value.as_u64().map_or("-".to_owned(), |r| r.to_string());
        let say = |f: &Value| {
            format!(
                "{} rank {} {}: {}",
                word(&f["kind"]),
                rank(&f["rank"]),
                word(&f["phase"]),
                word(&f["error"])
            )
        };
        self.named("fault").map(say).collect()
    }
}

/// Returns a trial with the run `undisturbed`, which had no fault and is made once. Runs with
/// faults are compared with it.
pub fn undisturbed() -> &'static Trial {
    static TRIAL: OnceLock<Trial> = OnceLock::new();
    TRIAL.get_or_init(|| {
        let cluster = Cluster::up(4);
        let trial = Trial::new(TWO_STAGES);
        cluster.launch(&trial, "undisturbed", &[], &[]).complete();
        trial
    })
}

/// Asserts that a run had the losses of the undisturbed run and ended with the same bits.
pub fn assert_same_end(trial: &Trial, run: &str) {
    assert_eq!(trial.losses("undisturbed"), trial.losses(run), "losses differ");
    trial.assert_same_bits("undisturbed", run, LAST);
}

/// Prints one line per recovery. The table in tests/slurm/README.md has these numbers.
#[expect(clippy::print_stdout, reason = "readers of the tests' output look for these lines")]
pub fn report(fault: &str, events: &Events) {
    for line in events.recoveries() {
        println!("recovery | {fault} | {line}");
    }
}
