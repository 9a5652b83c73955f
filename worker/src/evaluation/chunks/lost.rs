//! Samples that cannot be read.

use vljepa_data::DataError;

/// Why a sample cannot be read, and whether it will be so again.
pub(super) struct Lost {
    pub(super) reason: String,
    pub(super) lasting: bool,
}

impl Lost {
    pub(super) fn of(error: &DataError) -> Self {
        // A shard that cannot be read now may be readable later.
        let lasting = matches!(error, DataError::BadSample { .. });
        Self { reason: error.to_string(), lasting }
    }
}
