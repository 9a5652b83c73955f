//! Processes on this machine: finding programs, starting the workers of a run, and leaving none behind.
//!
//! The workers of an attempt run in a process group of their own, so that Ctrl-C at the terminal reaches the supervisor alone.
//! OpenMPI puts each rank into yet another group; what is left after the group was ended is found by the attempt's token in
//! its environment.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::process::{Child, Command};
use vljepa_recipes::protocol::{
    LOCAL_RANK_VARIABLE, LOCAL_WORLD_SIZE_VARIABLE, NVLS_VARIABLE, RANK_VARIABLE, TOKEN_VARIABLE,
    WORLD_SIZE_VARIABLE,
};

use crate::environment;
use crate::error::LaunchError;
use crate::slurm::client;
use crate::terminal;

/// Time between TERM and KILL: OpenMPI needs it to end its ranks and to remove its session folder.
const GRACE: Duration = Duration::from_secs(3);
/// Time between the death of the ranks and KILL for what started them, when everything is to end at once.
const LAST_MOMENT: Duration = Duration::from_secs(5);
/// Time for `srun` to end by itself once its step was ended: it waits for lost nodes.
const STEP_GRACE: Duration = Duration::from_secs(1);
/// Between looks at ranks that were started one by one.
const LOOK: Duration = Duration::from_millis(10);

/// The programs a run needs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// `vljepa-worker`.
    pub worker: PathBuf,
    /// `mpirun`, where there is one.
    pub mpirun: Option<PathBuf>,
}

/// What `vljepa-worker --features` prints.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Features {
    /// Several processes.
    #[serde(default)]
    pub mpi: bool,
    /// Clips.
    #[serde(default)]
    pub video: bool,
    /// GPUs.
    #[serde(default)]
    pub cuda: bool,
}

impl Programs {
    /// Finds them: the worker beside this program or on PATH, `mpirun` on PATH.
    pub(crate) fn find() -> Result<Self, LaunchError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
        let path = environment::search_path();
        let find = |name: &str, folders: &[PathBuf]| {
            folders.iter().map(|folder| folder.join(name)).find(|file| is_executable(file))
        };
        let mut folders: Vec<PathBuf> = beside.into_iter().collect();
        folders.extend(path.iter().cloned());
        let worker = find("vljepa-worker", &folders).ok_or_else(|| LaunchError::WorkerMissing {
            beside: folders.first().map(|folder| folder.display().to_string()).unwrap_or_default(),
        })?;
        Ok(Self { worker, mpirun: find("mpirun", &path) })
    }

    /// Asks the worker what it was built with.
    pub(crate) async fn features(&self) -> Result<Features, LaunchError> {
        let broken = |why: String| LaunchError::WorkerBroken { worker: self.worker.clone(), why };
        let output = Command::new(&self.worker)
            .arg("--features")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(30), output)
            .await
            .map_err(|_| broken("it did not answer `--features` within 30 s".to_owned()))?
            .map_err(|error| broken(error.to_string()))?;
        if !output.status.success() {
            return Err(broken(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| broken(format!("`--features` printed something else: {error}")))
    }

    /// The command line of each rank, where ranks are started one by one: on GPUs, which need no MPI.
    pub(crate) fn rank_command(&self, arguments: &WorkerArguments) -> Vec<String> {
        let mut line = vec![self.worker.display().to_string()];
        line.extend(arguments.list());
        line
    }

    /// The command line of an attempt.
    pub(crate) fn train_command(
        &self,
        world_size: usize,
        arguments: &WorkerArguments,
    ) -> Result<Vec<String>, LaunchError> {
        let mut line = Vec::new();
        if world_size > 1 {
            let mpirun =
                self.mpirun.as_ref().ok_or(LaunchError::MpirunMissing { ranks: world_size })?;
            line.push(mpirun.display().to_string());
            // vader's single-copy path needs process_vm_readv, which containers forbid; it then fails in the first large message.
            line.extend(
                "--allow-run-as-root --oversubscribe --bind-to none --mca btl_vader_single_copy_mechanism none -np"
                    .split(' ')
                    .map(str::to_owned),
            );
            line.push(world_size.to_string());
        }
        line.push(self.worker.display().to_string());
        line.extend(arguments.list());
        Ok(line)
    }
}

/// Arguments of `vljepa-worker`.
#[derive(Debug, Clone)]
pub(crate) struct WorkerArguments {
    /// The run directory.
    pub run: PathBuf,
    /// The job file.
    pub job: PathBuf,
    /// Where the supervisor listens, if the job has one.
    pub control: Option<String>,
}

impl WorkerArguments {
    /// As they stand on its command line.
    pub(crate) fn list(&self) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let mut list = vec!["run".to_owned(), "--run".to_owned(), text(&self.run)];
        list.extend(["--job".to_owned(), text(&self.job)]);
        if let Some(control) = &self.control {
            list.extend(["--control".to_owned(), control.clone()]);
        }
        list
    }
}

