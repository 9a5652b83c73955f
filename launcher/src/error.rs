//! Every error with which the launcher can end: its text, its help and its exit code.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;
use vljepa_recipes::{LoadError, RunDirectoryError};

#[derive(Debug, Error, Diagnostic)]
pub(crate) enum LaunchError {
    #[error(transparent)]
    #[diagnostic(transparent)]
    Recipe(#[from] LoadError),
    #[error(transparent)]
    #[diagnostic(transparent)]
    RunDirectory(#[from] RunDirectoryError),
    #[error("the recipe names files that cannot be used")]
    Files {
        /// A problem for each file.
        #[related]
        problems: Vec<FileProblem>,
    },
    /// No run of a table has scores.
    #[error("no run of this table has measured scores: {runs}")]
    #[diagnostic(help("train the runs first; each measures its recipe's tasks at its end"))]
    NothingMeasured { runs: String },
    /// A directory that should hold a table holds another run.
    #[error("{} holds no table of the paper", run.display())]
    #[diagnostic(help("compute one first: `vljepa-launch recipes/evaluate/table1.yaml`"))]
    NoTable { run: PathBuf },
    /// A table cannot be a seed of another.
    #[error("{} {why}", run.display())]
    #[diagnostic(help("name tables of the same rows and columns, each once"))]
    OtherSeed { run: PathBuf, why: String },
    #[error("{gpus} GPUs are neither whole nodes of {per_node} nor a part of one")]
    #[diagnostic(help(
        "name a multiple of {per_node}, or change the nodes: --set cluster.ranks_per_node={gpus}"
    ))]
    NotWholeNodes { gpus: usize, per_node: usize },
    #[error("{gpus} GPUs are more than the {batch} samples of a batch of stage {stage}")]
    #[diagnostic(help("plan fewer GPUs, or a larger batch"))]
    TooManyGpus { gpus: usize, stage: String, batch: usize },
    #[error("the plan of {} has no times: it needs stages, and rates of its device", recipe.display())]
    #[diagnostic(help(
        "a recipe with `device: host` needs --rates FILE; without --json and --html the plan shows the rest"
    ))]
    NoTimes { recipe: PathBuf },
    /// One of the runs of a programme cannot be planned.
    #[error("{run}: {why}")]
    #[diagnostic(help("{help}"))]
    OfRun { run: String, why: String, help: String },
    /// A drill names a rank or a step that the run does not have.
    #[error("--drill {drill} can never happen: {why}")]
    Drill { drill: String, why: String },
    /// An option of one run was given for a programme.
    #[error("{option} is for one run, and {} is a programme of several", programme.display())]
    #[diagnostic(help("{help}"))]
    ForOneRun { option: &'static str, programme: PathBuf, help: &'static str },
    /// Runs of a programme have different schedulers.
    #[error(
        "all runs of a programme need one scheduler, but cluster.scheduler of {local} is local and that of {slurm} is slurm"
    )]
    #[diagnostic(help("change it for all: --set cluster.scheduler=slurm, or local"))]
    Schedulers { local: String, slurm: String },
    /// A run that a job needs is not complete.
    #[error("this run needs the run in {}, which is not complete: {why}", run.display())]
    #[diagnostic(help("to continue both, run: {command}"))]
    NotComplete {
        run: PathBuf,
        why: String,
        /// Command line that submitted both runs.
        command: String,
    },
    /// The recipe wants Slurm, but `sbatch` or `squeue` does not work on this machine.
    #[error("cluster.scheduler is slurm, but nothing can be submitted from here: {why}")]
    #[diagnostic(help(
        "run this command on a login node, or train on this machine only: --set cluster.scheduler=local --set cluster.nodes=1"
    ))]
    NoSlurm { why: String },
    /// `squeue` does not work on this machine.
    #[error("job {job} of the run in {} has an unknown state: squeue does not answer", run.display())]
    #[diagnostic(help("give this command again when `squeue` answers, or on a login node"))]
    NoSqueue { job: String, run: PathBuf },
    /// The job of a run has ended and still holds its nodes.
    #[error("job {job} of the run in {} is still leaving its nodes, so nothing was submitted", run.display())]
    #[diagnostic(help(
        "give this command again when `squeue` no longer lists the job; if it never leaves, ask the administrator about its nodes"
    ))]
    Leaving { job: String, run: PathBuf },
    /// A Slurm job already works on the run or waits for it.
    #[error("job {job} of this run is {state}, so nothing was submitted")]
    #[diagnostic(help(
        "`vljepa-launch status RUN` shows the job, `vljepa-launch stop RUN` ends it"
    ))]
    Submitted {
        job: String,
        /// State as people read it: `running`, `ending`, `waiting in the queue (Resources)`.
        state: String,
    },
    #[error("sbatch refuses {}: {why}", script.display())]
    #[diagnostic(help("correct the keys under cluster.slurm, or cluster.nodes"))]
    Sbatch {
        /// Error message of `sbatch`.
        why: String,
        /// The batch script that was submitted.
        script: PathBuf,
    },
    #[error("the run in {} is not running, so there is nothing to stop", run.display())]
    #[diagnostic(help("`vljepa-launch status {}` shows its state", run.display()))]
    NotRunning { run: PathBuf },
    #[error("no run of {} is running or in the queue, so there is nothing to stop", programme.display())]
    #[diagnostic(help("`vljepa-launch status {}` shows the states", programme.display()))]
    NothingRuns { programme: PathBuf },
    /// `supervise` or `guard` was called outside a Slurm job.
    #[error("`supervise` and `guard` only work inside a Slurm job")]
    #[diagnostic(help("the batch script that `vljepa-launch RECIPE` submits calls them"))]
    NotInJob,
    #[error("logging.prometheus: cannot listen at {address}: {why}")]
    #[diagnostic(help(
        "choose a free port of this machine: --set logging.prometheus=0.0.0.0:PORT, or turn the endpoint off: --set logging.prometheus=\"\""
    ))]
    Prometheus {
        /// The recipe's `logging.prometheus`.
        address: String,
        why: String,
    },
    #[error("a run of {ranks} ranks needs mpirun, which is not on PATH")]
    #[diagnostic(help(
        "install it (apt-get install openmpi-bin), or train with one rank: --set cluster.ranks_per_node=1"
    ))]
    MpirunMissing { ranks: usize },
    #[error("{} is a camera, which is read by ffmpeg, and ffmpeg is not on PATH", device.display())]
    #[diagnostic(help("install it: apt-get install ffmpeg"))]
    FfmpegMissing { device: PathBuf },
    #[error("vljepa-worker was not found, neither beside vljepa-launch ({beside}) nor on PATH")]
    #[diagnostic(help("build it: cargo build --release -p vljepa-worker --features mpi,video"))]
    WorkerMissing {
        /// Folder of the running `vljepa-launch`, which is searched first.
        beside: String,
    },
    /// The command `vljepa-worker --features` failed.
    #[error("{} does not work: {why}", worker.display())]
    #[diagnostic(help("rebuild it: cargo build --release -p vljepa-worker --features mpi,video"))]
    WorkerBroken { worker: PathBuf, why: String },
    /// The recipe wants a GPU, but the worker was built without the feature `cuda`.
    #[error("device is cuda, but {} computes on the CPU only", worker.display())]
    #[diagnostic(help(
        "rebuild it with --features cuda, or try a small version of the recipe on the CPU: --set device=host --set precision=f32"
    ))]
    NoCuda { worker: PathBuf },
    #[error("{what}, but {} was built without the feature `{feature}`", worker.display())]
    #[diagnostic(help(
        "rebuild it: cargo build --release -p vljepa-worker --features {feature}{others}"
    ))]
    WorkerLacks {
        worker: PathBuf,
        feature: &'static str,
        /// The reason for the need, such as `the run has 2 ranks`.
        what: String,
        /// Features that the worker has, each after a comma.
        others: String,
    },
    /// Data or recipe of a run that is to be reproduced differ from those on this machine.
    #[error(
        "cannot reproduce {}: these facts differ or are missing: {}",
        run.display(),
        facts.join(", ")
    )]
    #[diagnostic(help(
        "follow the advice below the table, or accept the differences: --allow-differences"
    ))]
    Differences {
        run: PathBuf,
        /// Facts about data and recipe that differ or are missing.
        facts: Vec<String>,
    },
    /// A run that should repeat another one bit for bit does not.
    #[error("not reproduced: {what}")]
    #[diagnostic(help(
        "programs, data, recipe and number of ranks are the same, so memory, processor or a library differ: compare run.json of both runs"
    ))]
    NotReproduced {
        /// The [`Comparison`](crate::commands::reproduce::Comparison) as text.
        what: String,
    },
    #[error("the run in {} has no checkpoint yet", run.display())]
    #[diagnostic(help("train it first: vljepa-launch RECIPE --run {}", run.display()))]
    NoCheckpoint { run: PathBuf },
    /// The run has checkpoints, but not that of `--step`.
    #[error("the run in {} has no checkpoint of step {step}", run.display())]
    #[diagnostic(help("its checkpoints are those of the steps {}", .steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")))]
    NoSuchCheckpoint {
        run: PathBuf,
        step: u64,
        /// Steps whose checkpoints the run has.
        steps: Vec<u64>,
    },
    /// A path on the command line cannot be used.
    #[error("{what} {} {why}", path.display())]
    Path {
        /// Role of the path, such as `the folder`.
        what: &'static str,
        path: PathBuf,
        /// Predicate of the sentence, such as `is not a folder`.
        why: String,
    },
    /// A file on the command line cannot be used.
    #[error("{what}")]
    #[diagnostic(help("{help}"))]
    File { what: String, help: String },
    /// A run was deleted while its state was shown.
    #[error("the run in {} was deleted while it was watched", run.display())]
    Deleted { run: PathBuf },
    /// A file of the run directory cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
    /// An operation of this machine failed: starting a process, listening, writing a file.
    #[error("{what} failed: {why}")]
    Start {
        /// The operation, such as `writing job.json`.
        what: String,
        why: String,
    },
    #[error("workers cannot run on {host}; failed checks: {}", names(problems))]
    Unhealthy {
        host: String,
        /// A problem for each failed check.
        #[related]
        problems: Vec<FileProblem>,
    },
    #[error("cannot listen for workers on port {port} (cluster.control.port): {why}")]
    #[diagnostic(help(
        "another launcher may be using this port; take any free one: --set cluster.control.port=0"
    ))]
    ControlPort { port: u16, why: String },
    /// The limit on open files is too low for the connections of all ranks.
    #[error(
        "the connections of all ranks need {needed} open files, but only {allowed} are allowed"
    )]
    #[diagnostic(help("raise the limit of this shell or service: ulimit -n {needed}"))]
    OpenFiles {
        needed: u64,
        /// Hard limit of this process.
        allowed: u64,
    },
    /// The run has to continue later, but its job is not in the queue.
    #[error("job {job} cannot be requeued from here: {why}")]
    #[diagnostic(help("continue the run from a login node: sbatch {}", script.display()))]
    NotRequeued {
        job: String,
        /// Message of `scontrol` and `sbatch`.
        why: String,
        script: PathBuf,
    },
    /// A one-shot job (`ask`, `search`, `evaluate`, `export`) failed.
    #[error("the worker failed: {error}")]
    JobFailed {
        /// Last lines of the worker's standard error, or why there is no result.
        error: String,
    },
    #[error("the run failed: {fault}\nit is not restarted: {reason}")]
    #[diagnostic(help(
        "read {log}, then give the same command again: it continues from the newest checkpoint"
    ))]
    RunFailed {
        /// The [`Fault`](crate::record::events::Fault) as text: rank, phase, step and cause.
        fault: String,
        /// Why no restart follows.
        reason: String,
        /// File or folder with the details.
        log: String,
    },
    /// A video cannot be read, or not to its end.
    #[error("{video}: {error}")]
    Video {
        /// Path or address of the video.
        video: String,
        /// What happened, and where.
        error: String,
    },
    /// A one-shot job was stopped.
    #[error("stopped by a signal")]
    Interrupted {
        /// 128 + number of the signal.
        exit_code: u8,
    },
}

