//! The choice of the nodes for the next attempt, among those of the Slurm job.

use std::time::Instant;

use vljepa_recipes::schema::Cluster;

use super::health::{self, CHECK_LIMIT, Recovery};
use super::progress::Progress;
use super::{Ending, Run, failed, new_token};
use crate::control::listen::Listen;
use crate::control::{Expected, Server};
use crate::error::LaunchError;
use crate::platform::Platform;
use crate::platform::health::{NodeHealth, Verdict, judge, may_recover};
use crate::platform::slurm::allocation::{self, NodeChoice};
use crate::platform::slurm::probe::{Questions, probe};
use crate::record::events::{Event, EventLog};

/// How often the nodes are asked before a run's first attempt if none of them passes, because the
/// set-up is then probably wrong.
const MOST_FIRST_PROBES: u32 = 2;

/// Checks the nodes of the Slurm job, prints those that are left out, and chooses the nodes of the
/// next attempt. As long as it has too few, those that may recover are asked again for a while. The
/// inner error says why there are too few healthy nodes.
///
/// # Errors
/// If the control plane or the check job cannot be set up.
pub(super) async fn choose(
    run: &Run,
    progress: &Progress,
) -> Result<Result<NodeChoice, String>, LaunchError> {
    let cluster = &run.recipe.cluster;
    let Platform::Slurm(allocation) = &run.platform else {
        return Ok(Ok(NodeChoice { world_size: cluster.world_size(), nodes: Vec::new() }));
    };
    let token = new_token().map_err(|error| failed("making a token", &error))?;
    let (recipe_hash, listen) =
        (run.recipe_hash.clone(), Listen::of(cluster, &run.record.host.name));
    let expected =
        Expected { token: token.clone(), world_size: allocation.nodes.len(), recipe_hash };
    // One of the checks is whether a node can reach the control plane, so a server must listen.
    let server = Server::start(expected, &listen).await?;
    let check = health::command(run);
    let is_first = run.record.attempts.is_empty();
    let mut recovery = Recovery::new(run.patience);
    let (mut found, mut limit, mut probes) = (Vec::new(), CHECK_LIMIT, 0);
    health::write_job(run, cluster.ranks_per_node, server.address())?;
    loop {
        let healthy = judge(&found).healthy;
        let enough = cluster.nodes.saturating_sub(healthy.len());
        let asked = allocation.nodes.iter().filter(|node| !healthy.contains(*node));
        let nodes: Vec<String> = asked.cloned().collect();
        let questions = Questions { nodes: &nodes, enough, check: &check, token: &token, limit };
        let answers = probe(allocation, cluster, questions).await;
        found = merged(&allocation.nodes, found, answers);
        let verdict = judge(&found);
        probes += 1;
        let repeats = is_worth_waiting(cluster, &verdict, is_first.then_some(probes));
        let repeated = if repeats { recovery.next(Instant::now()) } else { None };
        let Some(repeated) = repeated else {
            leave_out(run, progress, &verdict);
            let chosen = allocation::choose(cluster, &verdict);
            return Ok(chosen.inspect(|choice| say_fewer(progress, choice, cluster)));
        };
        if probes == 1 {
            say_waiting(progress, cluster, &verdict, recovery.most_s());
        }
        limit = repeated;
        tokio::time::sleep(run.patience.delay).await;
    }
}

/// The results of all nodes, in the order of `nodes`. A result in `answers` replaces the one that
/// was `found` before for the same node, unless only the earlier one names failed checks.
fn merged(nodes: &[String], found: Vec<NodeHealth>, answers: Vec<NodeHealth>) -> Vec<NodeHealth> {
    let place = |health: &NodeHealth| nodes.iter().position(|node| *node == health.node);
    let mut all = found;
    for answer in answers {
        let before = all.iter().position(|old| old.node == answer.node);
        let before = before.map(|index| all.swap_remove(index));
        all.push(match before {
            Some(before) => answer.or_reasons(before),
            None => answer,
        });
    }
    all.sort_by_key(place);
    all
}

/// Whether there are too few healthy nodes, and the run could use those that may recover. `first`
/// is the number of probes before a run's first attempt, or `None` before a later one.
fn is_worth_waiting(cluster: &Cluster, verdict: &Verdict, first: Option<u32>) -> bool {
    let Verdict { healthy, failed } = verdict;
    let recovering = failed.iter().filter(|(_, reasons)| may_recover(reasons)).count();
    let helps = match cluster.restart.allow_fewer_nodes {
        true => recovering > 0,
        false => healthy.len() + recovering >= cluster.nodes,
    };
    let has_wrong_set_up =
        healthy.is_empty() && first.is_some_and(|probes| probes >= MOST_FIRST_PROBES);
    healthy.len() < cluster.nodes && helps && !has_wrong_set_up
}

fn leave_out(run: &Run, progress: &Progress, verdict: &Verdict) {
    let events = EventLog::new(&run.directory, run.record.next_attempt());
    for (node, reasons) in &verdict.failed {
        let reason = allocation::reasons(reasons);
        progress.note(&format!("node left out: {node}: {reason}"));
        events.write(Event::NodeLeftOut { node: node.clone(), reason });
    }
}