/// The processes of an attempt.
#[derive(Debug)]
pub(crate) struct Group {
    /// What was started: `mpirun` or a single worker, or each rank of several.
    children: Vec<Child>,
    group: Pid,
    token: String,
    step: Option<Step>,
    ended: bool,
}

/// A step of a Slurm job: its processes are on other machines, where only Slurm reaches them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The job.
    pub job: String,
    /// The step's name, which no other step of the job has at this time.
    pub name: String,
}

impl Group {
    /// Starts `line` with its output appended to the file `output`.
    pub(crate) fn start(line: &[String], token: &str, output: &Path) -> std::io::Result<Self> {
        let leader = spawn(line, token, output, 0, &[])?;
        let group = process_of(&leader)?;
        Ok(Self {
            children: vec![leader],
            group,
            token: token.to_owned(),
            step: None,
            ended: false,
        })
    }

    /// The same as the processes of a Slurm job's step, where there is one.
    #[must_use]
    pub(crate) fn of_step(mut self, step: Option<Step>) -> Self {
        self.step = step;
        self
    }

    /// Starts `line` once for each of `ranks` ranks on this machine, and tells each which one it is. `deterministic` keeps NCCL from
    /// adding up inside of switches, whose order is their own.
    pub(crate) fn start_ranks(
        line: &[String],
        ranks: usize,
        deterministic: bool,
        token: &str,
        output: &Path,
    ) -> std::io::Result<Self> {
        let place = |rank: usize| {
            let mut place = vec![
                (RANK_VARIABLE, rank),
                (WORLD_SIZE_VARIABLE, ranks),
                (LOCAL_RANK_VARIABLE, rank),
                (LOCAL_WORLD_SIZE_VARIABLE, ranks),
            ];
            place.extend(deterministic.then_some((NVLS_VARIABLE, 0)));
            place
        };
        let leader = spawn(line, token, output, 0, &place(0))?;
        let group = process_of(&leader)?;
        // From here on, dropping it ends what was started.
        let mut all = Self {
            children: vec![leader],
            group,
            token: token.to_owned(),
            step: None,
            ended: false,
        };
        for rank in 1..ranks {
            all.children.push(spawn(line, token, output, group.as_raw(), &place(rank))?);
        }
        Ok(all)
    }

    /// How the process of a rank that was started by itself has ended, if it has.
    pub(crate) fn ending_of(&mut self, rank: usize) -> Option<ExitStatus> {
        let one_by_one = self.children.len() > 1;
        let child = self.children.get_mut(rank).filter(|_| one_by_one)?;
        child.try_wait().ok().flatten()
    }

    /// The first rank of those that were started one by one whose process did not succeed.
    pub(crate) fn failed_rank(&mut self) -> Option<usize> {
        (0..self.children.len()).find(|rank| self.ending_of(*rank).is_some_and(|s| !s.success()))
    }

    /// The started process, which leads the group.
    #[cfg(test)]
    pub(crate) fn leader(&self) -> Pid {
        self.group
    }

