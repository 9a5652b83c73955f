//! The thread that reads the windows of a stream while the model works.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, at, bounded};
use vljepa_data::LoadOptions;
use vljepa_data::decode::video::{LiveWindows, WindowFrames};
use vljepa_data::transform::Shaper;
use vljepa_recipes::protocol::{Speed, VideoSource};

/// Windows that wait for the model at the video's own speed. With more, texts would be older; with
/// fewer, a short delay would drop windows.
const WAITING_AT_OWN_SPEED: usize = 4;

/// Windows that wait for the model at full speed, to be embedded in one batch.
pub(super) const BATCH: usize = 16;

/// Video to read, and how it is cut into windows.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) video: VideoSource,
    pub(super) speed: Speed,
    pub(super) window_s: f64,
    pub(super) stride_s: f64,
    pub(super) options: LoadOptions,
}

/// Message from the reading thread.
#[derive(Debug)]
pub(super) enum Fed {
    /// The video is open: name of its codec, and when its clock starts.
    Opened(&'static str, Instant),
    Window(Window),
    /// End of the stream, with the error and its second, or `None` if the video is over.
    Ended(Option<String>),
}

/// Frames of a stretch of the video.
#[derive(Debug)]
pub(super) struct Window {
    /// Seconds after the first frame of the video.
    pub(super) seconds: Range<f64>,
    pub(super) pixels: Vec<u8>,
    /// When its last frame arrived. A file at its own speed gives it when it is played there.
    pub(super) arrived: Instant,
}

/// Windows as they come, at most [`BATCH`] waiting.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) received: Receiver<Fed>,
    left_out: Arc<LeftOut>,
}

/// Numbers of what was left out so far.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    dropped: AtomicU64,
    damaged: AtomicU64,
}

impl LeftOut {
    /// Number of windows that the model had no time for.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Number of damaged frames.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }
}

impl Feed {
    /// Starts the thread. It ends with the video, or with this process: a read from a pipe or a
    /// server cannot be interrupted.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(request: Request) -> std::io::Result<Self> {
        let waiting = match request.speed {
            Speed::Own => WAITING_AT_OWN_SPEED,
            Speed::Fast => BATCH,
        };
        let (sender, received) = bounded(waiting);
        let left_out = Arc::<LeftOut>::default();
        let outlet = Outlet { sender, left_out: Arc::clone(&left_out) };
        std::thread::Builder::new().name("stream".to_owned()).spawn(move || {
            let error = match open(&request) {
                Ok(mut windows) => outlet.all(&mut windows, &request),
                Err(error) => Some(error),
            };
            // An error means that the model has ended.
            outlet.sender.send(Fed::Ended(error)).unwrap_or_default();
        })?;
        Ok(Self { received, left_out })
    }

    /// Numbers of what was left out so far.
    pub(super) fn left_out(&self) -> &LeftOut {
        &self.left_out
    }
}

fn open(request: &Request) -> Result<LiveWindows, String> {
    let LoadOptions { frames, image_size, preprocessing } = request.options;
    let size = u32::try_from(image_size).map_err(|_| "image_size is too large")?;
    let shaper = Box::new(Shaper::new(preprocessing, size));
    LiveWindows::open(&request.video, (request.window_s, request.stride_s), frames, shaper)
}

struct Outlet {
    sender: Sender<Fed>,
    left_out: Arc<LeftOut>,
}

impl Outlet {
    /// Sends all windows. Returns why the video cannot be read to its end.
    fn all(&self, windows: &mut LiveWindows, request: &Request) -> Option<String> {
        let began = Instant::now();
        if self.sender.send(Fed::Opened(windows.codec(), began)).is_err() {
            return None;
        }
        loop {
            let window = windows.next_window();
            self.left_out.damaged.store(windows.damaged(), Ordering::Relaxed);
            let (seconds, WindowFrames { pixels, arrived }) = match window {
                Ok(window) => window?,
                Err(error) => {
                    return Some(format!("{error}, {:.2} s after its start", windows.end_s()));
                }
            };
            let arrived = match (&request.video, request.speed) {
                (VideoSource::File(_), Speed::Own) => shown(began, seconds.end, arrived),
                _ => arrived,
            };
            if !self.give(Window { seconds, pixels, arrived }, request.speed) {
                return None;
            }
        }
    }

    /// Sends a window. Returns false if nobody receives it.
    fn give(&self, window: Window, speed: Speed) -> bool {
        match speed {
            Speed::Fast => self.sender.send(Fed::Window(window)).is_ok(),
            Speed::Own => match self.sender.try_send(Fed::Window(window)) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    self.left_out.dropped.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            },
        }
    }
}

/// Waits until a video that was started at `began` shows the second `end_s`, and returns when it
/// does.
fn shown(began: Instant, end_s: f64, decoded: Instant) -> Instant {
    let after = Duration::try_from_secs_f64(end_s).ok().and_then(|after| began.checked_add(after));
    let due = after.unwrap_or(decoded);
    at(due).recv().unwrap_or(due)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use crossbeam_channel::bounded;
    use vljepa_recipes::protocol::Speed;

    use super::{BATCH, Fed, Feed, LeftOut, Outlet, Window, shown};

    fn outlet(waiting: usize) -> (Outlet, Feed) {
        let (sender, received) = bounded(waiting);
        let left_out = Arc::<LeftOut>::default();
        (Outlet { sender, left_out: Arc::clone(&left_out) }, Feed { received, left_out })
    }

    fn window(number: u8) -> Window {
        let start = f64::from(number);
        Window { seconds: start..start + 1.0, pixels: vec![number], arrived: Instant::now() }
    }

    fn numbers(feed: &Feed) -> Vec<u8> {
        let windows = feed.received.try_iter().filter_map(|fed| match fed {
            Fed::Window(window) => Some(window.pixels[0]),
            Fed::Opened(..) | Fed::Ended(_) => None,
        });
        windows.collect()
    }

    #[test]
    fn at_its_own_speed_windows_are_dropped_and_counted_while_the_model_works() {
        let (outlet, feed) = outlet(4);
        assert!((0..10).all(|number| outlet.give(window(number), Speed::Own)));
        assert_eq!((numbers(&feed), feed.left_out().dropped()), (vec![0, 1, 2, 3], 6));
        assert!(outlet.give(window(10), Speed::Own));
        assert_eq!((numbers(&feed), feed.left_out().dropped()), (vec![10], 6));
        drop(feed);
        assert!(!outlet.give(window(11), Speed::Own));
    }

    #[test]
    fn at_full_speed_the_source_waits_and_nothing_is_dropped() {
        let (outlet, feed) = outlet(BATCH);
        let all = std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!((0..100).all(|number| outlet.give(window(number), Speed::Fast)));
                drop(outlet.sender.send(Fed::Ended(None)));
            });
            let mut all = Vec::new();
            while all.len() < 100 {
                assert!(feed.received.len() <= BATCH);
                all.extend(numbers(&feed));
            }
            all
        });
        assert_eq!((all, feed.left_out().dropped()), ((0..100).collect(), 0));
    }

    #[test]
    fn a_file_is_played_no_earlier_than_its_clock() {
        let began = Instant::now();
        let due = shown(began, 0.05, began);
        assert!(Instant::now() >= began + Duration::from_millis(50) && due <= Instant::now());
        // A decoder that is late does not wait, and the window counts as shown in time.
        let early = began.checked_sub(Duration::from_secs(9)).unwrap();
        assert!(shown(early, 1.0, Instant::now()) <= early + Duration::from_secs(1));
        assert_eq!(shown(began, f64::MAX, began), began, "no clock reaches it");
    }
}
