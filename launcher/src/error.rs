//! Why the launcher ends without success: one type, so that every end has its text, its help and its exit code.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;
use vljepa_recipes::{LoadError, RunDirectoryError};

/// Everything that can go wrong.
#[derive(Debug, Error, Diagnostic)]
pub(crate) enum LaunchError {
    /// The recipe.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Recipe(#[from] LoadError),
    /// The run directory.
    #[error(transparent)]
    #[diagnostic(transparent)]
    RunDirectory(#[from] RunDirectoryError),
    /// Files that the recipe names.
    #[error("the recipe names files that cannot be used")]
    Files {
        /// One per file.
        #[related]
        problems: Vec<FileProblem>,
    },
    /// A drill that could never happen.
    #[error("--drill {drill}: {why}")]
    Drill {
        /// Which.
        drill: String,
        /// Why.
        why: String,
    },
    /// A recipe for Slurm on a machine without it.
    #[error("cluster.scheduler is slurm, and nothing can be submitted from here: {why}")]
    #[diagnostic(help(
        "start it on a login node, or on this machine alone: --set cluster.scheduler=local --set cluster.nodes=1"
    ))]
    NoSlurm {
        /// What was tried.
        why: String,
    },
    /// A job works on the run already.
    #[error("job {job} of this run is {state}")]
    #[diagnostic(help("`vljepa-launch status RUN` shows it, `vljepa-launch stop RUN` ends it"))]
    Submitted {
        /// The job.
        job: String,
        /// Its state in words.
        state: String,
    },
    /// Slurm refuses the job.
    #[error("sbatch refuses {}: {why}", script.display())]
    #[diagnostic(help("change the keys under cluster.slurm, or cluster.nodes"))]
    Sbatch {
        /// Its words.
        why: String,
        /// What it was given.
        script: PathBuf,
    },
    /// Nothing to stop.
    #[error("nothing works on the run in {}", run.display())]
    #[diagnostic(help("`vljepa-launch status {}` says how it stands", run.display()))]
    NotRunning {
        /// Which run.
        run: PathBuf,
    },
    /// `supervise` outside of a job.
    #[error("`supervise` works inside of a Slurm job only")]
    #[diagnostic(help("the batch script that `vljepa-launch RECIPE` submits calls it"))]
    NotInJob,
    /// The Prometheus endpoint.
    #[error("logging.prometheus: cannot listen at {address}: {why}")]
    #[diagnostic(help(
        "choose a free port of this machine: --set logging.prometheus=0.0.0.0:PORT, or none: --set logging.prometheus=\"\""
    ))]
    Prometheus {
        /// The recipe's address.
        address: String,
        /// Why not.
        why: String,
    },
    /// No `mpirun`.
    #[error("a run of {ranks} ranks needs mpirun, which is not on PATH")]
    #[diagnostic(help("apt-get install openmpi-bin, or one rank: --set cluster.ranks_per_node=1"))]
    MpirunMissing {
        /// Ranks.
        ranks: usize,
    },
    /// No worker.
    #[error("vljepa-worker is neither beside this program ({beside}) nor on PATH")]
    #[diagnostic(help("build it: cargo build --release -p vljepa-worker --features mpi,video"))]
    WorkerMissing {
        /// Where it was looked for first.
        beside: String,
    },
    /// The worker does not start.
    #[error("{} does not work: {why}", worker.display())]
    #[diagnostic(help(
        "build it again: cargo build --release -p vljepa-worker --features mpi,video"
    ))]
    WorkerBroken {
        /// Which file.
        worker: PathBuf,
        /// What it did.
        why: String,
    },
    /// The recipe wants a device that this version cannot compute on.
    #[error("device is cuda, but {} computes on the host only", worker.display())]
    #[diagnostic(help("try the recipe small on the CPU: --set device=host --set precision=f32"))]
    NoCuda {
        /// Which file.
        worker: PathBuf,
    },
    /// The worker was built without something.
    #[error("{what}, but {} was built without the feature `{feature}`", worker.display())]
    #[diagnostic(help(
        "build it again: cargo build --release -p vljepa-worker --features {feature}{others}"
    ))]
    WorkerLacks {
        /// Which file.
        worker: PathBuf,
        /// Which feature.
        feature: &'static str,
        /// What needs it.
        what: String,
        /// The features it has, each after a comma.
        others: String,
    },
    /// What a run was made from is not here.
    #[error("what {} was made from is not what is here: {}", run.display(), facts.join(", "))]
    #[diagnostic(help("do what the table says, or start with what is here: --allow-differences"))]
    Differences {
        /// The run.
        run: PathBuf,
        /// The facts of data and recipe that are not the same.
        facts: Vec<String>,
    },
    /// A run that should repeat another bit for bit does not.
    #[error("not reproduced: {what}")]
    #[diagnostic(help(
        "programs, data, recipe and ranks are the same, so memory, processor or a library differ: compare run.json of both"
    ))]
    NotReproduced {
        /// Where they part.
        what: String,
    },
    /// Nothing to ask.
    #[error("the run in {} has no checkpoint yet", run.display())]
    #[diagnostic(help("train it first: vljepa-launch RECIPE --run {}", run.display()))]
    NoCheckpoint {
        /// Which run.
        run: PathBuf,
    },
    /// A file of the command line.
    #[error("{what} {} {why}", path.display())]
    Path {
        /// Its role.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file of the run cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Something of the machine.
    #[error("{what} failed: {why}")]
    Start {
        /// What was tried.
        what: String,
        /// Why.
        why: String,
    },
    /// A node cannot take part.
    #[error("workers cannot run on {host}: {}", names(problems))]
    Unhealthy {
        /// Which.
        host: String,
        /// One per check that failed.
        #[related]
        problems: Vec<FileProblem>,
    },
    /// The control plane cannot listen.
    #[error("cannot listen for workers on port {port} (cluster.control.port): {why}")]
    #[diagnostic(help(
        "--set cluster.control.port=0 takes a free port; perhaps another run's launcher has this one"
    ))]
    ControlPort {
        /// Which.
        port: u16,
        /// Why.
        why: String,
    },
    /// Too few files may be open for all ranks to connect.
    #[error(
        "{needed} open files are needed for the connections of all ranks, {allowed} are allowed"
    )]
    #[diagnostic(help("raise the limit of this shell or service: ulimit -n {needed}"))]
    OpenFiles {
        /// Files.
        needed: u64,
        /// The hard limit.
        allowed: u64,
    },
    /// The run is saved, its job is not in the queue.
    #[error("job {job} cannot be put into the queue again from here: {why}")]
    #[diagnostic(help("on a login node: sbatch {}", script.display()))]
    NotRequeued {
        /// Which.
        job: String,
        /// Slurm's words.
        why: String,
        /// The batch script.
        script: PathBuf,
    },
    /// A one-shot job.
    #[error("the worker could not do it: {error}")]
    JobFailed {
        /// What it said.
        error: String,
    },
    /// The run.
    #[error("the run has failed: {fault}\nnot started again: {reason}")]
    #[diagnostic(help("read {log}; the same command continues from the newest checkpoint"))]
    RunFailed {
        /// Who, where, what.
        fault: String,
        /// Why it was not tried again.
        reason: String,
        /// Where to read on.
        log: String,
    },
    /// A one-shot job was stopped.
    #[error("stopped")]
    Interrupted {
        /// 128 + the signal.
        exit_code: u8,
    },
}

