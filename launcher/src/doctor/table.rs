//! The findings of all nodes as one table: a fact that is equal on all nodes is one line.

use std::collections::BTreeMap;

use serde::Serialize;

use super::finding::{Fact, Finding, NodeReport, State};
use crate::platform::slurm::host_list::compress;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    #[serde(flatten)]
    pub finding: Finding,
    /// Nodes of which the finding is true, as Slurm writes them; empty for a fact of the cluster or
    /// the job.
    pub nodes: String,
}

/// All lines, and what they are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Table {
    /// The worst state.
    pub state: State,
    /// The nodes that were looked at, as Slurm writes them.
    pub nodes: String,
    pub findings: Vec<Line>,
}

/// Merges the findings of all nodes. `shared` has those of the cluster and the job.
pub(crate) fn merge(shared: &NodeReport, nodes: &[NodeReport]) -> Table {
    let mut lines: Vec<Line> = Vec::new();
    lines.extend(
        shared.findings.iter().map(|one| Line { finding: one.clone(), nodes: String::new() }),
    );
    // The k-th finding of a fact on one node belongs to the k-th of the others.
    let mut groups: BTreeMap<(Fact, usize), Vec<(&str, Finding)>> = BTreeMap::new();
    for report in nodes {
        let mut seen: BTreeMap<Fact, usize> = BTreeMap::new();
        for finding in &report.findings {
            let number = seen.entry(finding.fact).or_default();
            let group = groups.entry((finding.fact, *number)).or_default();
            group.push((&report.node, finding.clone()));
            *number += 1;
        }
    }
    for group in groups.into_values() {
        lines.extend(merge_fact(group));
    }
    lines.extend(shared_gpus(nodes));
    lines.sort_by_key(|line| line.finding.fact);
    let names: Vec<String> = nodes.iter().map(|report| report.node.clone()).collect();
    let state = lines.iter().map(|line| line.finding.state).max().unwrap_or(State::Pass);
    Table { state, nodes: compress(&names), findings: lines }
}

/// Lines of one fact, in the order of their first nodes.
fn merge_fact(findings: Vec<(&str, Finding)>) -> Vec<Line> {
    let mut merged: Vec<(Finding, Vec<String>)> = Vec::new();
    for (node, finding) in findings {
        let joined = merged.iter_mut().find_map(|(known, nodes)| {
            let found = join(known, &finding)?;
            known.found = found;
            Some(nodes)
        });
        match joined {
            Some(nodes) => nodes.push(node.to_owned()),
            None => merged.push((finding, vec![node.to_owned()])),
        }
    }
    merged.into_iter().map(|(finding, nodes)| Line { finding, nodes: compress(&nodes) }).collect()
}

/// Text of two findings that are equal, or that differ in measured numbers only; otherwise `None`.
fn join(one: &Finding, other: &Finding) -> Option<String> {
    if one == other {
        return Some(one.found.clone());
    }
    if !one.fact.is_measured() || one.state != other.state || one.advice != other.advice {
        return None;
    }
    let (words, others): (Vec<&str>, Vec<&str>) =
        (one.found.split(' ').collect(), other.found.split(' ').collect());
    if words.len() != others.len() {
        return None;
    }
    let words: Option<Vec<String>> =
        words.iter().zip(&others).map(|(one, other)| join_words(one, other)).collect();
    Some(words?.join(" "))
}

/// Equal words, or numbers and ranges of numbers as the range of all of them.
fn join_words(one: &str, other: &str) -> Option<String> {
    if one == other {
        return Some(one.to_owned());
    }
    let bounds = |word: &str| {
        let (low, high) = word.split_once('–').unwrap_or((word, word));
        let number = |text: &str| Some((text.parse::<f64>().ok()?, text.to_owned()));
        Some((number(low)?, number(high)?))
    };
    let ((low, high), (other_low, other_high)) = (bounds(one)?, bounds(other)?);
    let low = if other_low.0 < low.0 { other_low } else { low };
    let high = if other_high.0 > high.0 { other_high } else { high };
    Some(format!("{}–{}", low.1, high.1))
}

