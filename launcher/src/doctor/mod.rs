//! The doctor: what is wrong with a machine, or with the nodes of a Slurm job, before a run starts
//! on them.
//!
//! A [`Fact`](finding::Fact) is looked at by a function of the module of its group, which returns a
//! [`Finding`](finding::Finding). [`node`] calls them for one node. Inside a job, [`nodes`] starts
//! `vljepa-launch doctor --node` on all nodes at the same time, and [`table`] merges what they
//! report. Facts that a start also checks are judged by the functions of that check.

mod adjtimex;
mod clock;
mod cpus;
mod disk;
pub(crate) mod finding;
mod gpus;
mod libraries;
mod machine;
mod memory;
mod network;
pub(crate) mod node;
pub(crate) mod nodes;
mod programs;
mod rates;
mod slurm;
mod storage;
pub(crate) mod table;

use crate::environment;
use crate::error::LaunchError;
use crate::platform::Platform;
use crate::platform::slurm::allocation::Allocation;
use crate::platform::slurm::submit;
use finding::NodeReport;
use node::Request;

/// Looks at this machine, or at all nodes of the Slurm job that this process belongs to. Returns
/// the facts of the cluster or job, which belong to no node, and those of each node.
pub(crate) async fn examine(
    mut request: Request,
) -> Result<(NodeReport, Vec<NodeReport>), LaunchError> {
    let job = submit::current_job();
    let loaded = request.load()?;
    let recipe = loaded.as_ref().map(|loaded| &loaded.recipe);
    let slurm::Cluster { findings: mut shared, version } =
        slurm::cluster(recipe, job.is_some()).await;
    let Some(variables) = job else {
        let nodes = vec![node::report(&request).await?];
        return Ok((NodeReport { findings: shared, ..NodeReport::default() }, nodes));
    };
    let allocation = Allocation::of(&variables)?;
    let platform = Platform::Slurm(allocation.clone());
    request.nodes = allocation.nodes.len();
    let variables = environment::variables(&slurm::PREFIXES);
    shared.extend(slurm::job(&variables, &platform, recipe, version).await);
    let cluster = recipe.map(|recipe| recipe.cluster.clone()).unwrap_or_default();
    let nodes =
        nodes::ask(&allocation, &cluster, &request, nodes::limit(recipe, request.rates.is_some()))
            .await?;
    Ok((NodeReport { findings: shared, ..NodeReport::default() }, nodes))
}
