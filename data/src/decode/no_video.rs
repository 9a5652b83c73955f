//! Replacement for `video` in a build without FFmpeg. It decodes clips of JPEG frames. For every
//! other clip, it fails with a message that names the missing feature.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use vljepa_recipes::protocol::VideoSource;

use super::{Clip, JpegClip, MediaSource, Picture, Shape, checked_seconds};

const REFUSED: &str =
    "clips need FFmpeg, but this program was built without it; build it with `--features video`";

/// Decodes `frames` uniformly chosen frames of a clip of JPEG frames.
///
/// # Errors
/// A message that describes why the clip cannot be decoded. Clips of other kinds cannot.
pub fn decode(bytes: &[u8], frames: usize, shape: &mut dyn Shape) -> Result<Clip, String> {
    JpegClip::find(bytes)?.ok_or(REFUSED)?.decode(frames, shape)
}

/// Fails, because this build cannot decode AVIF.
pub(super) fn decode_avif(_bytes: &[u8]) -> Result<Picture, String> {
    Err(REFUSED.replacen("clips need", "AVIF pictures need", 1))
}

/// Time of every frame of a clip of JPEG frames, in seconds.
///
/// # Errors
/// For clips of other kinds.
pub fn frame_times(bytes: &[u8]) -> Result<Vec<f64>, String> {
    Ok(JpegClip::find(bytes)?.ok_or(REFUSED)?.times())
}

/// Segments of video files, which this build cannot decode.
#[derive(Debug, Default)]
pub struct Segments;

impl Segments {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn decode(
        &self,
        _path: &Path,
        seconds: &Range<f64>,
        _frames: usize,
        _shape: &mut dyn Shape,
    ) -> Result<Clip, String> {
        checked_seconds(seconds)?;
        Err(REFUSED.to_owned())
    }
}

/// Long video, which this build cannot open.
#[derive(Debug)]
pub enum LongVideo {}

impl LongVideo {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn open(_source: &MediaSource) -> Result<Self, String> {
        Err(REFUSED.to_owned())
    }

    /// Seconds from the first frame to the end of the last one.
    #[must_use]
    pub fn duration_s(&self) -> f64 {
        match *self {}
    }

    /// Decodes frames of windows.
    ///
    /// # Errors
    /// Never, because there is no such value.
    pub fn decode(
        &mut self,
        _windows: &[Range<f64>],
        _frames: usize,
        _shape: &mut dyn Shape,
    ) -> Result<Clip, String> {
        match *self {}
    }
}

/// Windows of a video that is read while it comes, which this build cannot open.
#[derive(Debug)]
pub enum LiveWindows {}

/// Frames of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowFrames {
    /// Pixels, (T, H, W, 3), in the order red, green, blue.
    pub pixels: Vec<u8>,
    /// When the last frame of the window was decoded.
    pub arrived: Instant,
}

impl LiveWindows {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn open(
        _source: &VideoSource,
        _seconds: (f64, f64),
        _frames: usize,
        _shape: Box<dyn Shape>,
    ) -> Result<Self, String> {
        Err(REFUSED.to_owned())
    }

    /// Name of the video's codec.
    #[must_use]
    pub fn codec(&self) -> &'static str {
        match *self {}
    }

    /// Seconds of the video that were read.
    #[must_use]
    pub fn end_s(&self) -> f64 {
        match *self {}
    }

    /// Number of damaged frames that were left out.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        match *self {}
    }

    /// Next window.
    ///
    /// # Errors
    /// Never, because there is no such value.
    pub fn next_window(&mut self) -> Result<Option<(Range<f64>, WindowFrames)>, String> {
        match *self {}
    }
}
