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

/// Where the frames of batches are kept until a device has them.
pub trait FrameMemory: Send + Sync + 'static {
    /// The frames of one batch.
    type Frames: Send;

    /// Memory of so many bytes, all of which `fill` has written.
    ///
    /// # Errors
    /// When there is no such memory.
    fn filled(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Self::Frames, Box<dyn std::error::Error + Send + Sync>>;
}

/// Vectors of bytes.
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

/// One rank's rows of a global batch. `b` rows, `T` frames of `H`×`W` pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<F = Vec<u8>> {
    /// Step within the stage, from 0.
    pub stage_step: u64,
    /// Index of the first row within the global batch.
    pub first_row: usize,
    /// Rows of the global batch over all ranks.
    pub global_batch: usize,
    /// Pixels, (b, T, H, W, 3), red, green, blue.
    pub frames: F,
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

impl<F> Batch<F> {
    /// Rows on this rank.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.frames_shape[0]
    }

    /// The same batch with its frames moved elsewhere.
    ///
    /// # Errors
    /// Those of `place`.
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
            query: self.query,
            target: self.target,
            target_hashes: self.target_hashes,
            query_texts: self.query_texts,
            target_texts: self.target_texts,
            samples: self.samples,
            skipped: self.skipped,
        })
    }
}
