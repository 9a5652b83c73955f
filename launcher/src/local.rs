//! Processes on this machine: finding the programs, starting the workers of a run, and ending all
//! of them.
//!
//! The workers of an attempt run in a process group of their own, so that Ctrl-C at the terminal
//! only reaches the supervisor. OpenMPI puts each rank into another group of its own; processes
//! that survive the end of the attempt's group are found by the attempt's token in their
//! environment.

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

/// How long processes may take to end after TERM, before they are killed: OpenMPI needs the time to
/// end its ranks and to remove its session folder. Also the time for killed processes to disappear.
const GRACE: Duration = Duration::from_secs(3);
/// How long `mpirun` may take to end after its ranks were killed, before it is killed too.
const MPIRUN_GRACE: Duration = Duration::from_secs(5);
/// How long `srun` may take to end after its step has ended, before it is killed: it waits for lost
/// nodes.
const STEP_GRACE: Duration = Duration::from_secs(1);
/// Time between two checks whether ranks that were started one by one have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Paths of the programs that a run needs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub worker: PathBuf,
    /// Path of `mpirun`, or `None` if it is not on `PATH`.
    pub mpirun: Option<PathBuf>,
}

/// Build features of the worker, as `vljepa-worker --features` prints them.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Features {
    /// MPI between processes on CPUs.
    #[serde(default)]
    pub mpi: bool,
    /// Decoding of clips.
    #[serde(default)]
    pub video: bool,
    /// Computing on GPUs.
    #[serde(default)]
    pub cuda: bool,
}

impl Programs {
    /// Finds the worker beside this program or on `PATH`, and `mpirun` on `PATH`.
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

    /// Asks the worker for its build features.
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
            .map_err(|error| broken(format!("`--features` printed no valid JSON: {error}")))
    }

    /// Command line of each rank when ranks are started one by one. Ranks on GPUs are, because they
    /// need no MPI.
    pub(crate) fn rank_command(&self, arguments: &WorkerArguments) -> Vec<String> {
        let mut line = vec![self.worker.display().to_string()];
        line.extend(arguments.list());
        line
    }

    /// Command line of an attempt on CPUs: the worker, through `mpirun` if there are several ranks.
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
            // OpenMPI's single-copy path (vader) needs process_vm_readv. Containers forbid that
            // call, and the first large message would fail.
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

/// Arguments of `vljepa-worker run`.
#[derive(Debug, Clone)]
pub(crate) struct WorkerArguments {
    pub run: PathBuf,
    /// File with the job as JSON.
    pub job: PathBuf,
    /// Address of the control plane, or `None` for a job without a supervisor.
    pub control: Option<String>,
}

impl WorkerArguments {
    /// The arguments as words of a command line.
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

/// Processes of one attempt. Dropping the group kills them.
#[derive(Debug)]
pub(crate) struct Group {
    /// Started processes: `mpirun`, `srun` or a single worker; or one process per rank.
    children: Vec<Child>,
    group: Pid,
    token: String,
    step: Option<Step>,
    ended: bool,
}

/// A step of a Slurm job. Its processes run on other machines, where only Slurm can end them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Id of the job.
    pub job: String,
    /// Name of the step, unique among the running steps of the job.
    pub name: String,
}

impl Group {
    /// Starts the command line `line`. Its output is appended to the file `output`.
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

    /// Marks the group as the processes of a Slurm step, which are then ended through Slurm. `None`
    /// changes nothing.
    #[must_use]
    pub(crate) fn of_step(mut self, step: Option<Step>) -> Self {
        self.step = step;
        self
    }

    /// Starts `line` once for each of `ranks` ranks on this machine, with the rank in its
    /// environment. `deterministic` keeps NCCL from reducing inside NVLink switches, whose order of
    /// additions is not fixed.
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
        // If a later rank cannot be started, dropping `all` kills the ranks that were.
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

    /// Exit status of a rank, or `None` if it is running or the ranks were not started one by one.
    pub(crate) fn ending_of(&mut self, rank: usize) -> Option<ExitStatus> {
        let one_by_one = self.children.len() > 1;
        let child = self.children.get_mut(rank).filter(|_| one_by_one)?;
        child.try_wait().ok().flatten()
    }

    /// The first rank that failed, or `None` if none did or the ranks were not started one by one.
    pub(crate) fn failed_rank(&mut self) -> Option<usize> {
        (0..self.children.len()).find(|rank| self.ending_of(*rank).is_some_and(|s| !s.success()))
    }

    /// Id of the first started process, which is also the id of the group.
    #[cfg(test)]
    pub(crate) fn leader(&self) -> Pid {
        self.group
    }

