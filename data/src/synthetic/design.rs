//! Design of the set: sizes, counts and shares. Changing the design gives another set, and the
//! manifest contains the whole design.

use serde::{Deserialize, Serialize};

/// Version of the code that draws and encodes the set. Raise it if the same design gives other
/// pixels, texts or encoding.
pub(super) const VERSION: u32 = 1;
/// Side of a frame in pixels.
pub(super) const SIZE: usize = 32;
/// Number of frames per clip.
pub(super) const FRAMES: usize = 4;
/// Length of one pixel in the rasteriser's units, which have 8 fractional bits.
pub(super) const PIXEL: i32 = 256;
/// Number of shapes, of colours and of motions. A pair whose (shape + colour) is divisible by this
/// number is held out of training.
pub(super) const KINDS: usize = 6;

/// All values that decide what is drawn. Lengths are in 1/256 pixel, and ranges include both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Design {
    /// Value of [`VERSION`] with which the set was written.
    pub version: u32,
    /// Number of training samples at scale 1, by kind.
    pub train_clips: usize,
    pub train_images: usize,
    pub train_questions: usize,
    /// Number of evaluation samples at every scale, by kind.
    pub held_out_clips: usize,
    pub retrieval_clips: usize,
    pub question_images: usize,
    pub triplets: usize,
    pub world_predictions: usize,
    pub samples_per_shard: usize,
    /// Step between possible start positions of clips.
    pub start_step: i32,
    /// Step between possible radii and jitters, counted from the low end of their range.
    pub step: i32,
    /// Range of the radius of a moving shape.
    pub moving_radius: [i32; 2],
    /// Possible distances that a shape moves per frame.
    pub speeds: [i32; 2],
    /// Smallest radius of a growing or shrinking shape, and the change of the radius per frame.
    pub growing_radius: i32,
    pub growth: i32,
    /// Range of the radius of a shape in a picture, and the largest distance of the shape from the
    /// centre of its cell, along each axis.
    pub picture_radius: [i32; 2],
    pub picture_jitter: i32,
    /// Range of the brightness of the background.
    pub background: [i32; 2],
    /// Range of the brightness of a grey shape.
    pub grey: [i32; 2],
    /// Training clips per thousand that show a grey shape. Their texts name the shape and no
    /// colour.
    pub grey_clips_permille: usize,
    /// Training clips per thousand that show a diamond. Their texts name the colour and no shape.
    /// Grey and diamond clips teach shape and colour separately. Without them, a model learns which
    /// pairs never occur.
    pub diamond_clips_permille: usize,
    /// Grey and diamond clips per thousand that have a caption. The others have a question.
    pub captioned_permille: usize,
    /// Relative frequencies of the kinds of pictures with questions.
    pub question_shares: QuestionShares,
}

/// Relative frequency of each kind of picture with questions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuestionShares {
    /// "how many circle shapes are there?" The answers zero to three are equally frequent.
    pub count: usize,
    /// "what colour is the circle?"
    pub colour: usize,
    /// "is there a red circle?" The answers yes and no are equally frequent. If the answer is no,
    /// the shape or the colour alone is shown.
    pub exists: usize,
    /// "what shape is the red thing?"
    pub shape: usize,
    /// "what shape is it?" for a picture with one grey shape.
    pub grey: usize,
    /// "is there a circle?" and "is there a red thing?"
    pub attribute: usize,
}

/// Design of the quickstart's set. Two properties let a small model learn six shapes in a few
/// minutes and name pairs that it never saw: shapes are large and start on whole pixels, and some
/// clips and questions are about the shape alone or the colour alone.
pub(super) const DESIGN: Design = Design {
    version: VERSION,
    train_clips: 16_000,
    train_images: 4000,
    train_questions: 16_000,
    held_out_clips: 480,
    retrieval_clips: 200,
    question_images: 400,
    triplets: 400,
    world_predictions: 200,
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
