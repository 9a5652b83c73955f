//! The set's design in one place: sizes, counts and shares. A change here makes another set (the manifest holds the whole design).

use serde::{Deserialize, Serialize};

/// Raised when a set of the same design would have other pixels, texts or encoding.
pub(super) const VERSION: u32 = 1;
/// Side of a frame in pixels.
pub(super) const SIZE: usize = 32;
/// Frames of a clip.
pub(super) const FRAMES: usize = 4;
/// One pixel in the rasteriser's units: 8 fractional bits.
pub(super) const PIXEL: i32 = 256;
/// Numbers of the shapes and of the colours; a pair with (shape + colour) divisible by this is never trained on.
pub(super) const KINDS: usize = 6;

/// Everything that decides what is drawn; lengths are in 1/256 pixel, ranges include both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Design {
    /// [`VERSION`].
    pub version: u32,
    /// Samples of training at scale 1.
    pub train_clips: usize,
    pub train_images: usize,
    pub train_questions: usize,
    /// Samples of evaluation, whatever the scale.
    pub held_out_clips: usize,
    pub retrieval_clips: usize,
    pub question_images: usize,
    pub triplets: usize,
    pub samples_per_shard: usize,
    /// Clips start at multiples of this, …
    pub start_step: i32,
    /// … and radii and jitters are multiples of this above the range's low end.
    pub step: i32,
    /// Radius of a shape that moves.
    pub moving_radius: [i32; 2],
    /// Way per frame: one of these.
    pub speeds: [i32; 2],
    /// Smallest radius of a shape that grows or shrinks, and what each frame adds.
    pub growing_radius: i32,
    pub growth: i32,
    /// Radius of a shape in a picture, and how far it stands from its cell's centre at most.
    pub picture_radius: [i32; 2],
    pub picture_jitter: i32,
    /// Brightness of the background.
    pub background: [i32; 2],
    /// Brightness of a grey shape.
    pub grey: [i32; 2],
    /// Of a thousand clips of training, so many show a shape in grey, whose text tells the shape and no colour, …
    pub grey_clips_permille: usize,
    /// … and so many a diamond, whose text tells the colour and no shape. Both keep colour and shape apart: without them a model
    /// learns which pairs never occur.
    pub diamond_clips_permille: usize,
    /// Of a thousand grey or diamond clips, so many have a caption; the others have a question.
    pub captioned_permille: usize,
    /// What the pictures with questions are drawn for.
    pub question_shares: QuestionShares,
}

/// Shares of the kinds of pictures with questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuestionShares {
    /// "how many circle shapes are there?", zero to three equally often.
    pub count: usize,
    /// "what colour is the circle?"
    pub colour: usize,
    /// "is there a red circle?", yes and no equally often, no when shape or colour alone is there.
    pub exists: usize,
    /// "what shape is the red thing?"
    pub shape: usize,
    /// "what shape is it?" of one grey shape.
    pub grey: usize,
    /// "is there a circle?", "is there a red thing?"
    pub attribute: usize,
}

/// The quickstart's set. Large shapes on whole pixels, and clips and questions that tell of the shape alone or of the colour alone,
/// are what lets a small model learn six shapes in a few minutes and name pairs it never saw.
pub(super) const DESIGN: Design = Design {
    version: VERSION,
    train_clips: 16_000,
    train_images: 4000,
    train_questions: 16_000,
    held_out_clips: 480,
    retrieval_clips: 200,
    question_images: 400,
    triplets: 400,
    samples_per_shard: 1000,
    start_step: PIXEL,
    step: PIXEL / 2,
    moving_radius: [8 * PIXEL, 21 * PIXEL / 2],
    speeds: [3 * PIXEL, 4 * PIXEL],
    growing_radius: 9 * PIXEL / 2,
    growth: 5 * PIXEL / 2,
    picture_radius: [6 * PIXEL, 15 * PIXEL / 2],
    picture_jitter: PIXEL,
    background: [10, 49],
    grey: [90, 247],
    grey_clips_permille: 168,
    diamond_clips_permille: 112,
    captioned_permille: 500,
    question_shares: QuestionShares {
        count: 12,
        colour: 10,
        exists: 15,
        shape: 10,
        grey: 5,
        attribute: 7,
    },
};
