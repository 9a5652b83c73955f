//! Asks the nodes of a job for their health, all at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use vljepa_recipes::clock;
use vljepa_recipes::protocol::Checked;
use vljepa_recipes::schema::Cluster;

use super::allocation::{Allocation, Input};
use super::client;
use crate::platform::health::{self, NoAnswer, NodeHealth};
use crate::process;

/// How long the other nodes may take once enough nodes have answered.
const LATE_LIMIT: Duration = Duration::from_secs(3);
/// Time between two questions to Slurm about nodes that have not answered: `srun` waits for a node
/// that is down as for one that is busy.
const STATES_INTERVAL: Duration = Duration::from_secs(3);
/// How long `srun` may take to end after the limit of an answer.
const GRACE: Duration = Duration::from_secs(5);

/// What to ask of nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Questions<'a> {
    /// Nodes that are asked.
    pub nodes: &'a [String],
    /// Number of healthy nodes after which the others have only [`LATE_LIMIT`].
    pub enough: usize,
    /// Command line of the check.
    pub check: &'a [String],
    /// Token of the control plane, to which the check connects.
    pub token: &'a str,
    /// How long a node may take to answer.
    pub limit: Duration,
}

/// Runs the check on all nodes and returns the results in their order. A lost node never answers,
/// so the wait for it ends when enough other nodes have passed or when Slurm says that it is down.
pub(crate) async fn probe(
    allocation: &Allocation,
    cluster: &Cluster,
    questions: Questions<'_>,
) -> Vec<NodeHealth> {
    let Questions { nodes, enough, check, token, limit } = questions;
    let ask = |node: &str| {
        let line = allocation.on_node(cluster, node, ("vljepa-check", Input::None), check);
        let token = token.to_owned();
        async move {
            let asked_s = clock::now().as_second();
            let answer = process::ask_with_token(&line, &token, limit).await;
            answer.and_then(|answer| health::read(&answer, asked_s))
        }
    };
    let waits = Waits { answer: limit + GRACE, late: LATE_LIMIT, states: STATES_INTERVAL };
    let job = &allocation.job;
    let down = |nodes: Vec<String>| {
        let job = job.clone();
        async move { client::down_nodes(&job, &nodes).await }
    };
    gather(nodes, enough, waits, ask, down).await
}

/// How long [`gather`] waits.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// For all answers.
    answer: Duration,
    /// For late answers, once there are enough.
    late: Duration,
    /// Between two questions about nodes that have not answered.
    states: Duration,
}

enum Heard {
    /// Answer of the node with this index.
    Answer(usize, Result<Vec<Checked>, String>),
    /// States of nodes that are down.
    Down(BTreeMap<String, String>),
}

/// Collects the answers to `ask`. `down` gives the states of those of the given nodes that are
/// down.
async fn gather<A, D>(
    nodes: &[String],
    enough: usize,
    waits: Waits,
    ask: impl Fn(&str) -> A,
    down: impl Fn(Vec<String>) -> D,
) -> Vec<NodeHealth>
where
    A: Future<Output = Result<Vec<Checked>, String>> + Send + 'static,
    D: Future<Output = BTreeMap<String, String>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    for (index, node) in nodes.iter().enumerate() {
        let answer = ask(node);
        asked.spawn(async move { Heard::Answer(index, answer.await) });
    }
    let why = format!("no answer within {} s", waits.answer.as_secs());
    let silent = |node: &String| NodeHealth {
        node: node.clone(),
        answer: Err(NoAnswer::Silent(why.clone())),
    };
    let mut found: Vec<NodeHealth> = nodes.iter().map(silent).collect();
    let mut waiting: BTreeSet<usize> = (0..nodes.len()).collect();
    let mut deadline = Instant::now() + waits.answer;
    let mut are_enough = false;
    let ask_slurm = |asked: &mut JoinSet<Heard>, waiting: &BTreeSet<usize>| {
        let states = down(waiting.iter().map(|index| nodes[*index].clone()).collect());
        asked.spawn(async move {
            tokio::time::sleep(waits.states).await;
            Heard::Down(states.await)
        });
    };
    ask_slurm(&mut asked, &waiting);
    while !waiting.is_empty() {
        match timeout_at(deadline, asked.join_next()).await {
            Ok(Some(Ok(Heard::Answer(index, answer)))) => {
                if waiting.remove(&index) {
                    found[index].answer = answer.map_err(NoAnswer::Silent);
                }
            }
            Ok(Some(Ok(Heard::Down(states)))) => {
                note_down(&mut found, &states, |index| waiting.remove(&index));
                ask_slurm(&mut asked, &waiting);
            }
            // The task panicked: its node does not answer.
            Ok(Some(Err(_))) => {}
            Ok(None) | Err(_) => break,
        }
        if !are_enough && health::judge(&found).healthy.len() >= enough {
            are_enough = true;
            deadline = Instant::now() + waits.late;
        }
    }
    if are_enough {
        let late = waits.late.as_secs();
        let why = format!("no answer within {late} s after enough other nodes had answered");
        for index in waiting {
            found[index].answer = Err(NoAnswer::Silent(why.clone()));
        }
        return found;
    }
    // `srun` may have failed before Slurm was asked about the node.
    let silent = silent_nodes(&found);
    if !silent.is_empty() {
        note_down(&mut found, &down(silent).await, |_| true);
    }
    found
}