/// GPUs that two nodes list: then both are the same machine.
fn shared_gpus(nodes: &[NodeReport]) -> Vec<Line> {
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for report in nodes {
        for gpu in &report.gpus {
            let owners = owners.entry(gpu).or_default();
            if !owners.contains(&report.node) {
                owners.push(report.node.clone());
            }
        }
    }
    let shared = owners.into_iter().filter(|(_, owners)| owners.len() > 1);
    let line = |(gpu, owners): (&str, Vec<String>)| {
        let found = format!("{gpu} belongs to several nodes: they are one machine");
        let finding = Finding::fail(Fact::Gpus, found, "leave all but one of them out");
        Line { finding, nodes: compress(&owners) }
    };
    shared.map(line).collect()
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |text: fn(&Line) -> &str| {
            self.findings.iter().map(|line| text(line).chars().count()).max().unwrap_or(0)
        };
        // One node needs no column of nodes.
        let is_one =
            self.findings.iter().all(|line| line.nodes.is_empty() || line.nodes == self.nodes);
        let facts = width(|line| line.finding.fact.name());
        let nodes = if is_one { 0 } else { width(|line| &line.nodes) + 2 };
        for (index, Line { finding, nodes: of }) in self.findings.iter().enumerate() {
            let Finding { fact, state, found, advice } = finding;
            let (end, of) = (if index > 0 { "\n" } else { "" }, if is_one { "" } else { of });
            write!(f, "{end}{}  {:<facts$}  {of:<nodes$}{found}", state.name(), fact.name())?;
            if let Some(advice) = advice {
                write!(f, "\n      → {advice}")?;
            }
        }
        let count = |state| self.findings.iter().filter(|l| l.finding.state == state).count();
        write!(
            f,
            "\n\n{}: {} pass, {} warn, {} fail",
            self.nodes,
            count(State::Pass),
            count(State::Warn),
            count(State::Fail)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{join_words, merge};
    use crate::doctor::finding::{Fact, Finding, NodeReport, State};

    fn report(node: &str, findings: Vec<Finding>) -> NodeReport {
        NodeReport { node: node.to_owned(), findings, gpus: Vec::new() }
    }

    #[test]
    fn equal_facts_are_one_line_and_others_name_their_nodes() {
        let node = |name: &str, cpus: &str, rate: &str| {
            let found = [Finding::pass(Fact::Cpus, cpus), Finding::pass(Fact::DiskRate, rate)];
            report(name, found.to_vec())
        };
        let nodes = [
            node("node0", "8 CPUs", "500 MB/s"),
            node("node1", "1 CPUs", "90.5 MB/s"),
            node("node2", "8 CPUs", "1200 MB/s"),
            report("node3", vec![Finding::fail(Fact::Node, "no answer", "look at it")]),
        ];
        let shared = report("", vec![Finding::warn(Fact::TaskPlugin, "task/none", "change it")]);
        let table = merge(&shared, &nodes);
        assert_eq!((table.state, table.nodes.as_str()), (State::Fail, "node[0-3]"));
        let expected = "\
fail  node         node3      no answer
      → look at it
pass  CPUs         node[0,2]  8 CPUs
pass  CPUs         node1      1 CPUs
pass  disk rate    node[0-2]  90.5–1200 MB/s
warn  task plugin             task/none
      → change it

node[0-3]: 3 pass, 1 warn, 1 fail";
        assert_eq!(table.to_string(), expected);
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["findings"][1]["fact"], "cpus");
        assert_eq!(json["findings"][1]["nodes"], "node[0,2]");
    }

    #[test]
    fn one_node_has_no_column_of_nodes() {
        let nodes = [report("laptop", vec![Finding::pass(Fact::Cpus, "2 of 2 CPUs")])];
        let text = merge(&NodeReport::default(), &nodes).to_string();
        assert_eq!(text, "pass  CPUs  2 of 2 CPUs\n\nlaptop: 1 pass, 0 warn, 0 fail");
    }

    #[test]
    fn a_gpu_of_two_nodes_fails() {
        let node = |name: &str, gpu: &str| NodeReport {
            gpus: vec![gpu.to_owned(), gpu.to_owned()],
            ..report(name, vec![])
        };
        let table = merge(&NodeReport::default(), &[node("a", "GPU-1"), node("b", "GPU-2")]);
        assert_eq!(table.state, State::Pass);
        let table = merge(&NodeReport::default(), &[node("a", "GPU-1"), node("b", "GPU-1")]);
        assert_eq!((table.state, table.findings[0].nodes.as_str()), (State::Fail, "a,b"));
    }

    #[test]
    fn only_numbers_become_ranges() {
        let joined = |one: &str, other: &str| join_words(one, other).unwrap_or_default();
        assert_eq!(joined("5", "3.5"), "3.5–5");
        assert_eq!(joined("3–5", "4"), "3–5");
        assert_eq!(joined("3–5", "9"), "3–9");
        assert_eq!(joined("MB/s", "MB/s"), "MB/s");
        assert_eq!(joined("2.27.7", "2.18.3"), "");
        assert_eq!(joined("ahead", "behind"), "");
    }
}