/// A file that a recipe names.
#[derive(Debug, Error, Diagnostic)]
#[error("{key}: {what}")]
#[diagnostic(help("{help}"))]
pub(crate) struct FileProblem {
    /// The key that names it.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub help: String,
}

/// The keys of problems, as one line.
fn names(problems: &[FileProblem]) -> String {
    problems.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>().join(", ")
}

impl LaunchError {
    /// 1: the run or the job failed. 2: what was asked for cannot be, nothing was started. 3: this machine lacks something.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Recipe(_)
            | Self::RunDirectory(_)
            | Self::Files { .. }
            | Self::Submitted { .. }
            | Self::NotRunning { .. }
            | Self::NotInJob
            | Self::Drill { .. }
            | Self::Prometheus { .. }
            | Self::Differences { .. }
            | Self::NoCheckpoint { .. }
            | Self::Unreadable { .. }
            | Self::Path { .. } => 2,
            Self::MpirunMissing { .. }
            | Self::NoSlurm { .. }
            | Self::Sbatch { .. }
            | Self::WorkerMissing { .. }
            | Self::WorkerBroken { .. }
            | Self::NoCuda { .. }
            | Self::WorkerLacks { .. }
            | Self::Unhealthy { .. }
            | Self::ControlPort { .. }
            | Self::OpenFiles { .. }
            | Self::Start { .. } => 3,
            Self::JobFailed { .. }
            | Self::RunFailed { .. }
            | Self::NotRequeued { .. }
            | Self::NotReproduced { .. } => 1,
            Self::Interrupted { exit_code } => *exit_code,
        }
    }
}
