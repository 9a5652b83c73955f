//! Windows of a video that is read while it comes.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use vljepa_recipes::protocol::VideoSource;

use super::live::LiveVideo;
use super::long::frames_in;
use crate::decode::Shape;

/// Largest number of frames that are held of a window. At 120 frames a second it is 17 s long, and
/// frames of 256×256 pixels take 400 MB.
const HELD_FRAMES: usize = 2048;

/// Tolerance in seconds for the end of the last window, which may come after that of the video by
/// the rounding error of a sum of times.
const ROUNDING_S: f64 = 1e-6;

/// Windows of a video, in the order of time and with the frames that [`LongVideo`] would give.
///
/// [`LongVideo`]: super::LongVideo
pub struct LiveWindows {
    video: LiveVideo,
    shape: Box<dyn Shape>,
    cut: Cut,
    has_ended: bool,
}

/// Frames of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowFrames {
    /// Pixels, (T, H, W, 3), in the order red, green, blue.
    pub pixels: Vec<u8>,
    /// When the last frame of the window was decoded.
    pub arrived: Instant,
}

impl std::fmt::Debug for LiveWindows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveWindows").field("window", &self.cut.number).finish_non_exhaustive()
    }
}

impl LiveWindows {
    /// Opens a video, of which windows of `window_s` seconds are read that start each `stride_s`
    /// seconds. Each has `frames` frames, chosen by [`uniform_frames`] and made by `shape`. Waits
    /// until the format of the video is known.
    ///
    /// [`uniform_frames`]: crate::decode::uniform_frames
    ///
    /// # Errors
    /// A message that describes why the video cannot be opened.
    pub fn open(
        source: &VideoSource,
        (window_s, stride_s): (f64, f64),
        frames: usize,
        shape: Box<dyn Shape>,
    ) -> Result<Self, String> {
        let video = LiveVideo::open(source)?;
        let cut = Cut { window_s, stride_s, frames, number: 0, held: VecDeque::new() };
        Ok(Self { video, shape, cut, has_ended: false })
    }

    /// Name of the video's codec, as FFmpeg writes it.
    #[must_use]
    pub fn codec(&self) -> &'static str {
        self.video.codec()
    }

    /// Seconds of the video that were read.
    #[must_use]
    pub fn end_s(&self) -> f64 {
        self.video.end_s()
    }

    /// Number of damaged frames of a pipe or a server that were left out.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.video.damaged()
    }

    /// Next window, in seconds after the first frame of the video, and its frames. A window is
    /// whole when a frame after it has come, or the video has ended. A video that is shorter than a
    /// window is a single one. `None` at the end.
    ///
    /// # Errors
    /// A message that describes why the video cannot be read further.
    pub fn next_window(&mut self) -> Result<Option<(Range<f64>, WindowFrames)>, String> {
        loop {
            let end_s = self.has_ended.then(|| self.video.end_s());
            if let Some(window) = self.cut.window(end_s) {
                return Ok(Some(window));
            }
            if self.has_ended {
                return Ok(None);
            }
            match self.video.next_frame(&mut *self.shape)? {
                Some(frame) => self.cut.hold(frame.time_s, frame.picture.pixels)?,
                None => self.has_ended = true,
            }
        }
    }
}

/// Cuts windows from frames.
struct Cut {
    window_s: f64,
    stride_s: f64,
    frames: usize,
    /// Number of the next window.
    number: u32,
    /// Frames of the next window and the one before it, in the order of time.
    held: VecDeque<Held>,
}

struct Held {
    time_s: f64,
    pixels: Vec<u8>,
    arrived: Instant,
}

