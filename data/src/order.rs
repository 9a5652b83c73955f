//! The global order of samples: a pure function from (seed, stage, index in the stage) to (source, shard, sample).
//!
//! The number of ranks and threads does not enter, so a run resumes at any step and at any world size with the samples it would
//! have had. Three draws, each a keyed bijection, so that nothing is stored and every place is found by itself:
//!
//! 1. *Mixture.* Σ weights draws (weights divided by their greatest common divisor) form a cycle in which each source has exactly
//!    its weight; the places within a cycle are permuted.
//! 2. *Shards.* The n-th draw of a source is place n mod length of epoch ⌊n / length⌋, and each epoch permutes the shards.
//! 3. *Window.* Windows of consecutive samples of the permuted shards are permuted within themselves, so that reading stays near
//!    one place of few files while neighbours in a shard do not share a batch.
//!
//! Bijections are Feistel networks with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use vljepa_recipes::schema::{Mixing, Stage};

use crate::error::DataError;

/// Changes whenever the same recipe would give another order; part of what a checkpoint must agree on.
pub const ORDER_VERSION: u32 = 1;

/// How many epochs' shard permutations are kept: two per source are in use at a time.
const EPOCHS_KEPT: usize = 64;

/// A source and the number of samples of each of its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLengths {
    /// Name in the recipe.
    pub name: String,
    /// Samples of each shard.
    pub shard_lengths: Vec<u64>,
}

/// Where the sample at one place of the order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Index into the sources the order was made of.
    pub source: usize,
    /// How often the source was read through before.
    pub epoch: u64,
    /// This is the n-th draw of its source in the stage, from 0.
    pub draw: u64,
    /// Shard of the source.
    pub shard: usize,
    /// Sample of the shard.
    pub sample: usize,
}

/// The order of one stage.
#[derive(Debug)]
pub struct Order {
    key: u64,
    batch: u64,
    mixing: Mixing,
    window: u64,
    cycle: u64,
    sources: Vec<SourceOrder>,
    epochs: Mutex<BTreeMap<(usize, u64), Arc<Epoch>>>,
}

/// What the order needs of one source.
#[derive(Debug)]
struct SourceOrder {
    key: u64,
    /// Its places within a mixture cycle, before the cycle is permuted.
    slots: Range<u64>,
    shard_lengths: Vec<u64>,
    length: u64,
}

/// The shards of one epoch: the order they are read in, and where each starts.
#[derive(Debug)]
struct Epoch {
    shards: Vec<usize>,
    starts: Vec<u64>,
}

