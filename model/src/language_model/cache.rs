//! Keys and values of the tokens that a language model has read, by layer, and the rows that each
//! sequence uses. Sequences with a common beginning share its rows.

use vljepa_kernels::{KernelError, Lengths, Packed, Result, Tensor, View, Write};

use super::LanguageModel;
use crate::layers::{Extension, Pool};
use crate::{Context, Parameters};

/// Fewest rows of a pool, so that short texts never make it grow.
pub(super) const FEWEST_ROWS: usize = 256;

/// Keys and values of sequences that a language model has read.
#[derive(Debug)]
pub struct Cache {
    /// One pool per layer. They have the same rows.
    pools: Vec<Pool>,
    /// Rows of each pool.
    pub(super) rows: usize,
    /// Rows that no sequence uses. The lowest is the last.
    pub(super) free: Vec<i32>,
    sequences: Vec<Cached>,
    /// Result of the attention to the memory in each layer, (m, d). Empty without a memory.
    memories: Vec<Tensor>,
}

/// A sequence that the model has read.
#[derive(Debug, Clone)]
struct Cached {
    /// Row of each token in the pools.
    rows: Vec<i32>,
    /// Row of the memory that the sequence reads.
    memory: i32,
}

/// Sequences of a cache at some time.
pub(super) struct Snapshot(Vec<Cached>);

impl Cache {
    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Replaces the sequences by copies of those that `parents` names. A sequence may be named
    /// several times, or not at all. No key or value is copied.
    ///
    /// # Panics
    /// If a parent is not below the number of sequences.
    pub fn select(&mut self, parents: &[usize]) {
        self.sequences = parents.iter().map(|&parent| self.sequences[parent].clone()).collect();
    }

    /// The sequences as they are, for [`Self::restore`].
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot(self.sequences.clone())
    }

    /// Makes the sequences those of a snapshot of this cache again. Rows of later tokens become
    /// free.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        self.sequences.clone_from(&snapshot.0);
        // `reserve` finds the rows that no sequence uses.
        self.free.clear();
    }

    /// Number of tokens of each sequence: the position of its next token.
    fn starts(&self) -> Result<Vec<i32>> {
        let len = |sequence: &Cached| i32::try_from(sequence.rows.len()).map_err(|_| too_many());
        self.sequences.iter().map(len).collect()
    }

    /// Makes at least `wanted` rows free.
    fn reserve(&mut self, cx: Context<'_>, model: &LanguageModel, wanted: usize) -> Result<()> {
        if self.free.len() >= wanted {
            return Ok(());
        }
        let mut used = vec![false; self.rows];
        for row in self.sequences.iter().flat_map(|sequence| &sequence.rows) {
            used[row.unsigned_abs() as usize] = true;
        }
        let free = used.iter().filter(|used| !**used).count();
        if free < wanted {
            let needed = self.rows - free + wanted;
            self.rows = needed.next_power_of_two().max(FEWEST_ROWS);
            i32::try_from(self.rows).map_err(|_| too_many())?;
            for (pool, block) in self.pools.iter_mut().zip(&model.text.stack.blocks) {
                pool.grow(cx, &block.attention, self.rows)?;
            }
            used.resize(self.rows, false);
        }
        let rows = (0..).zip(used).filter(|(_, used)| !used);
        self.free = rows.map(|(row, _)| row).collect();
        self.free.reverse();
        Ok(())
    }
}

fn too_many() -> KernelError {
    KernelError::Value {
        operation: "language_model::extend",
        what: "cached tokens",
        found: "2^31 or more".to_owned(),
        needed: "fewer than 2^31: generate fewer texts at a time".to_owned(),
    }
}

