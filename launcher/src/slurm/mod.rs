//! Runs on a Slurm cluster.
//!
//! On a login node a recipe becomes a batch script ([`render`]) in the run directory, beside copies of the programs, and is submitted
//! ([`submit`]). In the job that script keeps `vljepa-launch supervise` alive on the first node, which starts the workers with `srun` on the
//! job's nodes that can take part ([`allocation`]), again after every fault, puts the job into the queue again where the run has to go on later
//! ([`requeue`]), and ends with a code that tells the script whether to leave or to wait for Slurm.

pub(crate) mod allocation;
pub(crate) mod client;
pub(crate) mod guard;
pub(crate) mod host_list;
pub(crate) mod render;
pub(crate) mod requeue;
pub(crate) mod submit;
