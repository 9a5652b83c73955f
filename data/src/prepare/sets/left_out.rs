//! Reasons why an item of a raw set is left out.

use crate::prepare::item::LeftOut;

/// No text that could be a target.
pub(super) const NO_TEXT: &str = "no text";
/// Neither a picture nor a video.
pub(super) const TEXT_ONLY: &str = "text only";
/// The video file does not exist.
pub(super) const NO_VIDEO: &str = "no video";
/// The picture file does not exist.
pub(super) const NO_PICTURE: &str = "no picture";
/// A record that is not JSON, or that lacks what the published layout has.
pub(super) const BROKEN: &str = "broken record";
/// Start and end that are no stretch of a video.
pub(super) const BAD_TIMES: &str = "bad times";
/// Path that leads out of the folder of the media.
pub(super) const BAD_PATH: &str = "bad path";
/// Question about a region of the picture, which a sample cannot show.
pub(super) const REGION: &str = "region";
/// Narration that the annotator was not sure about.
pub(super) const UNSURE: &str = "unsure";
/// Excluded by the options of the set.
pub(super) const NOT_WANTED: &str = "not wanted";

/// Reason for which an item is left out, without the item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    class: &'static str,
    text: String,
}

impl Reason {
    pub(super) fn new(class: &'static str, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }

    pub(super) fn broken(text: impl Into<String>) -> Self {
        Self::new(BROKEN, text)
    }

    pub(super) fn class(&self) -> &'static str {
        self.class
    }

    /// Names the item that is left out.
    pub(super) fn of(self, item: impl Into<String>) -> LeftOut {
        LeftOut { item: item.into(), class: self.class, reason: self.text }
    }
}
