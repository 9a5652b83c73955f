//! Windows of a long video, which may overlap.

use std::ops::Range;

use super::whole::Video;
use crate::decode::{Clip, MediaSource, Part, Picture, Shape, uniform_frames};

/// Long video that is open for reading. Its packets are not kept, so it takes little memory.
#[derive(Debug)]
pub struct LongVideo(Video);

impl LongVideo {
    /// Opens a video and reads the times of its frames.
    ///
    /// # Errors
    /// A message that describes why the video cannot be read.
    pub fn open(source: &MediaSource) -> Result<Self, String> {
        Video::open(source).map(Self)
    }

    /// Seconds from the first frame to the end of the last one.
    #[must_use]
    pub fn duration_s(&self) -> f64 {
        self.0.duration_s()
    }

    /// Decodes `frames` frames of each window, in seconds after the first frame of the video, and
    /// passes each to `shape`. They are chosen by [`uniform_frames`] of those that are shown in the
    /// window. A window in which no frame begins has the frame before it. The clip has the frames
    /// of all windows, one window after the other. A frame of several windows is decoded once.
    ///
    /// # Errors
    /// A message that describes why the video cannot be decoded.
    pub fn decode(
        &mut self,
        windows: &[Range<f64>],
        frames: usize,
        shape: &mut dyn Shape,
    ) -> Result<Clip, String> {
        // If the packets do not tell which frames the decoder shows, the video is decoded in order,
        // which may find other times.
        for in_order in [false, true] {
            let mut pictures: Vec<Picture> = Vec::new();
            let times = self.0.times_s(in_order)?;
            let numbers = windows.iter().flat_map(|window| frames_in(&times, window, frames));
            let numbers: Vec<usize> = numbers.collect();
            let mut distinct = numbers.clone();
            distinct.sort_unstable();
            distinct.dedup();
            let read =
                self.0.read(None, in_order, &|_, _| distinct.clone(), &mut |picture, _| {
                    pictures.push(shape.shape(Part::whole(picture))?);
                    Ok(())
                })?;
            if read.is_some() {
                let index = |number: &usize| distinct.partition_point(|other| other < number);
                let order = numbers.iter().map(index).collect();
                return Ok(Clip { pictures, order });
            }
        }
        Err("its frames cannot be found".to_owned())
    }
}

/// Numbers of `frames` frames of a window, of a video whose frames begin at these seconds.
pub(super) fn frames_in(times: &[f64], window: &Range<f64>, frames: usize) -> Vec<usize> {
    let place = |second: f64| times.partition_point(|&time| time < second);
    let (start, end) = (place(window.start), place(window.end));
    let start = if start < end { start } else { end.saturating_sub(1) };
    let numbers = uniform_frames((end - start).max(1), frames);
    numbers.into_iter().map(|number| start + number).collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::path::PathBuf;

    use super::{LongVideo, frames_in};
    use crate::decode::video::Segments;
    use crate::decode::{MediaSource, Picture};

    fn path(name: &str) -> PathBuf {
        PathBuf::from(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR")))
    }

    /// The clips have 25 frames a second.
    #[test]
    fn windows_that_overlap_have_the_frames_of_segments_one_by_one() {
        let windows = [0.0..0.4, 0.2..0.6, 0.4..0.8, 0.2..0.21, 1.0..99.0];
        for name in ["h264_closed.mp4", "h264_open.mp4", "vp9.webm", "xvid_packed.avi"] {
            let mut video = LongVideo::open(&MediaSource::File(path(name))).unwrap();
            let keep = &mut Ok::<Picture, String>;
            let clip = video.decode(&windows, 3, keep).unwrap();
            let segments = Segments::default();
            let mut wanted = Vec::new();
            for window in &windows {
                let clip = segments.decode(&path(name), window, 3, keep).unwrap();
                wanted.extend(clip.frames().map(<[u8]>::to_vec));
            }
            let found: Vec<Vec<u8>> = clip.frames().map(<[u8]>::to_vec).collect();
            assert!(found == wanted, "{name}");
            assert!(
                clip.pictures.len() < clip.order.len(),
                "frames of two windows are decoded once"
            );
            let later = [0.04..0.44, 0.2..0.6, 0.4..0.8, 0.2..0.21, 1.0..99.0];
            let later = video.decode(&later, 3, keep).unwrap();
            assert!(later.frames().map(<[u8]>::to_vec).ne(wanted), "{name}");
        }
        let mut video = LongVideo::open(&MediaSource::File(path("h264_closed.mp4"))).unwrap();
        assert!((video.duration_s() - 1.44).abs() < 1e-9);
        // Later windows first, as no caller asks for them.
        let back = video.decode(&[0.8..1.2, 0.0..0.4], 2, &mut Ok::<Picture, String>).unwrap();
        let forth = video.decode(&[0.0..0.4, 0.8..1.2], 2, &mut Ok::<Picture, String>).unwrap();
        let frames = |clip: &crate::decode::Clip, range: Range<usize>| {
            clip.frames().skip(range.start).take(range.len()).collect::<Vec<_>>().concat()
        };
        assert_eq!(frames(&back, 0..2), frames(&forth, 2..4));
    }

    #[test]
    fn a_window_in_which_no_frame_begins_has_the_frame_before_it() {
        let times = [0.0, 1.0, 5.0];
        assert_eq!(frames_in(&times, &(2.0..3.0), 2), [1, 1]);
        assert_eq!(frames_in(&times, &(0.0..2.0), 2), [0, 1]);
        assert_eq!(frames_in(&times, &(7.0..9.0), 1), [2]);
        assert_eq!(frames_in(&times, &(0.5..6.0), 3), [1, 1, 2]);
    }
}
