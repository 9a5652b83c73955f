//! Facts that the doctor looks at, and what it finds about them.

use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::error::LaunchError;

/// Fact about a node or a cluster. The variants are in the order in which the facts are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fact {
    /// What the node is used for, and whether it answers.
    Node,
    /// The programs and their features.
    Programs,
    /// CPUs of a rank against its threads.
    Cpus,
    /// NUMA nodes and their CPUs.
    Numa,
    /// Memory that the control group allows, against that of the machine.
    Memory,
    /// Size of `/dev/shm`.
    SharedMemory,
    /// Limit on open files.
    OpenFiles,
    /// Limit on locked memory.
    LockedMemory,
    /// Free space for checkpoints.
    Room,
    /// Rate at which the disk of the run is written.
    DiskRate,
    /// Rate at which a source of the recipe is read.
    Storage,
    /// NVIDIA's driver.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Library of the matrix products on GPUs.
    CublasLt,
    /// Library of the collectives between GPUs.
    Nccl,
    /// The GPUs, and whether each is there once.
    Gpus,
    /// Clocks of the GPUs.
    GpuClocks,
    /// Power limits of the GPUs.
    GpuPower,
    /// Rates of the devices against those of a plan.
    Rates,
    /// Network adapters.
    Adapters,
    /// The network adapter that is nearest to each GPU.
    GpuAdapters,
    /// Variables of NCCL and Open MPI that change how ranks communicate.
    FabricVariables,
    /// Difference to the clock of the node that asks.
    Clock,
    /// Programs of Slurm.
    SlurmPrograms,
    /// Plugin that binds tasks to CPUs.
    TaskPlugin,
    /// What Slurm does with a job that is preempted.
    Preemption,
    /// Whether jobs share a node.
    NodeSharing,
    /// CPUs that `srun` gives to a task.
    SrunCpus,
    /// Time limit of the job.
    TimeLimit,
}

impl Fact {
    /// Name of the fact in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Programs => "programs",
            Self::Cpus => "CPUs",
            Self::Numa => "NUMA",
            Self::Memory => "memory",
            Self::SharedMemory => "shared memory",
            Self::OpenFiles => "open files",
            Self::LockedMemory => "locked memory",
            Self::Room => "room",
            Self::DiskRate => "disk rate",
            Self::Storage => "storage",
            Self::Driver => "driver",
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
            Self::Nccl => "NCCL",
            Self::Gpus => "GPUs",
            Self::GpuClocks => "GPU clocks",
            Self::GpuPower => "GPU power",
            Self::Rates => "rates",
            Self::Adapters => "network",
            Self::GpuAdapters => "GPU to network",
            Self::FabricVariables => "variables",
            Self::Clock => "clock",
            Self::SlurmPrograms => "Slurm",
            Self::TaskPlugin => "task plugin",
            Self::Preemption => "preemption",
            Self::NodeSharing => "node sharing",
            Self::SrunCpus => "CPUs of srun",
            Self::TimeLimit => "time limit",
        }
    }

    /// Whether the numbers of the fact differ between any two nodes. They are then shown as a
    /// range.
    pub(crate) fn is_measured(self) -> bool {
        match self {
            Self::SharedMemory
            | Self::Room
            | Self::DiskRate
            | Self::Storage
            | Self::Rates
            | Self::Clock => true,
            Self::Node
            | Self::Programs
            | Self::Cpus
            | Self::Numa
            | Self::Memory
            | Self::OpenFiles
            | Self::LockedMemory
            | Self::Driver
            | Self::Nvrtc
            | Self::CublasLt
            | Self::Nccl
            | Self::Gpus
            | Self::GpuClocks
            | Self::GpuPower
            | Self::Adapters
            | Self::GpuAdapters
            | Self::FabricVariables
            | Self::SlurmPrograms
            | Self::TaskPlugin
            | Self::Preemption
            | Self::NodeSharing
            | Self::SrunCpus
            | Self::TimeLimit => false,
        }
    }
}

/// How good a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Nothing to do.
    Pass,
    /// A run works, but slower or with less safety.
    Warn,
    /// A run does not start, or its records are wrong.
    Fail,
}

impl State {
    /// Name of the state in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was found about a fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Finding {
    pub fact: Fact,
    pub state: State,
    /// Observed state, or the reason why there is none.
    pub found: String,
    /// What to do, unless the fact is fine.
    pub advice: Option<String>,
}

impl Finding {
    pub(crate) fn pass(fact: Fact, found: impl Into<String>) -> Self {
        Self { fact, state: State::Pass, found: found.into(), advice: None }
    }

    pub(crate) fn warn(fact: Fact, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { fact, state: State::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    pub(crate) fn fail(fact: Fact, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { fact, state: State::Fail, found: found.into(), advice: Some(advice.into()) }
    }

    /// An error with which a start would end.
    pub(crate) fn refused(fact: Fact, error: &LaunchError) -> Self {
        let advice = error.help().map(|help| help.to_string());
        Self { fact, state: State::Fail, found: error.to_string(), advice }
    }
}

/// What was found on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeReport {
    /// Host name, as Slurm lists it inside a job.
    pub node: String,
    pub findings: Vec<Finding>,
    /// Identifiers of the GPUs, which are unique in the world.
    pub gpus: Vec<String>,
}
