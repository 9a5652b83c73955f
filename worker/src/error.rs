//! The errors a worker names itself; everything else keeps its own type under `anyhow` context.

use vljepa_kernels::KernelError;

/// What ends a worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The build lacks a cargo feature.
    #[error(
        "this build lacks feature `{feature}`, which {needed_for} need; build with \
         `cargo build --release --features vljepa-worker/{feature}`"
    )]
    Build {
        /// The cargo feature.
        feature: &'static str,
        /// What needs it.
        needed_for: &'static str,
    },
    /// The recipe wants a device that this build does not compute on.
    #[error("device is cuda, but this build computes on the host only; write `device: host`")]
    NoCuda,
    /// Two ranks opened one GPU.
    #[error(
        "ranks {first} and {second} share GPU {gpu}; give each its own: start one task per GPU, or lower `cluster.ranks_per_node`"
    )]
    SharedGpu {
        /// The one rank.
        first: usize,
        /// The other.
        second: usize,
        /// Its address on the bus and its machine.
        gpu: String,
    },
    /// MPI was initialised before.
    #[error("MPI was already initialised in this process")]
    MpiTwice,
    /// The launcher asked for another number of ranks than started.
    #[error(
        "{started} ranks started, but the job asks for {wanted}; was it started by another MPI than its build's?"
    )]
    WorldSize {
        /// Ranks that run.
        started: usize,
        /// Ranks of the job.
        wanted: usize,
    },
    /// A larger share of all samples was bad than the recipe allows.
    #[error(
        "{bad} of the {read} samples that all ranks read so far could not be used, the recipe allows a share of {allowed} \
         (data.bad_samples.max_fraction); each is named in the logs"
    )]
    TooManyBad {
        /// Bad samples so far.
        bad: u64,
        /// Samples read so far, the bad ones included.
        read: u64,
        /// The recipe's limit.
        allowed: f64,
    },
    /// Too many steps in a row had a gradient that is not finite.
    #[error(
        "{count} steps in a row had a gradient that is not finite, the last one step {step}; \
         lower the learning rate or look at the samples named in the log (optimizer.non_finite)"
    )]
    NonFinite {
        /// Steps in a row.
        count: u32,
        /// The last of them.
        step: u64,
    },
    /// The loss has no gradient to follow any more.
    #[error(
        "rank {rank} computes other parameters than rank 0 at step {step}: memory or a library is at fault on its host"
    )]
    Diverged {
        /// The rank.
        rank: usize,
        /// The step.
        step: u64,
    },
    /// The supervisor does not take this worker.
    #[error("the supervisor refused this worker: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// A later attempt works on the run.
    #[error(
        "attempt {newest} works on this run now; this worker of attempt {own} writes nothing more and ends"
    )]
    Superseded {
        /// The attempt of this worker.
        own: u32,
        /// The one that is announced in the run directory.
        newest: u32,
    },
    /// The supervisor's name means nothing here.
    #[error(
        "cannot resolve the supervisor's name `{host}` on this machine: {why}; set cluster.control.host to a name or address \
         that every node knows"
    )]
    SupervisorName {
        /// The name.
        host: String,
        /// What the resolver says.
        why: String,
    },
    /// The supervisor's machine does not answer.
    #[error(
        "the supervisor at {host} port {port} did not answer within {seconds:.0} s (tried {tried}; {why}): is a firewall between \
         this node and that one? let the port pass, or set cluster.control.port to one that does, or cluster.control.host to an \
         address of a network that both are in"
    )]
    SupervisorSilent {
        /// Its name.
        host: String,
        /// Its addresses.
        tried: String,
        /// Its port.
        port: String,
        /// For how long it was tried.
        seconds: f64,
        /// What the system says.
        why: String,
    },
    /// Nobody is at the supervisor's place.
    #[error(
        "nothing listens at {host} port {port} (tried {tried}): the supervisor has ended, or cluster.control.host names another \
         machine than the supervisor's"
    )]
    SupervisorRefuses {
        /// Its name.
        host: String,
        /// Its addresses.
        tried: String,
        /// Its port.
        port: String,
    },
    /// The connection fails in another way.
    #[error("cannot connect to the supervisor at {host} port {port} (tried {tried}): {why}")]
    SupervisorUnreachable {
        /// Its name.
        host: String,
        /// Its addresses.
        tried: String,
        /// Its port.
        port: String,
        /// What the system says.
        why: String,
    },
    /// A checkpoint cannot be used by this run.
    #[error("checkpoint {name}: {what}")]
    Checkpoint {
        /// Folder name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// There is nothing to load.
    #[error("{run} holds no checkpoint that verifies; train first")]
    NoCheckpoint {
        /// The run directory.
        run: String,
    },
    /// A task of the evaluation cannot be measured.
    #[error("evaluation task `{task}`: {what}")]
    Task {
        /// The task's name.
        task: String,
        /// What is wrong.
        what: String,
    },
    /// A rank on a GPU was not told which one it is.
    #[error(
        "this process was not told which of the run's {wanted} ranks it is; start the run with `vljepa-launch`, which sets \
         VLJEPA_RANK and VLJEPA_WORLD_SIZE, or the workers with `srun`"
    )]
    NoPlace {
        /// Ranks of the recipe.
        wanted: usize,
    },
    /// Ranks on GPUs meet through the supervisor, and there is none.
    #[error(
        "ranks on GPUs find each other through the supervisor: start the run with `vljepa-launch`"
    )]
    NoSupervisor,
    /// The supervisor did not bring the ranks together.
    #[error(
        "the ranks did not come together within {seconds} s: {missing}; their logs and the supervisor's message say more \
         (cluster.start_timeout_s)"
    )]
    NoRendezvous {
        /// How long was waited.
        seconds: u64,
        /// Who did not come.
        missing: String,
    },
    /// NCCL is missing or failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Nccl(#[from] crate::collectives::nccl::NcclError),
    /// A device or an operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
