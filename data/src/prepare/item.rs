//! What a raw set holds: what its adapter gives, and what becomes one sample of the prepared
//! shards.

use std::ops::Range;

pub use crate::decode::MediaSource;

/// Item of a raw set.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Key of the prepared sample, unique in the set. It has no dot, which would end a key in a
    /// tar.
    pub key: String,
    /// Its pictures or clip.
    pub visual: Visual,
    /// Content of the `txt` member, if the item has a caption.
    pub caption: Option<String>,
    /// Content of the `json` member: questions, licence, URL and all other fields of the set.
    pub json: serde_json::Map<String, serde_json::Value>,
}

impl Item {
    /// Bytes of its pictures or clip in memory.
    pub(super) fn held_bytes(&self) -> usize {
        let bytes = |source: &MediaSource| match source {
            MediaSource::Bytes(bytes) => bytes.len(),
            MediaSource::File(_) => 0,
        };
        match &self.visual {
            Visual::Picture(source) | Visual::Clip { video: source, .. } => bytes(source),
            Visual::Pictures(sources) => sources.iter().map(bytes).sum(),
        }
    }
}

/// Pictures or clip of an item.
#[derive(Debug, Clone, PartialEq)]
pub enum Visual {
    /// A picture.
    Picture(MediaSource),
    /// Several pictures in their order, which become the frames of a clip.
    Pictures(Vec<MediaSource>),
    /// A video, or the part of it between two times.
    Clip {
        /// The whole video.
        video: MediaSource,
        /// Start and end of the clip in seconds. `None` for the whole video.
        seconds: Option<Range<f64>>,
    },
}

/// Item that cannot become a sample, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where the item stands in the set: file and row, line or key.
    pub item: String,
    /// Class of the reason, for counts: `no text`, `text only`, `no video`.
    pub class: &'static str,
    /// The reason.
    pub reason: String,
}
