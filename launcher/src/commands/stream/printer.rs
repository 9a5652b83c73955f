//! What is shown of the events of a stream: lines, notes and the page.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use vljepa_recipes::protocol::{Lag, StreamEnd, StreamEvent, StreamSummary, VideoSource};
use vljepa_recipes::run_directory::atomic_write;

use super::shown;
use crate::cli;
use crate::commands::jobs::{path_error, row};
use crate::error::LaunchError;
use crate::report::StreamPage;
use crate::terminal;

/// Prints events, and keeps what the page shows.
pub(super) struct Printer<'a> {
    arguments: &'a cli::Stream,
    page: Option<StreamPage>,
    /// Step of the checkpoint, once the video is open.
    pub(super) step: Option<u64>,
    ended: Option<(StreamEnd, StreamSummary)>,
}

/// Checks that a page can be written where the user wants it.
pub(super) fn check_page(arguments: &cli::Stream) -> Result<(), LaunchError> {
    let Some(path) = &arguments.html else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if folder.is_some_and(|folder| !folder.is_dir()) || (path.exists() && !path.is_file()) {
        return Err(path_error("the page", path, "cannot be written there"));
    }
    let file = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    match (file(path), file(Path::new(&arguments.video))) {
        (Some(page), Some(video)) if page == video => {
            Err(path_error("the page", path, "would replace the video; choose another file"))
        }
        _ => Ok(()),
    }
}

impl<'a> Printer<'a> {
    pub(super) fn new(arguments: &'a cli::Stream, video: &VideoSource) -> Self {
        let name = shown(&arguments.video);
        let page = arguments.html.as_deref().map(|path| StreamPage::new(&name, video, path));
        Self { arguments, page, step: None, ended: None }
    }

    /// Takes an event of the worker. Returns the line to print, if any.
    pub(super) fn take(&mut self, line: &str) -> Result<Option<String>, LaunchError> {
        let event: StreamEvent = serde_json::from_str(line).map_err(|error| {
            LaunchError::JobFailed { error: format!("`{line}` is not an event: {error}") }
        })?;
        if let Some(page) = &mut self.page {
            page.take(&event);
        }
        match &event {
            StreamEvent::Opened(start) => self.step = Some(start.step),
            StreamEvent::Ended { end, summary } => {
                self.ended = Some((end.clone(), summary.clone()));
            }
            StreamEvent::Window { .. }
            | StreamEvent::Caption(_)
            | StreamEvent::Query { .. }
            | StreamEvent::Refused { .. } => {}
        }
        if self.arguments.json {
            return without_picture(event).map(Some);
        }
        match event {
            StreamEvent::Opened(start) => terminal::note(&format!(
                "{}, windows of {} s each {} s, {} frames; query: {}",
                start.codec, start.window_s, start.stride_s, start.frames, start.query
            )),
            StreamEvent::Window { .. } => {}
            StreamEvent::Caption(caption) => {
                return Ok(Some(format!(
                    "{:>9}  {}",
                    terminal::clock(caption.start_s),
                    caption.text
                )));
            }
            StreamEvent::Query { at_s, query } => {
                terminal::note(&format!("query from {}: {query}", terminal::clock(at_s)));
            }
            StreamEvent::Refused { why } => terminal::note(&why),
            // The summary follows the last caption, which may not be printed yet.
            StreamEvent::Ended { .. } => {}
        }
        Ok(None)
    }

    /// Whether the video has ended by itself, with or without an error.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.ended, Some((StreamEnd::Finished | StreamEnd::Failed { .. }, _)))
    }

    /// Says what was done, unless it is in the JSON. Without a video there is nothing to sum up.
    pub(super) fn sum_up(&self) {
        if let (Some((_, summary)), Some(_), false) = (&self.ended, self.step, self.arguments.json)
        {
            terminal::note(&summary_text(summary));
        }
    }

    /// Writes the page, if the user wants one.
    pub(super) fn write_page(&self) -> Result<(), LaunchError> {
        if let (Some(page), Some(path)) = (&self.page, &self.arguments.html) {
            atomic_write(path, page.write()?.as_bytes()).map_err(|error| {
                path_error("the page", path, &format!("cannot be written: {error}"))
            })?;
            terminal::note(&format!("page: {}", path.display()));
        }
        Ok(())
    }

    /// Exit code, or the error of the video.
    pub(super) fn code(self) -> Result<u8, LaunchError> {
        match self.ended {
            Some((StreamEnd::Finished | StreamEnd::Stopped, _)) => Ok(0),
            Some((StreamEnd::Failed { error }, _)) => {
                Err(LaunchError::Video { video: shown(&self.arguments.video), error })
            }
            None => Err(LaunchError::JobFailed { error: "it ended without a summary".to_owned() }),
        }
    }
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
    use clap::Parser as _;

    use super::check_page;
    use crate::cli::{Cli, Command};

    #[test]
    fn the_page_never_replaces_the_video() {
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join("a.mp4");
        std::fs::write(&video, b"x").unwrap();
        let checked = |page: &std::path::Path| {
            let words = ["l".as_ref(), "stream".as_ref(), "run".as_ref(), video.as_os_str()];
            let more = ["--html".as_ref(), page.as_os_str()];
            let cli = Cli::try_parse_from(words.into_iter().chain(more)).unwrap();
            let Some(Command::Stream(arguments)) = cli.command else { panic!("another command") };
            check_page(&arguments).map_err(|error| error.to_string())
        };
        let link = folder.path().join("link.html");
        std::os::unix::fs::symlink(&video, &link).unwrap();
        for page in [&video, &link, &folder.path().join("../").join(folder.path()).join("a.mp4")] {
            assert!(checked(page).unwrap_err().contains("would replace the video"), "{page:?}");
        }
        assert_eq!(checked(&folder.path().join("a.html")), Ok(()));
        for wrong in [folder.path(), &folder.path().join("none/a.html"), "/dev/null".as_ref()] {
            assert!(checked(wrong).unwrap_err().contains("cannot be written there"), "{wrong:?}");
        }
    }
}
