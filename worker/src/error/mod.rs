//! Errors that the worker defines. All other errors keep their own type and gain `anyhow` context.

#[cfg(feature = "cuda")]
pub mod nccl;

use vljepa_kernels::KernelError;

/// An error that ends a worker process.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The job needs a cargo feature that this build lacks.
    #[error(
        "this build lacks feature `{feature}`, which {needed_for} need; build with \
         `cargo build --release --features vljepa-worker/{feature}`"
    )]
    Build {
        /// Name of the missing cargo feature.
        feature: &'static str,
        /// Subject of the message, in the plural, such as `several ranks`.
        needed_for: &'static str,
    },
    /// The recipe asks for a GPU, and this build has no GPU support.
    #[error(
        "the recipe says `device: cuda`, but this build has no GPU support; set `device: host`"
    )]
    NoCuda,
    /// Two ranks opened the same GPU.
    #[error(
        "ranks {first} and {second} share GPU {gpu}; give each rank its own GPU: start one task \
         per GPU, or lower `cluster.ranks_per_node`"
    )]
    SharedGpu {
        /// Lower of the two ranks.
        first: usize,
        /// Higher of the two ranks.
        second: usize,
        /// Bus address of the GPU and host name of its machine.
        gpu: String,
    },
    /// MPI was already initialised in this process.
    #[error("MPI was already initialised in this process")]
    MpiTwice,
    /// The number of started processes differs from the number of ranks in the job.
    #[error(
        "{started} ranks started, but the job asks for {wanted}; start it with `mpirun` or `srun` \
         of the MPI that this program was built with"
    )]
    WorldSize {
        /// Number of ranks that were started.
        started: usize,
        /// Number of ranks that the job asks for.
        wanted: usize,
    },
    /// The share of bad samples over all ranks exceeds the recipe's limit.
    #[error(
        "{bad} of the {read} samples that all ranks read so far are bad, but the recipe allows a \
         share of {allowed} (data.bad_samples.max_fraction); the logs name each bad sample"
    )]
    TooManyBad {
        /// Bad samples of all ranks so far.
        bad: u64,
        /// Samples that all ranks have read so far, including the bad ones.
        read: u64,
        /// Allowed share of bad samples: `data.bad_samples.max_fraction`.
        allowed: f64,
    },
    /// Too many consecutive steps had a gradient that is not finite.
    #[error(
        "{count} steps in a row had a gradient that is not finite, the last one step {step}; \
         lower the learning rate or look at the samples named in the log (optimizer.non_finite)"
    )]
    NonFinite {
        /// Number of consecutive steps with a non-finite gradient.
        count: u32,
        /// Last of these steps, counted over all stages.
        step: u64,
    },
    /// The embeddings of too many lines of metrics in a row were nearly equal.
    #[error(
        "the embeddings have collapsed: at step {step} the effective rank is {predicted:.2} for \
         predictions and {target:.2} for targets, and the smaller has been below {limit} in \
         {lines} lines of metrics in a row; without negatives train with `loss.kind: vic_reg` or \
         `sig_reg` or freeze the Y-encoder, otherwise lower the learning rate, or change the rule \
         (logging.collapse)"
    )]
    Collapsed {
        /// Step of the last line, counted over all stages.
        step: u64,
        /// Effective rank of the predicted embeddings.
        predicted: f64,
        /// Effective rank of the target embeddings.
        target: f64,
        /// Limit of the rule: `logging.collapse.effective_rank_below`.
        limit: f64,
        /// Lines in a row: `logging.collapse.lines`.
        lines: u64,
    },
    /// The parameters of a rank differ from those of rank 0.
    #[error(
        "the parameters of rank {rank} differ from those of rank 0 at step {step}: the memory or a \
         library of its host is faulty"
    )]
    Diverged {
        /// First rank whose parameters differ from those of rank 0.
        rank: usize,
        /// Step after which the ranks were compared.
        step: u64,
    },
    /// The supervisor refused the connection of this worker.
    #[error("the supervisor refused this worker: {reason}")]
    Refused {
        /// Reason that the supervisor gave.
        reason: String,
    },
    /// A later attempt has been started on this run.
    #[error(
        "attempt {newest} of this run has started; this worker of attempt {own} writes nothing \
         more and exits"
    )]
    Superseded {
        /// Attempt that this worker belongs to.
        own: u32,
        /// Newest attempt, as announced in the run directory.
        newest: u32,
    },
    /// The supervisor's host name cannot be resolved.
    #[error(
        "cannot resolve the supervisor's host name `{host}` on this node: {why}; set \
         cluster.control.host to a name or address that every node can resolve"
    )]
    SupervisorName {
        /// Host name that could not be resolved.
        host: String,
        /// Error text of the resolver.
        why: String,
    },
    /// The supervisor's machine does not answer.
    #[error(
        "the supervisor at {host} port {port} did not answer within {seconds:.0} s (tried {tried}; \
         {why}); a firewall may block the port: open it, or set cluster.control.port to an open \
         port, or cluster.control.host to an address in a network that both nodes share"
    )]
    SupervisorSilent {
        /// Host name of the supervisor.
        host: String,
        /// Comma-separated addresses that were tried.
        tried: String,
        /// Port of the supervisor.
        port: String,
        /// Total time of all connection attempts, in seconds.
        seconds: f64,
        /// Error text of the operating system.
        why: String,
    },
    /// The supervisor's machine answers, but no process listens on the port.
    #[error(
        "nothing listens at {host} port {port} (tried {tried}): the supervisor has exited, or \
         cluster.control.host names a node on which it does not run"
    )]
    SupervisorRefuses {
        /// Host name of the supervisor.
        host: String,
        /// Comma-separated addresses that were tried.
        tried: String,
        /// Port of the supervisor.
        port: String,
    },
    /// The connection to the supervisor fails for another reason.
    #[error("cannot connect to the supervisor at {host} port {port} (tried {tried}): {why}")]
    SupervisorUnreachable {
        /// Host name of the supervisor.
        host: String,
        /// Comma-separated addresses that were tried.
        tried: String,
        /// Port of the supervisor.
        port: String,
        /// Error text of the operating system.
        why: String,
    },
    /// A complete checkpoint does not belong to this run.
    #[error("checkpoint {name}: {what}")]
    Checkpoint {
        /// Folder name of the checkpoint.
        name: String,
        /// Difference between the checkpoint and this run.
        what: String,
    },
    /// The run has no checkpoint to load.
    #[error("{run} holds no checkpoint that verifies; train first")]
    NoCheckpoint {
        /// Path of the run directory.
        run: String,
    },
    /// An evaluation task cannot be measured.
    #[error("evaluation task `{task}`: {what}")]
    Task {
        /// Name of the task in the recipe.
        task: String,
        /// Reason why the task cannot be measured.
        what: String,
    },
    /// A GPU process does not know its rank.
    #[error(
        "this process does not know which of the run's {wanted} ranks it is; start the run with \
         `vljepa-launch`, which sets VLJEPA_RANK and VLJEPA_WORLD_SIZE, or start the workers with \
         `srun`"
    )]
    NoRank {
        /// Number of ranks in the recipe.
        wanted: usize,
    },
    /// Several ranks on GPUs run without a supervisor, which they need to exchange the NCCL id.
    #[error(
        "ranks on GPUs find each other through the supervisor: start the run with `vljepa-launch`"
    )]
    NoSupervisor,
    /// Not all ranks joined before the start timeout.
    #[error(
        "the ranks did not all join within {seconds} s (cluster.start_timeout_s): {missing}; see \
         the logs of these ranks and the supervisor's message"
    )]
    NoRendezvous {
        /// Start timeout of the recipe, in seconds.
        seconds: u64,
        /// Description of the ranks that did not join.
        missing: String,
    },
    /// NCCL is missing, or a call to it failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Nccl(#[from] nccl::NcclError),
    /// A device or a kernel operation failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