impl Cut {
    fn hold(&mut self, time_s: f64, pixels: Vec<u8>) -> Result<(), String> {
        // A window in which no frame begins has the frame before it.
        let start_s = f64::from(self.number) * self.stride_s;
        while self.held.get(1).is_some_and(|second| second.time_s <= start_s) {
            self.held.pop_front();
        }
        if self.held.len() == HELD_FRAMES {
            return Err(format!(
                "more than {HELD_FRAMES} frames are shown in {} s; choose a shorter window",
                self.window_s
            ));
        }
        self.held.push_back(Held { time_s, pixels, arrived: Instant::now() });
        Ok(())
    }

    /// Next window if all its frames have come. `end_s` is the end of the video, or `None` before
    /// it is known.
    fn window(&mut self, end_s: Option<f64>) -> Option<(Range<f64>, WindowFrames)> {
        let start = f64::from(self.number) * self.stride_s;
        let mut window = start..start + self.window_s;
        let newest = self.held.back()?.time_s;
        match end_s {
            Some(end_s) if self.number == 0 => window.end = window.end.min(end_s),
            Some(end_s) if window.end > end_s + ROUNDING_S => return None,
            None if newest < window.end => return None,
            Some(_) | None => {}
        }
        let times: Vec<f64> = self.held.iter().map(|held| held.time_s).collect();
        let numbers = frames_in(&times, &window, self.frames);
        let arrived =
            self.held[times.partition_point(|&time| time < window.end).max(1) - 1].arrived;
        let pixels = numbers.iter().flat_map(|&number| &self.held[number].pixels);
        let pixels = pixels.copied().collect();
        self.number += 1;
        Some((window, WindowFrames { pixels, arrived }))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::path::PathBuf;

    use vljepa_recipes::protocol::VideoSource;

    use super::{Cut, HELD_FRAMES, LiveWindows};
    use crate::decode::video::LongVideo;
    use crate::decode::{MediaSource, Picture};

    fn path(name: &str) -> PathBuf {
        PathBuf::from(format!("{}/tests/cases/{name}", env!("CARGO_MANIFEST_DIR")))
    }

    type Windows = Vec<(Range<f64>, Vec<u8>)>;

    fn read(source: &VideoSource, window: (f64, f64)) -> (Windows, Result<(), String>) {
        let shape = Box::new(Ok::<Picture, String>);
        let mut live = LiveWindows::open(source, window, 3, shape).unwrap();
        let mut windows = Vec::new();
        loop {
            match live.next_window() {
                Ok(Some((window, frames))) => windows.push((window, frames.pixels)),
                Ok(None) => return (windows, Ok(())),
                Err(error) => return (windows, Err(error)),
            }
        }
    }

    /// Windows of the video as the evaluation reads them.
    fn as_evaluated(name: &str, (window_s, stride_s): (f64, f64)) -> Windows {
        let mut video = LongVideo::open(&MediaSource::File(path(name))).unwrap();
        let duration_s = video.duration_s();
        let starts = (0..99).map(|number| f64::from(number) * stride_s);
        let mut windows: Vec<Range<f64>> = starts
            .map(|start| start..start + window_s)
            .take_while(|window| window.end <= duration_s + 1e-6)
            .collect();
        if windows.is_empty() {
            windows = vec![0.0..duration_s];
        }
        let clip = video.decode(&windows, 3, &mut Ok::<Picture, String>).unwrap();
        let frames: Vec<&[u8]> = clip.frames().collect();
        windows.into_iter().zip(frames.chunks(3).map(<[&[u8]]>::concat)).collect()
    }

    /// Whether windows have the same frames, and the same times up to the rounding of sums.
    fn same(found: &Windows, expected: &Windows) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let mut pairs = found.iter().zip(expected);
        found.len() == expected.len()
            && pairs.all(|((a, pixels), (b, expected))| {
                near(a.start, b.start) && near(a.end, b.end) && pixels == expected
            })
    }

