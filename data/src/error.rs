//! Error type of this crate. Messages name the shard and the sample.

use std::path::PathBuf;

/// Errors of this crate. Each message says where the error happened and, if possible, what to do
/// about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {path}: {cause}", path = path.display())]
    Io {
        /// Operation that failed, such as `read` or `open`.
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// Error from the operating system.
        cause: std::io::Error,
    },
    /// A `shards` entry matches no file.
    #[error(
        "no shard found for `{shards}`: give a folder with *.tar files, one tar, a range such as \
         clips-{{000000..000127}}.tar, or a .txt file that lists shards; relative paths are \
         resolved from the working directory"
    )]
    NoShards {
        /// The `shards` entry of the recipe or command line.
        shards: String,
    },
    /// A brace range in a `shards` entry cannot be parsed, or is too long.
    #[error("cannot expand `{shards}`: {reason}")]
    BadRange {
        /// The `shards` entry of the recipe or command line.
        shards: String,
        /// Description of the problem.
        reason: String,
    },
    /// A path, a URL or a list of them cannot be used.
    #[error("cannot use {location}: {reason}")]
    BadLocation {
        /// Path or URL, with the line if it is a list.
        location: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The shards hold no complete sample.
    #[error(
        "no complete sample in the {shard_count} shards of `{shards}`; \
         `vljepa-shards inspect` shows why"
    )]
    NoSamples {
        /// The `shards` entry of the recipe or command line.
        shards: String,
        /// Number of shards that were searched.
        shard_count: usize,
    },
    /// A file cannot be used as a shard.
    #[error("shard {path} cannot be used: {reason}", path = path.display())]
    BadShard {
        /// Path of the shard.
        path: PathBuf,
        /// Why the file cannot be used, and what to do.
        reason: String,
    },
    /// Several shards cannot be used.
    #[error("{}", listed(shards, *shard_count, errors))]
    BadShards {
        /// The `shards` entry of the recipe or command line.
        shards: String,
        /// Number of shards that the entry names.
        shard_count: usize,
        /// Error of each shard that cannot be used.
        errors: Vec<DataError>,
    },
    /// A sample cannot be used.
    #[error("sample `{key}` of {shard}: {reason}")]
    BadSample {
        /// Path of the shard.
        shard: String,
        /// Key of the sample in the shard.
        key: String,
        /// Description of the problem.
        reason: String,
    },
    /// More consecutive samples could not be used than the recipe allows.
    #[error(
        "{count} consecutive samples of source `{source_name}` could not be used; \
         the recipe allows {allowed} (data.bad_samples.max_consecutive); the last one was `{key}` of {shard}: {reason}"
    )]
    TooManyInARow {
        /// Name of the source in the recipe.
        source_name: String,
        /// Number of consecutive bad samples.
        count: u64,
        /// Number that the recipe allows.
        allowed: u32,
        /// Shard of the last bad sample.
        shard: String,
        /// Key of the last bad sample.
        key: String,
        /// Problem of the last bad sample.
        reason: String,
    },
    /// A value in the recipe does not fit the data or the other values.
    #[error("{key}: {reason}")]
    Recipe {
        /// Key of the value in the recipe.
        key: String,
        /// Description of the problem.
        reason: String,
    },
    /// A tokenizer file cannot be used.
    #[error("cannot use tokenizer {path}: {reason}", path = path.display())]
    Tokenizer {
        /// Path of the tokenizer file.
        path: PathBuf,
        /// Description of the problem.
        reason: String,
    },
    /// A reader thread could not be started.
    #[error("cannot start a reader thread: {0}")]
    Thread(std::io::Error),
    /// The memory for the frames of a batch could not be allocated.
    #[error("cannot allocate memory for the frames of a batch: {0}")]
    Memory(Box<dyn std::error::Error + Send + Sync>),
    /// The stream has no more batches: all steps of the stage were taken, or the stream has failed.
    #[error("the stream has ended: {0}")]
    Ended(String),
    /// A set cannot be prepared.
    #[error("cannot prepare into {folder}: {reason}", folder = folder.display())]
    Prepare {
        /// Folder of the prepared set.
        folder: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The synthetic set cannot be written.
    #[error("cannot write the synthetic set: {0}")]
    Synthetic(String),
}

impl DataError {
    /// Returns a closure for `map_err` that makes a [`DataError::Io`] about `path`.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { action, path, cause }
    }
}

/// Number of errors that [`DataError::BadShards`] shows.
const SHOWN_ERRORS: usize = 20;

fn listed(shards: &str, shard_count: usize, errors: &[DataError]) -> String {
    let count = errors.len();
    let mut text = format!("{count} of the {shard_count} shards of `{shards}` cannot be used:");
    for error in errors.iter().take(SHOWN_ERRORS) {
        text.push_str("\n- ");
        text.push_str(&error.to_string());
    }
    if count > SHOWN_ERRORS {
        text.push_str("\n- …");
    }
    text
}

/// Message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
