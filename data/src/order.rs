//! Global order of the samples: a pure function from (seed, stage, index in the stage) to
//! (source, shard, sample).
//!
//! The order does not depend on the number of ranks or threads, so a run that resumes at any step
//! and at any world size gets the same samples as an uninterrupted run. Every position can be
//! computed by itself, without stored state:
//!
//! 1. *Lanes.* The rows of a batch are divided into L lanes of B/L consecutive rows. A rank owns
//!    consecutive rows, so it reads few lanes.
//! 2. *Mixture.* Weights are divided by their greatest common divisor. In each lane a cycle has
//!    Σ weights draws, permuted, and each source gets exactly its weight of them. Lane l begins its
//!    cycles B·l/L draws later than lane 0, so the batch as a whole has the weights too.
//! 3. *Shards.* Each epoch of a source permutes its shards and cuts their samples into L stretches
//!    of equal length. Lane l reads stretch l from its beginning to its end.
//! 4. *Window.* A stretch is divided into windows of consecutive samples, and the samples are
//!    permuted within each window.
//!
//! So a batch has samples of about L shards, and a rank reads few shards sequentially: with 24,576
//! rows, 1,536 lanes and 192 ranks, 8 lanes of 16 rows. A source whose stretches would be shorter
//! than a window has fewer stretches, and several lanes take turns in each; a small source has one.
//!
//! The permutations are Feistel networks with cycle walking (Black and Rogaway, "Ciphers with
//! arbitrary finite domains", 2002).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use vljepa_recipes::schema::{Mixing, Stage};

use crate::error::DataError;

/// Version of the order. It changes whenever the same recipe gives another order, and a checkpoint
/// must have the same version.
pub const ORDER_VERSION: u32 = 2;

/// Number of shard permutations, one per source and epoch, that are kept in memory. At most two per
/// source are in use at a time.
const EPOCHS_KEPT: usize = 64;

/// Name of a source, and the number of samples in each of its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLengths {
    /// Name of the source in the recipe.
    pub name: String,
    /// Number of samples in each shard.
    pub shard_lengths: Vec<u64>,
}

/// Keys of the recipe that say how samples are shuffled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    /// Largest number of lanes (`data.lanes`). Their number is the largest divisor of the batch
    /// that is not above it.
    pub lanes: usize,
    /// Number of consecutive samples of a lane that are permuted (`data.shuffle_window`).
    pub window: usize,
}

/// Source, shard and sample at one position of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Index into the sources that were passed to [`Order::new`].
    pub source: usize,
    /// Number of complete passes over the lane's stretch of the source before this draw.
    pub epoch: u64,
    /// Number of this draw, which no other draw of the source in the stage has.
    pub draw: u64,
    /// Index of the shard in the source.
    pub shard: usize,
    /// Index of the sample in the shard.
    pub sample: usize,
}

/// Order of the samples in one stage.
#[derive(Debug)]
pub struct Order {
    key: u64,
    batch: u64,
    lanes: u64,
    mixing: Mixing,
    window: u64,
    cycle: u64,
    sources: Vec<SourceOrder>,
    epochs: Mutex<BTreeMap<(usize, u64), Arc<Epoch>>>,
}

/// Keys and lengths of one source.
#[derive(Debug)]
struct SourceOrder {
    key: u64,
    /// Draws of this source within a mixture cycle, before the cycle is permuted.
    slots: Range<u64>,
    shard_lengths: Vec<u64>,
    length: u64,
    /// Number of stretches of an epoch. It divides the number of lanes.
    stretches: u64,
}

/// Shards of one epoch in the order in which they are read, and the position of the first sample of
/// each.
#[derive(Debug)]
struct Epoch {
    shards: Vec<usize>,
    starts: Vec<u64>,
}

