//! Arguments of `vljepa-launch stream`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use vljepa_recipes::protocol::{SMOOTHING, THRESHOLD};
use vljepa_recipes::schema::SHORTEST_STRIDE_S;

use super::OfStep;

#[derive(Debug, Args)]
pub(crate) struct Stream {
    /// Run directory of a Y-decoder with a checkpoint.
    pub run: PathBuf,
    /// Video: a file, a named pipe, `-` for standard input, the address of a server
    /// (rtsp://HOST/PATH), or a camera (/dev/video0), which the program ffmpeg reads.
    pub video: String,
    /// How fast the video is shown. `own`: at its own speed, and windows that the model has no time
    /// for are dropped. `fast`: as fast as the model is, and the source waits. Default: `fast` for
    /// files and pipes, `own` for servers and cameras.
    #[arg(long, value_enum)]
    pub speed: Option<StreamSpeed>,
    /// Query for the predictor. Default: that of the recipe's task of selective decoding, or of its
    /// captioning task. A line on standard input replaces it while the video is shown.
    #[arg(long, value_parser = query)]
    pub query: Option<String>,
    /// Length in seconds of the window of frames that is embedded. Default: that of the recipe's
    /// task of selective decoding, or 2.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub window: Option<f64>,
    /// Seconds from the start of a window to the start of the next one. Default: that of the
    /// recipe's task of selective decoding, or 0.5.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub stride: Option<f64>,
    /// Number of frames of a window. Default: that of the recipe.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub frames: Option<u32>,
    /// Number of embeddings that a caption is the mean of. Their variance is compared with
    /// `--threshold`.
    #[arg(long, default_value_t = SMOOTHING, value_parser = smoothing)]
    pub smoothing: usize,
    /// Variance of the last embeddings above which a new caption begins: from 0 to 1 for embeddings
    /// of length one.
    #[arg(long, default_value_t = THRESHOLD, value_parser = variance)]
    pub threshold: f64,
    /// Write a page with the video, its captions and the variance.
    #[arg(long, value_name = "PAGE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub checkpoint: OfStep,
    /// Print each event and the summary as a line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// Speeds of `vljepa-launch stream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamSpeed {
    /// At the video's own speed.
    Own,
    /// As fast as the model is.
    Fast,
}

/// Longest window and stride in seconds.
const LONGEST_S: f64 = 3600.0;

/// Reads a text that is not empty.
fn query(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("an empty text is not a query; without --query the recipe's is used".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a number of seconds, at most an hour.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| *s >= SHORTEST_STRIDE_S && *s <= LONGEST_S);
    seconds
        .ok_or_else(|| format!("not a number of seconds from {SHORTEST_STRIDE_S} to {LONGEST_S}"))
}

/// Reads a number that is not negative.
fn variance(text: &str) -> Result<f64, String> {
    let variance = text.parse().ok().filter(|v: &f64| *v >= 0.0 && v.is_finite());
    variance.ok_or_else(|| "not a number from 0".to_owned())
}

/// Reads a number of embeddings.
fn smoothing(text: &str) -> Result<usize, String> {
    let embeddings = text.parse().ok().filter(|n| (2..=1024).contains(n));
    embeddings.ok_or_else(|| "not a number of embeddings from 2 to 1024".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vljepa_recipes::protocol::{SMOOTHING, THRESHOLD};

    use crate::cli::{Cli, Command, StreamSpeed};

    fn parsed(more: &[&str]) -> Result<super::Stream, String> {
        let cli = Cli::try_parse_from(["l", "stream", "run"].iter().chain(more));
        match cli.map_err(|error| error.to_string())?.command {
            Some(Command::Stream(stream)) => Ok(stream),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_stream_has_defaults_and_refuses_numbers_that_mean_nothing() {
        let plain = parsed(&["-"]).unwrap();
        assert_eq!((plain.video.as_str(), plain.speed), ("-", None));
        assert_eq!((plain.smoothing, plain.threshold.to_bits()), (SMOOTHING, THRESHOLD.to_bits()));
        let more = ["a.mp4", "--speed", "own", "--window", "0.5", "--threshold", "0"];
        let changed = parsed(&more).unwrap();
        assert_eq!((changed.speed, changed.window), (Some(StreamSpeed::Own), Some(0.5)));
        for (wrong, said) in [
            (vec!["a.mp4", "--window", "0"], "seconds from 0.01 to 3600"),
            (vec!["a.mp4", "--stride", "NaN"], "seconds from 0.01"),
            (vec!["a.mp4", "--stride", "0.001"], "seconds from 0.01"),
            (vec!["a.mp4", "--query", " "], "an empty text is not a query"),
            (vec!["a.mp4", "--threshold", "-1"], "unexpected argument"),
            (vec!["a.mp4", "--threshold", "inf"], "not a number from 0"),
            (vec!["a.mp4", "--smoothing", "1"], "from 2 to 1024"),
            (vec!["a.mp4", "--speed", "slow"], "own, fast"),
            (vec![], "<VIDEO>"),
        ] {
            let error = parsed(&wrong).unwrap_err();
            assert!(error.contains(said), "{wrong:?}: {error}");
        }
    }
}
