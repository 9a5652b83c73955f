//! Replacement for `video.rs` in a build without FFmpeg. Every call fails with a message that names
//! the missing feature.

use super::{Clip, Picture, Shape};

const REFUSED: &str =
    "clips need FFmpeg, but this program was built without it; build it with `--features video`";

/// Fails, because this build cannot decode clips.
///
/// # Errors
/// Always.
pub fn decode(_bytes: &[u8], _frames: usize, _shape: &mut dyn Shape) -> Result<Clip, String> {
    Err(REFUSED.to_owned())
}

/// Fails, because this build cannot decode AVIF.
pub(super) fn decode_avif(_bytes: &[u8]) -> Result<Picture, String> {
    Err(REFUSED.replacen("clips need", "AVIF pictures need", 1))
}

/// Fails, because this build cannot read clips.
///
/// # Errors
/// Always.
pub fn frame_times(_bytes: &[u8]) -> Result<Vec<f64>, String> {
    Err(REFUSED.to_owned())
}
