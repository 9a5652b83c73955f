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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::Segments;
    use crate::decode::video::tests::{in_order, read};
    use crate::decode::{Clip, Picture, uniform_frames};

    fn path(name: &str) -> PathBuf {
        PathBuf::from(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR")))
    }

    fn decode(
        segments: &Segments,
        name: &str,
        seconds: std::ops::Range<f64>,
        frames: usize,
    ) -> Result<Clip, String> {
        segments.decode(&path(name), &seconds, frames, &mut Ok::<Picture, String>)
    }

    /// The clips have 25 frames a second, so that frame n begins at n/25 s.
    #[test]
    fn frames_of_a_segment_are_chosen_among_those_that_begin_in_it() {
        let segments = Segments::default();
        for name in ["h264_closed.mp4", "h264_open.mp4", "vp9.webm", "xvid_packed.avi"] {
            let (all, _) = in_order(&read(name));
            for (numbers, n) in [(9..20, 4), (30..34, 8), (0..1, 3), (13..14, 1), (2..30, 1)] {
                let second = |number: usize| (number as f64 - 0.5) / 25.0;
                let seconds = second(numbers.start).max(0.0)..second(numbers.end);
                let clip = decode(&segments, name, seconds, n).unwrap();
                let wanted = uniform_frames(numbers.len(), n);
                assert_eq!(clip.order.len(), n, "{name}, {numbers:?}");
                for (frame, number) in clip.frames().zip(wanted) {
                    let wanted = &all[numbers.start + number].pixels;
                    assert!(frame == *wanted, "{name}, {numbers:?}, frame {number}");
                }
            }
        }
        // A segment that begins one frame later has other frames, so the comparison can fail.
        let (all, _) = in_order(&read("h264_closed.mp4"));
        let clip = decode(&segments, "h264_closed.mp4", 0.34..0.78, 11).unwrap();
        assert!(clip.pictures[..] == all[9..20] && clip.pictures[..] != all[10..21]);
    }

    #[test]
    fn a_segment_without_frames_or_that_is_no_stretch_of_time_is_named() {
        let segments = Segments::default();
        let refused = |seconds| decode(&segments, "h264_closed.mp4", seconds, 2).unwrap_err();
        for (seconds, said) in [
            (2.0..2.0, "its segment from 2 s to 2 s is no stretch of time"),
            (3.0..2.0, "from 3 s to 2 s is no stretch"),
            (f64::NAN..2.0, "from NaN s to 2 s"),
            (0.0..f64::NAN, "to NaN s"),
            (-1.0..2.0, "from -1 s"),
            (9.0..10.0, "no frame is between 9 s and 10 s; the video has 36 frames in 1.440 s"),
            (0.001..0.002, "no frame is between 0.001 s and 0.002 s"),
        ] {
            let error = refused(seconds);
            assert!(error.contains(said), "{error}");
        }
        // A segment may end after the video.
        assert_eq!(decode(&segments, "h264_closed.mp4", 1.0..99.0, 2).unwrap().order.len(), 2);
        let broken = decode(&segments, "h264_no_moov.mp4", 0.0..1.0, 2).unwrap_err();
        assert!(broken.contains("the clip is cut short"), "{broken}");
    }
}