    /// Waits until the started process has ended. If ranks were started one by one, waits until all
    /// have ended or one has failed.
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
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn all_ended(&mut self) {
        for child in &mut self.children {
            child.wait().await.ok();
        }
    }

    /// Ends all processes: sends TERM, waits up to [`GRACE`], then kills what is left, including
    /// processes that left the group.
    pub(crate) async fn end(&mut self) {
        if self.step.is_some() {
            return self.end_now().await;
        }
        // A stopped process receives TERM only after CONT.
        self.signal_group(Signal::SIGTERM);
        self.signal_group(Signal::SIGCONT);
        tokio::time::timeout(GRACE, self.all_ended()).await.ok();
        self.end_now().await;
    }

    /// Kills all processes and waits until they are gone.
    pub(crate) async fn end_now(&mut self) {
        if let Some(step) = self.step.clone() {
            return self.end_step(&step).await;
        }
        // The ranks first: `mpirun` notices their end, removes its session folder and their shared
        // memory, and ends within one to three seconds. TERM is not sent to it: OpenMPI 4.1 may
        // crash on TERM at this moment and leave its session folder behind.
        let mut ranks = with_token(&self.token);
        if self.children.len() == 1 {
            ranks.retain(|process| *process != self.group);
        }
        ranks.iter().for_each(|rank| kill(*rank, Signal::SIGKILL).unwrap_or_default());
        if !ranks.is_empty() {
            tokio::time::timeout(MPIRUN_GRACE, self.all_ended()).await.ok();
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

    /// Ends a Slurm step on all of its nodes. If `scancel` is missing or waits for a lost node,
    /// ending `srun` and closing the control connection end the workers.
    async fn end_step(&mut self, step: &Step) {
        if !client::end_steps(&step.job, Some(&step.name)).await {
            self.signal_group(Signal::SIGTERM);
        }
        tokio::time::timeout(STEP_GRACE, self.wait()).await.ok();
        self.signal_group(Signal::SIGKILL);
        tokio::time::timeout(GRACE, self.wait()).await.ok();
        self.ended = true;
    }

    /// Sends a signal to the group, unless all of its processes have been waited for: the kernel
    /// may then have given the group's id to other processes.
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

/// Starts a process in the process group `group`; 0 makes a new group. `place` is a list of
/// environment variables.
fn spawn(
    line: &[String],
    token: &str,
    output: &Path,
    group: i32,
    place: &[(&str, usize)],
) -> std::io::Result<Child> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(output)?;
    let program = line.first().ok_or_else(|| std::io::Error::other("the command is empty"))?;
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
    id.ok_or_else(|| std::io::Error::other("the process has already ended"))
}

/// Other processes on this machine whose environment contains the token. Only processes of the
/// attempt have it.
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

/// Runs a one-shot job and returns its standard output. `folder` is the working directory, to which
/// relative paths in the recipe refer.
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
        // Warnings: samples that were left out, checkpoints that were skipped.
        if !said.trim().is_empty() {
            terminal::note(said.trim_end());
        }
        return Ok(output.stdout);
    }
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(failed(if last.is_empty() { ending(output.status) } else { last }))
}

/// Runs a program and returns its standard output.
///
/// # Errors
/// If the program is missing, fails (with the last line of its standard error), or takes longer
/// than 30 s.
pub(crate) async fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    let output = answer(command.args(arguments), program, Duration::from_secs(30)).await?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Runs a command line with the attempt's token in its environment and returns its standard output.
///
/// # Errors
/// As for [`ask`], with the timeout `limit`.
pub(crate) async fn ask_with_token(
    line: &[String],
    token: &str,
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let (program, arguments) = line.split_first().ok_or("the command is empty")?;
    let mut command = Command::new(program);
    answer(command.args(arguments).env(TOKEN_VARIABLE, token), program, limit).await
}

async fn answer(command: &mut Command, name: &str, limit: Duration) -> Result<Vec<u8>, String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(limit, output)
        .await
        .map_err(|_| format!("{name} did not answer within {} s", limit.as_secs()))?
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(format!("{name} ended with {}: {}", ending(output.status), last.trim()))
}

/// Standard output of a program whose answer is optional, or `None` if it is missing, fails or
/// takes longer than 10 s.
pub(crate) async fn inquire(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(10), output).await.ok()?.ok()?;
    output.status.success().then_some(output.stdout)
}

/// Exit code or signal of a process as text.
pub(crate) fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            let memory = if signal == 9 { "; a common cause is lack of memory" } else { "" };
            format!("signal {signal}, {name}{memory}")
        }
        (None, None) => "an unknown status".to_owned(),
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