fn say_waiting(progress: &Progress, cluster: &Cluster, verdict: &Verdict, most_s: u64) {
    let recovering = verdict.failed.iter().filter(|(_, reasons)| may_recover(reasons));
    let named: Vec<String> = recovering
        .map(|(node, reasons)| format!("{node}: {}", allocation::reasons(reasons)))
        .collect();
    progress.note(&format!(
        "{} of {} nodes are healthy; for up to {most_s} s others are asked again: {}",
        verdict.healthy.len(),
        cluster.nodes,
        named.join("; ")
    ));
}

fn say_fewer(progress: &Progress, choice: &NodeChoice, cluster: &Cluster) {
    let (NodeChoice { world_size, nodes }, wanted) = (choice, cluster.world_size());
    if *world_size < wanted {
        progress.note(&format!(
            "continuing on {} nodes with {world_size} ranks instead of {wanted}; batches and their order stay the same",
            nodes.len()
        ));
    }
}

/// How a run ends that has too few healthy nodes, for the given reason.
///
/// # Errors
/// If no attempt ever ran: other nodes would most likely fail the same checks.
pub(super) fn too_few(run: &Run, reason: String) -> Result<Ending, LaunchError> {
    if !run.record.attempts.is_empty() {
        return Ok(Ending::NoNodes(reason));
    }
    Err(LaunchError::RunFailed {
        fault: reason,
        reason: "no attempt of this run has started yet".to_owned(),
        log: run.directory.logs().display().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::{CheckName, Checked};
    use vljepa_recipes::schema::{Cluster, RestartPolicy};

    use super::{is_worth_waiting, merged};
    use crate::platform::health::{NoAnswer, NodeHealth, Reason, Verdict};

    /// A verdict with `healthy` healthy nodes, and one failed node for each element of `failed`,
    /// which says whether the node may recover.
    fn verdict(healthy: usize, failed: &[bool]) -> Verdict {
        let node = |index: usize| format!("n{index}");
        let reason = |may_pass| {
            vec![Reason { check: Some(CheckName::Device), detail: String::new(), may_pass }]
        };
        let failed = failed.iter().zip(healthy..);
        let failed = failed.map(|(may_pass, index)| (node(index), reason(*may_pass))).collect();
        Verdict { healthy: (0..healthy).map(node).collect(), failed }
    }

    #[test]
    fn a_run_waits_for_nodes_that_may_recover_and_for_no_others() {
        let all = Cluster { nodes: 4, ..Cluster::default() };
        let restart = RestartPolicy { allow_fewer_nodes: true, ..RestartPolicy::default() };
        let fewer = Cluster { restart, ..all.clone() };
        let waits = |verdict: &Verdict, first| {
            [&all, &fewer].map(|cluster| is_worth_waiting(cluster, verdict, first))
        };
        let (both, neither) = ([true; 2], [false; 2]);
        assert_eq!(waits(&verdict(3, &[true]), None), both, "a killed process still holds a GPU");
        assert_eq!(waits(&verdict(3, &[false, true]), None), both, "the other one is a spare");
        let lacking = waits(&verdict(2, &[false, true]), None);
        assert_eq!(lacking, [false, true], "four nodes are out of reach, three are not");
        assert_eq!(waits(&verdict(3, &[false]), None), neither, "Slurm says that it is down");
        assert_eq!(waits(&verdict(4, &[true]), None), neither, "a spare takes its place");
        assert_eq!(waits(&verdict(0, &[true; 4]), None), both);
        assert_eq!(waits(&verdict(0, &[true; 4]), Some(1)), both);
        assert_eq!(waits(&verdict(0, &[true; 4]), Some(2)), neither, "the set-up is wrong");
        let one = waits(&verdict(1, &[true; 3]), Some(2));
        assert_eq!(one, both, "one node has the right set-up");
    }

    #[test]
    fn answers_replace_earlier_results_without_reasons_and_keep_the_order_of_the_nodes() {
        let nodes = ["b", "a", "c"].map(str::to_owned);
        let health = |node: &str, why: &str| NodeHealth {
            node: node.to_owned(),
            answer: Err(NoAnswer::Silent(why.to_owned())),
        };
        let first = ["b", "a", "c"].map(|node| health(node, "1")).to_vec();
        let all = merged(&nodes, first, vec![health("b", "2")]);
        let all = all.iter().map(|node| (node.node.as_str(), node.answer.clone().unwrap_err()));
        let expected = [("b", "2"), ("a", "1"), ("c", "1")]
            .map(|(node, why)| (node, NoAnswer::Silent(why.to_owned())));
        assert_eq!(all.collect::<Vec<_>>(), expected);
        let (host, check) = ("b".to_owned(), CheckName::Device);
        let checked = Checked { host, check, passed: false, detail: String::new(), time_s: 0 };
        let failed = NodeHealth { node: "b".to_owned(), answer: Ok(vec![checked]) };
        let all = merged(&nodes, vec![failed.clone()], vec![health("b", "2"), health("a", "2")]);
        assert_eq!(all, [failed, health("a", "2")]);
    }
}
