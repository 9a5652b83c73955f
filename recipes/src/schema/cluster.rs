//! Recipe keys under `cluster`.

use serde::{Deserialize, Serialize};

/// Machines and processes. A rank is one process and, with `device: cuda`, one GPU.
///
/// All defaults are ours: except for its hardware, the paper does not describe how it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Program that starts the workers. Default: `local`.
    pub scheduler: Scheduler,
    /// Number of machines. `scheduler: local` needs 1. Default: 1 (paper §3.2: 24).
    pub nodes: usize,
    /// Ranks on each machine. Default: 1 (paper §3.2: 8 GPUs per node).
    pub ranks_per_node: usize,
    /// Compute threads of each rank while it trains on the host. 0 takes the CPUs of the rank, as
    /// `data.threads` does. Default: 0.
    pub threads_per_rank: usize,
    /// Time limit in seconds for a worker to connect, for the first step of a stage, for a
    /// checkpoint and for each task of an evaluation. A checkpoint or a task may take longer if an
    /// earlier one did: up to ten times the longest. Default: 600.
    pub start_timeout_s: u64,
    /// Seconds that a rank on a GPU waits in a collective before it aborts and exits. The
    /// supervisor normally detects the hang earlier. Default: 600 (PyTorch's default for NCCL).
    pub collective_timeout_s: u64,
    /// Size in MiB of a gradient bucket. Each bucket is summed over all ranks as soon as the
    /// backward pass has completed it. Default: 64, which lies between PyTorch DDP's 25 and
    /// Megatron-LM's 153 (40 million f32 gradients; Megatron-LM enlarges them beyond 40 ranks so
    /// that ring all-reduce stays bandwidth-bound).
    pub bucket_mib: usize,
    /// Address of the supervisor and the timeout of its workers.
    pub control: ControlPlane,
    /// Reaction to the failure of a rank, a node or a collective.
    pub restart: RestartPolicy,
    /// Options of the Slurm batch job; unused with `scheduler: local`.
    pub slurm: Slurm,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            scheduler: Scheduler::Local,
            nodes: 1,
            ranks_per_node: 1,
            threads_per_rank: 0,
            start_timeout_s: 600,
            collective_timeout_s: 600,
            bucket_mib: 64,
            control: ControlPlane::default(),
            restart: RestartPolicy::default(),
            slurm: Slurm::default(),
        }
    }
}

impl Cluster {
    /// Number of ranks of the run: `nodes` × `ranks_per_node`.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.nodes * self.ranks_per_node
    }
}

/// Program that starts the workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// The launcher, on this machine. Several ranks on the host start through `mpirun`.
    #[default]
    Local,
    /// Slurm: the launcher submits a batch job, or works inside an existing allocation.
    Slurm,
}

/// How workers reach the supervisor, and when they give it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlPlane {
    /// Host name or IP address under which workers reach the supervisor's machine. Default: empty,
    /// which means the loopback address for `scheduler: local`, so that no other machine can
    /// connect, and the machine's host name for `scheduler: slurm`. Set it if the compute nodes
    /// know the machine by another name, for example that of a faster network.
    pub host: String,
    /// TCP port of the supervisor; 0 takes a free port, so that runs on one machine never collide.
    /// Set it if a firewall between the nodes opens only certain ports. Default: 0.
    pub port: u16,
    /// Seconds without a message from the supervisor after which a worker exits. The supervisor
    /// sends a sign of life every 15 s. Allowed: 30 to 3600. Default: 120, which survives a
    /// supervisor machine that freezes for a minute, and is shorter than the 300 s after which
    /// Slurm restarts the job of a lost node elsewhere, so that the old workers are gone by then.
    pub silence_s: u64,
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self { host: String::new(), port: 0, silence_s: 120 }
    }
}

/// Reaction to the failure of a rank, a node or a collective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// Number of restarts in a row that may pass without a new checkpoint before the run gives up;
    /// 0 never restarts. Default: 3.
    pub max_without_progress: u32,
    /// Whether a run may continue with fewer than `nodes` nodes, if the others have not recovered
    /// about a minute after their first failed check. The global batch and the data order stay the
    /// same. Default: false.
    pub allow_fewer_nodes: bool,
    /// Nodes requested in addition to `nodes`, to replace lost ones. Default: 0.
    pub spare_nodes: usize,
    /// Seconds added to the limit for a hang, 5 to 3600. A rank is hung if it stays in one phase
    /// longer than 1.5 × the slowest of the stage's last 50 steps plus this value. Default: 20.
    ///
    /// With the default, a hang in a step of up to 20 s is detected at most 30 s after the step's
    /// usual duration; other trainers wait for the timeout of a collective, 10 minutes in PyTorch.
    /// Waiting for data has three times this floor, because storage has pauses of its own.
    /// Starting, loading, saving and evaluating have `start_timeout_s`. A rank that sends nothing
    /// while others report is detected after 10 s.
    pub hang_floor_s: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { max_without_progress: 3, allow_fewer_nodes: false, spare_nodes: 0, hang_floor_s: 20 }
    }
}

/// Options of the Slurm batch job. An empty option is not passed, so the cluster's default applies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slurm {
    /// Partition of the job (`--partition`). Default: empty.
    pub partition: String,
    /// Account that the job is charged to (`--account`). Default: empty.
    pub account: String,
    /// Quality of service of the job (`--qos`). Default: empty.
    pub qos: String,
    /// Time limit of the job (`--time`) in Slurm's notation, for example `2-00:00:00` for two days.
    /// Default: empty.
    pub time_limit: String,
    /// Seconds before the time limit at which the run saves a checkpoint and requeues its job. It
    /// must be shorter than `time_limit`. Default: 300.
    pub signal_ahead_s: u64,
    /// CPU cores of each rank (`--cpus-per-task`); 0 leaves the number to the cluster. Default: 0.
    pub cpus_per_rank: usize,
    /// More `sbatch` options, each copied unchanged into a `#SBATCH` line of the job script, for
    /// example `--constraint=h200`. Default: none.
    pub extra: Vec<String>,
}

impl Default for Slurm {
    fn default() -> Self {
        Self {
            partition: String::new(),
            account: String::new(),
            qos: String::new(),
            time_limit: String::new(),
            signal_ahead_s: 300,
            cpus_per_rank: 0,
            extra: Vec::new(),
        }
    }
}