impl Order {
    /// Creates the order of stage number `stage_index`. `sources` may contain sources that are not
    /// in the stage's mixture.
    ///
    /// # Errors
    /// [`DataError::Recipe`] if the mixture names a source that is not in `sources` or has no
    /// samples, if all weights are 0, or if the batch or the window is 0.
    pub fn new(
        seed: u64,
        stage_index: usize,
        stage: &Stage,
        sources: &[SourceLengths],
        Shuffle { lanes, window }: Shuffle,
    ) -> Result<Self, DataError> {
        let recipe_error =
            |key: String, reason: &str| Err(DataError::Recipe { key, reason: reason.to_owned() });
        if stage.batch == 0 {
            return recipe_error(format!("stages.{stage_index}.batch"), "must be at least 1");
        }
        if window == 0 {
            return recipe_error("data.shuffle_window".to_owned(), "must be at least 1");
        }
        if lanes == 0 {
            return recipe_error("data.lanes".to_owned(), "must be at least 1");
        }
        let lanes = largest_divisor(to_u64(stage.batch), to_u64(lanes));
        for (name, &weight) in &stage.mixture {
            let key = format!("stages.{stage_index}.mixture.{name}");
            let source = sources.iter().find(|source| source.name == *name);
            let Some(source) = source else {
                return recipe_error(key, "is not among data.sources");
            };
            if weight > 0 && source.shard_lengths.iter().sum::<u64>() == 0 {
                return recipe_error(key, "has no samples");
            }
        }
        let divisor =
            stage.mixture.values().copied().map(u64::from).fold(0, greatest_common_divisor);
        if divisor == 0 {
            return recipe_error(
                format!("stages.{stage_index}.mixture"),
                "gives every source the weight 0",
            );
        }
        let key = mix(&[seed, to_u64(stage_index), u64::from(ORDER_VERSION)]);
        let mut cycle = 0;
        let sources = sources
            .iter()
            .map(|source| {
                let weight = stage.mixture.get(&source.name).copied().unwrap_or(0);
                let start = cycle;
                cycle += u64::from(weight) / divisor;
                let length: u64 = source.shard_lengths.iter().sum();
                SourceOrder {
                    // Keyed by name, so that adding a source to the recipe does not change this
                    // source's order.
                    key: mix(&[key, crate::tokenize::target_hash(&source.name)]),
                    slots: start..cycle,
                    shard_lengths: source.shard_lengths.clone(),
                    length,
                    stretches: largest_divisor(lanes, length / to_u64(window)),
                }
            })
            .collect();
        Ok(Self {
            key,
            batch: to_u64(stage.batch),
            lanes,
            mixing: stage.mixing,
            window: to_u64(window),
            cycle,
            sources,
            epochs: Mutex::default(),
        })
    }

    /// Location of the sample at `global_index` of the stage. It is row `global_index % batch` of
    /// step `global_index / batch`.
    #[must_use]
    pub fn locate(&self, global_index: u64) -> Location {
        let (step, row) = (global_index / self.batch, global_index % self.batch);
        let rows = self.batch / self.lanes;
        let (lane, row) = (row / rows, row % rows);
        let (source, nth) = match self.mixing {
            Mixing::Sample => self.mixture(step * rows + row, lane * rows),
            Mixing::Batch => {
                let (source, nth_batch) = self.mixture(step, 0);
                (source, nth_batch * rows + row)
            }
        };
        let order = &self.sources[source];
        // Lanes that take turns in a stretch.
        let turns = self.lanes / order.stretches;
        let (stretch, turn) = (lane / turns, lane % turns);
        let start_of = |stretch: u64| stretch * order.length / order.stretches;
        let (start, end) = (start_of(stretch), start_of(stretch + 1));
        let read = nth * turns + turn;
        let (epoch, position) = (read / (end - start), read % (end - start));
        let first = start + position / self.window * self.window;
        let size = self.window.min(end - first);
        let key = mix(&[order.key, WINDOW, epoch, first]);
        let position = first + permute(key, size, position % self.window);
        let (shard, sample) = self.epoch(source, epoch).find(position);
        Location { source, epoch, draw: nth * self.lanes + lane, shard, sample }
    }

