//! Coordination of a checkpoint: ranks report their parts, and orders to ranks follow. Pure.

use vljepa_recipes::protocol::{CheckpointOrder, Part};

/// State of the checkpoint that is being written.
#[derive(Debug)]
pub(super) struct Checkpoints {
    world_size: usize,
    /// Step of the checkpoint and the reported parts by rank. There is at most one: no rank begins
    /// the next checkpoint before this one is settled.
    current: Option<(u64, Vec<Option<Part>>)>,
}

/// Rank and the order for it.
pub(super) type Addressed = (usize, CheckpointOrder);

impl Checkpoints {
    pub(super) fn new(world_size: usize) -> Self {
        Self { world_size, current: None }
    }

    /// Records a rank's part. The last part returns an order for rank 0: publish the checkpoint, or
    /// drop it if a part failed.
    pub(super) fn part(&mut self, rank: usize, step: u64, part: Part) -> Option<Addressed> {
        let known = self.current.take().filter(|(of, _)| *of == step);
        let (_, mut parts) = known.unwrap_or_else(|| (step, vec![None; self.world_size]));
        parts[rank] = Some(part);
        if parts.iter().any(Option::is_none) {
            self.current = Some((step, parts));
            return None;
        }
        let (mut files, mut failed) = (Vec::new(), None);
        for part in parts.into_iter().flatten() {
            match part {
                Part::Written { file } => files.push(file),
                Part::Failed { error } => failed = failed.or(Some(error)),
            }
        }
        let order = match failed {
            Some(error) => CheckpointOrder::Drop { step, error },
            None => CheckpointOrder::Publish { step, files },
        };
        Some((0, order))
    }

    /// Orders that tell the other ranks that rank 0 has published a step's checkpoint, or dropped
    /// it because of `error`.
    pub(super) fn settled(
        &self,
        step: u64,
        error: Option<&str>,
    ) -> impl Iterator<Item = Addressed> + use<> {
        let order = CheckpointOrder::Settled { step, error: error.map(str::to_owned) };
        (1..self.world_size).map(move |rank| (rank, order.clone()))
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::{CheckpointOrder, FileEntry, Part};

    use super::Checkpoints;

    fn file(rank: usize) -> FileEntry {
        let name = format!("rank-{rank:04}.safetensors");
        FileEntry { name, bytes: 8, blake3: "0".to_owned(), range: rank..rank + 1 }
    }

    fn written(rank: usize) -> Part {
        Part::Written { file: file(rank) }
    }

    #[test]
    fn rank_0_publishes_when_the_last_part_is_there_whoever_comes_last() {
        let mut checkpoints = Checkpoints::new(3);
        assert_eq!(checkpoints.part(2, 8, written(2)), None);
        assert_eq!(checkpoints.part(0, 8, written(0)), None);
        let files = vec![file(0), file(1), file(2)];
        let publish = CheckpointOrder::Publish { step: 8, files };
        assert_eq!(checkpoints.part(1, 8, written(1)), Some((0, publish)));
        let told: Vec<_> = checkpoints.settled(8, None).collect();
        let settled = CheckpointOrder::Settled { step: 8, error: None };
        assert_eq!(told, [(1, settled.clone()), (2, settled)]);
    }

    #[test]
    fn one_failed_part_drops_the_checkpoint_and_the_next_one_starts_anew() {
        let mut checkpoints = Checkpoints::new(2);
        let error = "rank 1: no space".to_owned();
        assert_eq!(checkpoints.part(1, 8, Part::Failed { error: error.clone() }), None);
        let drop = CheckpointOrder::Drop { step: 8, error: error.clone() };
        assert_eq!(checkpoints.part(0, 8, written(0)), Some((0, drop)));
        let told: Vec<_> = checkpoints.settled(8, Some(&error)).collect();
        assert_eq!(told, [(1, CheckpointOrder::Settled { step: 8, error: Some(error) })]);
        assert_eq!(checkpoints.part(0, 12, written(0)), None);
        let order = checkpoints.part(1, 12, written(1));
        assert!(matches!(order, Some((0, CheckpointOrder::Publish { step: 12, .. }))), "{order:?}");
    }

    #[test]
    fn a_single_rank_has_no_other_ranks_to_tell() {
        let mut checkpoints = Checkpoints::new(1);
        let order = checkpoints.part(0, 4, written(0));
        assert!(matches!(order, Some((0, CheckpointOrder::Publish { .. }))));
        assert_eq!(checkpoints.settled(4, None).count(), 0);
    }
}
