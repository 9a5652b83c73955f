//! The page of a described video: the video beside its captions, and the variance of its embeddings
//! with the segments.

mod curve;
mod page;

use std::collections::VecDeque;
use std::fs;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use vljepa_recipes::protocol::{
    StreamCaption, StreamEnd, StreamEvent, StreamStart, StreamSummary, VideoSource,
};

use self::curve::Curve;
use crate::error::LaunchError;

/// Largest video in bytes that is a part of the page. In base64 it has 31 MiB, and Firefox opens
/// addresses of at most 32 MB.
const LARGEST_PART: u64 = 23 << 20;

/// Number of captions, and of queries, that the page has: the last ones. The texts of 4096 captions
/// take some megabytes, and a page with more is slow.
const MOST_CAPTIONS: usize = 4096;

/// Number of captions with pictures, of about 20 kB each: the last ones.
const MOST_PICTURES: usize = 256;

/// What the page shows. It does not grow with the length of the video.
#[derive(Debug)]
pub(crate) struct StreamPage {
    name: String,
    /// File of the video, or `None` if it cannot be shown again.
    file: Option<PathBuf>,
    /// Folder of the page, without links.
    folder: PathBuf,
    start: Option<StreamStart>,
    curve: Curve,
    captions: VecDeque<StreamCaption>,
    /// Number of captions that the page does not have any more.
    left_out: u64,
    /// Later queries with their times.
    queries: VecDeque<(f64, String)>,
    /// Whether a caption came after the last query.
    is_answered: bool,
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
        let folder = match page.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            Some(_) | None => Path::new("."),
        };
        Self {
            name,
            file,
            folder: without_links(folder),
            start: None,
            curve: Curve::default(),
            captions: VecDeque::new(),
            left_out: 0,
            queries: VecDeque::new(),
            is_answered: false,
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
            StreamEvent::Caption(caption) => self.add(caption.clone()),
            StreamEvent::Query { at_s, query } => {
                if !std::mem::take(&mut self.is_answered) {
                    self.queries.pop_back();
                }
                self.queries.push_back((*at_s, query.clone()));
            }
            StreamEvent::Refused { .. } => {}
            StreamEvent::Ended { end, summary } => {
                self.ended = Some((end.clone(), summary.clone()))
            }
        }
    }

    /// Adds a caption, and forgets the oldest ones and their pictures.
    fn add(&mut self, caption: StreamCaption) {
        self.is_answered = true;
        self.captions.push_back(caption);
        if self.captions.len() > MOST_CAPTIONS {
            self.captions.pop_front();
            self.left_out += 1;
        }
        if let Some(old) = self.captions.len().checked_sub(MOST_PICTURES + 1) {
            self.captions[old].picture = None;
        }
        if self.queries.len() > MOST_CAPTIONS {
            self.queries.pop_front();
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
        Ok(Player::Source(encoded(&relative(&without_links(file), &self.folder))))
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

/// Absolute path without links and `..`: a browser removes `..` before it looks at folders.
fn without_links(path: &Path) -> PathBuf {
    let absolute = || std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    fs::canonicalize(path).unwrap_or_else(|_| absolute())
}

/// Path of a file from a folder. Both are absolute and without links.
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
