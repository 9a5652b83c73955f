//! Narrations of Ego4D: what the camera wearer, or another person, does at a time of a video.
//!
//! `narration.json` is one JSON object with millions of narrations: `{video_uid: {narration_pass_1:
//! {narrations: [{timestamp_sec, timestamp_frame, narration_text, …}], …}, narration_pass_2: …}}`.
//! Two annotators described each video, each in one pass; both are read. It is read once to find
//! the videos in it, and then video by video, so that the memory is that of the largest one.
//!
//! Rules:
//!
//! - A narration has one time, without a length. Its clip goes from t − β/2α to t + β/2α, as in
//!   EgoVLP's set EgoClip (arXiv 2206.01670): β is the average gap between the narrations of
//!   the video, and α, the average of β over all videos, is 4.9 s. So a clip of an average video
//!   lasts 1 s. β is taken over one pass here, because gaps between annotators mean nothing. A pass
//!   whose β is 0, such as one with a single narration, has clips of 1 s.
//! - A clip starts at 0 s at the earliest. It may end after the video.
//! - The caption is the text without its first word `#C` (the camera wearer acts) or `#O` (another
//!   person acts), which is a mark for programs. `narration_text` in the json has the text as
//!   published.
//! - A narration with `#unsure` is left out, and so is a text of less than two words.

mod members;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::members::{Member, Members};
use super::Give;
use super::files::{Annotations, MediaFolder, number, read_error, span};
use super::left_out::{BAD_PATH, BROKEN, NO_TEXT, Reason, UNSURE};
use crate::error::DataError;
use crate::json;
use crate::prepare::item::{Item, MediaSource, Visual};
use crate::storage::{Storage, StoredFile};

/// The passes of the annotators over a video.
const PASSES: [&str; 2] = ["narration_pass_1", "narration_pass_2"];

/// EgoVLP's α in seconds: the average gap between two narrations of a video of Ego4D.
const EGOVLP_ALPHA: f64 = 4.9;

/// Depth of a narration in the file, which is a list in a pass of a video.
const NARRATION_DEPTH: usize = 5;

/// Files of Ego4D.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Ego4dOptions {
    /// Path or URL of `narration.json`.
    #[arg(long, value_name = "FILE")]
    pub narrations: String,
    /// Folder of the videos, `<video_uid>.mp4`.
    #[arg(long, value_name = "FOLDER")]
    pub videos: PathBuf,
    /// Average gap between two narrations in seconds, by which all clips are scaled: half of it
    /// makes them twice as long. Default: 4.9, EgoVLP's value.
    #[arg(long, value_name = "SECONDS", default_value_t = EGOVLP_ALPHA)]
    pub alpha: f64,
}

impl Ego4dOptions {
    /// Options with the default values.
    #[must_use]
    pub fn new(narrations: impl Into<String>, videos: impl Into<PathBuf>) -> Self {
        Self { narrations: narrations.into(), videos: videos.into(), alpha: EGOVLP_ALPHA }
    }
}

/// Narrations and videos of Ego4D.
#[derive(Debug)]
pub struct Ego4d {
    storage: Storage,
    narrations: Annotations,
    videos: MediaFolder,
    options: Ego4dOptions,
}

/// Consecutive videos of the file of narrations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ego4dPart {
    /// Offset of the name of the first video in the file, in bytes.
    start: u64,
    videos: u64,
}

impl Ego4d {
    /// Opens the file of narrations.
    ///
    /// # Errors
    /// If the file cannot be read, the folder of the videos does not exist, or `alpha` is not a
    /// length of time.
    pub fn open(storage: &Storage, options: &Ego4dOptions) -> Result<Self, DataError> {
        let narrations = Annotations::find(storage, &options.narrations)?;
        let alpha = options.alpha;
        if !(alpha.is_finite() && alpha > 0.0) {
            let reason = format!("alpha is {alpha}, but must be a number of seconds above 0");
            return Err(narrations.unusable(reason));
        }
        let videos = MediaFolder::open(&options.videos)?;
        Ok(Self { storage: storage.clone(), narrations, videos, options: options.clone() })
    }

