//! The processes of an attempt: starting them, waiting for them, ending all of them.
//!
//! The workers of an attempt run in a process group of their own, so that Ctrl-C at the terminal
//! only reaches the supervisor. OpenMPI puts each rank into another group of its own; processes
//! that survive the end of the attempt's group are found by the attempt's token in their
//! environment.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use vljepa_recipes::protocol::{
    LOCAL_RANK_VARIABLE, LOCAL_WORLD_SIZE_VARIABLE, NVLS_VARIABLE, RANK_VARIABLE, TOKEN_VARIABLE,
    WORLD_SIZE_VARIABLE,
};

use super::slurm::client;

/// How long processes may take to end after TERM, before they are killed: OpenMPI needs the time to
/// end its ranks and to remove its session folder. Also the time for killed processes to disappear.
const GRACE: Duration = Duration::from_secs(3);
/// How long `mpirun` may take to end after its ranks were killed, before it is killed too.
const MPIRUN_GRACE: Duration = Duration::from_secs(5);
/// How long `srun` may take to end after its step has ended, before it is killed: it waits for lost
/// nodes.
const STEP_GRACE: Duration = Duration::from_secs(1);
/// Where OpenMPI 4 makes its session folder.
const SESSION_VARIABLE: &str = "OMPI_MCA_orte_tmpdir_base";
/// Time between two checks whether ranks that were started one by one have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Environment variables that tell a process which of `ranks` ranks on this machine it is.
pub(crate) fn rank_variables(rank: usize, ranks: usize) -> [(&'static str, String); 4] {
    let own = [
        (RANK_VARIABLE, rank),
        (WORLD_SIZE_VARIABLE, ranks),
        (LOCAL_RANK_VARIABLE, rank),
        (LOCAL_WORLD_SIZE_VARIABLE, ranks),
    ];
    own.map(|(name, value)| (name, value.to_string()))
}

/// Processes of one attempt. Dropping the group kills them.
#[derive(Debug)]
pub(crate) struct Group {
    started: Started,
    /// Process group of everything that was started on this machine.
    id: Pid,
    token: String,
    ended: bool,
    /// Folder that `mpirun` keeps its session in, removed when the group is dropped.
    _session: Option<TempDir>,
}

#[derive(Debug)]
enum Started {
    /// One program on this machine: a worker, or `mpirun`, which starts one worker per rank.
    Program(Child),
    /// One worker per rank on this machine, in the order of ranks.
    Ranks(Vec<Child>),
    /// `srun`. The workers run on the nodes of a Slurm step.
    Step { srun: Child, step: Step },
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
    /// Starts a worker or `mpirun` by the command line `line`. Its output is appended to the file
    /// `output`.
    ///
    /// `mpirun` gets a session folder of its own. By default OpenMPI 4 shares one among all
    /// `mpirun` of a user, and one that ends removes it while another is starting in it.
    pub(crate) fn program(line: &[String], token: &str, output: &Path) -> std::io::Result<Self> {
        let session = tempfile::Builder::new().prefix("vljepa-mpi-").tempdir()?;
        let variables = [(SESSION_VARIABLE, session.path().as_os_str().to_owned())];
        let child = spawn(line, token, output, 0, &variables)?;
        let id = process_of(&child)?;
        Ok(Self::of(Started::Program(child), id, token, Some(session)))
    }

    /// Starts a Slurm step by the command line `line`, which runs `srun`.
    pub(crate) fn step(
        line: &[String],
        step: Step,
        token: &str,
        output: &Path,
    ) -> std::io::Result<Self> {
        let srun = spawn(line, token, output, 0, &[])?;
        let id = process_of(&srun)?;
        Ok(Self::of(Started::Step { srun, step }, id, token, None))
    }

    /// Starts `line` once for each of `world_size` ranks on this machine, with the rank in its
    /// environment. `deterministic` keeps NCCL from reducing inside NVLink switches, whose order of
    /// additions is not fixed.
    pub(crate) fn ranks(
        line: &[String],
        world_size: usize,
        deterministic: bool,
        token: &str,
        output: &Path,
    ) -> std::io::Result<Self> {
        let variables = |rank: usize| {
            let mut variables = rank_variables(rank, world_size).to_vec();
            variables.extend(deterministic.then(|| (NVLS_VARIABLE, "0".to_owned())));
            let texts = variables.into_iter().map(|(name, value)| (name, value.into()));
            texts.collect::<Vec<_>>()
        };
        let first = spawn(line, token, output, 0, &variables(0))?;
        let id = process_of(&first)?;
        // If a later rank cannot be started, dropping `group` kills the ranks that were.
        let mut group = Self::of(Started::Ranks(vec![first]), id, token, None);
        for rank in 1..world_size {
            let child = spawn(line, token, output, id.as_raw(), &variables(rank))?;
            if let Started::Ranks(ranks) = &mut group.started {
                ranks.push(child);
            }
        }
        Ok(group)
    }

    fn of(started: Started, id: Pid, token: &str, session: Option<TempDir>) -> Self {
        Self { started, id, token: token.to_owned(), ended: false, _session: session }
    }

    fn children(&self) -> &[Child] {
        match &self.started {
            Started::Program(child) | Started::Step { srun: child, .. } => {
                std::slice::from_ref(child)
            }
            Started::Ranks(ranks) => ranks,
        }
    }

    fn children_mut(&mut self) -> &mut [Child] {
        match &mut self.started {
            Started::Program(child) | Started::Step { srun: child, .. } => {
                std::slice::from_mut(child)
            }
            Started::Ranks(ranks) => ranks,
        }
    }

    /// Exit status of a rank, or `None` if it is running or the ranks were not started one by one.
    pub(crate) fn ending_of(&mut self, rank: usize) -> Option<ExitStatus> {
        let Started::Ranks(ranks) = &mut self.started else { return None };
        ranks.get_mut(rank)?.try_wait().ok().flatten()
    }

    /// The first rank that failed, or `None` if none did or the ranks were not started one by one.
    pub(crate) fn failed_rank(&mut self) -> Option<usize> {
        (0..self.children().len()).find(|rank| self.ending_of(*rank).is_some_and(|s| !s.success()))
    }

    /// Id of the first started process, which is also the id of the group.
    #[cfg(test)]
    pub(crate) fn leader(&self) -> Pid {
        self.id
    }

    /// Waits until the started process has ended. If ranks were started one by one, waits until all
    /// have ended or one has failed.
    pub(crate) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        if let Started::Program(child) | Started::Step { srun: child, .. } = &mut self.started {
            return child.wait().await;
        }
        loop {
            let mut ended = Ok(ExitStatus::default());
            let mut running = false;
            for child in self.children_mut() {
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
        for child in self.children_mut() {
            child.wait().await.ok();
        }
    }

    /// Ends all processes: sends TERM, waits up to [`GRACE`], then kills what is left, including
    /// processes that left the group.
    pub(crate) async fn end(&mut self) {
        if let Started::Step { .. } = self.started {
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
        if let Started::Step { step, .. } = &self.started {
            return self.end_step(&step.clone()).await;
        }
        // The ranks first: `mpirun` notices their end, removes its session folder and their shared
        // memory, and ends within one to three seconds. TERM is not sent to it: OpenMPI 4.1 may
        // crash on TERM at this moment and leave its session folder behind.
        let mut ranks = with_token(&self.token);
        if let Started::Program(_) = self.started {
            ranks.retain(|process| *process != self.id);
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
        if self.children().iter().any(|child| child.id().is_some()) {
            killpg(self.id, signal).ok();
        }
    }

    fn kill(&mut self) {
        self.signal_group(Signal::SIGKILL);
        let left = match self.started {
            Started::Step { .. } => Vec::new(),
            Started::Program(_) | Started::Ranks(_) => with_token(&self.token),
        };
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

/// Starts a process in the process group `group`; 0 makes a new group. `variables` are added to its
/// environment.
fn spawn(
    line: &[String],
    token: &str,
    output: &Path,
    group: i32,
    variables: &[(&str, OsString)],
) -> std::io::Result<Child> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(output)?;
    let program = line.first().ok_or_else(|| std::io::Error::other("the command is empty"))?;
    Command::new(program)
        .args(&line[1..])
        .env(TOKEN_VARIABLE, token)
        .envs(variables.iter().map(|(name, value)| (name, value)))
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
