//! The doctor on all nodes of a Slurm job.

use std::time::Duration;

use tokio::task::JoinSet;
use vljepa_recipes::schema::{Cluster, Recipe};

use super::finding::{Fact, Finding, NodeReport};
use super::node::{Request, host};
use super::{clock, storage};
use crate::error::LaunchError;
use crate::platform::slurm::allocation::{Allocation, Input};
use crate::platform::slurm::client;
use crate::process::Conversation;

/// Name of the steps that run on the nodes.
const STEP: &str = "vljepa-doctor";
/// How long `srun` may take to start, and a node to look at everything but the recipe's sources.
/// Each look has a shorter limit of its own, so a node that takes longer is lost or hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the process of a node may take to end after its report, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How long a node may take in all.
pub(super) fn limit(recipe: Option<&Recipe>) -> Duration {
    LIMIT + recipe.map(storage::limit).unwrap_or_default()
}

/// Looks at all nodes of a job at the same time. A node that fails or does not answer within
/// `limit` has a finding that says so.
pub(super) async fn ask(
    allocation: &Allocation,
    cluster: &Cluster,
    request: &Request,
    limit: Duration,
) -> Result<Vec<NodeReport>, LaunchError> {
    let failed = |what: &str, why: String| LaunchError::Start { what: what.to_owned(), why };
    let own = std::env::current_exe()
        .map_err(|error| failed("finding this program", error.to_string()))?;
    let command = [&own.display().to_string(), "doctor", "--node"].map(str::to_owned);
    let request = serde_json::to_string(request)
        .map_err(|error| failed("encoding the request", error.to_string()))?;
    let mut asked = JoinSet::new();
    for (index, node) in allocation.nodes.iter().enumerate() {
        let line = allocation.on_node(cluster, node, (STEP, Input::Own), &command);
        let (node, request) = (node.clone(), request.clone());
        asked.spawn(async move { (index, one(&node, &line, &request, limit).await) });
    }
    let unknown = |node: &String| lost(node, "the task that asked it panicked");
    let mut reports: Vec<NodeReport> = allocation.nodes.iter().map(unknown).collect();
    while let Some(answer) = asked.join_next().await {
        if let Ok((index, report)) = answer {
            reports[index] = report;
        }
    }
    // A step whose srun was killed goes on.
    client::end_steps(&allocation.job, Some(STEP)).await;
    Ok(reports)
}

async fn one(node: &str, line: &[String], request: &str, limit: Duration) -> NodeReport {
    match tokio::time::timeout(limit, talk(node, line, request)).await {
        Ok(Ok(report)) => report,
        Ok(Err(why)) => lost(node, &why),
        Err(_) => lost(node, &format!("no answer within {} s", limit.as_secs())),
    }
}

async fn talk(node: &str, line: &[String], request: &str) -> Result<NodeReport, String> {
    let mut process = Conversation::start(line)?;
    let offset = clock::measure(&mut process).await?;
    let said = process.ask(request).await?;
    let mut report: NodeReport =
        serde_json::from_str(&said).map_err(|error| format!("it printed `{said}`: {error}"))?;
    // Slurm's name of the node may differ from its host name.
    node.clone_into(&mut report.node);
    report.findings.push(clock::judge(offset, &host()));
    process.end(END_LIMIT).await;
    Ok(report)
}

fn lost(node: &str, why: &str) -> NodeReport {
    let help = "look at it: scontrol show node NAME; leave it out: --exclude=NAME";
    let finding = Finding::fail(Fact::Node, why, help.replace("NAME", node));
    NodeReport { node: node.to_owned(), findings: vec![finding], gpus: Vec::new() }
}
