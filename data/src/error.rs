//! What can go wrong with data, with the shard and the sample in the text.

use std::path::PathBuf;

/// Errors of this crate. Each says where it happened and, where there is something to do, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried: `read`, `open`, `list`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A `shards` entry names nothing.
    #[error(
        "no shard found for `{shards}`: give a folder that holds *.tar, one tar, or a range such as \
         clips-{{000000..000127}}.tar; relative paths start at the working directory"
    )]
    NoShards {
        /// The entry.
        shards: String,
    },
    /// A brace range that cannot be read, or that is too long.
    #[error("cannot expand `{shards}`: {reason}")]
    BadRange {
        /// The entry.
        shards: String,
        /// Why not.
        reason: String,
    },
    /// The shards hold no complete sample.
    #[error(
        "`{shards}` holds no complete sample in its {shard_count} shards (`vljepa-shards inspect` shows why)"
    )]
    NoSamples {
        /// The entry.
        shards: String,
        /// How many shards were looked at.
        shard_count: usize,
    },
    /// A file that is not a tar.
    #[error("{path} is not a tar archive: {reason}", path = path.display())]
    NotATar {
        /// The file.
        path: PathBuf,
        /// What it is instead, and what to do.
        reason: String,
    },
    /// One sample cannot be used.
    #[error("sample `{key}` of {shard}: {reason}")]
    BadSample {
        /// The shard's path.
        shard: String,
        /// The sample's key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More samples in a row could not be used than the recipe allows.
    #[error(
        "{count} samples of source `{source_name}` in a row could not be used, the recipe allows {allowed} \
         (data.bad_samples.max_consecutive); the last one was `{key}` of {shard}: {reason}"
    )]
    TooManyInARow {
        /// The source.
        source_name: String,
        /// Bad samples in a row.
        count: u64,
        /// The recipe's limit.
        allowed: u32,
        /// The last one's shard.
        shard: String,
        /// The last one's key.
        key: String,
        /// The last one's reason.
        reason: String,
    },
    /// The recipe asks for what the data cannot give.
    #[error("{key}: {reason}")]
    Recipe {
        /// The recipe's key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer file that cannot be used.
    #[error("cannot use tokenizer {path}: {reason}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A reading thread could not be started.
    #[error("cannot start a reading thread: {0}")]
    Thread(std::io::Error),
    /// There is no memory for the frames of a batch.
    #[error("no memory for the frames of a batch: {0}")]
    Memory(Box<dyn std::error::Error + Send + Sync>),
    /// All batches of the stage were taken, or the stream has failed before.
    #[error("the stream has ended: {0}")]
    Ended(String),
    /// The synthetic set cannot be written.
    #[error("cannot write the synthetic set: {0}")]
    Synthetic(String),
}

impl DataError {
    /// An [`DataError::Io`] about `path`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
