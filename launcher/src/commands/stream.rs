//! `vljepa-launch stream`: describes a video while it is shown.

use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{
    Job, Lag, Speed, StreamEnd, StreamEvent, StreamJob, StreamSummary, VideoSource,
};
use vljepa_recipes::run_directory::atomic_write;
use vljepa_recipes::schema::ModelKind;

use super::call::{Call, signals};
use super::jobs::{absolute, note_checkpoint, path_error, row, with_weights};
use crate::cli::{self, StreamSpeed};
use crate::error::LaunchError;
use crate::programs::running::Running;
use crate::report::StreamPage;
use crate::terminal;

/// Starts of addresses that are connected to.
const SCHEMES: [&str; 2] = ["rtsp://", "rtsps://"];

/// Signals in this time are one request to end: `timeout` sends its signal to a program and then to
/// its group.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// Prints captions as the video changes, and the summary at its end. The first signal ends the
/// stream with the summary, and a second one at once.
pub(crate) async fn stream(arguments: &cli::Stream) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    if let Some(why) = lacks_decoder(&directory.load_recipe()?.recipe.model) {
        return Err(path_error("the run", &arguments.run, why));
    }
    let video = source(&arguments.video)?;
    let mut printer = Printer::new(arguments, &video)?;
    let job = Job::Stream(job(arguments, video));
    let Call { programs, arguments: worker, folder, _files } = Call::new(&directory, &job)?;
    let mut signals = signals()?;
    let mut running = Running::start(&programs, &worker, &folder)?;
    let mut stopped: Option<Instant> = None;
    loop {
        tokio::select! {
            line = running.next() => {
                let Some(line) = line else { break };
                // A closed standard output (`| head`) ends the stream.
                if printer.take(&line)?.is_err() {
                    running.stop();
                }
            }
            signal = signals.next() => {
                let first = *stopped.get_or_insert_with(Instant::now);
                if first.elapsed() > ONE_REQUEST {
                    return Err(LaunchError::Interrupted { exit_code: signal.exit_code(false) });
                }
                running.stop();
            }
        }
    }
    let ended = running.end().await;
    if let Some(step) = printer.step.filter(|_| !arguments.json) {
        note_checkpoint(&directory, step);
    }
    // The page of a worker that failed shows what came before.
    let code = printer.end();
    ended.and(code)
}

/// Why a model cannot describe a stream, and what can.
fn lacks_decoder(model: &vljepa_recipes::schema::Model) -> Option<&'static str> {
    match model.kind {
        _ if model.decoder().is_some() => None,
        ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::DualEncoder => {
            Some("has no Y-decoder that could write captions; recipes/decoder.yaml trains one")
        }
        ModelKind::Vlm => Some(
            "has a VLM, which has no embeddings to watch; recipes/decoder.yaml trains a Y-decoder",
        ),
    }
}

fn job(arguments: &cli::Stream, video: VideoSource) -> StreamJob {
    let speed = match (arguments.speed, &video) {
        (Some(StreamSpeed::Own), _) | (None, VideoSource::Address(_)) => Speed::Own,
        // A pipe waits for its reader, so that nothing has to be dropped.
        (Some(StreamSpeed::Fast), _)
        | (None, VideoSource::File(_) | VideoSource::Pipe(_) | VideoSource::StandardInput) => {
            Speed::Fast
        }
    };
    StreamJob {
        step: arguments.checkpoint.step,
        video,
        speed,
        query: arguments.query.clone(),
        window_s: arguments.window,
        stride_s: arguments.stride,
        frames: arguments.frames.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        smoothing: arguments.smoothing,
        threshold: arguments.threshold,
        pictures: arguments.html.is_some(),
    }
}

/// Source that the user names.
fn source(video: &str) -> Result<VideoSource, LaunchError> {
    if video == "-" {
        return Ok(VideoSource::StandardInput);
    }
    let refused = |why: &str| Err(path_error("the video", Path::new(video), why));
    if SCHEMES.iter().any(|scheme| video.starts_with(scheme)) {
        return Ok(VideoSource::Address(video.to_owned()));
    }
    if video.contains("://") {
        return refused(
            "is no address of RTSP (rtsp:// or rtsps://); download it, or pipe it to `-`",
        );
    }
    let path = Path::new(video);
    match std::fs::metadata(path).map(|data| data.file_type()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => refused("does not exist"),
        Err(error) => refused(&format!("cannot be read: {error}")),
        Ok(kind) if kind.is_file() => Ok(VideoSource::File(absolute(path))),
        Ok(kind) if kind.is_fifo() => Ok(VideoSource::Pipe(absolute(path))),
        Ok(kind) if kind.is_char_device() => refused(&format!(
            "is a device, which is read through ffmpeg: ffmpeg -f v4l2 -i {video} -c:v libx264 \
             -tune zerolatency -f mpegts - | vljepa-launch stream RUN - --speed own"
        )),
        Ok(_) => refused("is neither a file nor a pipe"),
    }
}

/// Prints events, and keeps what the page shows.
struct Printer<'a> {
    arguments: &'a cli::Stream,
    page: Option<StreamPage>,
    /// Step of the checkpoint, once the video is open.
    step: Option<u64>,
    ended: Option<StreamEnd>,
}

