//! Keys under `cluster`.

use serde::{Deserialize, Serialize};

/// Machines and processes. One rank is one process and, with `device: cuda`, one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Who starts the workers.
    pub scheduler: Scheduler,
    /// Machines.
    pub nodes: usize,
    /// Processes per machine.
    pub ranks_per_node: usize,
    /// Compute threads per rank on the host device; 0 takes the rank's share of the machine's cores.
    pub threads_per_rank: usize,
    /// Seconds a worker may take from its start to its first report: 600.
    pub start_timeout_s: u64,
    /// Seconds a rank on a GPU waits in a collective before it ends itself, where the supervisor has not done so: 600 (PyTorch's default
    /// for NCCL).
    pub collective_timeout_s: u64,
    /// MiB of gradients that are summed over ranks at once, as soon as a backward pass has completed them: 64, between DDP's 25 and
    /// Megatron's 153 (40 million gradients), which it makes larger beyond 40 ranks so that rings stay bound by bandwidth.
    pub bucket_mib: usize,
    /// How workers and supervisor find each other.
    pub control: ControlPlane,
    /// What happens when a rank, a node or a collective fails.
    pub restart: RestartPolicy,
    /// Keys of the batch job.
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
    /// Processes of the whole run.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.nodes * self.ranks_per_node
    }
}

/// Who starts the workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// This machine; through `mpirun` where there is more than one rank on CPUs.
    #[default]
    Local,
    /// Slurm.
    Slurm,
}

/// How workers and supervisor find each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlPlane {
    /// Name or address of the supervisor's machine as workers reach it. Empty: the loopback address for a run on one machine, which
    /// nobody else can connect to; this machine's host name for one that spans hosts, which Slurm's nodes resolve. Name another where
    /// compute nodes know the machine by another name, such as that of its faster network.
    pub host: String,
    /// TCP port that the supervisor listens on. 0 takes a free one, so that runs on one machine never meet; name one where a firewall
    /// between nodes lets only some pass.
    pub port: u16,
    /// Seconds without a sign of the supervisor after which a worker ends itself: 120. The supervisor gives one every 15 s. Long enough
    /// for a supervisor's machine that freezes for a minute, shorter than Slurm's 300 s before a lost node's job starts elsewhere, so that
    /// its workers are gone by then.
    pub silence_s: u64,
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self { host: String::new(), port: 0, silence_s: 120 }
    }
}

/// What happens when a rank, a node or a collective fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// Restarts in a row without a new checkpoint before the run gives up: 3. 0 never restarts.
    pub max_without_progress: u32,
    /// Whether a run may go on with fewer nodes than it asked for. The global batch and the data order stay the same.
    pub allow_fewer_nodes: bool,
    /// Nodes asked for beyond `nodes`, to take the place of lost ones.
    pub spare_nodes: usize,
    /// Seconds that a rank may stand still beyond 1.5 of the slowest of its stage's last 50 steps before the run counts as hung: 20.
    /// A hang is then named within 30 s of the step's time for steps of up to 20 s; other trainers wait for a collective's time-out,
    /// 10 minutes in PyTorch. Waiting for data may take three times as long, since storage has pauses of its own; starting, saving and
    /// evaluating have `start_timeout_s`. A rank that says nothing while others report is named after 10 s already.
    pub hang_floor_s: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { max_without_progress: 3, allow_fewer_nodes: false, spare_nodes: 0, hang_floor_s: 20 }
    }
}

/// Keys of the batch job; empty ones are left to the cluster's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slurm {
    /// `--partition`.
    pub partition: String,
    /// `--account`.
    pub account: String,
    /// `--qos`.
    pub qos: String,
    /// `--time`, such as `2-00:00:00`.
    pub time_limit: String,
    /// Seconds before the time limit at which the run saves and requeues itself: 300.
    pub signal_ahead_s: u64,
    /// `--cpus-per-task`; 0 leaves it to the cluster.
    pub cpus_per_rank: usize,
    /// Lines added to the job's header as they are, such as `--constraint=h200`.
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