    /// Waits until the started process has ended; of several, until all have, or one of them did not succeed.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        if let [child] = self.children.as_mut_slice() {
            return child.wait().await;
        }
        loop {
            let mut ended = Ok(ExitStatus::default());
            let mut running = false;
            for child in &mut self.children {
                match child.try_wait()? {
                    Some(status) if !status.success() => return Ok(status),
                    Some(status) => ended = Ok(status),
                    None => running = true,
                }
            }
            if !running {
                return ended;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until every started process has ended.
    async fn all_ended(&mut self) {
        for child in &mut self.children {
            child.wait().await.ok();
        }
    }

    /// Ends everything: TERM and three seconds for those that listen, then KILL, also for what left the group.
    pub(crate) async fn end(&mut self) {
        if self.step.is_some() {
            return self.end_now().await;
        }
        // A stopped process hears TERM only when it goes on.
        self.signal_group(Signal::SIGTERM);
        self.signal_group(Signal::SIGCONT);
        tokio::time::timeout(GRACE, self.all_ended()).await.ok();
        self.end_now().await;
    }

    /// Ends everything at once, and waits until the kernel has done so.
    pub(crate) async fn end_now(&mut self) {
        if let Some(step) = self.step.clone() {
            return self.end_step(&step).await;
        }
        // The ranks first: `mpirun` sees them die, removes its session folder and their shared memory, and ends in one to three seconds.
        // TERM would not hurry it: OpenMPI 4.1 may crash on it at this moment and leave its folder behind.
        let mut ranks = with_token(&self.token);
        if self.children.len() == 1 {
            ranks.retain(|process| *process != self.group);
        }
        ranks.iter().for_each(|rank| kill(*rank, Signal::SIGKILL).unwrap_or_default());
        if !ranks.is_empty() {
            tokio::time::timeout(LAST_MOMENT, self.all_ended()).await.ok();
        }
        self.kill();
        let gone = async {
            self.all_ended().await;
            while !with_token(&self.token).is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(GRACE, gone).await.ok();
    }

    /// Ends a step on all of its nodes. Where `scancel` is not to be had or waits for a lost node, `srun` and the closed control
    /// connection do it.
    async fn end_step(&mut self, step: &Step) {
        if !client::end_steps(&step.job, Some(&step.name)).await {
            self.signal_group(Signal::SIGTERM);
        }
        tokio::time::timeout(STEP_GRACE, self.wait()).await.ok();
        self.signal_group(Signal::SIGKILL);
        tokio::time::timeout(GRACE, self.wait()).await.ok();
        self.ended = true;
    }

    /// Signals the group as long as one of its processes was not waited for: after that its number may be another's.
    fn signal_group(&self, signal: Signal) {
        if self.children.iter().any(|child| child.id().is_some()) {
            killpg(self.group, signal).ok();
        }
    }

    fn kill(&mut self) {
        self.signal_group(Signal::SIGKILL);
        let left = if self.step.is_some() { Vec::new() } else { with_token(&self.token) };
        for process in left {
            kill(process, Signal::SIGKILL).ok();
        }
        self.ended = true;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
        }
    }
}

/// Starts a process in the process group `group`, or, for 0, in one of its own.
fn spawn(
    line: &[String],
    token: &str,
    output: &Path,
    group: i32,
    place: &[(&str, usize)],
) -> std::io::Result<Child> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(output)?;
    let program = line.first().ok_or_else(|| std::io::Error::other("an empty command"))?;
    Command::new(program)
        .args(&line[1..])
        .env(TOKEN_VARIABLE, token)
        .envs(place.iter().map(|(name, value)| (name, value.to_string())))
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(group)
        .spawn()
}

fn process_of(child: &Child) -> std::io::Result<Pid> {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    id.ok_or_else(|| std::io::Error::other("the process ended at once"))
}

/// Processes of this machine whose environment holds the token; it is as good as a name, because no other process got it.
pub(crate) fn with_token(token: &str) -> Vec<Pid> {
    let entry = format!("{TOKEN_VARIABLE}={token}");
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok())
        .filter(|id| u32::try_from(*id).is_ok_and(|id| id != own))
        .filter(|id| {
            std::fs::read(format!("/proc/{id}/environ")).is_ok_and(|text| {
                text.split(|byte| *byte == 0).any(|item| item == entry.as_bytes())
            })
        })
        .map(Pid::from_raw)
        .collect()
}

/// Runs a one-shot job to its end and returns its standard output. `folder` is the working directory that the recipe's paths
/// are relative to.
pub(crate) async fn one_shot(
    programs: &Programs,
    arguments: &WorkerArguments,
    folder: &Path,
) -> Result<Vec<u8>, LaunchError> {
    let failed = |error: String| LaunchError::JobFailed { error };
    let child = Command::new(&programs.worker)
        .args(arguments.list())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("{}: {error}", programs.worker.display())))?;
    let output = child.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        // Warnings: samples left out, checkpoints passed over.
        if !said.trim().is_empty() {
            terminal::note(said.trim_end());
        }
        return Ok(output.stdout);
    }
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(failed(if last.is_empty() { ending(output.status) } else { last }))
}

/// Standard output of a program.
///
/// # Errors
/// Its last words when it fails, or that it is missing or took more than half a minute.
pub(crate) async fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    let output = answer(command.args(arguments), program, Duration::from_secs(30)).await?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Standard output of a command line that gets the run's token in its environment.
///
/// # Errors
/// As [`ask`], after a time of its own.
pub(crate) async fn ask_with_token(
    line: &[String],
    token: &str,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let (program, arguments) = line.split_first().ok_or("an empty command")?;
    let mut command = Command::new(program);
    answer(command.args(arguments).env(TOKEN_VARIABLE, token), program, limit).await
}

async fn answer(command: &mut Command, name: &str, limit: Duration) -> Result<Vec<u8>, String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, output)
        .await
        .map_err(|_| format!("no answer of {name} within {} s", limit.as_secs()))?
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(format!("{name} ended with {}: {}", ending(output.status), last.trim()))
}

/// Output of a program that only informs; none when it is missing or fails.
pub(crate) async fn inquire(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(10), output).await.ok()?.ok()?;
    output.status.success().then_some(output.stdout)
}

/// How a process ended, in words.
pub(crate) fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            let memory = if signal == 9 { "; often: out of memory" } else { "" };
            format!("signal {signal}, {name}{memory}")
        }
        (None, None) => "an unknown end".to_owned(),
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
