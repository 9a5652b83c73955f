//! The page of a described video: the video beside its captions, and the variance of its embeddings
//! with the segments.

mod curve;
mod page;

use std::fs;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use vljepa_recipes::protocol::{
    StreamCaption, StreamEnd, StreamEvent, StreamStart, StreamSummary, VideoSource,
};

use self::curve::Curve;
use crate::error::LaunchError;

/// Largest video in bytes that is a part of the page. Browsers open pages of this size at once.
const LARGEST_PART: u64 = 48 << 20;

/// What the page shows. It grows with the number of captions, and not with that of windows.
#[derive(Debug)]
pub(crate) struct StreamPage {
    name: String,
    /// File of the video, or `None` if it cannot be shown again.
    file: Option<PathBuf>,
    /// Where the page will be.
    page: PathBuf,
    start: Option<StreamStart>,
    curve: Curve,
    captions: Vec<StreamCaption>,
    /// Later queries with their times.
    queries: Vec<(f64, String)>,
    ended: Option<(StreamEnd, StreamSummary)>,
}

/// The video in the page.
#[derive(Debug, PartialEq, Eq)]
enum Player {
    /// Address of the video: its bytes, or its path from the page.
    Source(String),
    /// Why the page has no video.
    Missing(&'static str),
}

impl StreamPage {
    /// Starts a page of the video that the user named, at the path `page`.
    pub(crate) fn new(name: &str, video: &VideoSource, page: &Path) -> Self {
        let file = match video {
            VideoSource::File(path) => Some(path.clone()),
            VideoSource::Pipe(_) | VideoSource::StandardInput | VideoSource::Address(_) => None,
        };
        let name = match (video, Path::new(name).file_name()) {
            (VideoSource::StandardInput, _) => "standard input".to_owned(),
            (VideoSource::File(_) | VideoSource::Pipe(_), Some(name)) => {
                name.to_string_lossy().into_owned()
            }
            _ => name.to_owned(),
        };
        let page = std::path::absolute(page).unwrap_or_else(|_| page.to_owned());
        let (captions, queries) = (Vec::new(), Vec::new());
        Self {
            name,
            file,
            page,
            start: None,
            curve: Curve::default(),
            captions,
            queries,
            ended: None,
        }
    }

    /// Adds an event.
    pub(crate) fn take(&mut self, event: &StreamEvent) {
        match event {
            StreamEvent::Opened(start) => self.start = Some(start.clone()),
            StreamEvent::Window { start_s, end_s, variance, .. } => {
                self.curve.push(f64::midpoint(*start_s, *end_s), *variance);
            }
            StreamEvent::Caption(caption) => self.captions.push(caption.clone()),
            StreamEvent::Query { at_s, query } => self.queries.push((*at_s, query.clone())),
            StreamEvent::Refused { .. } => {}
            StreamEvent::Ended { end, summary } => {
                self.ended = Some((end.clone(), summary.clone()))
            }
        }
    }

    /// The page as HTML.
    ///
    /// # Errors
    /// If the video cannot be read.
    pub(crate) fn write(&self) -> Result<String, LaunchError> {
        Ok(page::page(self, &self.player()?).into_string())
    }

    fn player(&self) -> Result<Player, LaunchError> {
        let Some(file) = &self.file else {
            return Ok(Player::Missing(
                "The video was not recorded; the pictures are what the model saw.",
            ));
        };
        let codec = self.start.as_ref().map_or("", |start| &start.codec);
        let Some(kind) = played(file, codec) else {
            return Ok(Player::Missing(
                "Browsers do not play this format; the pictures are what the model saw.",
            ));
        };
        let unreadable = |error: std::io::Error| LaunchError::Unreadable {
            path: file.clone(),
            why: error.to_string(),
        };
        if fs::metadata(file).map_err(unreadable)?.len() <= LARGEST_PART {
            let bytes = fs::read(file).map_err(unreadable)?;
            return Ok(Player::Source(format!("data:{kind};base64,{}", STANDARD.encode(bytes))));
        }
        let folder = self.page.parent().unwrap_or(Path::new("/"));
        Ok(Player::Source(encoded(&relative(file, folder))))
    }
}

/// MIME type of a video that browsers play, by the extension of its file and its codec.
fn played(file: &Path, codec: &str) -> Option<&'static str> {
    let extension = file.extension()?.to_ascii_lowercase();
    match (extension.to_str()?, codec) {
        ("mp4" | "m4v" | "mov", "h264" | "av1" | "vp9") => Some("video/mp4"),
        ("webm", "vp8" | "vp9" | "av1") => Some("video/webm"),
        _ => None,
    }
}

/// Path of a file from a folder. Both are absolute.
fn relative(file: &Path, folder: &Path) -> PathBuf {
    let common = file.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(common).map(|_| Component::ParentDir);
    up.chain(file.components().skip(common)).collect()
}

/// A relative path as an address: bytes other than letters, digits and `-._~/` as `%XX`.
fn encoded(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut address = String::from("./");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            address.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            write!(address, "%{byte:02X}").ok();
        }
    }
    address
}

#[cfg(test)]
mod tests;
