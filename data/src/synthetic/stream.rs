//! Synthetic stream: a few long videos of many motions, one after the other, for the evaluation of
//! selective decoding. The lengths of the motions differ, so equal steps in time either miss short
//! motions or describe long ones many times.
//!
//! ```text
//! DIR/stream.tar        mp4, json per video
//! ```
//!
//! The json has `annotations` (the caption of each motion at its middle) and `boundaries` (the
//! start of each motion), in seconds.

use std::fmt;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Serialize;

use super::design::KINDS;
use super::draws::Draws;
use super::names::{Motion, Pair};
use super::scene::Clip;
use super::write::{append, file};
use super::{encode, texts};
use crate::error::DataError;
use crate::texts::Annotation;

/// File name of the shard.
const SHARD: &str = "stream.tar";

/// Number of motions of a video, from and to.
const MOTIONS: [i32; 2] = [20, 40];

/// Lengths of short and of long motions in frames, from and to: 1 to 2 s and 6 to 14 s. Both are
/// equally frequent.
const LENGTHS: [[i32; 2]; 2] = [[8, 16], [48, 112]];

/// Arguments of the command `synth-stream`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct StreamArgs {
    /// Folder of the stream. It is created if it does not exist.
    pub dir: PathBuf,
    /// Seed of the random motions.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Number of videos, each two to five minutes long.
    #[arg(long, default_value_t = 2)]
    pub videos: usize,
}

/// Contents of a stream that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamSummary {
    /// Path of the shard.
    pub shard: PathBuf,
    /// Number of motions of all videos.
    pub motions: usize,
    /// Duration of all videos in seconds.
    pub seconds: f64,
}

/// Video before it is encoded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StreamVideo {
    /// Frames, (T, H, W, 3).
    pub(super) pixels: Vec<u8>,
    pub(super) description: StreamDescription,
    /// Duration in seconds.
    pub(super) seconds: f64,
}

/// Contents of a video's json member.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct StreamDescription {
    /// Caption of each motion, at its middle.
    pub(super) annotations: Vec<Annotation>,
    /// Start of each motion in seconds.
    pub(super) boundaries: Vec<f64>,
}

/// Writes the stream. The same seed gives the same pixels and texts on every machine.
///
/// # Errors
/// If the folder cannot be written, or FFmpeg or its H.264 encoder is missing.
pub fn run(args: &StreamArgs) -> Result<StreamSummary, DataError> {
    encode::prepare()?;
    let encoded = (0..args.videos).into_par_iter().map(|index| {
        let video = video(args.seed, index);
        Ok((encode::mp4(&video.pixels)?, video.description, video.seconds))
    });
    let encoded: Vec<_> = encoded.collect::<Result<_, DataError>>()?;
    let shard = args.dir.join(SHARD);
    let mut archive = tar::Builder::new(Vec::new());
    let (mut motions, mut seconds) = (0, 0.0);
    for (index, (mp4, description, duration_s)) in encoded.iter().enumerate() {
        for (extension, content) in [("mp4", mp4), ("json", &super::json(description)?)] {
            append(&mut archive, &format!("stream-{index:06}.{extension}"), content)
                .map_err(DataError::io("write", &shard))?;
        }
        motions += description.annotations.len();
        seconds += duration_s;
    }
    let content = archive.into_inner().map_err(DataError::io("write", &shard))?;
    file(&args.dir, SHARD, &content)?;
    Ok(StreamSummary { shard, motions, seconds })
}

/// Draws video number `index`.
pub(super) fn video(seed: u64, index: usize) -> StreamVideo {
    let mut draws = Draws::new(seed, "stream", index as u64);
    let (mut pixels, mut frames, mut last) = (Vec::new(), 0, None);
    let mut description = StreamDescription { annotations: Vec::new(), boundaries: Vec::new() };
    for _ in 0..draws.within(MOTIONS) {
        let length = draws.below(LENGTHS.len());
        let length = draws.within(LENGTHS[length]);
        let shown = loop {
            let pairs = Pair::trained();
            let next = (pairs[draws.below(pairs.len())], Motion::ALL[draws.below(KINDS)]);
            if last != Some(next) {
                break next;
            }
        };
        last = Some(shown);
        let (pair, motion) = shown;
        let clip = Clip::draw(&mut draws, pair.into(), motion);
        pixels.extend(clip.first_frames(length));
        let text = texts::clip_caption(0, Some(pair.shape), Some(pair.colour), motion);
        let t = seconds(frames) + seconds(length) / 2.0;
        description.annotations.push(Annotation { t, text });
        description.boundaries.push(seconds(frames));
        frames += length;
    }
    draws.add_noise(&mut pixels);
    StreamVideo { pixels, description, seconds: seconds(frames) }
}

/// Duration of a number of frames in seconds.
fn seconds(frames: i32) -> f64 {
    f64::from(frames) / f64::from(encode::FRAMES_PER_SECOND)
}

impl fmt::Display for StreamSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, motions, seconds } = self;
        writeln!(f, "{}: {motions} motions in {seconds:.0} s", shard.display())
    }
}
