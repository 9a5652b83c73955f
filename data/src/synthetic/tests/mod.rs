//! Tests of the synthetic set: the drawn pixels, the texts, and the files on disk.

mod drawing;
#[cfg(feature = "video")]
mod files;
mod stream;
mod texts;
mod world;

use super::sample::{Sample, Split, sample};

/// The first samples of a split, at most 1,500.
fn first_samples(split: Split) -> impl Iterator<Item = Sample> {
    (0..split.len().min(1500)).map(move |index| sample(0, split, index))
}

#[cfg(not(feature = "video"))]
#[test]
fn without_video_nothing_is_written_and_the_feature_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let args = super::SynthArgs { dir: dir.path().join("set"), seed: 0, scale_permille: 1 };
    let error = super::run(&args).unwrap_err().to_string();
    assert!(error.contains("--features video"), "{error}");
    assert!(!args.dir.exists());
}