    /// What tells the set from another one: names with values.
    pub(super) fn identity(&self) -> BTreeMap<String, String> {
        let Ego4dOptions { narrations, videos, alpha } = &self.options;
        let version = Annotations::hash(std::iter::once(&self.narrations));
        let identity = [
            ("--narrations", narrations.clone()),
            ("hash of the version of the narrations", version),
            ("--videos", videos.display().to_string()),
            ("--alpha", alpha.to_string()),
        ];
        identity.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Consecutive videos with about `items` narrations. Reads the file once; a video is in one
    /// part as a whole.
    ///
    /// # Errors
    /// If the file cannot be read, has changed since the set was opened, or is not one JSON object.
    pub fn parts(&self, items: usize) -> Result<Vec<Ego4dPart>, DataError> {
        let file = self.narrations.open(&self.storage)?;
        let mut members = self.members(&file, 0)?;
        let (mut parts, mut count) = (Vec::<Ego4dPart>::new(), 0);
        while let Some(video) = self.next(&mut members, None)? {
            match parts.last_mut() {
                Some(last) if count < items.max(1) => last.videos += 1,
                _ => {
                    parts.push(Ego4dPart { start: video.start, videos: 1 });
                    count = 0;
                }
            }
            count += video.objects.max(1);
        }
        Ok(parts)
    }

    /// Gives the narrations of a part. Their keys are the video, the pass and the number of the
    /// narration in the pass, counted from 1.
    ///
    /// # Errors
    /// If the file cannot be read or has changed, or `give` fails.
    pub fn read(&self, part: &Ego4dPart, give: &mut Give<'_>) -> Result<(), DataError> {
        let file = self.narrations.open(&self.storage)?;
        let mut members = self.members(&file, part.start)?;
        let mut bytes = Vec::new();
        for _ in 0..part.videos {
            let Some(video) = self.next(&mut members, Some(&mut bytes))? else {
                return Err(self.narrations.unusable("it has fewer videos than before"));
            };
            match passes(&bytes) {
                Ok(passes) => self.give_video(&video.name, &passes, give)?,
                Err(reason) => give(Err(reason.of(format!("video {}", video.name))))?,
            }
        }
        Ok(())
    }

    fn members<'a>(&self, file: &'a StoredFile, start: u64) -> Result<Members<'a>, DataError> {
        let members = Members::at(file, start, NARRATION_DEPTH);
        members.map_err(read_error(file))
    }

    fn next(
        &self,
        members: &mut Members<'_>,
        value: Option<&mut Vec<u8>>,
    ) -> Result<Option<Member>, DataError> {
        members.next_member(value).map_err(|error| match error {
            members::Fault::Read(cause) => {
                let path = self.narrations.location().to_string().into();
                DataError::Io { action: "read", path, cause }
            }
            members::Fault::Content(reason) => self.narrations.unusable(reason),
        })
    }

    fn give_video(
        &self,
        uid: &str,
        passes: &[(usize, Vec<Value>)],
        give: &mut Give<'_>,
    ) -> Result<(), DataError> {
        let video = self.video(uid);
        for (pass, narrations) in passes {
            let half = half_width(narrations, self.options.alpha);
            for (narration, number) in narrations.iter().zip(1..) {
                let item = video.clone().and_then(|video| clip(narration, half, video)).map(
                    |(visual, caption, mut json)| {
                        json.insert("video_uid".to_owned(), uid.into());
                        json.insert("narration_pass".to_owned(), (*pass).into());
                        let key = format!("{uid}-{pass}-{number:05}");
                        Item { key, visual, caption: Some(caption), json }
                    },
                );
                let place = || format!("video {uid}, pass {pass}, narration {number}");
                give(item.map_err(|reason| reason.of(place())))?;
            }
        }
        Ok(())
    }

    fn video(&self, uid: &str) -> Result<MediaSource, Reason> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if uid.is_empty() || uid.len() > 100 || !uid.chars().all(allowed) {
            return Err(Reason::new(BAD_PATH, format!("`{uid}` is not the name of a video")));
        }
        self.videos.video(uid, &["mp4"]).map(MediaSource::File)
    }
}

