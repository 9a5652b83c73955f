//! The doctor on all nodes of a Slurm job.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use vljepa_recipes::schema::{Cluster, Recipe};

use super::clock::Offset;
use super::finding::{Fact, Finding, NodeReport};
use super::node::{Request, host};
use super::{clock, rates, storage};
use crate::error::LaunchError;
use crate::platform::slurm::allocation::{Allocation, Input};
use crate::platform::slurm::client;
use crate::process::Conversation;

/// Name of the steps that run on the nodes.
const STEP: &str = "vljepa-doctor";
/// How long `srun` may take to start the doctor of a node. All nodes wait for it.
const MEET_LIMIT: Duration = Duration::from_secs(60);
/// How long the measurement of a clock may take: twelve exchanges, each of some milliseconds.
const CLOCK_LIMIT: Duration = Duration::from_secs(30);
/// How long a node may take to look at everything but the recipe's sources. Each look that waits
/// for something has a shorter limit of its own, so a node that takes longer is lost or hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the process of a node may take to end after its report, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How long a node may take to look at everything.
pub(super) fn limit(recipe: Option<&Recipe>, measures: bool) -> Duration {
    let rates = if measures { rates::LIMIT } else { Duration::ZERO };
    LIMIT + recipe.map(storage::limit).unwrap_or_default() + rates
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
    let lines: Vec<Vec<String>> = allocation
        .nodes
        .iter()
        .map(|node| allocation.on_node(cluster, node, (STEP, Input::Own), &command))
        .collect();
    // A node that works delays the answers of its clock, so all clocks are measured before any
    // node is asked to look.
    let met = at_once(lines.into_iter().map(Ok).collect(), MEET_LIMIT, meet).await;
    let timed = at_once(met, CLOCK_LIMIT, clock_of).await;
    let request = Arc::<str>::from(request);
    let reports =
        at_once(timed, limit + END_LIMIT, move |timed| look(timed, request.clone())).await;
    let named = |(node, report): (&String, Result<NodeReport, String>)| match report {
        // Slurm's name of the node may differ from its host name.
        Ok(report) => NodeReport { node: node.clone(), ..report },
        Err(why) => lost(node, &why),
    };
    let reports = allocation.nodes.iter().zip(reports).map(named).collect();
    // A step whose srun was killed goes on.
    client::end_steps(&allocation.job, Some(STEP)).await;
    Ok(reports)
}

/// Does `work` for all nodes at the same time, and returns when it has ended for all of them. A
/// node that was lost before stays lost; one whose work takes longer than `limit` is lost too.
async fn at_once<T, U, F>(
    nodes: Vec<Result<T, String>>,
    limit: Duration,
    work: impl Fn(T) -> F,
) -> Vec<Result<U, String>>
where
    U: Send + 'static,
    F: Future<Output = Result<U, String>> + Send + 'static,
{
    let mut working = JoinSet::new();
    let panicked = || Err("the task that asked it panicked".to_owned());
    let mut results: Vec<Result<U, String>> = nodes.iter().map(|_| panicked()).collect();
    for (index, node) in nodes.into_iter().enumerate() {
        match node {
            Err(why) => results[index] = Err(why),
            Ok(node) => {
                let work = work(node);
                working.spawn(async move { (index, tokio::time::timeout(limit, work).await) });
            }
        }
    }
    while let Some(ended) = working.join_next().await {
        if let Ok((index, result)) = ended {
            let late = |_| Err(format!("no answer within {} s", limit.as_secs()));
            results[index] = result.unwrap_or_else(late);
        }
    }
    results
}

/// Starts the doctor of a node, and waits until it answers.
async fn meet(line: Vec<String>) -> Result<Conversation, String> {
    let mut node = Conversation::start(&line)?;
    node.ask(clock::QUESTION).await?;
    Ok(node)
}

async fn clock_of(mut node: Conversation) -> Result<(Conversation, Offset), String> {
    let offset = clock::measure(&mut node).await?;
    Ok((node, offset))
}

async fn look(
    (mut node, offset): (Conversation, Offset),
    request: Arc<str>,
) -> Result<NodeReport, String> {
    let said = node.ask(&request).await?;
    let mut report: NodeReport =
        serde_json::from_str(&said).map_err(|error| format!("it printed `{said}`: {error}"))?;
    report.findings.push(clock::judge(offset, &host()));
    node.end(END_LIMIT).await;
    Ok(report)
}

fn lost(node: &str, why: &str) -> NodeReport {
    let help = "look at it: scontrol show node NAME; leave it out: --exclude=NAME";
    let finding = Finding::fail(Fact::Node, why, help.replace("NAME", node));
    NodeReport { node: node.to_owned(), findings: vec![finding], gpus: Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::at_once;

    #[tokio::test]
    async fn all_nodes_end_one_thing_before_the_next_and_a_lost_one_stays_lost() {
        let long = Duration::from_secs(600);
        let ended = Arc::new(AtomicUsize::new(0));
        let count = ended.clone();
        let first = at_once(vec![Ok(1_u64), Err("gone".to_owned()), Ok(20), Ok(0)], long, |node| {
            let count = count.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(node)).await;
                count.fetch_add(1, Ordering::SeqCst);
                if node == 0 { Err("refused".to_owned()) } else { Ok(node) }
            }
        });
        let first = first.await;
        assert_eq!(ended.load(Ordering::SeqCst), 3, "all have ended");
        let expected = [Ok(1), Err("gone".to_owned()), Ok(20), Err("refused".to_owned())];
        assert_eq!(first, expected);
        let hung = at_once(vec![Ok(1), Ok(2)], Duration::from_millis(50), |node| async move {
            if node == 2 {
                std::future::pending::<()>().await;
            }
            Ok(node)
        });
        let hung = hung.await;
        assert_eq!(hung[0], Ok(1));
        assert!(hung[1].as_ref().unwrap_err().contains("no answer within"), "{hung:?}");
    }
}
