//! The job that describes a video while it is shown (paper §2, selective decoding), and the events
//! that it prints.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Number of embeddings that a caption is the mean of, if the user gives none. The paper names no
/// number. On the quickstart's synthetic stream, 3 name more segments right than 2, 4 or 5, and
/// depend least on the threshold.
pub const SMOOTHING: usize = 3;

/// Variance above which a segment ends, if the user gives none. The paper names none. Embeddings of
/// length one have a variance from 0 to 1. On the quickstart's synthetic stream, captions of 58 of
/// 61 segments are right with thresholds from 0.1 to 0.15, and of 53 with 0.05.
pub const THRESHOLD: f64 = 0.1;

/// Describes a video while it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamJob {
    /// Step of the checkpoint, or `None` for the newest that verifies.
    pub step: Option<u64>,
    /// Where the frames come from.
    pub video: VideoSource,
    /// How fast they are shown.
    pub speed: Speed,
    /// First query for the predictor, or `None` for that of the recipe's task. Each line of
    /// standard input is a later one, unless the video comes from there.
    pub query: Option<String>,
    /// Length of a window in seconds, or `None` for that of the recipe's task of selective
    /// decoding, or else that task's default.
    pub window_s: Option<f64>,
    /// Seconds from the start of a window to the start of the next one, with the same default.
    pub stride_s: Option<f64>,
    /// Number of frames of a window, with the same default.
    pub frames: Option<usize>,
    /// Number of embeddings whose variance is compared with the threshold, and of which a caption
    /// is the mean.
    pub smoothing: usize,
    /// Variance above which a segment ends.
    pub threshold: f64,
    /// Whether each caption comes with a picture.
    pub pictures: bool,
}

/// Source of the frames of a video.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VideoSource {
    /// A regular file.
    File(PathBuf),
    /// A named pipe.
    Pipe(PathBuf),
    /// Standard input of the worker.
    StandardInput,
    /// A server, such as `rtsp://host/path`.
    Address(String),
}

/// How fast a video is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speed {
    /// At its own speed: a file as it is played, others as they arrive. Windows that the model has
    /// no time for are dropped.
    Own,
    /// As fast as the model is. The source waits, and nothing is dropped.
    Fast,
}

/// Event of a stream. The worker prints each as a line of JSON when it happens. Times of the video
/// are seconds after its first frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum StreamEvent {
    /// The video is open.
    Opened(StreamStart),
    /// A window was embedded.
    Window {
        /// Start of the window.
        start_s: f64,
        /// End of the window.
        end_s: f64,
        /// Variance of the last embeddings of the segment, with this one.
        variance: f64,
        /// Seconds from the arrival of the window's last frame to its embedding. A frame of a pipe
        /// or a server arrives when it is decoded: how long it was on its way is unknown.
        lag_s: f64,
    },
    /// A text was decoded. A segment has one.
    Caption(StreamCaption),
    /// A line of standard input became the query.
    Query {
        /// End of the last window that the query before was asked about, or 0.
        at_s: f64,
        /// The query.
        query: String,
    },
    /// A line of standard input is not a query.
    Refused {
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The stream has ended. No event follows.
    Ended {
        /// Reason.
        end: StreamEnd,
        /// What was done.
        summary: StreamSummary,
    },
}

/// What is known of a stream at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamStart {
    /// Step of the checkpoint.
    pub step: u64,
    /// Name of the video's codec, as FFmpeg writes it.
    pub codec: String,
    /// First query.
    pub query: String,
    /// Length of a window in seconds.
    pub window_s: f64,
    /// Seconds from the start of a window to the start of the next one.
    pub stride_s: f64,
    /// Number of frames of a window.
    pub frames: usize,
    /// Number of embeddings whose variance is compared with the threshold.
    pub smoothing: usize,
    /// Variance above which a segment ends.
    pub threshold: f64,
}

/// Text of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamCaption {
    /// Start of the segment.
    pub start_s: f64,
    /// End of the newest frame that the text describes. The segment goes on until the next one.
    pub seen_s: f64,
    /// The text.
    pub text: String,
    /// Query that it answers.
    pub query: String,
    /// Seconds from the arrival of the last frame of the segment's first window to the text.
    pub lag_s: f64,
    /// A frame of the segment as the model sees it, a JPEG in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
}

/// Why a stream has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case", deny_unknown_fields)]
pub enum StreamEnd {
    /// The video is over.
    Finished,
    /// A signal asked for it.
    Stopped,
    /// The video cannot be read any further.
    Failed {
        /// What happened, and at which second.
        error: String,
    },
}

/// What was done with a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSummary {
    /// End of the last window that was embedded, in seconds after the first frame.
    pub video_s: f64,
    /// Seconds from the opening of the video to the end.
    pub wall_s: f64,
    /// Number of windows that were embedded.
    pub windows: u64,
    /// Number of texts that were decoded.
    pub texts: u64,
    /// How many times fewer texts than windows: `None` without a text.
    pub saving: Option<f64>,
    /// Number of windows that the model had no time for.
    pub dropped: u64,
    /// Number of damaged frames of a pipe or a server that were left out.
    pub damaged: u64,
    /// Seconds from a frame to an embedding. `None` without windows.
    pub to_embedding: Option<Lag>,
    /// Seconds from a frame to a text. `None` without texts.
    pub to_text: Option<Lag>,
}

/// Median and 99th percentile of lags in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lag {
    /// Half of the lags are at most this long.
    pub median_s: f64,
    /// 99 of 100 lags are at most this long.
    pub p99_s: f64,
}