    #[test]
    fn windows_of_a_video_that_is_read_once_are_those_of_the_evaluation() {
        let names = ["h264_closed.mp4", "h264_open.mp4", "vp9.webm", "xvid_packed.avi"];
        for name in names {
            for window in [(0.4, 0.2), (0.2, 0.3), (9.0, 0.5)] {
                let (found, ended) = read(&VideoSource::File(path(name)), window);
                assert_eq!(ended, Ok(()), "{name}");
                let expected = as_evaluated(name, window);
                assert!(same(&found, &expected), "{name}, {window:?}: {} windows", found.len());
                let others = as_evaluated(name, (0.36, 0.2));
                assert!(!same(&found, &others), "{name}, {window:?}");
            }
        }
    }

    /// A pipe cannot go back, so the file is read without seeking.
    #[test]
    fn a_pipe_gives_the_windows_of_its_file() {
        for name in ["vp9.webm", "hevc_open.mkv"] {
            let (found, ended) = read(&VideoSource::Pipe(path(name)), (0.4, 0.2));
            assert_eq!(ended, Ok(()), "{name}");
            assert!(same(&found, &as_evaluated(name, (0.4, 0.2))), "{name}");
        }
    }

    #[test]
    fn the_windows_before_the_cut_of_a_file_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(path("vp9.webm")).unwrap();
        let cut = folder.path().join("cut.webm");
        std::fs::write(&cut, &bytes[..bytes.len() * 2 / 3]).unwrap();
        let (found, ended) = read(&VideoSource::File(cut), (0.2, 0.1));
        let whole = as_evaluated("vp9.webm", (0.2, 0.1));
        assert!(!found.is_empty() && found.len() < whole.len(), "{}", found.len());
        assert!(found == whole[..found.len()]);
        assert!(ended.unwrap_err().contains("cut short"));
    }

    #[test]
    fn a_video_without_a_readable_frame_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(path("vp9.webm")).unwrap();
        let cut = folder.path().join("cut.webm");
        let ends = (100..bytes.len()).step_by(100).map(|length| {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            let shape = Box::new(Ok::<Picture, String>);
            let source = VideoSource::Pipe(cut.clone());
            LiveWindows::open(&source, (0.2, 0.2), 3, shape).map(|mut live| live.next_window())
        });
        let ends: Vec<_> = ends.collect();
        assert!(!ends.iter().any(|end| matches!(end, Ok(Ok(None)))), "none ends without a window");
        let empty = |end: &&Result<_, _>| matches!(end, Ok(Err(error)) if error == "the video has no frames");
        assert!(ends.iter().find(empty).is_some());
        assert!(matches!(ends.last(), Some(Ok(Ok(Some(_))))));
    }

    #[test]
    fn memory_is_bounded_at_any_length_and_rate() {
        let cut = |window_s| Cut {
            window_s,
            stride_s: 0.5,
            frames: 4,
            number: 0,
            held: std::collections::VecDeque::new(),
        };
        let mut bounded = cut(1.0);
        for number in 0..100_000_u32 {
            bounded.hold(f64::from(number) / 30.0, vec![0; 3]).unwrap();
            while bounded.window(None).is_some() {}
            assert!(bounded.held.len() <= 32, "{}", bounded.held.len());
        }
        assert_eq!(bounded.number, 6665);
        let mut sparse = Cut { stride_s: 200.0, ..cut(1.0) };
        let mut starts = Vec::new();
        for number in 0..20_000_u32 {
            sparse.hold(f64::from(number) / 30.0, vec![0; 3]).unwrap();
            starts.extend(sparse.window(None).map(|(window, _)| window.start));
        }
        assert_eq!(starts, [0.0, 200.0, 400.0, 600.0]);
        let mut fast = cut(1.0);
        let held = (0..).map(|number| fast.hold(f64::from(number) * 1e-6, vec![0; 3]));
        let (count, error) = held.enumerate().find(|(_, held)| held.is_err()).unwrap();
        assert_eq!(count, HELD_FRAMES);
        assert!(error.unwrap_err().contains("choose a shorter window"));
    }
}
