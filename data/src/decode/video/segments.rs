//! Segments of video files.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{ChosenFrames, Video};
use crate::decode::{Clip, MediaSource, Part, Picture, Shape, checked_seconds, uniform_frames};

/// Videos that stay open: one for each of the threads that read segments at the same time.
const OPEN_VIDEOS: usize = 16;

/// Decodes segments of video files. The videos that were read last stay open, because annotations
/// list the segments of a video one after the other. Threads may share it.
#[derive(Debug, Default)]
pub struct Segments {
    open: Mutex<VecDeque<(PathBuf, Video)>>,
}

impl Segments {
    /// Decodes `frames` frames of those that are shown from `seconds.start` until before
    /// `seconds.end`, in seconds after the first frame of the video, and passes each to `shape`.
    /// They are chosen by [`uniform_frames`]. Decoding starts at the last frame before the segment
    /// from which it can.
    ///
    /// # Errors
    /// A message that names the segment if it is no stretch of time or holds no frame, or that
    /// describes why the video cannot be decoded.
    pub fn decode(
        &self,
        path: &Path,
        seconds: &Range<f64>,
        frames: usize,
        shape: &mut dyn Shape,
    ) -> Result<Clip, String> {
        checked_seconds(seconds)?;
        let mut video = match self.take(path) {
            Some(video) => video,
            None => Video::open(&MediaSource::File(path.to_owned()))?,
        };
        let clip = decode(&mut video, seconds, frames, shape)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back((path.to_owned(), video));
        if open.len() > OPEN_VIDEOS {
            open.pop_front();
        }
        Ok(clip)
    }

    fn take(&self, path: &Path) -> Option<Video> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let index = open.iter().position(|(of, _)| of == path)?;
        open.remove(index).map(|(_, video)| video)
    }
}

fn decode(
    video: &mut Video,
    seconds: &Range<f64>,
    frames: usize,
    shape: &mut dyn Shape,
) -> Result<Clip, String> {
    // If the packets do not tell which frames the decoder shows, the video is decoded in order.
    for in_order in [false, true] {
        let mut pictures: Vec<Picture> = Vec::new();
        let distinct = |count| {
            let mut numbers = uniform_frames(count, frames);
            numbers.dedup();
            numbers
        };
        let span =
            video.read(Some(seconds), in_order, &|count, _| distinct(count), &mut |it, _| {
                pictures.push(shape.shape(Part::whole(it))?);
                Ok(())
            })?;
        if let Some(span) = span {
            let numbers = distinct(span.frames);
            let wanted = uniform_frames(span.frames, frames);
            return ChosenFrames { wanted, numbers, pictures }.into_clip();
        }
    }
    Err("its frames cannot be found".to_owned())
}
