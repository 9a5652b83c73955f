//! Questions about changes, as WorldPrediction-WM asks them (paper §4.3): which of four clips shows
//! the action that leads from one picture to another?

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::design::{DESIGN, FRAMES};
use super::draws::Draws;
use super::encode::{self, FRAMES_PER_SECOND};
use super::manifest::FileEntry;
use super::names::{Motion, Pair};
use super::raster::FRAME_BYTES;
use super::scene::Clip;
use super::write;
use crate::error::DataError;

/// Number of clips to choose from.
const CANDIDATES: usize = 4;

/// A question before it is encoded. The pictures and the clips show the same figure, but the
/// pictures are not frames of any of the clips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Frames before and after the change, (2, H, W, 3).
    pub(super) pictures: Vec<u8>,
    /// Frames of the clips one after the other, (4 · T, H, W, 3).
    pub(super) clips: Vec<u8>,
    /// Motions of the clips, all different.
    pub(super) motions: Vec<Motion>,
    /// Motion between the pictures.
    pub(super) motion: Motion,
}

/// Draws question number `index`. A figure that grows begins at its smallest radius, and one that
/// shrinks at its largest, so that the pictures tell both apart.
pub(super) fn question(seed: u64, index: usize) -> Question {
    let mut draws = Draws::new(seed, "eval/world_prediction", index as u64);
    let all: Vec<Pair> = Pair::all().collect();
    let pair = all[draws.below(all.len())];
    let mut motions = Motion::ALL.to_vec();
    draws.shuffle(&mut motions);
    motions.truncate(CANDIDATES);
    let motion = motions[draws.below(CANDIDATES)];
    let mut pixels = |motion| {
        Clip { phase: 0, ..Clip::draw(&mut draws, pair.into(), motion) }.pixels(&mut draws)
    };
    let change = pixels(motion);
    let pictures = [&change[..FRAME_BYTES], &change[(FRAMES - 1) * FRAME_BYTES..]].concat();
    let clips = motions.iter().flat_map(|&motion| pixels(motion)).collect();
    Question { pictures, clips, motions, motion }
}

/// Writes the questions as a set of the format `world_prediction`: `eval/world_prediction.json`
/// with the pictures and the clips, which are segments of one video per question.
pub(super) fn write(folder: &Path, seed: u64) -> Result<Vec<FileEntry>, DataError> {
    let written: Vec<(Value, [FileEntry; 3])> = (0..DESIGN.world_predictions)
        .into_par_iter()
        .map(|index| write_question(folder, index, &question(seed, index)))
        .collect::<Result<_, DataError>>()?;
    let (list, entries): (Vec<Value>, Vec<[FileEntry; 3]>) = written.into_iter().unzip();
    let mut files = entries.concat();
    files.push(write::file(folder, "eval/world_prediction.json", &super::json(&list)?)?);
    Ok(files)
}

fn write_question(
    folder: &Path,
    index: usize,
    question: &Question,
) -> Result<(Value, [FileEntry; 3]), DataError> {
    let name = |end: &str| format!("world_prediction/{index:03}-{end}");
    let save = |name: &str, content: &[u8]| write::file(folder, &format!("eval/{name}"), content);
    let (initial, after, video) = (name("initial.jpg"), name("final.jpg"), name("clips.mp4"));
    let (first, last) = question.pictures.split_at(FRAME_BYTES);
    let entries = [
        save(&initial, &encode::jpeg(first)?)?,
        save(&after, &encode::jpeg(last)?)?,
        save(&video, &encode::mp4(&question.clips)?)?,
    ];
    #[expect(clippy::cast_precision_loss, reason = "a video has few frames")]
    let seconds = |clip: usize| (clip * FRAMES) as f64 / f64::from(FRAMES_PER_SECOND);
    let segment = |clip| json!({"video": video, "start": seconds(clip), "end": seconds(clip + 1)});
    let candidates: Vec<Value> = (0..CANDIDATES).map(segment).collect();
    let answer = question.motions.iter().position(|motion| *motion == question.motion);
    let item = json!({
        "id": format!("{index:03}"),
        "initial": initial,
        "final": after,
        "candidates": candidates,
        "answer": answer,
    });
    Ok((item, entries))
}
