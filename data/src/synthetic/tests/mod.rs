//! Claims about the set: what is drawn, what is said of it, and what is on disk.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod drawing;
#[cfg(feature = "video")]
mod files;
mod texts;

use super::sample::{Sample, Split, sample};

/// Samples of a split that a test looks at.
fn some(split: Split) -> impl Iterator<Item = Sample> {
    (0..split.len().min(1500)).map(move |index| sample(0, split, index))
}
