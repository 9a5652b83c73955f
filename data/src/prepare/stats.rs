//! Counts of a preparation, which `stats.json` holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::item::LeftOut;

/// Counts of the samples of a prepared set, and of what was left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Number of samples.
    pub samples: u64,
    /// Number of samples with a caption.
    pub captions: u64,
    /// Number of pictures.
    pub pictures: u64,
    /// Number of pictures that were kept byte for byte.
    pub pictures_kept: u64,
    /// Number of clips.
    pub clips: u64,
    /// Duration of all clips in seconds.
    pub clip_seconds: f64,
    /// Number of frames that the clips had in their videos.
    pub source_frames: u64,
    /// Number of frames that were kept of them.
    pub frames: u64,
    /// Size of the pictures and clips in bytes.
    pub media_bytes: u64,
    /// Number of samples by format of the source, such as `jpeg` or `h264`.
    pub formats: BTreeMap<String, u64>,
    /// Number of items that were left out, by class of the reason.
    pub left_out: BTreeMap<String, u64>,
}

impl Stats {
    pub(super) fn add(&mut self, other: &Self) {
        for (all, more) in [
            (&mut self.samples, other.samples),
            (&mut self.captions, other.captions),
            (&mut self.pictures, other.pictures),
            (&mut self.pictures_kept, other.pictures_kept),
            (&mut self.clips, other.clips),
            (&mut self.source_frames, other.source_frames),
            (&mut self.frames, other.frames),
            (&mut self.media_bytes, other.media_bytes),
        ] {
            *all += more;
        }
        self.clip_seconds += other.clip_seconds;
        for (format, count) in &other.formats {
            *self.formats.entry(format.clone()).or_default() += count;
        }
        for (class, count) in &other.left_out {
            *self.left_out.entry(class.clone()).or_default() += count;
        }
    }

    pub(super) fn leave_out(&mut self, left_out: &LeftOut) {
        *self.left_out.entry(left_out.class.to_owned()).or_default() += 1;
    }
}
