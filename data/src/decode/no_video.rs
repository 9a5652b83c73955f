//! Clips, in a build without FFmpeg: refused with what to do.

use super::{Clip, Picture};

const REFUSED: &str =
    "clips need the feature `video` (FFmpeg), and this program was built without it";

/// Refuses.
///
/// # Errors
/// Always.
pub fn decode(
    _bytes: &[u8],
    _frames: usize,
    _shape: &mut dyn FnMut(Picture) -> Result<Picture, String>,
) -> Result<Clip, String> {
    Err(REFUSED.to_owned())
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn frame_times(_bytes: &[u8]) -> Result<Vec<f64>, String> {
    Err(REFUSED.to_owned())
}