/// Narrations of the passes of a video, with the numbers of the passes. A pass may be missing.
fn passes(video: &[u8]) -> Result<Vec<(usize, Vec<Value>)>, Reason> {
    let broken = |error| Reason::new(BROKEN, format!("the video cannot be parsed: {error}"));
    let Value::Object(mut video) = json::parse(video).map_err(broken)? else {
        return Err(Reason::broken("the video is not a JSON object"));
    };
    let mut passes = Vec::new();
    for (name, number) in PASSES.into_iter().zip(1..) {
        match video.remove(name) {
            None | Some(Value::Null) => {}
            Some(Value::Object(mut pass)) => match pass.remove("narrations") {
                Some(Value::Array(narrations)) => passes.push((number, narrations)),
                None | Some(Value::Null) => {}
                Some(_) => {
                    return Err(Reason::broken(format!("`{name}.narrations` is not a list")));
                }
            },
            Some(_) => return Err(Reason::broken(format!("`{name}` is not an object"))),
        }
    }
    if passes.is_empty() {
        return Err(Reason::new(NO_TEXT, "the video has no narrations"));
    }
    Ok(passes)
}

fn time(narration: &Value) -> Option<f64> {
    narration.get("timestamp_sec")?.as_f64().filter(|time| time.is_finite())
}

/// Half of the length of a clip of the pass in seconds: β/2α.
fn half_width(narrations: &[Value], alpha: f64) -> f64 {
    let times = || narrations.iter().filter_map(time);
    let (first, last) = (times().reduce(f64::min), times().reduce(f64::max));
    let gaps = times().count().saturating_sub(1);
    let length = last.zip(first).map_or(0.0, |(last, first)| last - first);
    // A count of narrations is far below 2⁵³.
    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2⁵³")]
    let beta = if length > 0.0 { length / gaps as f64 } else { alpha };
    beta / alpha / 2.0
}

/// Clip, caption and json of a narration.
fn clip(
    narration: &Value,
    half: f64,
    video: MediaSource,
) -> Result<(Visual, String, Map<String, Value>), Reason> {
    let Value::Object(mut json) = narration.clone() else {
        return Err(Reason::broken("the narration is not an object"));
    };
    let Some(Value::String(text)) = json.get("narration_text") else {
        return Err(Reason::broken("`narration_text` is not a text"));
    };
    let caption = caption(text)?;
    let time = number(&json, "timestamp_sec")?;
    if time < 0.0 {
        span(time, time)?;
    }
    let seconds = span((time - half).max(0.0), time + half)?;
    json.insert("clip_start".to_owned(), json!(seconds.start));
    json.insert("clip_end".to_owned(), json!(seconds.end));
    Ok((Visual::Clip { video, seconds: Some(seconds) }, caption, json))
}

/// The text without the mark of the person who acts.
fn caption(text: &str) -> Result<String, Reason> {
    let text = text.trim();
    if text.to_lowercase().contains("#unsure") {
        return Err(Reason::new(UNSURE, format!("the annotator was not sure: `{text}`")));
    }
    let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let marked = first.eq_ignore_ascii_case("#c") || first.eq_ignore_ascii_case("#o");
    let caption = if marked { rest.trim_start() } else { text };
    if caption.split_whitespace().count() < 2 {
        return Err(Reason::new(NO_TEXT, format!("`{text}` describes nothing")));
    }
    Ok(caption.to_owned())
}

#[cfg(test)]
mod tests;