fn silent_nodes(found: &[NodeHealth]) -> Vec<String> {
    let is_silent = |node: &&NodeHealth| matches!(node.answer, Err(NoAnswer::Silent(_)));
    found.iter().filter(is_silent).map(|node| node.node.clone()).collect()
}

/// Notes the `states` of nodes that are down, for the indices that `take` accepts.
fn note_down(
    found: &mut [NodeHealth],
    states: &BTreeMap<String, String>,
    mut take: impl FnMut(usize) -> bool,
) {
    for (index, node) in found.iter_mut().enumerate() {
        if let Some(state) = states.get(&node.node)
            && take(index)
        {
            node.answer = Err(NoAnswer::Down(state.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use vljepa_recipes::protocol::{CheckName, Checked};

    use super::{NoAnswer, NodeHealth, Waits, gather};
    use crate::platform::health::judge;

    fn passed() -> Vec<Checked> {
        let checked = |check| Checked {
            host: "n".to_owned(),
            check,
            passed: true,
            detail: "fine".to_owned(),
            time_s: 0,
        };
        CheckName::ALL.map(checked).to_vec()
    }

    /// Asks nodes that answer as their names say: `fine` passes, `slow` passes after 0.3 s, `late`
    /// never answers, and `refused` fails at once. Slurm says of the nodes in `down` that they are
    /// down.
    async fn ask(nodes: &[&str], enough: usize, down: &'static [&str]) -> Vec<NodeHealth> {
        let nodes: Vec<String> = nodes.iter().map(|&node| node.to_owned()).collect();
        let waits = Waits {
            answer: Duration::from_secs(60),
            late: Duration::from_millis(20),
            states: Duration::from_millis(10),
        };
        let answer = |node: &str| {
            let node = node.to_owned();
            async move {
                match node.as_str() {
                    "slow" => tokio::time::sleep(Duration::from_millis(300)).await,
                    "late" => std::future::pending().await,
                    "refused" => return Err("Connection refused".to_owned()),
                    _ => {}
                }
                Ok(passed())
            }
        };
        let states = |asked: Vec<String>| async move {
            let down = down.iter().filter(|node| asked.iter().any(|asked| asked == **node));
            down.map(|&node| (node.to_owned(), "down".to_owned())).collect::<BTreeMap<_, _>>()
        };
        gather(&nodes, enough, waits, answer, states).await
    }

    fn silent(node: &NodeHealth) -> &str {
        let Err(NoAnswer::Silent(why)) = &node.answer else { panic!("{node:?}") };
        why
    }

    #[tokio::test]
    async fn all_nodes_that_the_run_needs_are_waited_for_and_a_spare_is_not() {
        let all = ask(&["fine", "slow"], 2, &[]).await;
        assert_eq!(judge(&all).healthy, ["fine", "slow"]);
        let enough = ask(&["late", "fine"], 1, &[]).await;
        assert_eq!(judge(&enough).healthy, ["fine"]);
        assert!(silent(&enough[0]).contains("after enough other nodes"), "{enough:?}");
    }

    #[tokio::test]
    async fn nobody_waits_for_a_node_that_slurm_calls_down() {
        let started = Instant::now();
        let found = ask(&["fine", "late", "refused"], 3, &["late", "refused", "fine"]).await;
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        assert_eq!(judge(&found).healthy, ["fine"], "its answer counts");
        let down = Err(NoAnswer::Down("down".to_owned()));
        assert_eq!((&found[1].answer, &found[2].answer), (&down, &down));
        let refused = ask(&["fine", "refused"], 2, &["fine"]).await;
        assert_eq!(silent(&refused[1]), "Connection refused");
    }
}
