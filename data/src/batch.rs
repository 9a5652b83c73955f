//! A rank's rows of a global batch, in host memory.

use std::sync::Arc;

/// Rows of different lengths, packed without padding: row `i` is
/// `ids[cu_seqlens[i]..cu_seqlens[i + 1]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ragged {
    /// Tokens of all rows, one row after the other.
    pub ids: Vec<i32>,
    /// Start of each row in `ids`, followed by the number of all tokens. One element longer than
    /// the number of rows.
    pub cu_seqlens: Vec<i32>,
}

impl Ragged {
    /// Creates a value without rows.
    #[must_use]
    pub fn new() -> Self {
        Self { ids: Vec::new(), cu_seqlens: vec![0] }
    }

    /// Appends a row.
    ///
    /// # Panics
    /// If all rows together have more than `i32::MAX` tokens, which no batch that fits in memory
    /// has.
    pub fn push(&mut self, row: &[i32]) {
        self.ids.extend_from_slice(row);
        self.cu_seqlens.push(i32::try_from(self.ids.len()).expect("a batch has fewer tokens"));
    }

    /// Tokens of a row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[i32] {
        let at = |i: usize| usize::try_from(self.cu_seqlens[i]).unwrap_or_default();
        &self.ids[at(row)..at(row + 1)]
    }

    /// Number of rows pushed so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }
}

/// Sample from which a row of a batch was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRef {
    /// Name of the source in the recipe.
    pub source: String,
    /// Path of the shard.
    pub shard: String,
    /// Key of the sample in the shard.
    pub key: String,
}

/// Sample that could not be used and was replaced by another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Name of the source in the recipe.
    pub source: String,
    /// Path of the shard.
    pub shard: String,
    /// Key of the sample in the shard.
    pub key: String,
    /// Why the sample could not be used.
    pub reason: String,
}

/// Allocator of the memory that holds the frames of a batch until they are copied to a device.
pub trait FrameMemory: Send + Sync + 'static {
    /// Memory with the frames of one batch.
    type Frames: Send;

    /// Allocates `bytes` bytes and calls `fill`, which writes all of them.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    fn filled(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Self::Frames, Box<dyn std::error::Error + Send + Sync>>;
}

/// [`FrameMemory`] that allocates vectors of bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vectors;

impl FrameMemory for Vectors {
    type Frames = Vec<u8>;

    fn filled(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Self::Frames, Box<dyn std::error::Error + Send + Sync>> {
        let mut frames = vec![0; bytes];
        fill(&mut frames);
        Ok(frames)
    }
}

/// A rank's rows of a global batch: b rows of T frames of H×W pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<F = Vec<u8>> {
    /// Step within the stage, from 0.
    pub stage_step: u64,
    /// Index of this rank's first row in the global batch.
    pub first_row: usize,
    /// Number of rows of the global batch, over all ranks.
    pub global_batch: usize,
    /// Pixels, (b, T, H, W, 3), in the order red, green, blue. T is 0 in a stage that reads only
    /// texts.
    pub frames: F,
    /// Shape of `frames`, `[b, T, H, W, 3]`.
    pub frames_shape: [usize; 5],
    /// Tokens before the visual tokens of every row. Only those of a VLM's template.
    pub before: Arc<[i32]>,
    /// Tokens of the queries. Rows may be empty. Those of a VLM have its template.
    pub query: Ragged,
    /// Tokens of the targets as the Y-encoder reads them. No row is empty. Without a Y-encoder
    /// there are no rows.
    pub target: Ragged,
    /// Tokens of the target texts as the model writes them: as a Y-decoder does, each with its end,
    /// or as a VLM does, in its template. A model that writes no texts has no rows.
    pub output: Ragged,
    /// [`crate::target_hash`] of each target text. Equal texts have equal hashes.
    pub target_hashes: Vec<u64>,
    /// Query text of each row.
    pub query_texts: Vec<String>,
    /// Target text of each row.
    pub target_texts: Vec<String>,
    /// Sample of each row.
    pub samples: Vec<SampleRef>,
    /// Samples that could not be used and were replaced in these rows.
    pub skipped: Vec<Skipped>,
}

impl<F> Batch<F> {
    /// Number of rows on this rank, b.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.frames_shape[0]
    }

    /// Replaces the frames with the result of `place`, for example a copy on a device. `place`
    /// receives the frames and their shape.
    ///
    /// # Errors
    /// If `place` fails.
    pub fn moved<G, E>(
        self,
        place: impl FnOnce(F, [usize; 5]) -> Result<G, E>,
    ) -> Result<Batch<G>, E> {
        Ok(Batch {
            frames: place(self.frames, self.frames_shape)?,
            stage_step: self.stage_step,
            first_row: self.first_row,
            global_batch: self.global_batch,
            frames_shape: self.frames_shape,
            before: self.before,
            query: self.query,
            target: self.target,
            output: self.output,
            target_hashes: self.target_hashes,
            query_texts: self.query_texts,
            target_texts: self.target_texts,
            samples: self.samples,
            skipped: self.skipped,
        })
    }
}