impl Order {
    /// The order of stage number `stage_index`. `sources` may hold more than the stage's mixture names.
    ///
    /// # Errors
    /// [`DataError::Recipe`] when the mixture names a source that is not there, one without samples, or gives no weight at all;
    /// when the batch or the window is 0.
    pub fn new(
        seed: u64,
        stage_index: usize,
        stage: &Stage,
        sources: &[SourceLengths],
        window: usize,
    ) -> Result<Self, DataError> {
        let recipe_error =
            |key: String, reason: &str| Err(DataError::Recipe { key, reason: reason.to_owned() });
        if stage.batch == 0 {
            return recipe_error(format!("stages.{stage_index}.batch"), "must be at least 1");
        }
        if window == 0 {
            return recipe_error("data.shuffle_window".to_owned(), "must be at least 1");
        }
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
                "gives no source any weight",
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
                SourceOrder {
                    // By name, so that another source in the recipe leaves this one's order alone.
                    key: mix(&[key, crate::tokenize::target_hash(&source.name)]),
                    slots: start..cycle,
                    shard_lengths: source.shard_lengths.clone(),
                    length: source.shard_lengths.iter().sum(),
                }
            })
            .collect();
        Ok(Self {
            key,
            batch: to_u64(stage.batch),
            mixing: stage.mixing,
            window: to_u64(window),
            cycle,
            sources,
            epochs: Mutex::default(),
        })
    }

    /// Where the sample at `global_index` of the stage stands: row `global_index % batch` of step `global_index / batch`.
    #[must_use]
    pub fn locate(&self, global_index: u64) -> Location {
        let (source, draw) = match self.mixing {
            Mixing::Sample => self.mixture(global_index),
            Mixing::Batch => {
                let (source, nth_batch) = self.mixture(global_index / self.batch);
                (source, nth_batch * self.batch + global_index % self.batch)
            }
        };
        let order = &self.sources[source];
        let (epoch, place) = (draw / order.length, draw % order.length);
        let first = place / self.window * self.window;
        let size = self.window.min(order.length - first);
        let key = mix(&[order.key, epoch, first]);
        let place = first + permute(key, size, place - first);
        let (shard, sample) = self.epoch(source, epoch).find(place);
        Location { source, epoch, draw, shard, sample }
    }

    /// What stands in for the sample at `global_index` when it, and its replacements number 1 to `attempt` − 1, cannot be used: any
    /// sample of the same source.
    #[must_use]
    pub fn replacement(&self, global_index: u64, attempt: u64) -> Location {
        let instead_of = self.locate(global_index);
        let order = &self.sources[instead_of.source];
        let place = mix(&[order.key, REPLACEMENT, global_index, attempt]) % order.length;
        let (shard, sample) = self.epoch(instead_of.source, instead_of.epoch).find(place);
        Location { shard, sample, ..instead_of }
    }

    /// The source of one draw of the mixture, and how many of its draws came before.
    fn mixture(&self, draw: u64) -> (usize, u64) {
        let (cycle, slot) = (draw / self.cycle, draw % self.cycle);
        let slot = permute(mix(&[self.key, MIXTURE, cycle]), self.cycle, slot);
        // `position` finds one: the slots of the sources partition the cycle.
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
        let shards: Vec<usize> =
            (0..count).map(|place| to_usize(permute(key, count, place))).collect();
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

    /// The shard and the sample at one place of the concatenation. Shards without samples are never found: the last shard that
    /// starts at or before `place` has some.
    fn find(&self, place: u64) -> (usize, usize) {
        let nth = self.starts.partition_point(|&start| start <= place) - 1;
        (self.shards[nth], to_usize(place - self.starts[nth]))
    }
}

/// The rows of a global batch that a rank owns: ⌊rB/R⌋ to ⌊(r+1)B/R⌋.
#[must_use]
pub fn rows(rank: usize, world_size: usize, batch: usize) -> Range<usize> {
    rank * batch / world_size..(rank + 1) * batch / world_size
}

const MIXTURE: u64 = 1;
const SHARDS: u64 = 2;
const REPLACEMENT: u64 = 3;

/// A hash of a few numbers: splitmix64's finaliser over each (Steele, Lea and Flood, 2014).
#[must_use]
pub fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0x243F_6A88_85A3_08D3, |state, &word| {
        let mut z = (state ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).rotate_left(23).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    })
}

/// The place of `place` under the permutation of `0..size` that `key` names.
fn permute(key: u64, size: u64, place: u64) -> u64 {
    debug_assert!(place < size, "place {place} of {size}");
    if size < 2 {
        return place;
    }
    // An even number of bits, so that both halves are equal; at most four times as many values as places.
    let half_bits = (u64::BITS - (size - 1).leading_zeros()).div_ceil(2);
    let mask = (1 << half_bits) - 1;
    let mut value = place;
    loop {
        let (mut left, mut right) = (value >> half_bits, value & mask);
        // Small domains need more rounds than the usual four before every permutation is about as likely.
        for round in 0..8 {
            (left, right) = (right, left ^ (mix(&[key, round, right]) & mask));
        }
        value = left << half_bits | right;
        if value < size {
            return value;
        }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Lossless: `usize` has at most 64 bits on every machine Rust supports.
fn to_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Lossless: only numbers of samples in memory-mapped indexes come here.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
