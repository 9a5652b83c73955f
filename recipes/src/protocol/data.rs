//! What a rank's reader threads did in a logging interval.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::schema::Visual;

/// Part of the work on a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataPart {
    /// Reading its bytes from the shard, and parsing its texts.
    Read,
    /// Decoding its picture or clip.
    Decode,
    /// Cropping and resizing its frames.
    Resize,
    /// Turning its texts into tokens.
    Tokenise,
}

impl DataPart {
    /// All parts, in the order of their variants.
    pub const ALL: [Self; 4] = [Self::Read, Self::Decode, Self::Resize, Self::Tokenise];

    /// Name of the part in messages and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Decode => "decode",
            Self::Resize => "resize",
            Self::Tokenise => "tokenise",
        }
    }
}

/// Work of all reader threads on the samples of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindWork {
    /// Number of samples that were read and decoded. Samples from the cache do not count.
    pub samples: u64,
    /// Bytes of the pictures, clips and texts that were read.
    pub bytes: u64,
    /// Seconds of each part, summed over the threads.
    pub seconds: BTreeMap<DataPart, f64>,
}

impl KindWork {
    /// Seconds of all parts, summed over the threads.
    #[must_use]
    pub fn total_s(&self) -> f64 {
        self.seconds.values().sum()
    }

    /// Part that took longest, and its share of the work. `None` if there was no work.
    #[must_use]
    pub fn longest(&self) -> Option<(DataPart, f64)> {
        let (part, seconds) = self.seconds.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
        let total = self.total_s();
        (total > 0.0).then(|| (*part, seconds / total))
    }
}

/// State of a rank's reader threads at the end of a logging interval, and their work in it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataWork {
    /// Duration of the interval in seconds.
    pub seconds: f64,
    /// Number of batches that are ready. 0 means that the next step waits.
    pub ready_batches: usize,
    /// Largest number of batches that are prepared ahead (`data.prefetch_batches`).
    pub prefetch_batches: usize,
    /// Number of reader threads.
    pub threads: usize,
    /// Work in the interval, by kind of the sources.
    pub kinds: BTreeMap<Visual, KindWork>,
}

impl DataWork {
    /// Kind that took most of the threads' time, its longest part, and the share of this part in
    /// the work on the kind. `None` if there was no work.
    #[must_use]
    pub fn limit(&self) -> Option<(Visual, DataPart, f64)> {
        let by_time = |a: &(&Visual, &KindWork), b: &(&Visual, &KindWork)| {
            a.1.total_s().total_cmp(&b.1.total_s())
        };
        let (kind, work) = self.kinds.iter().max_by(by_time)?;
        let (part, share) = work.longest()?;
        Some((*kind, part, share))
    }

    /// Bytes that were read per second of the interval.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "the bytes of an interval are below 2^53")]
    pub fn bytes_per_s(&self) -> f64 {
        let bytes: u64 = self.kinds.values().map(|kind| kind.bytes).sum();
        bytes as f64 / self.seconds.max(1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::{DataPart, DataWork, KindWork};
    use crate::schema::Visual;

    #[test]
    fn the_limit_is_the_longest_part_of_the_kind_that_takes_most_time() {
        let kind = |seconds: [f64; 4]| KindWork {
            seconds: DataPart::ALL.into_iter().zip(seconds).collect(),
            ..KindWork::default()
        };
        let mut work = DataWork::default();
        assert_eq!(work.limit(), None);
        work.kinds.insert(Visual::Image, kind([9.0, 0.5, 0.25, 0.25]));
        work.kinds.insert(Visual::Video, kind([2.0, 12.0, 1.0, 1.0]));
        assert_eq!(work.limit(), Some((Visual::Video, DataPart::Decode, 0.75)));
        work.kinds.insert(Visual::Image, kind([90.0, 5.0, 2.5, 2.5]));
        assert_eq!(work.limit(), Some((Visual::Image, DataPart::Read, 0.9)));
        work.kinds.clear();
        work.kinds.insert(Visual::Image, KindWork::default());
        assert_eq!(work.limit(), None);
    }
}