impl<'a> Printer<'a> {
    fn new(arguments: &'a cli::Stream, video: &VideoSource) -> Result<Self, LaunchError> {
        let page = match &arguments.html {
            None => None,
            Some(path) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
                    return Err(path_error("the page", path, "cannot be written there"));
                }
                Some(StreamPage::new(&arguments.video, video, path))
            }
        };
        Ok(Self { arguments, page, step: None, ended: None })
    }

    /// Prints an event of the worker. The inner error is one of standard output.
    fn take(&mut self, line: &str) -> Result<std::io::Result<()>, LaunchError> {
        let event: StreamEvent = serde_json::from_str(line).map_err(|error| {
            LaunchError::JobFailed { error: format!("`{line}` is no event: {error}") }
        })?;
        if let Some(page) = &mut self.page {
            page.take(&event);
        }
        match &event {
            StreamEvent::Opened(start) => self.step = Some(start.step),
            StreamEvent::Ended { end, .. } => self.ended = Some(end.clone()),
            StreamEvent::Window { .. }
            | StreamEvent::Caption(_)
            | StreamEvent::Query { .. }
            | StreamEvent::Refused { .. } => {}
        }
        if self.arguments.json {
            return Ok(print(&without_picture(event)?));
        }
        match event {
            StreamEvent::Opened(start) => terminal::note(&format!(
                "{}, windows of {} s each {} s, {} frames; query: {}",
                start.codec, start.window_s, start.stride_s, start.frames, start.query
            )),
            StreamEvent::Window { .. } => {}
            StreamEvent::Caption(caption) => {
                return Ok(print(&format!(
                    "{:>9}  {}",
                    terminal::clock(caption.start_s),
                    caption.text
                )));
            }
            StreamEvent::Query { at_s, query } => {
                terminal::note(&format!("query from {}: {query}", terminal::clock(at_s)));
            }
            StreamEvent::Refused { why } => terminal::note(&why),
            // Without a video there is nothing to sum up.
            StreamEvent::Ended { summary, .. } if self.step.is_some() => {
                terminal::note(&summary_text(&summary));
            }
            StreamEvent::Ended { .. } => {}
        }
        Ok(Ok(()))
    }

    /// Writes the page, and returns the exit code.
    fn end(self) -> Result<u8, LaunchError> {
        if let (Some(page), Some(path)) = (&self.page, &self.arguments.html) {
            write_page(path, &page.write()?)?;
            terminal::note(&format!("page: {}", path.display()));
        }
        match self.ended {
            Some(StreamEnd::Finished | StreamEnd::Stopped) => Ok(0),
            Some(StreamEnd::Failed { error }) => {
                Err(LaunchError::Video { video: self.arguments.video.clone(), error })
            }
            None => Err(LaunchError::JobFailed { error: "it ended without a summary".to_owned() }),
        }
    }
}

fn write_page(path: &Path, text: &str) -> Result<(), LaunchError> {
    atomic_write(path, text.as_bytes())
        .map_err(|error| path_error("the page", path, &format!("cannot be written: {error}")))
}

fn print(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

/// An event as a line of JSON. Only the page has pictures.
fn without_picture(mut event: StreamEvent) -> Result<String, LaunchError> {
    if let StreamEvent::Caption(caption) = &mut event {
        caption.picture = None;
    }
    serde_json::to_string(&event)
        .map_err(|error| LaunchError::JobFailed { error: error.to_string() })
}

/// What was done, as a table.
fn summary_text(summary: &StreamSummary) -> String {
    let StreamSummary { windows, texts, dropped, damaged, .. } = *summary;
    let mut rows = vec![row(["lag from the last frame to", "median ms", "99 % ms"])];
    let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
    let mut lag = |what: &str, lag: Option<Lag>| {
        rows.extend(lag.map(|lag| row([what, &ms(lag.median_s), &ms(lag.p99_s)])));
    };
    lag("embedding", summary.to_embedding);
    lag("text", summary.to_text);
    let table = if rows.len() > 1 { terminal::table(&rows) + "\n" } else { String::new() };
    let saving = summary.saving.map(|saving| format!(", {saving:.1} times fewer"));
    let mut lines = format!(
        "{table}{} of video in {}: {} windows embedded, {} texts decoded{}; {} windows dropped",
        terminal::clock(summary.video_s),
        terminal::duration(summary.wall_s),
        terminal::thousands(windows),
        terminal::thousands(texts),
        saving.unwrap_or_default(),
        terminal::thousands(dropped),
    );
    if damaged > 0 {
        lines += &format!(", {} damaged frames left out", terminal::thousands(damaged));
    }
    lines
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::VideoSource;

    use super::source;

    #[test]
    fn a_video_is_a_file_a_pipe_standard_input_or_an_address() {
        assert_eq!(source("-").unwrap(), VideoSource::StandardInput);
        let address = "rtsp://camera/1";
        assert_eq!(source(address).unwrap(), VideoSource::Address(address.to_owned()));
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("a.mp4"), b"x").unwrap();
        assert_eq!(source(&path("a.mp4")).unwrap(), VideoSource::File(path("a.mp4").into()));
        nix::unistd::mkfifo(&*path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(source(&path("pipe")).unwrap(), VideoSource::Pipe(path("pipe").into()));
        for (wrong, said) in [
            (path("none.mp4"), "does not exist"),
            (folder.path().display().to_string(), "neither a file nor a pipe"),
            ("https://x/a.mp4".to_owned(), "no address of RTSP"),
            ("/dev/null".to_owned(), "is read through ffmpeg"),
        ] {
            let error = source(&wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