impl LanguageModel {
    /// A cache of `sequences` empty sequences. With a `memory` (sequences, d), sequence i attends
    /// to its row i.
    ///
    /// # Errors
    /// If the memory has another shape or memory runs out.
    pub fn cache(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        sequences: usize,
        memory: Option<View<'_>>,
    ) -> Result<Cache> {
        let mut memories = Vec::with_capacity(self.memory.len());
        if let Some(memory) = memory {
            for [value, output] in &self.memory {
                let mut values = cx.take(&[sequences, value.outputs()])?;
                value.forward(cx, parameters, memory, Write::Set, values.view_mut())?;
                let mut results = cx.take(values.shape())?;
                output.forward(cx, parameters, values.view(), Write::Set, results.view_mut())?;
                memories.push(results);
            }
        }
        if memories.len() != self.memory.len() {
            return Err(KernelError::Value {
                operation: "language_model::cache",
                what: "memory",
                found: "none".to_owned(),
                needed: "the layers of this model attend to a memory".to_owned(),
            });
        }
        let blocks = &self.text.stack.blocks;
        let pools = blocks.iter().map(|b| Pool::new(cx, &b.attention, 0)).collect::<Result<_>>()?;
        let empty = |memory| Cached { rows: Vec::new(), memory };
        let sequences = (0..).take(sequences).map(empty).collect();
        Ok(Cache { pools, rows: 0, free: Vec::new(), sequences, memories })
    }

    /// Hidden states (n, d) after the final norm of new tokens, which the cache adds to its
    /// sequences. x (n, d) is their input, and row i of `lengths` holds the new tokens of sequence
    /// i.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn extend(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        cache: &mut Cache,
        mut x: Tensor,
        lengths: Lengths,
    ) -> Result<Tensor> {
        if lengths.rows() != cache.sequences.len() || lengths.tokens() != x.shape()[0] {
            return Err(KernelError::Shape {
                operation: "language_model::extend",
                what: "lengths",
                found: format!("{} sequences of {} tokens", lengths.rows(), lengths.tokens()),
                needed: format!("{} sequences of {} tokens", cache.sequences.len(), x.shape()[0]),
            });
        }
        let (extension, memory_rows) = self.add_tokens(cx, cache, lengths)?;
        for (i, block) in self.text.stack.blocks.iter().enumerate() {
            let memory = cache.memories.get(i).map(|of| [of.view(), memory_rows.view()]);
            let pool = &mut cache.pools[i];
            x = block.forward_cached(cx, parameters, x, &extension, pool, memory)?;
        }
        Ok(self.text.stack.norm.forward(cx, parameters, x.view())?.0)
    }

    /// Input (n, d) of the first layer for new tokens, i32 (n), of the sequences of a cache: one
    /// for each, at its next position.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, or memory runs out.
    pub fn next_input(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        cache: &Cache,
        tokens: &Packed,
    ) -> Result<Tensor> {
        let lengths = Lengths::new(cx.arena.device(), tokens.lengths.host().to_vec())?;
        let sequence = self.text.continued(lengths, &cache.starts()?)?;
        self.text.input(cx, parameters, tokens.ids(), &sequence)
    }

    /// Gives rows to new tokens. Returns what layers need to know about them, and the row of the
    /// memory for each.
    fn add_tokens(
        &self,
        cx: Context<'_>,
        cache: &mut Cache,
        lengths: Lengths,
    ) -> Result<(Extension, Tensor)> {
        let (device, n) = (cx.arena.device(), lengths.tokens());
        cache.reserve(cx, self, n)?;
        let starts = cache.starts()?;
        let fresh = starts.iter().all(|start| *start == 0);
        let (mut new, mut memory) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let (mut seen, mut ends) = (Vec::new(), vec![0]);
        for (i, sequence) in cache.sequences.iter_mut().enumerate() {
            for _ in lengths.range(i) {
                let Some(row) = cache.free.pop() else { unreachable!("rows were reserved") };
                new.push(row);
                memory.push(sequence.memory);
                sequence.rows.push(row);
                if !fresh {
                    seen.extend(&sequence.rows);
                    ends.push(i32::try_from(seen.len()).map_err(|_| too_many())?);
                }
            }
        }
        let seen = if fresh { None } else { Some(Packed::new(device, seen, ends)?) };
        let sequence = self.text.continued(lengths, &starts)?;
        let rows = Tensor::from_i32(new, &[n]).on(device)?;
        let memory = Tensor::from_i32(memory, &[n]).on(device)?;
        Ok((Extension { sequence, rows, seen }, memory))
    }
}