    /// Location of replacement number `attempt` (from 1) for the sample at `global_index`, for when
    /// that sample and its earlier replacements cannot be used. It is a random sample of the same
    /// source.
    #[must_use]
    pub fn replacement(&self, global_index: u64, attempt: u64) -> Location {
        let instead_of = self.locate(global_index);
        let order = &self.sources[instead_of.source];
        let position = mix(&[order.key, REPLACEMENT, global_index, attempt]) % order.length;
        let (shard, sample) = self.epoch(instead_of.source, instead_of.epoch).find(position);
        Location { shard, sample, ..instead_of }
    }

    /// Source of draw number `draw` of a mixture whose cycles begin `offset` draws late, and the
    /// number of this draw among those of the source.
    fn mixture(&self, draw: u64, offset: u64) -> (usize, u64) {
        let (cycle, slot) = (draw / self.cycle, (draw + offset) % self.cycle);
        let slot = permute(mix(&[self.key, MIXTURE, cycle]), self.cycle, slot);
        // `position` always finds a source, because the slots of the sources partition the cycle.
        let source = self.sources.iter().position(|source| source.slots.contains(&slot));
        let source = source.unwrap_or(0);
        let slots = &self.sources[source].slots;
        (source, cycle * (slots.end - slots.start) + slot - slots.start)
    }

    fn epoch(&self, source: usize, epoch: u64) -> Arc<Epoch> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = epochs.get(&(source, epoch)) {
            return Arc::clone(known);
        }
        if epochs.len() >= EPOCHS_KEPT {
            epochs.clear();
        }
        let made = Arc::new(Epoch::new(&self.sources[source], epoch));
        epochs.insert((source, epoch), Arc::clone(&made));
        made
    }
}

impl Epoch {
    fn new(source: &SourceOrder, epoch: u64) -> Self {
        let count = to_u64(source.shard_lengths.len());
        let key = mix(&[source.key, SHARDS, epoch]);
        let shards: Vec<usize> = (0..count).map(|nth| to_usize(permute(key, count, nth))).collect();
        let starts = shards
            .iter()
            .scan(0, |next, &shard| {
                let start = *next;
                *next += source.shard_lengths[shard];
                Some(start)
            })
            .collect();
        Self { shards, starts }
    }

    /// Shard, and sample in that shard, at `position` of the epoch. Never finds an empty shard: of
    /// the shards that start at or before `position`, the last one has samples.
    fn find(&self, position: u64) -> (usize, usize) {
        let nth = self.starts.partition_point(|&start| start <= position) - 1;
        (self.shards[nth], to_usize(position - self.starts[nth]))
    }
}

// Second word of a key. It names the choice that the key is for.
const MIXTURE: u64 = 1;
const SHARDS: u64 = 2;
const REPLACEMENT: u64 = 3;
const WINDOW: u64 = 4;

/// Hash of a few numbers, with splitmix64's finaliser applied to each (Steele, Lea and Flood,
/// 2014).
#[must_use]
pub fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0x243F_6A88_85A3_08D3, |state, &word| {
        let mut z = (state ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).rotate_left(23).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    })
}

/// Image of `index` under the permutation of `0..size` that `key` selects.
fn permute(key: u64, size: u64, index: u64) -> u64 {
    debug_assert!(index < size, "index {index} of {size}");
    if size < 2 {
        return index;
    }
    // The number of bits is even, so that both halves have the same size. There are at most four
    // times as many values as indices.
    let half_bits = (u64::BITS - (size - 1).leading_zeros()).div_ceil(2);
    let mask = (1 << half_bits) - 1;
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half_bits, value & mask);
        // Small domains need more than the usual four rounds before all permutations are about
        // equally likely.
        for round in 0..8 {
            (left, right) = (right, left ^ (mix(&[key, round, right]) & mask));
        }
        value = left << half_bits | right;
        if value < size {
            return value;
        }
    }
}

/// Largest divisor of `number` that is not above `limit`, or 1.
fn largest_divisor(number: u64, limit: u64) -> u64 {
    (1..=limit.min(number)).rev().find(|divisor| number.is_multiple_of(*divisor)).unwrap_or(1)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Lossless: `usize` has at most 64 bits on every machine Rust supports.
fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Lossless on 64-bit machines. The values are numbers of shards and samples, which fit in memory.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