/// A file that the recipe names, or a health check, with what is wrong.
#[derive(Debug, Error, Diagnostic)]
#[error("{key}: {what}")]
#[diagnostic(help("{help}"))]
pub(crate) struct FileProblem {
    /// Recipe key that names the file, or name of the check.
    pub key: String,
    pub what: String,
    pub help: String,
}

/// Keys of the problems, separated by commas.
fn names(problems: &[FileProblem]) -> String {
    problems.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>().join(", ")
}

impl LaunchError {
    /// The error of one run of a programme, with the name of the run.
    pub(crate) fn of_run(run: String, error: &Self) -> Self {
        let help = error.help().map(|help| help.to_string()).unwrap_or_default();
        Self::OfRun { run, why: error.to_string(), help }
    }

    /// Exit code of the process: 1 if the run or the job failed, 2 if the request is wrong and
    /// nothing was started, 3 if this machine lacks something.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Recipe(_)
            | Self::RunDirectory(_)
            | Self::Files { .. }
            | Self::Submitted { .. }
            | Self::Leaving { .. }
            | Self::NotRunning { .. }
            | Self::NothingRuns { .. }
            | Self::NotInJob
            | Self::Drill { .. }
            | Self::NotWholeNodes { .. }
            | Self::TooManyGpus { .. }
            | Self::NoTimes { .. }
            | Self::OfRun { .. }
            | Self::NothingMeasured { .. }
            | Self::NoTable { .. }
            | Self::OtherSeed { .. }
            | Self::ForOneRun { .. }
            | Self::Schedulers { .. }
            | Self::Prometheus { .. }
            | Self::Differences { .. }
            | Self::NoCheckpoint { .. }
            | Self::NoSuchCheckpoint { .. }
            | Self::Unreadable { .. }
            | Self::File { .. }
            | Self::Path { .. } => 2,
            Self::MpirunMissing { .. }
            | Self::FfmpegMissing { .. }
            | Self::NoSlurm { .. }
            | Self::NoSqueue { .. }
            | Self::Sbatch { .. }
            | Self::WorkerMissing { .. }
            | Self::WorkerBroken { .. }
            | Self::NoCuda { .. }
            | Self::WorkerLacks { .. }
            | Self::Unhealthy { .. }
            | Self::ControlPort { .. }
            | Self::OpenFiles { .. }
            | Self::Start { .. } => 3,
            Self::Deleted { .. }
            | Self::NotComplete { .. }
            | Self::JobFailed { .. }
            | Self::Video { .. }
            | Self::RunFailed { .. }
            | Self::NotRequeued { .. }
            | Self::NotReproduced { .. } => 1,
            Self::Interrupted { exit_code } => *exit_code,
        }
    }
}
