//! Runs on a Slurm cluster.
//!
//! On a login node, the launcher copies the programs into the run directory, renders a batch script
//! ([`render`]) and submits it ([`submit`]). In the job, the script keeps `vljepa-launch supervise`
//! running on the first node. The supervisor starts the workers with `srun` on the healthy nodes of
//! the job ([`allocation`], [`probe`]) and starts them again after every fault. If the run has to
//! continue later, it requeues the job ([`requeue`]). Its exit code tells the script whether to end
//! or to wait for Slurm. A guard on another node ([`guard`]) requeues the job if the supervisor's
//! node is lost.

pub(crate) mod allocation;
pub(crate) mod client;
pub(crate) mod guard;
pub(crate) mod host_list;
pub(crate) mod probe;
pub(crate) mod render;
pub(crate) mod requeue;
pub(crate) mod submit;
