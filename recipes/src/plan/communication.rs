//! Time of collectives: ring, tree and hierarchical algorithms over the links of a node and the
//! network between nodes, and their overlap with the backward pass.

use serde::Serialize;

use super::Estimate;
use super::rates::Rates;
use crate::cost::real;

/// Ranks of a run and their nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Number of nodes.
    pub nodes: usize,
    /// Ranks of each node.
    pub per_node: usize,
}

/// Way in which NCCL sums over all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// All ranks in one ring, once around for the sums and once for the results.
    Ring,
    /// Two trees of nodes, and a chain within each node.
    Tree,
    /// Sums within each node, a tree of nodes for each rank's part, and a gather within each node
    /// (NCCL's NVLSTree).
    Hierarchical,
}

/// Links between ranks, in seconds and bytes per second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    group: Group,
    within: Estimate,
    between: Estimate,
    within_s: f64,
    between_s: f64,
    /// Whether a node may sum inside of its switches, which does not repeat bit for bit.
    hierarchical: bool,
}

impl Group {
    /// Number of ranks.
    #[must_use]
    pub fn ranks(self) -> usize {
        self.nodes * self.per_node
    }
}

impl Network {
    pub(super) fn of(rates: &Rates, group: Group, deterministic: bool) -> Self {
        Self {
            group,
            within: rates.within_node_gb_per_s.estimate().times(1e9),
            between: rates.between_nodes_gb_per_s.estimate().times(1e9),
            within_s: rates.within_node_us.value * 1e-6,
            between_s: rates.between_nodes_us.value * 1e-6,
            hierarchical: !deterministic,
        }
    }

    /// Bytes per second that pass each rank of a ring. All ranks of a node send to the next node at
    /// once, each a part of the ring's data.
    fn ring(&self) -> Estimate {
        let across = self.between.times(real(self.group.per_node));
        if self.group.nodes == 1 || self.within.value < across.value { self.within } else { across }
    }

    /// Latency of passing something once to all ranks of a ring.
    fn around_s(&self) -> f64 {
        let Group { nodes, per_node } = self.group;
        let across = if nodes > 1 { nodes } else { 0 };
        real(across) * self.between_s
            + real((nodes * per_node).saturating_sub(across + 1)) * self.within_s
    }

    /// Latency of the way from a leaf of the trees of nodes to the root.
    fn up_s(&self) -> f64 {
        let Group { nodes, per_node } = self.group;
        real(nodes).log2().ceil() * self.between_s
            + real(per_node.saturating_sub(1)) * self.within_s
    }

    /// Time to gather `bytes`, of which each rank has an equal part, and of a sum whose parts are
    /// scattered.
    pub(super) fn gather(&self, bytes: f64) -> Estimate {
        let ranks = real(self.group.ranks());
        if self.group.ranks() < 2 || bytes <= 0.0 {
            return Estimate::default();
        }
        let sent = Estimate::ratio(bytes * (ranks - 1.0) / ranks, self.ring());
        sent.plus(Estimate::exact(self.around_s()))
    }

    /// Time to sum `bytes` over all ranks, and the fastest algorithm, which NCCL is expected to
    /// choose.
    pub(super) fn all_reduce(&self, bytes: f64) -> (Estimate, Algorithm) {
        let ranks = real(self.group.ranks());
        if self.group.ranks() < 2 || bytes <= 0.0 {
            return (Estimate::default(), Algorithm::Ring);
        }
        let around = 2.0 * bytes * (ranks - 1.0) / ranks;
        let ring =
            Estimate::ratio(around, self.ring()).plus(Estimate::exact(2.0 * self.around_s()));
        // Each node sends and receives everything twice, up and down.
        let tree =
            Estimate::ratio(2.0 * bytes, self.ring()).plus(Estimate::exact(2.0 * self.up_s()));
        let mut best =
            if tree.value < ring.value { (tree, Algorithm::Tree) } else { (ring, Algorithm::Ring) };
        let Group { nodes, per_node } = self.group;
        if self.hierarchical && nodes > 1 && per_node > 1 {
            let part = real(per_node);
            let within = Estimate::ratio(2.0 * bytes * (part - 1.0) / part, self.within);
            let across = Estimate::ratio(2.0 * bytes / part, self.between);
            let slower = if within.value > across.value { within } else { across };
            let latency = 2.0 * (real(nodes).log2().ceil() * self.between_s + 2.0 * self.within_s);
            let hierarchical = slower.plus(Estimate::exact(latency));
            if hierarchical.value < best.0.value {
                best = (hierarchical, Algorithm::Hierarchical);
            }
        }
        best
    }
}

/// A part of the backward pass and the bytes of gradients that it completes, evenly over its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) seconds: f64,
    pub(super) bytes: f64,
}

/// Time that remains after the backward pass until buckets of `bucket_bytes` are summed, if each
/// starts when it is complete and the one before it is summed.
pub(super) fn exposed(
    segments: &[Segment],
    bucket_bytes: f64,
    sum: impl Fn(f64) -> Estimate,
) -> Estimate {
    let all: f64 = segments.iter().map(|segment| segment.bytes).sum();
    if all <= 0.0 {
        return Estimate::default();
    }
    let end: f64 = segments.iter().map(|segment| segment.seconds).sum();
    let mut free = Estimate::default();
    let mut done = 0.0;
    while done < all {
        let bytes = bucket_bytes.max(1.0).min(all - done);
        done += bytes;
        let start = free.value.max(ready(segments, done));
        let took = sum(bytes);
        // Sums of one run share the bandwidth, so their errors add up.
        free = Estimate::new(start + took.value, free.deviation + took.deviation);
    }
    let late = (free.value - end).max(0.0);
    Estimate::new(late, free.deviation.min(late))
}

/// Time at which the first `bytes` of the gradients are complete.
fn ready(segments: &[Segment], bytes: f64) -> f64 {
    let (mut time, mut before) = (0.0, 0.0);
    for segment in segments {
        // The last bucket ends with the last gradient, whatever was lost by rounding.
        if segment.bytes > 0.0 && bytes <= before + segment.bytes {
            return time + segment.seconds * (bytes - before) / segment.bytes;
        }
        before += segment.bytes;
        time += segment.seconds;
    }
    time
}
