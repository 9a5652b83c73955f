//! One rank's share of a global batch, in host memory.

/// Rows of different lengths, one after the other: row `i` is `ids[cu_seqlens[i]..cu_seqlens[i + 1]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ragged {
    /// The tokens of all rows.
    pub ids: Vec<i32>,
    /// Where each row starts; the last element is the number of tokens. One longer than there are rows.
    pub cu_seqlens: Vec<i32>,
}

impl Ragged {
    /// No rows.
    #[must_use]
    pub fn new() -> Self {
        Self { ids: Vec::new(), cu_seqlens: vec![0] }
    }

    /// Appends a row.
    ///
    /// # Panics
    /// When all rows together have more than `i32::MAX` tokens, which no batch that fits a machine has.
    pub fn push(&mut self, row: &[i32]) {
        self.ids.extend_from_slice(row);
        self.cu_seqlens.push(i32::try_from(self.ids.len()).expect("a batch has fewer tokens"));
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }
}

/// Where a row of a batch comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRef {
    /// Name of the source in the recipe.
    pub source: String,
    /// Path of the shard.
    pub shard: String,
    /// The sample's key in the shard.
    pub key: String,
}

/// A sample that could not be used; another one stands in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Name of the source in the recipe.
    pub source: String,
    /// Path of the shard.
    pub shard: String,
    /// The sample's key in the shard.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One rank's rows of a global batch. `b` rows, `T` frames of `H`×`W` pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Step within the stage, from 0.
    pub stage_step: u64,
    /// Index of the first row within the global batch.
    pub first_row: usize,
    /// Rows of the global batch over all ranks.
    pub global_batch: usize,
    /// Pixels, (b, T, H, W, 3), red, green, blue.
    pub frames: Vec<u8>,
    /// `[b, T, H, W, 3]`.
    pub frames_shape: [usize; 5],
    /// Tokens of the queries; rows may be empty.
    pub query: Ragged,
    /// Tokens of the targets; no row is empty.
    pub target: Ragged,
    /// [`crate::target_hash`] of each target text: equal texts have equal hashes.
    pub target_hashes: Vec<u64>,
    /// The queries.
    pub query_texts: Vec<String>,
    /// The targets.
    pub target_texts: Vec<String>,
    /// Where each row comes from.
    pub samples: Vec<SampleRef>,
    /// Samples that could not be used on the way to these rows.
    pub skipped: Vec<Skipped>,
}

impl Batch {
    /// Rows on this rank.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.frames_shape[0]
    }
}
