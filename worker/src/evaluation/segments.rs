//! Divides a sequence of embeddings into segments (paper §4.5, selective decoding).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

/// Divides a sequence of T embeddings into `count` segments by Ward's clustering in which only
/// neighbours merge, and returns the segments in their order. There are at least one segment, and
/// at most T.
///
/// At first each embedding is a segment. The two neighbours `a` and `b` with the lowest cost
/// `n_a n_b / (n_a + n_b) · ‖μ_a − μ_b‖²` merge until `count` segments are left, where `n` is the
/// number of embeddings in a segment and `μ` their mean. Costs can fall from one merge to the next,
/// so no limit of the cost can take the place of `count`. The segments are the clusters of
/// scikit-learn's `AgglomerativeClustering` with Ward linkage and a chain as connectivity. The
/// number of operations grows with T log T.
///
/// # Panics
/// If the embeddings have different widths.
#[must_use]
pub fn segments<E: AsRef<[f32]>>(embeddings: &[E], count: usize) -> Vec<Range<usize>> {
    let length = embeddings.len();
    let mut nodes: Vec<Node> = embeddings.iter().map(AsRef::as_ref).enumerate().map(leaf).collect();
    // Nodes of the segments that start and end with each embedding.
    let (mut starting, mut ending): (Vec<usize>, Vec<usize>) =
        ((0..length).collect(), (0..length).collect());
    let mut merges: BinaryHeap<Reverse<Merge>> =
        (1..length).map(|later| Reverse(Merge::of(&nodes, later, later - 1))).collect();
    let mut left = length;
    while left > count.max(1)
        && let Some(Reverse(Merge { later, earlier, .. })) = merges.pop()
    {
        if nodes[later].is_part || nodes[earlier].is_part {
            continue;
        }
        let merged = nodes.len();
        nodes.push(nodes[later].with(&nodes[earlier]));
        for part in [later, earlier] {
            nodes[part].is_part = true;
        }
        let Range { start, end } = nodes[merged].range;
        starting[start] = merged;
        ending[end - 1] = merged;
        let before = start.checked_sub(1).map(|last| ending[last]);
        let after = starting.get(end).copied();
        let neighbours = before.into_iter().chain(after);
        merges.extend(neighbours.map(|other| Reverse(Merge::of(&nodes, merged, other))));
        left -= 1;
    }
    let mut found: Vec<Range<usize>> =
        nodes.into_iter().filter(|node| !node.is_part).map(|node| node.range).collect();
    found.sort_by_key(|segment| segment.start);
    found
}

/// A segment, or a part of a larger one.
struct Node {
    range: Range<usize>,
    sum: Vec<f64>,
    is_part: bool,
}

fn leaf((index, embedding): (usize, &[f32])) -> Node {
    let sum = embedding.iter().copied().map(f64::from).collect();
    Node { range: index..index + 1, sum, is_part: false }
}

impl Node {
    /// Union with a neighbour.
    fn with(&self, other: &Self) -> Self {
        let start = self.range.start.min(other.range.start);
        let end = self.range.end.max(other.range.end);
        let sum = self.sum.iter().zip(&other.sum).map(|(a, b)| a + b).collect();
        Self { range: start..end, sum, is_part: false }
    }

    #[expect(clippy::cast_precision_loss, reason = "sequences are shorter than 2^52")]
    fn count(&self) -> f64 {
        self.range.len() as f64
    }
}

/// Union of two neighbours, with the numbers of their nodes. Of equal costs, the older later node
/// comes first, and then the older earlier node, as in scikit-learn.
struct Merge {
    cost: f64,
    later: usize,
    earlier: usize,
}

impl Merge {
    fn of(nodes: &[Node], later: usize, earlier: usize) -> Self {
        let (a, b) = (&nodes[later], &nodes[earlier]);
        assert_eq!(a.sum.len(), b.sum.len(), "embeddings of a sequence have one width");
        let (m, n) = (a.count(), b.count());
        let squares = a.sum.iter().zip(&b.sum).map(|(a, b)| (a / m - b / n).powi(2));
        Self { cost: m * n / (m + n) * squares.sum::<f64>(), later, earlier }
    }
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = (self.later, self.earlier).cmp(&(other.later, other.earlier));
        self.cost.total_cmp(&other.cost).then(numbers)
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::segments;

    /// Sum of squared distances of the embeddings of a segment to their mean.
    fn spread(embeddings: &[Vec<f32>]) -> f64 {
        let count = f64::from(u32::try_from(embeddings.len()).unwrap());
        let columns = 0..embeddings[0].len();
        let of_column = |column: usize| {
            let mean = embeddings.iter().map(|e| f64::from(e[column])).sum::<f64>() / count;
            embeddings.iter().map(|e| (f64::from(e[column]) - mean).powi(2)).sum::<f64>()
        };
        columns.map(of_column).sum()
    }

    #[test]
    fn every_merge_increases_the_spread_within_segments_the_least() {
        for seed in 0..20 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let embeddings: Vec<Vec<f32>> =
                (0..15).map(|_| (0..3).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
            let mut expected: Vec<Range<usize>> = (0..15).map(|i| i..i + 1).collect();
            for count in (1..=15).rev() {
                assert_eq!(segments(&embeddings, count), expected, "seed {seed}");
                let increase = |at: usize| {
                    let (a, b) = (expected[at].clone(), expected[at + 1].clone());
                    let parts = spread(&embeddings[a.clone()]) + spread(&embeddings[b.clone()]);
                    spread(&embeddings[a.start..b.end]) - parts
                };
                let least = (0..count - 1).min_by(|&a, &b| increase(a).total_cmp(&increase(b)));
                if let Some(least) = least {
                    expected[least].end = expected.remove(least + 1).end;
                }
            }
        }
    }

    #[test]
    fn there_are_as_many_segments_as_wanted_if_there_are_as_many_embeddings() {
        let scenes = [[0.0f32], [0.1], [5.0], [5.1], [5.2], [0.0]];
        assert_eq!(segments(&scenes, 3), [0..2, 2..5, 5..6]);
        for (count, expected) in [(0, 1), (1, 1), (6, 6), (100, 6)] {
            assert_eq!(segments(&scenes, count).len(), expected);
        }
        assert!(segments::<[f32; 1]>(&[], 3).is_empty());
    }
}
